//! What an earlier version wrote is read by this one. `tests/fixtures/topics/v<N>` holds every topic of
//! a small installation as version N wrote it, to the byte; the keys in it are of that installation
//! alone, whose secrets are those of the tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use agenthub::governance::Role;
use agenthub::ids::{RunId, TenantId};
use agenthub::kafka::StoredRecord;
use agenthub::messages::{OLDEST_VERSION, Outgoing, SCHEMA_VERSION, Signer, Topic};
use agenthub::replay::Saved;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::redis::OwnRedis;
use crate::support::sse::kinds;
use crate::support::stack::{Stack, body, mint};
use crate::support::web::{Reply, Web};
use crate::support::{SIGNING, eventually};

/// The signatures cover the topics' names, and these the namespace.
const NAMESPACE: &str = "fixture";
/// Signs the audit manifests of these installations.
const AUDIT_KEY: &str = "a1:QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU=";
/// Ten years: what is recorded as live stays so.
const LONG_S: &str = "315360000";

/// What is known of a recorded installation beside its topics.
#[derive(Debug, Serialize, Deserialize)]
struct Recorded {
    api_key: String,
    admin_key: String,
    /// The session of all runs; one more was erased, and one has no run.
    session: String,
    /// Runs that have ended, by what they are, as the API told them.
    ended: BTreeMap<String, Value>,
    /// Runs that had not: one between two attempts of a step, one that nobody had taken up.
    live: BTreeMap<String, String>,
    /// Letters, as the API told them.
    letters: Vec<Value>,
}

fn folder(version: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/topics/v{version}"))
}

/// An installation of the fixtures' namespace, on a broker and a Redis of its own.
async fn installation() -> (Broker, OwnRedis, tempfile::TempDir, Stack) {
    let (broker, redis) = (Broker::start().await, OwnRedis::start().await);
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (storage, cache) = (within("storage"), within("cache"));
    let stack = Stack::empty(
        NAMESPACE.to_owned(),
        &[
            ("KAFKA_BROKERS", broker.brokers.as_str()),
            ("REDIS_URL", redis.url.as_str()),
            ("AGENTHUB_STORAGE_URL", storage.as_str()),
            ("AGENTHUB_CACHE_DIR", cache.as_str()),
            ("AGENTHUB_MAX_RUN_TIMEOUT_S", LONG_S),
            ("AGENTHUB_RUN_RETENTION_S", LONG_S),
            ("AGENTHUB_SESSION_TTL_S", "2592000"),
            ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
            ("AGENTHUB_ROLLUP_MAX_AGE_MS", "50"),
            ("AGENTHUB_AUDIT_SIGNING_KEY", AUDIT_KEY),
        ],
    )
    .await;
    (broker, redis, folder, stack)
}

async fn ask(
    stack: &Stack,
    key: &str,
    method: Method,
    path: &str,
    json: &Value,
) -> (StatusCode, Value) {
    let request = stack.http.request(method, stack.url(path)).bearer_auth(key);
    body(request.json(json).send().await.unwrap()).await
}

async fn letters(stack: &Stack) -> Vec<Value> {
    let request = stack.http.get(stack.url("/v1/admin/dlq"));
    let request = request.bearer_auth(&stack.admin_key);
    let (status, page) = body(request.send().await.unwrap()).await;
    assert_eq!(status, StatusCode::OK, "{page}");
    page["data"].as_array().unwrap().clone()
}

