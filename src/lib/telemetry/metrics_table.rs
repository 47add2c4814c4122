//! Every metric, described once. `tests/it/documentation.rs` holds this table against the source.

/// What kind of metric it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts values in buckets.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What it counts or measures, its labels and unit included.
    pub help: &'static str,
}

macro_rules! metrics_table {
    ($($kind:ident $name:literal $help:literal;)+) => {
        /// Every metric.
        pub const METRICS: &[Metric] = &[$(Metric { name: $name, kind: Kind::$kind, help: $help }),+];
    };
}

metrics_table! {
    Counter "agenthub_requests_total" "HTTP requests by route (a template), method and status.";
    Histogram "agenthub_latency_ms" "Milliseconds from a request's arrival to its answer, by route (a template) and whether it waited for its run (`Prefer: wait`).";
    Counter "agenthub_rate_limited_total" "Requests refused by a rate limit, by tenant and rule.";
    Counter "agenthub_tokens_total" "Tokens by tenant, model and direction (input, output).";
    Counter "agenthub_cost_usd_total" "US dollars spent on models, by tenant and model.";
    Counter "agenthub_cache_hits_total" "Tool results taken from the cache, by tool.";
    Counter "agenthub_cache_lookups_total" "Looks for a kept tool result, by tool and outcome: hit, coalesced (from a call under way), miss, bypassed.";
    Gauge "agenthub_breaker_state" "The worst circuit breaker of a tool or model endpoint that this worker knows: 0 closed, 1 half-open, 2 open; by tool.";
    Counter "agenthub_breaker_transitions_total" "Changes of circuit breakers that this worker made or heard of, by tool and state.";
    Counter "agenthub_tool_executions_total" "Attempts of tool calls by tool and outcome.";
    Histogram "agenthub_tool_duration_ms" "Milliseconds of one attempt of a tool call, by tool.";
    Histogram "agenthub_llm_duration_ms" "Milliseconds of one model call, by model.";
    Counter "agenthub_llm_calls_total" "Attempts of model calls by model and outcome.";
    Counter "agenthub_llm_deltas_total" "Pieces of model answers told while they were written, by outcome.";
    Counter "agenthub_runs_total" "Runs that ended, by tenant, kind and outcome; not those that end as their session is erased.";
    Histogram "agenthub_run_duration_ms" "Milliseconds from a run's admission to its end with a worker, by kind and outcome.";
    Histogram "agenthub_queue_wait_ms" "Milliseconds from a run's admission until a worker took it up, by stage.";
    Counter "agenthub_acquires_total" "Commands that a worker looked at, by stage and outcome.";
    Counter "agenthub_sweeper_actions_total" "What the sweeper did, by action.";
    Gauge "agenthub_timer_delay_seconds" "Seconds that the oldest due timer had waited when this sweeper last looked.";
    Gauge "agenthub_outbox_age_seconds" "Seconds since the oldest record was put into an outbox that this sweeper lately found not acknowledged.";
    Counter "agenthub_dead_letters_total" "Records sent to the dead-letter topic, by class.";
    Counter "agenthub_dlq_indexed_total" "Dead letters put into the index, by class.";
    Counter "agenthub_dlq_alerts_total" "Webhooks about dead letters, by outcome: sent, retried, given_up.";
    Counter "agenthub_dlq_alerts_dropped_total" "Dead letters that no webhook tells of, because too many waited or the process ended.";
    Counter "agenthub_dlq_redriven_total" "Dead letters redriven through this process.";
    Counter "agenthub_rollup_records_total" "Audit records in files that a manifest lists.";
    Counter "agenthub_rollup_files_total" "Audit files that a manifest lists.";
    Counter "agenthub_rollup_manifests_total" "Audit manifests by outcome: written, or taken by another roll-up.";
    Histogram "agenthub_rollup_write_seconds" "Seconds from closing a batch of audit records to its manifest.";
    Gauge "agenthub_rollup_last_manifest_seconds" "When the last audit manifest was written, in seconds since the epoch, by partition.";
    Gauge "agenthub_rollup_manifest_lag_seconds" "Seconds that the oldest record of the last audit manifest waited for it, by partition.";
    Counter "agenthub_rollup_signature_failures_total" "Times that the last audit manifest was not signed by a known key, so that the roll-up stopped.";
    Counter "agenthub_rollup_head_failures_total" "Heads of audit chains that could not be published, by place.";
    Counter "agenthub_audit_summed_total" "Requests that are in the audit trail only as part of a sum.";
    Gauge "agenthub_audit_waiting" "Audit records of requests that wait to be produced.";
    Gauge "agenthub_budget_used_ratio" "Part of a tenant's monthly budget that is spent or reserved, by tenant; of those that have one.";
    Gauge "agenthub_leases" "Runs that this worker owns.";
    Gauge "agenthub_connections" "Open connections of the API's clients.";
    Counter "agenthub_connections_refused_total" "Connections that were closed because there were too many.";
    Counter "agenthub_tls_reloads_total" "Looks at a changed certificate, by outcome: replaced, refused.";
    Gauge "agenthub_sse_streams" "Open SSE streams of this process.";
    Counter "agenthub_stream_resyncs_total" "Times that every stream read the history again.";
    Gauge "agenthub_dependency_up" "Whether a dependency was well when it was last looked at, by dependency.";
    Counter "agenthub_spans_exported_total" "Spans that the OTLP endpoint took.";
    Counter "agenthub_spans_dropped_total" "Spans that were not exported, by reason: queue_full, export_failed.";
    Counter "agenthub_task_restarts_total" "Tasks that panicked and were started again, by task.";
    Counter "agenthub_task_panics_total" "Single pieces of work that panicked, by task.";
    Counter "agenthub_outbox_removals_dropped_total" "Acknowledged outbox entries whose removal was left to the sweeper.";
    Gauge "agenthub_consumer_assigned_partitions" "Partitions that this consumer has, by group.";
    Gauge "agenthub_consumer_in_flight" "Records that this consumer is handling, by group.";
    Gauge "agenthub_consumer_frontier_age_seconds" "Seconds since the oldest record under way was received, by group.";
    Gauge "agenthub_consumer_lag" "Records behind the end of the partition, by group, topic and partition.";
    Gauge "agenthub_consumer_lag_seconds" "Seconds since the oldest record was made that holds the offset back, by group, topic and partition.";
    Counter "agenthub_consumer_records_total" "Records received, by group.";
    Counter "agenthub_consumer_rebalances_total" "Changes of the assignment, by group and kind.";
    Counter "agenthub_consumer_panics_total" "Attempts at a record that panicked, by topic.";
    Counter "agenthub_consumer_poisoned_total" "Records that were given up after every attempt failed, by topic.";
    Counter "agenthub_consumer_commit_errors_total" "Commits that the broker refused.";
    Counter "agenthub_kafka_produce_total" "Records produced, by topic and outcome.";
    Histogram "agenthub_kafka_produce_seconds" "Seconds until a record was acknowledged, by topic.";
    Counter "agenthub_kafka_client_errors_total" "Errors that a Kafka client reported, by code.";
    Gauge "agenthub_kafka_up" "Whether this client sees a broker.";
    Gauge "agenthub_kafka_leaderless_partitions" "Partitions without a leader, as a consumer last saw them, by topic.";
    Histogram "agenthub_redis_script_ms" "Milliseconds of one call of a ledger script, by script.";
    Counter "agenthub_redis_errors_total" "Calls of ledger scripts that failed, by script.";
    Gauge "agenthub_build_info" "1, with the version and the service as labels.";
}

/// Tells the recorder what each metric means.
pub(super) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}
