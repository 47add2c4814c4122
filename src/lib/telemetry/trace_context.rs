//! W3C Trace Context, level 1: the `traceparent` header that ties a request to its work everywhere.

use std::fmt;
use std::str::FromStr;

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use rand::Rng;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
}

/// A text that is not a `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidTraceparent;

impl TraceContext {
    /// The beginning of a new trace, sampled.
    pub fn generate() -> Self {
        let mut rng = rand::rng();
        let mut bytes = [0_u8; 24];
        rng.fill_bytes(&mut bytes);
        let (trace, span) = bytes.split_at(16);
        let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, b| n << 8 | u128::from(*b));
        // Zero is not a valid id.
        Self {
            trace_id: number(trace).max(1),
            span_id: u64::try_from(number(span)).unwrap_or(1).max(1),
            flags: 1,
        }
    }

    /// The trace id, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// Whether both places are in one trace.
    pub fn is_with(&self, other: &Self) -> bool {
        self.trace_id == other.trace_id
    }

    /// Makes `span` a child of this place, and returns the place of the span itself: the same as this
    /// one when spans are not exported.
    pub fn enter(self, span: &Span) -> Self {
        let parent = Context::new().with_remote_span_context(self.remote());
        if span.set_parent(parent).is_err() {
            return self;
        }
        Self::of(span).unwrap_or(self)
    }

    /// Links `span` to this place.
    pub fn link(self, span: &Span) {
        span.add_link(self.remote());
    }

    /// The place of a span; `None` when it is not to be exported by this process at all.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let here = context.span().span_context().clone();
        here.is_valid().then(|| Self {
            trace_id: u128::from_be_bytes(here.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(here.span_id().to_bytes()),
            flags: here.trace_flags().to_u8(),
        })
    }

    fn remote(self) -> SpanContext {
        SpanContext::new(
            TraceId::from(self.trace_id),
            SpanId::from(self.span_id),
            TraceFlags::new(self.flags),
            true,
            TraceState::default(),
        )
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            self.trace_id, self.span_id, self.flags
        )
    }
}

impl FromStr for TraceContext {
    type Err = InvalidTraceparent;

    fn from_str(text: &str) -> Result<Self, InvalidTraceparent> {
        let mut parts = text.split('-');
        let mut digits = |length: usize| {
            let part = parts
                .next()
                .filter(|p| p.len() == length)
                .ok_or(InvalidTraceparent)?;
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            if part.bytes().all(hex) {
                Ok(part)
            } else {
                Err(InvalidTraceparent)
            }
        };
        let version = digits(2)?;
        let (trace, span, flags) = (digits(32)?, digits(16)?, digits(2)?);
        let parsed = Self {
            trace_id: u128::from_str_radix(trace, 16).map_err(|_| InvalidTraceparent)?,
            span_id: u64::from_str_radix(span, 16).map_err(|_| InvalidTraceparent)?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| InvalidTraceparent)?,
        };
        // A later version may append fields; version 00 may not, and ff is forbidden.
        let tail = parts.next().is_some();
        if version == "ff"
            || (version == "00" && tail)
            || parsed.trace_id == 0
            || parsed.span_id == 0
        {
            return Err(InvalidTraceparent);
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_the_same() {
        let context = TraceContext::generate();
        assert_eq!(context.to_string().parse(), Ok(context));
        assert_eq!(context.trace_id().len(), 32);
    }

    #[test]
    fn invalid_headers_are_refused() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let span = "00f067aa0ba902b7";
        assert!(
            format!("00-{trace}-{span}-01")
                .parse::<TraceContext>()
                .is_ok()
        );
        assert!(
            format!("01-{trace}-{span}-01-later")
                .parse::<TraceContext>()
                .is_ok()
        );
        for wrong in [
            String::new(),
            format!("00-{trace}-{span}"),
            format!("00-{trace}-{span}-01-tail"),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
    }
}