/// Writes `tests/fixtures/topics/v<this version>` anew. Not a test: it is run once for each version of
/// the messages, before the next one is begun (docs/upgrading.md).
#[tokio::test]
#[ignore = "writes fixtures"]
async fn record() {
    let (_broker, _redis, _folder, mut stack) = installation().await;
    let keys = stack.keys();
    stack.api_key = mint(&keys, &stack.tenant, Role::Client).await;
    stack.admin_key = mint(&keys, &stack.tenant, Role::Admin).await;
    stack.spawn_simulator(&[]).await;
    stack
        .spawn_all(&["api", "planner", "executor", "dlq", "audit-rollup"])
        .await;
    let admin = stack.admin_key.clone();
    for (what, json) in [
        ("limits", json!({ "max_live_runs": 50 })),
        (
            "budget",
            json!({ "limit_micro_usd": 50_000_000, "window": "month" }),
        ),
    ] {
        let path = format!("/v1/admin/tenants/acme/{what}");
        let (status, answer) = ask(&stack, &admin, Method::PUT, &path, &json).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let erased = stack.session().await;
    let path = format!("/v1/sessions/{erased}");
    let deleted = stack.request(Method::DELETE, &path).send().await.unwrap();
    assert!(deleted.status().is_success());
    stack.session().await;
    let (_, session) = stack
        .post(
            "/v1/sessions",
            &json!({ "context": { "brand": "Acme" }, "subject": "someone", "metadata": { "team": "ads" } }),
        )
        .await;
    let session = session["session_id"].as_str().unwrap().to_owned();

    let web = Web::start(|path, _| match path {
        "/page" => Reply::Page("<title>A page</title>"),
        _ => Reply::Status(404),
    })
    .await;
    let fetch = |path: &str| json!({ "steps": [{ "id": "s1", "tool": "http_fetch", "args": { "url": web.url(path) } }] });
    let long = json!({ "timeout_s": 315_360_000 });
    let goal = "Get ROAS for advertiser 123 over 7 days";
    let mut ended = BTreeMap::new();
    for name in ["plan_execute", "agent", "execute", "plan", "failed"] {
        let run = match name {
            "plan_execute" => stack.submit(&session, goal).await,
            "agent" => stack.submit_agent(&session, goal, &long).await,
            "execute" => stack.execute(&session, &fetch("/page")).await,
            "failed" => stack.execute(&session, &fetch("/missing")).await,
            _ => {
                let request = json!({ "session_id": session, "goal": goal });
                let (_, run) = stack.post("/v1/plan", &request).await;
                run["run_id"].as_str().unwrap().to_owned()
            }
        };
        stack.ended(&run).await;
        stack.assert_settled(&run).await;
        ended.insert(name.to_owned(), stack.ended(&run).await);
    }
    let letters = eventually("the letter is in the index", async || {
        let found = letters(&stack).await;
        (!found.is_empty()).then_some(found)
    })
    .await;

    // One run is caught between two attempts of its second step, and one behind it before any worker.
    stack.processes.remove("llm-sim");
    let plan = json!({ "steps": [
        { "id": "s1", "tool": "ads_metrics_mock", "args": { "advertiser_id": "123", "metric": "roas" } },
        { "id": "s2", "tool": "summarize", "args": { "text": "${steps.s1.output.value}" }, "depends_on": ["s1"] },
    ] });
    let request = json!({ "session_id": session, "plan": plan, "timeout_s": 315_360_000 });
    let (_, first) = stack.post("/v1/execute", &request).await;
    let caught = first["run_id"].as_str().unwrap().to_owned();
    eventually("its second step failed once", async || {
        let records = stack.records(Topic::AgentEvents).await;
        let texts = records
            .iter()
            .map(|r| String::from_utf8_lossy(&r.value).into_owned());
        texts
            .filter(|text| text.contains(&caught))
            .any(|text| text.contains("step.retrying"))
            .then_some(())
    })
    .await;
    stack.processes.remove("planner");
    stack.processes.remove("executor");
    let request = json!({ "session_id": session, "goal": goal, "mode": "plan_execute", "timeout_s": 315_360_000 });
    let (_, second) = stack.post("/v1/runs", &request).await;
    let waiting = second["run_id"].as_str().unwrap().to_owned();
    let live = BTreeMap::from([
        ("caught".to_owned(), caught),
        ("waiting".to_owned(), waiting),
    ]);

    let recorded = Recorded {
        api_key: stack.api_key.clone(),
        admin_key: stack.admin_key.clone(),
        session,
        ended,
        live,
        letters,
    };
    stack.processes.get("api").unwrap().tell_to_stop();
    assert!(stack.processes.get_mut("api").unwrap().stopped().await);
    let folder = folder(SCHEMA_VERSION);
    std::fs::create_dir_all(&folder).unwrap();
    let text = serde_json::to_string_pretty(&recorded).unwrap();
    std::fs::write(folder.join("installation.json"), text + "\n").unwrap();
    for topic in Topic::ALL {
        let file = folder.join(format!("{topic}.jsonl"));
        let _ = std::fs::remove_file(&file);
        let file = file.to_str().unwrap();
        stack
            .command(&["replay", "--topic", topic.as_str(), "--out", file])
            .await;
    }
}

fn lines(version: u16, topic: Topic) -> Vec<Saved> {
    let text = std::fs::read(folder(version).join(format!("{topic}.jsonl"))).unwrap();
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| Saved::parse(line).unwrap()).collect()
}

