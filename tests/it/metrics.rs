//! Metrics as processes expose them: described, and bounded in number whatever comes from outside.

use std::collections::{BTreeMap, BTreeSet};

use agenthub::telemetry::{Kind, METRICS};
use futures_util::StreamExt;
use reqwest::{Client, Method, StatusCode};
use serde_json::json;

use crate::dashboards::{PROCESSES, full, work};
use crate::support::eventually;
use crate::support::stack::{Stack, body, mint};

/// Metrics that a healthy installation under a small load does not show, and why.
const SHOWN_ON_A_FAULT: &[(&str, &str)] = &[
    ("agenthub_llm_deltas_total", "an agent answers"),
    ("agenthub_dlq_alerts_total", "an operator wants webhooks"),
    (
        "agenthub_dlq_alerts_dropped_total",
        "an operator wants webhooks",
    ),
    ("agenthub_dlq_redriven_total", "a dead letter is redriven"),
    ("agenthub_cache_hits_total", "a call was answered before"),
    (
        "agenthub_cache_lookups_total",
        "a call may be answered from before",
    ),
    ("agenthub_breaker_state", "a call fails"),
    ("agenthub_breaker_transitions_total", "a breaker opens"),
    ("agenthub_tls_reloads_total", "a certificate changes"),
    (
        "agenthub_connections_refused_total",
        "there are too many connections",
    ),
    (
        "agenthub_audit_summed_total",
        "records of requests find no place",
    ),
    ("agenthub_redis_errors_total", "Redis fails"),
    (
        "agenthub_stream_resyncs_total",
        "Redis' subscription breaks",
    ),
    ("agenthub_spans_exported_total", "traces go somewhere"),
    (
        "agenthub_spans_dropped_total",
        "an OTLP endpoint does not take them",
    ),
    ("agenthub_task_restarts_total", "a task panics"),
    ("agenthub_task_panics_total", "a piece of work panics"),
    ("agenthub_consumer_panics_total", "a handler panics"),
    (
        "agenthub_consumer_poisoned_total",
        "a record fails every time",
    ),
    (
        "agenthub_consumer_commit_errors_total",
        "the broker refuses a commit",
    ),
    (
        "agenthub_outbox_removals_dropped_total",
        "65,536 removals wait",
    ),
    ("agenthub_kafka_client_errors_total", "a broker is away"),
    (
        "agenthub_rollup_manifests_total",
        "a batch of audit records is written",
    ),
    (
        "agenthub_rollup_last_manifest_seconds",
        "a batch of audit records is written",
    ),
    (
        "agenthub_rollup_manifest_lag_seconds",
        "a batch of audit records is written",
    ),
    (
        "agenthub_rollup_signature_failures_total",
        "somebody else signed a manifest",
    ),
    (
        "agenthub_rollup_head_failures_total",
        "a head finds no place",
    ),
    ("agenthub_budget_used_ratio", "a tenant has a budget"),
    (
        "agenthub_rollup_records_total",
        "a batch of audit records is written",
    ),
    (
        "agenthub_rollup_files_total",
        "a batch of audit records is written",
    ),
    (
        "agenthub_rollup_write_seconds",
        "a batch of audit records is written",
    ),
    (
        "agenthub_sweeper_actions_total",
        "a worker dies, or a run waits",
    ),
    ("agenthub_dead_letters_total", "a record is given up"),
    ("agenthub_dlq_indexed_total", "a record is given up"),
];

/// `# TYPE` lines: kinds by name.
fn types(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    lines.filter_map(|line| line.split_once(' ')).collect()
}

/// The values that a label has.
fn values<'a>(text: &'a str, label: &str) -> BTreeSet<&'a str> {
    let begin = format!("{label}=\"");
    let parts = text.split(begin.as_str()).skip(1);
    parts.filter_map(|part| part.split('"').next()).collect()
}

fn series(text: &str) -> usize {
    let lines = text.lines();
    lines.filter(|line| line.starts_with("agenthub_")).count()
}

/// What is exposed is in the table, as the kind that the table says, with its help; what is in the table is
/// exposed, but for what needs a fault.
#[tokio::test]
async fn everything_exposed_is_described() {
    let stack = full().await;
    work(stack).await;
    let excused: BTreeSet<&str> = SHOWN_ON_A_FAULT.iter().map(|(name, _)| *name).collect();
    let missing = eventually("every metric appears", async || {
        let mut seen = BTreeSet::new();
        for process in PROCESSES {
            let text = stack.metrics(process).await;
            for (name, kind) in types(&text) {
                let metric = METRICS.iter().find(|m| m.name == name);
                let metric = metric.unwrap_or_else(|| panic!("{name} is not described"));
                let expected = match metric.kind {
                    Kind::Counter => "counter",
                    Kind::Gauge => "gauge",
                    Kind::Histogram => "histogram",
                };
                assert_eq!(kind, expected, "{name} of {process}");
                let help = format!("# HELP {name} {}", metric.help);
                assert!(text.contains(&help), "{help}\n{text}");
                seen.insert(name.to_owned());
            }
        }
        let names = METRICS.iter().map(|m| m.name);
        let missing: Vec<_> = names
            .filter(|name| !seen.contains(*name) && !excused.contains(name))
            .collect();
        if !missing.is_empty() {
            work(stack).await;
            eprintln!("not yet: {missing:?}");
        }
        missing.is_empty().then_some(missing)
    })
    .await;
    assert!(missing.is_empty());
    for (name, _) in SHOWN_ON_A_FAULT {
        assert!(METRICS.iter().any(|m| m.name == *name), "{name}");
    }
}

