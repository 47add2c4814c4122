//! Every expression of every dashboard and rule, evaluated by a real Prometheus that scrapes a real
//! installation under a small load: none is an error, and none is empty but those that say of a fault.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agenthub::governance::Role;
use agenthub::messages::Topic;
use agenthub::rollup::AuditSigner;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use regex::Regex;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::stack::{Stack, mint};
use crate::support::tools::{root, tool};
use crate::support::{eventually, reaper};

/// The jobs that Prometheus scrapes, which are the processes.
pub const PROCESSES: [&str; 5] = ["api", "planner", "executor", "audit-rollup", "dlq"];

/// Metrics that need a fault, or something that is not in every installation, to appear, and why. An
/// expression over one of them may be empty.
const MAY_BE_EMPTY: &[(&str, &str)] = &[
    (
        "agenthub_cache_hits_total",
        "counts calls that were answered before",
    ),
    ("agenthub_budget_used_ratio", "no tenant has a budget yet"),
    ("agenthub_redis_errors_total", "counts failures of Redis"),
    (
        "agenthub_kafka_client_errors_total",
        "counts failures of brokers",
    ),
    (
        "agenthub_stream_resyncs_total",
        "counts breaks of the subscription",
    ),
    ("agenthub_spans_", "traces go nowhere by default"),
    ("agenthub_task_restarts_total", "counts panics"),
    ("agenthub_task_panics_total", "counts panics"),
    ("agenthub_consumer_panics_total", "counts panics"),
    (
        "agenthub_consumer_poisoned_total",
        "counts records that fail every time",
    ),
    (
        "agenthub_consumer_commit_errors_total",
        "counts commits that were refused",
    ),
    (
        "agenthub_outbox_removals_dropped_total",
        "counts removals that were dropped",
    ),
    (
        "agenthub_sweeper_actions_total",
        "counts what nothing else did in time",
    ),
    (
        "agenthub_rollup_signature_failures_total",
        "counts manifests that somebody else signed",
    ),
    (
        "agenthub_rollup_head_failures_total",
        "counts heads that found no place",
    ),
    ("agenthub_llm_deltas_total", "counts what agents write"),
    ("agenthub_dlq_", "counts dead letters and what follows them"),
    (
        "agenthub_cache_lookups_total",
        "counts calls that may be answered from before",
    ),
    (
        "agenthub_breaker_",
        "a breaker is told of when a call failed",
    ),
    (
        "agenthub_tls_reloads_total",
        "counts changes of certificates",
    ),
    (
        "agenthub_connections_refused_total",
        "counts connections beyond the bound",
    ),
    (
        "agenthub_audit_summed_total",
        "counts records that found no place",
    ),
    ("== 0", "is there while a process is down"),
    ("absent(", "is there when nothing is"),
    (" unless ", "is there while a series is new"),
];

/// An installation with every process.
pub async fn full() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    STACK
        .get_or_init(|| async {
            // Files are written soon, and a tenant is soon at its limit.
            let mut stack = Stack::bare(&[
                ("AGENTHUB_ROLLUP_MAX_AGE_MS", "500"),
                ("AGENTHUB_TENANT_LIMITS", "200/1000"),
            ])
            .await;
            let signer = AuditSigner::generate(None).unwrap();
            let key = signer.private_text();
            stack.set("AGENTHUB_AUDIT_SIGNING_KEY", key.expose_secret());
            stack.spawn_simulator(&[]).await;
            stack.spawn_all(&PROCESSES).await;
            stack
        })
        .await
}

/// A small load: runs that succeed, fail, are cancelled; streams; refusals; a record that nobody signed.
pub async fn work(stack: &Stack) {
    let session = stack.session().await;
    for goal in [
        "Get ROAS for advertiser 123 over 7 days",
        "Find what the docs say about idempotency and summarise it",
        "Fetch http://127.0.0.1:1/page and tell me its title",
        "Get ROAS for advertiser 1 [[sim: {\"status\": 400}]]",
    ] {
        let run = stack.submit(&session, goal).await;
        stack.events(&run).await;
    }
    let slow = "Get ROAS for advertiser 1 [[sim: {\"latency_ms\": 20000}]]";
    let run = stack.submit(&session, slow).await;
    let (status, told) = stack.cancel(&run, "force").await;
    assert!(status.is_success(), "{told}");
    stack.ended(&run).await;
    let key = burst_key(stack).await;
    let refused = async || {
        let request = stack.http.get(stack.url("/v1/runs")).bearer_auth(key);
        request.send().await.unwrap().status() == reqwest::StatusCode::TOO_MANY_REQUESTS
    };
    while !futures_util::future::join_all((0..300).map(|_| refused()))
        .await
        .contains(&true)
    {}
    unsigned(stack).await;
}