fn producer(stack: &Stack) -> FutureProducer {
    ClientConfig::new()
        .set("bootstrap.servers", stack.kafka().brokers)
        .set("partitioner", "murmur2_random")
        .create()
        .unwrap()
}

/// Puts a record onto a topic as it is, signed by whoever signed it.
async fn send(producer: &FutureProducer, topic: &str, record: &StoredRecord) {
    let mut headers = OwnedHeaders::new();
    for (key, value) in &record.headers {
        let value = value.as_deref();
        headers = headers.insert(Header { key, value });
    }
    let mut message = FutureRecord::to(topic).headers(headers);
    message.key = record.key.as_deref();
    message.payload = record.value.as_deref();
    let sent = producer.send(message, Duration::from_secs(10)).await;
    sent.unwrap();
}

/// What is compared of a run.
fn outcome(run: &Value) -> (Value, Vec<(Value, Value, Value)>) {
    let steps = run["steps"].as_array().into_iter().flatten();
    let part = |step: &Value, name: &str| step[name].clone();
    let steps = steps.map(|s| (part(s, "id"), part(s, "status"), part(s, "output")));
    (run["status"].clone(), steps.collect())
}

#[tokio::test]
async fn the_topics_of_every_version_are_read() {
    let mut read = 0;
    for version in OLDEST_VERSION..=SCHEMA_VERSION {
        // Those of this version are recorded before the next one is begun.
        if version < SCHEMA_VERSION || folder(version).exists() {
            is_read(version).await;
            read += 1;
        }
    }
    assert!(read > 0, "no fixtures");
}

