//! Logs, metrics and traces of a process.
//!
//! Invariant: telemetry never fails or slows the work: what cannot be exported is dropped and counted.

mod exposition;
pub mod labels;
mod log_filter;
mod metrics_table;
mod trace_context;

pub use log_filter::LogFilter;
pub use metrics_table::{Kind, METRICS, Metric};
pub use trace_context::TraceContext;

use std::io::IsTerminal;
use std::sync::Arc;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Settings;

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
    /// Starts logs, metrics and, where an OTLP endpoint is set, traces. Once per process.
    ///
    /// # Errors
    /// A text that says what could not be set up.
    pub fn start(service: &'static str, settings: &Settings) -> Result<Self, String> {
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
            Some(endpoint) => Some(otlp_tracer(service, endpoint)?),
            None => None,
        };
        let spans = tracer
            .as_ref()
            .map(|t| tracing_opentelemetry::layer().with_tracer(t.tracer("agenthub")));
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        tracing_subscriber::registry()
            .with(filter)
            .with(spans)
            .with(logs)
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

    /// Sends what was not sent yet.
    pub fn flush(&self) {
        if let Some(tracer) = &self.tracer
            && let Err(error) = tracer.shutdown()
        {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

fn otlp_tracer(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, String> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|e| format!("OTEL_EXPORTER_OTLP_ENDPOINT: {e}"))?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