/// The key of a tenant that asks too often.
async fn burst_key(stack: &Stack) -> &'static str {
    static KEY: OnceCell<String> = OnceCell::const_new();
    let tenant = "hasty".parse().unwrap();
    KEY.get_or_init(|| async { mint(&stack.keys(), &tenant, Role::Client).await })
        .await
}

/// Puts a record onto a topic that no process of the installation made.
async fn unsigned(stack: &Stack) {
    let kafka = stack.kafka();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .create()
        .unwrap();
    let topic = kafka.topic(Topic::PlanCommands);
    let record = FutureRecord::to(&topic).key("odd").payload("{}");
    producer
        .send(record, Duration::from_secs(10))
        .await
        .unwrap();
}

struct Prometheus {
    child: Child,
    url: String,
    client: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        reaper::ended(&self.child);
    }
}

impl Prometheus {
    /// Scrapes the installation each second and evaluates the rules as often.
    async fn start(binary: PathBuf, stack: &Stack) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("rules");
        std::fs::create_dir(&rules).unwrap();
        for file in rule_files() {
            let text = std::fs::read_to_string(&file).unwrap();
            let text = text.replace("interval: 30s", "interval: 1s");
            std::fs::write(rules.join(file.file_name().unwrap()), text).unwrap();
        }
        let jobs: Vec<_> = PROCESSES
            .iter()
            .map(|job| {
                let targets = [&stack.processes[*job].addr];
                json!({ "job_name": job, "static_configs": [{ "targets": targets }] })
            })
            .collect();
        // JSON is YAML.
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [rules.join("*.yml")],
            "scrape_configs": jobs,
        });
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, config.to_string()).unwrap();
        // Free at this moment; Prometheus does not take port 0.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(binary)
            .arg(format!("--config.file={}", path.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={addr}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        reaper::started(&child);
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let prometheus = Self {
            child,
            url: format!("http://{addr}"),
            client,
            _folder: folder,
        };
        eventually("Prometheus is ready", async || {
            let url = format!("{}/-/ready", prometheus.url);
            let answer = prometheus.client.get(url).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        prometheus
    }

    async fn api(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let url = url::Url::parse_with_params(&format!("{}{path}", self.url), query).unwrap();
        let answer = self.client.get(url).send().await.unwrap();
        answer.json().await.unwrap()
    }

    /// How many series an expression gives whose value is a number. `Err` says why it is none.
    async fn evaluate(&self, expression: &str) -> Result<usize, String> {
        let answer = self.api("/api/v1/query", &[("query", expression)]).await;
        if answer["status"] != "success" {
            return Err(answer["error"].to_string());
        }
        let result = answer["data"]["result"].as_array();
        let result = result.ok_or("no result")?;
        let numbers = result.iter().filter(|s| s["value"][1] != "NaN");
        Ok(numbers.count())
    }
}

pub fn rule_files() -> [PathBuf; 2] {
    ["alerts", "recording"].map(|name| root().join(format!("infra/prometheus/rules/{name}.yml")))
}

/// The dashboards by file.
pub fn dashboards() -> Vec<(PathBuf, Value)> {
    let folder = root().join("infra/grafana/dashboards");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let json = serde_json::from_str(&text).unwrap();
            (path, json)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The expressions of a dashboard's panels and variables, as Grafana would send them.
fn expressions(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            found.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    let variable = Regex::new(r"^label_values\((.*), (\w+)\)$").unwrap();
    for list in dashboard["templating"]["list"].as_array().unwrap() {
        let query = list["definition"].as_str().unwrap();
        let parts = variable.captures(query).unwrap();
        found.push(format!("count by ({}) ({})", &parts[2], &parts[1]));
        let name = format!("\"${}\"", list["name"].as_str().unwrap());
        for expression in &mut found {
            *expression = expression.replace(&name, "\".*\"");
        }
    }
    for expression in &mut found {
        *expression = expression.replace("$__rate_interval", "1m");
        assert!(!expression.contains('$'), "{expression}");
    }
    found
}

/// The series that an expression is made of, one expression each: whether there are any is known even when the
/// whole, as an alert's in peace, is rightly empty.
fn selectors(expression: &str) -> Vec<String> {
    let selector = Regex::new(r"(?:agenthub[:_][a-z0-9_:]+|\bup)(?:\{[^}]*\})?").unwrap();
    let found = selector.find_iter(expression);
    found.map(|m| m.as_str().to_owned()).collect()
}

fn may_be_empty(expression: &str) -> bool {
    MAY_BE_EMPTY
        .iter()
        .any(|(part, _)| expression.contains(part))
}

#[tokio::test]
async fn every_expression_has_an_answer() {
    let Some(binary) = tool("prometheus") else {
        return;
    };
    let stack = full().await;
    let prometheus = Prometheus::start(binary, stack).await;

    let mut expected = BTreeSet::new();
    let mut correct = BTreeSet::new();
    for (_, dashboard) in dashboards() {
        expected.extend(expressions(&dashboard));
    }
    let rules = prometheus.api("/api/v1/rules", &[]).await;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let expression = rule["query"].as_str().unwrap().to_owned();
            if rule["type"] == "recording" {
                expected.insert(expression);
            } else {
                expected.extend(selectors(&expression));
                correct.insert(expression);
            }
        }
    }
    assert!(expected.len() > 100, "{}", expected.len());
    assert!(correct.len() > 20, "{}", correct.len());
    for expression in &correct {
        if let Err(error) = prometheus.evaluate(expression).await {
            panic!("{expression}: {error}");
        }
    }

    // Rates need two scrapes, and the load between them.
    let mut waiting: Vec<String> = expected.into_iter().collect();
    let deadline = Instant::now() + Duration::from_mins(1);
    while !waiting.is_empty() && Instant::now() < deadline {
        work(stack).await;
        let mut still = Vec::new();
        for expression in waiting {
            match prometheus.evaluate(&expression).await {
                Err(error) => panic!("{expression}: {error}"),
                Ok(0) if !may_be_empty(&expression) => still.push(expression),
                Ok(_) => {}
            }
        }
        waiting = still;
    }
    assert!(waiting.is_empty(), "empty:\n{}", waiting.join("\n"));

    // No rule failed to evaluate.
    let rules = prometheus.api("/api/v1/rules", &[]).await;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule:#}");
        }
    }
}