/// A list of prices with odd models, since one without a price is refused.
fn prices_of(models: usize) -> String {
    let price = |name: &str| {
        format!("[[price]]\nmodel = \"{name}\"\nfrom = \"2024-01-01\"\ninput = 1\noutput = 1\n")
    };
    let odd = (0..models).map(|n| price(&format!("odd-{n}")));
    price("gpt-4o-mini") + &odd.collect::<String>()
}

async fn odd(client: &Client, stack: &Stack, n: usize) -> StatusCode {
    let request = match n % 10 {
        // Tenants that nobody made, with keys that nobody signed.
        0 | 1 => client
            .get(stack.url("/v1/runs"))
            .bearer_auth(format!("ah_odd{n}_0123456789abcdef_{n:064x}")),
        // Tools that do not exist.
        2 | 3 => client
            .post(stack.url("/v1/execute"))
            .bearer_auth(&stack.api_key)
            .json(&json!({ "plan": { "steps": [{ "id": "s1", "tool": format!("odd_{n}"), "args": {} }] } })),
        // Methods that do not exist.
        4 => {
            let method = Method::from_bytes(format!("ODD{n}").as_bytes()).unwrap();
            client.request(method, stack.url("/v1/runs"))
        }
        // Known routes with odd ends.
        5 => client
            .get(stack.url(&format!("/v1/runs/odd-{n}")))
            .bearer_auth(&stack.api_key),
        // Paths that do not exist.
        _ => client.get(stack.url(&format!("/odd/{n}/path?odd={n}"))),
    };
    request.send().await.unwrap().status()
}

/// 10,000 odd paths, tools, methods and tenants, and then real tenants and models beyond the bounds.
#[tokio::test]
async fn nothing_from_outside_makes_series_without_bound() {
    const REQUESTS: usize = 10_000;
    const TENANTS: usize = 12;
    const MODELS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.toml");
    std::fs::write(&prices, prices_of(MODELS)).unwrap();
    let stack = Stack::start(&[
        ("AGENTHUB_METRICS_TENANTS", "5"),
        ("AGENTHUB_PRICES_FILE", prices.to_str().unwrap()),
    ])
    .await;
    let client = Client::builder().no_proxy().build().unwrap();
    for n in 0..10 {
        odd(&client, &stack, n).await;
    }
    let before = series(&stack.metrics("api").await);

    let statuses: BTreeSet<u16> = futures_util::stream::iter(0..REQUESTS)
        .map(|n| {
            let (client, stack) = (&client, &stack);
            async move { odd(client, stack, n).await.as_u16() }
        })
        .buffer_unordered(16)
        .collect()
        .await;
    // Refused for what they were.
    let expected = BTreeSet::from([401, 404, 405, 422]);
    assert!(statuses.is_superset(&expected), "{statuses:?}");
    let after = stack.metrics("api").await;
    let added = series(&after) - before;
    assert!(added < 200, "{added} series more than the {before} before");

    // Tenants that exist, each with a run, and models that nobody has heard of.
    let keys = stack.keys();
    let mut runs = Vec::new();
    for n in 0..TENANTS.max(MODELS) {
        let tenant = format!("odd-{}", n % TENANTS).parse().unwrap();
        let key = mint(&keys, &tenant, agenthub::governance::Role::Client).await;
        let session = client
            .post(stack.url("/v1/sessions"))
            .bearer_auth(&key)
            .json(&json!({}))
            .send();
        let (_, session) = body(session.await.unwrap()).await;
        let request = json!({
            "session_id": session["session_id"],
            "goal": "Get ROAS for advertiser 1",
            "model": format!("odd-{n}"),
        });
        let answer = client
            .post(stack.url("/v1/plan"))
            .bearer_auth(&key)
            .header("Prefer", "wait=30")
            .json(&request)
            .send();
        runs.push(answer);
    }
    for answer in futures_util::future::join_all(runs).await {
        let answer = answer.unwrap();
        let status = answer.status();
        assert!(
            status.is_success(),
            "{status} {}",
            answer.text().await.unwrap()
        );
    }
    for process in ["api", "planner", "executor"] {
        let text = stack.metrics(process).await;
        let (tenants, models) = (values(&text, "tenant"), values(&text, "model"));
        assert!(tenants.len() <= 6, "{process}: {tenants:?}");
        assert!(models.len() <= 33, "{process}: {models:?}");
        let named = ["route", "tool", "method", "rule", "script", "code"];
        for label in named {
            let values = values(&text, label);
            assert!(
                values.iter().all(|v| !v.to_lowercase().contains("odd")),
                "{label}: {values:?}"
            );
        }
        assert!(series(&text) < 3000, "{process}: {} series", series(&text));
        if process == "planner" {
            assert!(
                tenants.contains("other") && models.contains("other"),
                "{tenants:?} {models:?}"
            );
        }
    }
}
