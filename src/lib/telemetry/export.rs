//! The way of ended spans to the OTLP endpoint: a bounded queue, and a thread with a runtime of its own.
//!
//! Invariant: whoever ends a span never waits. An endpoint that is away, or slow, or takes everything
//! and never answers costs spans, which are counted.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::time::Duration;

use opentelemetry::trace::Status;
use opentelemetry::{Array, Context, Key, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::privacy::mask::Masker;

/// Spans of one export.
const BATCH: usize = 512;

/// Takes ended spans.
pub(super) struct Export {
    queue: mpsc::Sender<SpanData>,
    closing: CancellationToken,
    ended: Mutex<std_mpsc::Receiver<()>>,
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").finish_non_exhaustive()
    }
}

impl Export {
    /// Starts the thread that exports with `exporter`.
    ///
    /// # Errors
    /// A text that says what could not be started.
    pub(super) fn start<E: SpanExporter + 'static>(
        mut exporter: E,
        resource: &Resource,
        settings: &Settings,
        masker: Arc<Masker>,
    ) -> Result<Self, String> {
        exporter.set_resource(resource);
        let (queue, waiting) = mpsc::channel(settings.trace_queue);
        let closing = CancellationToken::new();
        let (end, ended) = std_mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let sending = Sending {
            exporter,
            masker,
            delay: settings.trace_delay_ms.duration(),
            // The client has the same limit; this one holds whatever the client does.
            limit: settings.otlp_timeout_ms.duration() + Duration::from_millis(500),
            closing: closing.clone(),
            failing: false,
        };
        std::thread::Builder::new()
            .name("span-export".to_owned())
            .spawn(move || {
                runtime.block_on(sending.run(waiting));
                let _ = end.send(());
            })
            .map_err(|e| e.to_string())?;
        Ok(Self {
            queue,
            closing,
            ended: Mutex::new(ended),
        })
    }
}

impl SpanProcessor for Export {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.try_send(span).is_err() {
            dropped("queue_full", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.closing.cancel();
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended
            .recv_timeout(timeout)
            .map_err(|_| OTelSdkError::Timeout(timeout))
    }
}

fn dropped(reason: &'static str, count: usize) {
    metrics::counter!("agenthub_spans_dropped_total", "reason" => reason)
        .increment(u64::try_from(count).unwrap_or(u64::MAX));
}

/// What the thread does.
struct Sending<E> {
    exporter: E,
    masker: Arc<Masker>,
    delay: Duration,
    limit: Duration,
    closing: CancellationToken,
    /// Whether the last export failed: that is logged when it begins and when it ends.
    failing: bool,
}

impl<E: SpanExporter> Sending<E> {
    async fn run(mut self, mut waiting: mpsc::Receiver<SpanData>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            // What waits is sent before the end.
            tokio::select! {
                biased;
                taken = waiting.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                () = self.closing.cancelled() => return,
            }
            let gathered = tokio::time::sleep(self.delay);
            tokio::pin!(gathered);
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                tokio::select! {
                    biased;
                    taken = waiting.recv_many(&mut batch, room) => if taken == 0 { break },
                    () = self.closing.cancelled() => break,
                    () = &mut gathered => break,
                }
            }
            self.export(std::mem::take(&mut batch)).await;
        }
    }

    async fn export(&mut self, batch: Vec<SpanData>) {
        let count = batch.len();
        let batch = batch.into_iter().map(|span| told(span, &self.masker));
        let export = self.exporter.export(batch.collect());
        let failure = match tokio::time::timeout(self.limit, export).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        match &failure {
            None => metrics::counter!("agenthub_spans_exported_total")
                .increment(u64::try_from(count).unwrap_or(u64::MAX)),
            Some(_) => dropped("export_failed", count),
        }
        match failure {
            Some(ref error) if !self.failing => {
                tracing::warn!(error, "spans cannot be exported; they are dropped");
            }
            None if self.failing => tracing::info!("spans are exported again"),
            _ => {}
        }
        self.failing = failure.is_some();
    }
}

/// A span as it leaves: masked, its own names with their prefix.
fn told(mut span: SpanData, masker: &Masker) -> SpanData {
    let attributes = |attributes: &mut Vec<KeyValue>| {
        for attribute in attributes {
            mask(&mut attribute.value, masker);
        }
    };
    span.name = Cow::Owned(masker.text(&span.name).to_string());
    // The log's way of saying where in a trace it is.
    span.attributes.retain(|a| a.key.as_str() != "trace_id");
    attributes(&mut span.attributes);
    for attribute in &mut span.attributes {
        if !attribute.key.as_str().contains('.') {
            attribute.key = Key::new(format!("agenthub.{}", attribute.key.as_str()));
        }
    }
    for event in &mut span.events.events {
        event.name = Cow::Owned(masker.text(&event.name).to_string());
        attributes(&mut event.attributes);
    }
    for link in &mut span.links.links {
        attributes(&mut link.attributes);
    }
    if let Status::Error { description } = &mut span.status {
        *description = Cow::Owned(masker.text(description).to_string());
    }
    span
}

fn mask(value: &mut Value, masker: &Masker) {
    let told = |text: &StringValue| StringValue::from(masker.text(text.as_str()).to_string());
    match value {
        Value::String(text) => *text = told(text),
        Value::Array(Array::String(texts)) => {
            for text in texts {
                *text = told(text);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::InstrumentationScope;
    use opentelemetry::trace::{SpanContext, SpanId, SpanKind};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_span_leaves_masked_and_under_its_full_names() {
        let canary = "mail canary@example.org";
        let texts = Array::String(vec![canary.into(), "fine".into()]);
        let mut events = SpanEvents::default();
        let event = vec![KeyValue::new("text", canary)];
        events.events.push(opentelemetry::trace::Event::new(
            canary,
            SystemTime::now(),
            event,
            0,
        ));
        let mut links = SpanLinks::default();
        let link = vec![KeyValue::new("text", canary)];
        links
            .links
            .push(opentelemetry::trace::Link::new(SpanContext::NONE, link, 0));
        let span = SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: canary.into(),
            start_time: SystemTime::now(),
            end_time: SystemTime::now(),
            attributes: vec![
                KeyValue::new("gen_ai.request.model", canary),
                KeyValue::new("texts", Value::Array(texts)),
                KeyValue::new("attempt", 2),
                KeyValue::new("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736"),
            ],
            dropped_attributes_count: 0,
            events,
            links,
            status: Status::error(canary),
            instrumentation_scope: InstrumentationScope::default(),
        };
        let told = told(span, &Masker::new(&[]).unwrap());
        assert!(!format!("{told:?}").contains("canary"), "{told:?}");
        let names: Vec<&str> = told.attributes.iter().map(|a| a.key.as_str()).collect();
        assert_eq!(
            names,
            ["gen_ai.request.model", "agenthub.texts", "agenthub.attempt"]
        );
        assert!(format!("{told:?}").contains("fine"), "{told:?}");
    }
}