/// What Grafana needs to show a dashboard, and a person to find their way.
#[test]
fn dashboards_are_whole() {
    let found = dashboards();
    let names: Vec<_> = found
        .iter()
        .map(|(path, _)| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["audit", "overview", "runs", "tenants", "workers"]);
    for (path, dashboard) in found {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert_eq!(dashboard["uid"], format!("agenthub-{name}"));
        assert!(!dashboard["title"].as_str().unwrap().is_empty());
        assert!(
            !dashboard["description"].as_str().unwrap().is_empty(),
            "{name}"
        );
        assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}: {title}");
            let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{name}: {title}");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(
                        taken.insert((x, y)),
                        "{name}: {title} lies over another panel"
                    );
                }
            }
            if panel["type"] == "row" {
                continue;
            }
            assert_eq!(panel["datasource"]["uid"], "prometheus", "{name}: {title}");
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name}: {title}"
            );
            let targets = panel["targets"].as_array().unwrap();
            assert!(!targets.is_empty(), "{name}: {title}");
            let mut letters = BTreeSet::new();
            for target in targets {
                assert!(
                    letters.insert(target["refId"].as_str().unwrap()),
                    "{name}: {title}"
                );
                assert!(target["legendFormat"].is_string(), "{name}: {title}");
            }
        }
    }
}
