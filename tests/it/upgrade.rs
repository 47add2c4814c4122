//! What an earlier version wrote is read by this one. `tests/fixtures/topics/v<N>` holds every topic of
//! a small installation as version N wrote it, to the byte; the keys in it are of that installation
//! alone, whose secrets are those of the tests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agenthub::messages::{SCHEMA_VERSION, Topic};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::secrecy::OwnRedis;
use crate::support::broker::Broker;
use crate::support::eventually;
use crate::support::stack::{Stack, body, mint};
use crate::support::web::{Reply, Web};

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
async fn installation() -> (Broker, OwnRedis, Stack) {
    let (broker, redis) = (Broker::start().await, OwnRedis::start().await);
    let stack = Stack::empty(
        NAMESPACE.to_owned(),
        &[
            ("KAFKA_BROKERS", broker.brokers.as_str()),
            ("REDIS_URL", redis.url.as_str()),
            ("AGENTHUB_MAX_RUN_TIMEOUT_S", LONG_S),
            ("AGENTHUB_RUN_RETENTION_S", LONG_S),
            ("AGENTHUB_SESSION_TTL_S", "2592000"),
            ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
            ("AGENTHUB_ROLLUP_MAX_AGE_MS", "50"),
            ("AGENTHUB_AUDIT_SIGNING_KEY", AUDIT_KEY),
        ],
    )
    .await;
    (broker, redis, stack)
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
    let (_broker, _redis, mut stack) = installation().await;
    let keys = stack.keys();
    stack.api_key = mint(&keys, &stack.tenant, agenthub::governance::Role::Client).await;
    stack.admin_key = mint(&keys, &stack.tenant, agenthub::governance::Role::Admin).await;
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
