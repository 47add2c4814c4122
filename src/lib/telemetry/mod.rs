//! Logs, metrics and traces of a process.
//!
//! Invariant: telemetry never fails or slows the work: what cannot be exported is dropped and counted.

mod export;
mod exposition;
pub mod labels;
mod log_filter;
mod metrics_table;
mod spans;
mod trace_context;

pub use log_filter::LogFilter;
pub use metrics_table::{Kind, METRICS, Metric};
pub use spans::{SPANS, failed, note, tracing_now};
pub use trace_context::TraceContext;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::export::Export;
use crate::config::Settings;
use crate::privacy::mask::Masker;

/// The telemetry of a process; flushed at its end.
pub struct Telemetry {
    metrics: PrometheusHandle,
    log_filter: LogFilter,
    tracer: Option<SdkTracerProvider>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("traces", &self.tracer.is_some())
            .finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Starts logs, metrics and, where an OTLP endpoint is set, traces, whose texts leave masked. Once
    /// per process.
    ///
    /// # Errors
    /// A text that says what could not be set up.
    pub fn start(
        service: &'static str,
        settings: &Settings,
        masker: &Arc<Masker>,
    ) -> Result<Self, String> {
        let (filter, log_filter) = LogFilter::new(&settings.log)?;
        let pretty = settings.log_format == "pretty";
        let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let logs = if pretty {
            logs.with_ansi(std::io::stderr().is_terminal()).boxed()
        } else {
            logs.json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .boxed()
        };
        let tracer = match &settings.otlp_endpoint {
            Some(endpoint) => Some(otlp_tracer(service, endpoint, settings, masker)?),
            None => None,
        };
        // Whatever is logged: a trace is whole or not there. What other libraries tell is not ours.
        let spans = tracer.as_ref().map(|tracer| {
            let scope = InstrumentationScope::builder("agenthub")
                .with_version(env!("CARGO_PKG_VERSION"))
                .with_schema_url(spans::SCHEMA_URL)
                .build();
            tracing_opentelemetry::layer()
                .with_tracer(tracer.tracer_with_scope(scope))
                .with_location(false)
                .with_threads(false)
                .with_target(false)
                .with_level(false)
                .with_tracked_inactivity(false)
                .with_filter(filter_fn(|of| {
                    of.is_span() && of.target().starts_with("agenthub")
                }))
        });
        // Inside of them the log tells of the work, and not of the call.
        let filter = filter_fn(|of| of.target() != SPANS).and(filter);
        tracing_subscriber::registry()
            .with(logs.with_filter(filter))
            .with(spans)
            .try_init()
            .map_err(|e| format!("logs: {e}"))?;
        let metrics = exposition::builder()
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|e| format!("metrics: {e}"))?;
        metrics_table::describe();
        labels::limit_tenants(settings.metrics_tenants);
        metrics::gauge!("agenthub_build_info", "version" => env!("CARGO_PKG_VERSION"), "service" => service).set(1.0);
        Ok(Self {
            metrics,
            log_filter,
            tracer,
        })
    }

    /// Renders the metrics.
    pub fn metrics(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let metrics = self.metrics.clone();
        Arc::new(move || exposition::render(&metrics))
    }

    /// What is logged, to be changed while the process runs.
    pub fn log_filter(&self) -> LogFilter {
        self.log_filter.clone()
    }

    /// Sends what was not sent yet, as far as that takes no longer than `limit`. Blocks.
    pub fn flush(&self, limit: Duration) {
        if let Some(tracer) = &self.tracer
            && let Err(error) = tracer.shutdown_with_timeout(limit)
        {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

fn otlp_tracer(
    service: &'static str,
    endpoint: &str,
    settings: &Settings,
    masker: &Arc<Masker>,
) -> Result<SdkTracerProvider, String> {
    let wrong = |error: String| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {error}");
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(settings.otlp_timeout_ms.duration())
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new(
            "service.instance.id",
            uuid::Uuid::new_v4().to_string(),
        ))
        .build();
    let export = Export::start(exporter, &resource, settings, masker.clone()).map_err(wrong)?;
    // All of a trace or nothing of it, in every process: who began it has decided.
    let ratio = Sampler::TraceIdRatioBased(settings.trace_ratio.0);
    Ok(SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_span_processor(export)
        .with_resource(resource)
        .build())
}