async fn is_read(version: u16) {
    let (_broker, _redis, _folder, mut stack) = installation().await;
    let text = std::fs::read(folder(version).join("installation.json")).unwrap();
    let recorded: Recorded = serde_json::from_slice(&text).unwrap();
    let producer = producer(&stack);
    for topic in Topic::ALL {
        for saved in lines(version, topic) {
            send(&producer, &saved.topic, &saved.record().unwrap()).await;
        }
    }

    // Everything of it restores an empty Redis.
    let report = stack.command(&["replay", "rebuild", "--json"]).await;
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["unusable"], json!({}), "{report}");
    let ended = recorded.ended.len();
    for (what, expected) in [("keys", 2), ("ended_runs", ended), ("live_runs", 2)] {
        assert_eq!(report[what], expected, "{what}: {report}");
    }

    // What had ended is as it was, and what had not goes on where it was.
    stack.api_key.clone_from(&recorded.api_key);
    stack.admin_key.clone_from(&recorded.admin_key);
    stack.spawn_simulator(&[]).await;
    stack
        .spawn_all(&["api", "planner", "executor", "dlq", "audit-rollup"])
        .await;
    for (name, told) in &recorded.ended {
        let run = told["run_id"].as_str().unwrap();
        let found = stack.ended(run).await;
        assert_eq!(outcome(&found), outcome(told), "{name}: {found}");
        let events = stack.events(run).await;
        let kinds = kinds(&events);
        assert_eq!(kinds.first(), Some(&"run.queued"), "{name}: {kinds:?}");
        let last = format!("run.{}", told["status"].as_str().unwrap());
        assert_eq!(kinds.last(), Some(&last.as_str()), "{name}: {kinds:?}");
    }
    for (name, run) in &recorded.live {
        let found = stack.ended(run).await;
        assert_eq!(found["status"], "succeeded", "{name}: {found}");
        if name == "caught" {
            assert_eq!(found["steps"][0]["attempts"], 1, "{found}");
        }
    }
    let (status, session) = stack
        .get(&format!("/v1/sessions/{}", recorded.session))
        .await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(session["context"], json!({ "brand": "Acme" }));

    // Every command is known for what it is.
    let commands = [Topic::PlanCommands, Topic::ExecuteCommands];
    let commands: usize = commands.map(|t| lines(version, t).len()).iter().sum();
    eventually("every command was looked at", async || {
        let mut looked = 0.0;
        for worker in ["planner", "executor"] {
            looked += stack.metric(worker, "agenthub_acquires_total").await;
        }
        #[allow(clippy::cast_precision_loss)]
        (looked >= commands as f64).then_some(())
    })
    .await;
    // The letters are in the index, and no record has made a further one.
    let names = |letters: &[Value]| {
        let name = |letter: &Value| [letter["id"].clone(), letter["class"].clone()];
        letters.iter().map(name).collect::<Vec<_>>()
    };
    let found = eventually("the letters are in the index", async || {
        let found = letters(&stack).await;
        (found.len() >= recorded.letters.len()).then_some(found)
    })
    .await;
    assert_eq!(names(&found), names(&recorded.letters));
    // And the audit records in files.
    let records = lines(version, Topic::AuditLogs).len();
    eventually("the audit records are in files", async || {
        let written = stack.metric("audit-rollup", "agenthub_rollup_records_total");
        #[allow(clippy::cast_precision_loss)]
        (written.await >= records as f64).then_some(())
    })
    .await;
    assert_eq!(names(&letters(&stack).await), names(&recorded.letters));
}

#[tokio::test]
async fn a_command_of_a_later_version_is_a_dead_letter_of_its_own_class() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api", "executor", "dlq"]).await;
    let session = stack.session().await;
    let plan = json!({ "steps": [
        { "id": "s1", "tool": "ads_metrics_mock", "args": { "advertiser_id": "123", "metric": "roas" } }
    ] });
    let run = stack.execute(&session, &plan).await;
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
    let command = stack.records(Topic::ExecuteCommands).await.remove(0);
    let run: RunId = run.parse().unwrap();
    // The next version may look quite different.
    let value = json!({ "v": SCHEMA_VERSION + 1, "shape": "new" }).to_string();
    let outgoing = Outgoing {
        topic: Topic::ExecuteCommands,
        key: run.to_string(),
        ce_id: format!("{run}/execute/9"),
        ce_type: "agenthub.command.execute".to_owned(),
        tenant: stack.tenant.clone(),
        run_id: Some(run.clone()),
        not_after_ms: None,
        traceparent: None,
        value: value.clone().into(),
    };
    let topic = stack.kafka().topic(Topic::ExecuteCommands);
    let signer = Signer::parse(SIGNING).unwrap();
    let headers = signer.headers(&topic, &outgoing, "test", "2026-01-01T00:00:00Z");
    let headers = headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Some(value.into())));
    let record = StoredRecord {
        partition: 0,
        offset: 0,
        timestamp_ms: None,
        key: Some(command.key.clone().into()),
        value: Some(value.into()),
        headers: headers.collect(),
    };
    send(&producer(&stack), &topic, &record).await;
    let operator = mint(&stack.keys(), &TenantId::system(), Role::Admin).await;
    let letter = eventually("the letter is in the index", async || {
        let request = stack.http.get(stack.url("/v1/admin/dlq"));
        let (_, page) = body(request.bearer_auth(&operator).send().await.unwrap()).await;
        page["data"].as_array()?.first().cloned()
    })
    .await;
    assert_eq!(letter["class"], "unknown_schema_version", "{letter}");
    let error = letter["error"].as_str().unwrap();
    assert!(error.starts_with("unknown schema version"), "{letter}");
    // The run it names is as it was.
    assert_eq!(stack.ended(run.as_str()).await["status"], "succeeded");
}
