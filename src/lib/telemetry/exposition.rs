//! How metrics are bucketed and rendered.

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Upper bounds in milliseconds. 300 and 2500 are the bounds of the service levels (`make slo`).
const BUCKETS_MS: &[f64] = &[
    0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 2500.0, 5000.0,
    10_000.0, 30_000.0, 60_000.0, 300_000.0,
];

/// Upper bounds in seconds.
const BUCKETS_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// A recorder whose histograms can be added up over processes.
pub(super) fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_ms".to_owned()), BUCKETS_MS)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS_SECONDS)
}

/// The metrics in Prometheus' text format.
pub(super) fn render(metrics: &PrometheusHandle) -> String {
    metrics.run_upkeep();
    as_counter(metrics.render(), "agenthub_cost_usd_total")
}

/// A sum of fractions that only rises: the recorder knows it as a gauge, Prometheus as a counter.
fn as_counter(text: String, name: &str) -> String {
    let gauge = format!("# TYPE {name} gauge\n");
    if text.contains(&gauge) {
        text.replacen(&gauge, &format!("# TYPE {name} counter\n"), 1)
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_and_the_cost_is_a_counter() {
        let recorder = builder().unwrap().build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::gauge!("agenthub_cost_usd_total", "model" => "m").increment(0.25);
            metrics::histogram!("agenthub_latency_ms").record(299.0);
            metrics::histogram!("agenthub_kafka_produce_seconds").record(0.2);
        });
        let text = render(&handle);
        for expected in [
            "# TYPE agenthub_cost_usd_total counter",
            "agenthub_cost_usd_total{model=\"m\"} 0.25",
            "agenthub_latency_ms_bucket{le=\"200\"} 0",
            "agenthub_latency_ms_bucket{le=\"300\"} 1",
            "agenthub_kafka_produce_seconds_bucket{le=\"0.25\"} 1",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}
