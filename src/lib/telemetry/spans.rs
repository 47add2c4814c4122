//! What spans are told, by the names of the OpenTelemetry semantic conventions in the version of
//! [`SCHEMA_URL`]. Names of our own have no dot here, and the prefix `agenthub.` in a trace.

use opentelemetry::Value;
use opentelemetry::trace::Status;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The version of the semantic conventions that names and kinds follow.
pub(super) const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.37.0";

/// The target of spans that are in traces and not in the log: calls within a piece of work.
pub const SPANS: &str = "agenthub_span";

/// Tells a span something, for its trace alone.
pub fn note(span: &Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// Marks a span as failed. `kind` is a stable name.
pub fn failed(span: &Span, kind: &str) {
    span.set_attribute("error.type", kind.to_owned());
    span.set_status(Status::error(kind.to_owned()));
}

/// Whether this is part of a piece of work that has a span. What is done again and again in the
/// background has none, and makes no trace of its own.
pub fn tracing_now() -> bool {
    !Span::current().is_none()
}
