//! Circuit breakers, and what bounds further attempts: real workers against servers that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agenthub::executor::breaker::Verdict;
use agenthub::ids::TenantId;
use agenthub::privacy::{KeyCache, KeyRing};
use agenthub::runtime::Supervisor;
use agenthub::store::Redis;
use agenthub::worker::{Breakers, Guarded, Permit};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::sse::{Frame, kinds};
use crate::support::stack::{Stack, body};
use crate::support::web::{Reply, Web};
use crate::support::{MASTER, eventually, namespace, settings};

fn fetch(id: &str, url: &str) -> Value {
    json!({ "id": id, "tool": "http_fetch", "args": { "url": url } })
}

fn plan(url: &str) -> Value {
    json!({ "steps": [fetch("s", url)] })
}

fn find<'a>(events: &'a [Frame], kind: &str) -> &'a Value {
    let event = events.iter().find(|e| e.event.as_deref() == Some(kind));
    &event
        .unwrap_or_else(|| panic!("no {kind} in {events:?}"))
        .data
}

/// What `GET /v1/tools` says of a tool's breaker.
async fn breaker(stack: &Stack, tool: &str) -> Value {
    let (_, tools) = stack.get("/v1/tools").await;
    let tools = tools["data"].as_array().unwrap();
    let tool = tools.iter().find(|t| t["name"] == tool).unwrap();
    tool["breaker"].clone()
}

/// Runs one after another that fail, until the tool's breaker is open.
async fn fail_until_open(stack: &Stack, url: &str) {
    let session = stack.session().await;
    for _ in 0..20 {
        let run = stack.execute(&session, &plan(url)).await;
        assert_eq!(stack.ended(&run).await["status"], "failed");
        if breaker(stack, "http_fetch").await["state"] == "open" {
            return;
        }
    }
    panic!("the breaker did not open");
}

async fn sum(stack: &Stack, processes: &[&str], metric: &str) -> f64 {
    let mut sum = 0.0;
    for process in processes {
        sum += stack.metric(process, metric).await;
    }
    sum
}

#[tokio::test]
async fn what_keeps_failing_is_held_back_on_every_worker_and_probed() {
    let open = Duration::from_secs(4);
    let mut stack = Stack::bare(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_BREAKER_FAILURES", "3"),
        ("AGENTHUB_BREAKER_OPEN_MS", "4000"),
        ("AGENTHUB_MAX_ATTEMPTS", "1"),
    ])
    .await;
    let executors = ["executor", "executor-2"];
    stack.spawn_all(&["api", "executor", "executor-2"]).await;
    let healed = Arc::new(AtomicBool::new(false));
    let web = {
        let healed = healed.clone();
        Web::start(move |_, _| {
            if healed.load(Ordering::SeqCst) {
                Reply::Keepable("no-store", "<title>Well</title>")
            } else {
                Reply::Status(503)
            }
        })
        .await
    };
    let before = Instant::now();
    fail_until_open(&stack, &web.url("/page")).await;
    let told = breaker(&stack, "http_fetch").await;
    assert!(told["retry_after_ms"].as_u64().unwrap() <= 4000, "{told}");
    assert_eq!(told["not_closed"], 1, "{told}");
    assert_eq!(breaker(&stack, "retrieval").await["state"], "closed");
    let opened = "agenthub_breaker_transitions_total{tool=\"http_fetch\",to=\"open\"}";
    assert!(sum(&stack, &executors, opened).await >= 1.0);

    // From here on no worker calls: what each has read of the others is at most a second old.
    let hits = web.hits("/page");
    let mut runs = Vec::new();
    for _ in 0..8 {
        let session = stack.session().await;
        runs.push(stack.execute(&session, &plan(&web.url("/page"))).await);
    }
    healed.store(true, Ordering::SeqCst);
    for run in &runs {
        let ended = stack.ended(run).await;
        // One that a worker took up within that second may have met the server before it healed.
        let status = ended["status"].as_str().unwrap();
        assert!(["succeeded", "failed"].contains(&status), "{ended}");
    }
    assert!(before.elapsed() >= open, "the runs were held back");
    assert!(web.hits("/page") > hits);
    eventually("the breaker closes", async || {
        let state = breaker(&stack, "http_fetch").await;
        (state["state"] == "closed").then_some(())
    })
    .await;
    let closed = "agenthub_breaker_transitions_total{tool=\"http_fetch\",to=\"closed\"}";
    assert!(sum(&stack, &executors, closed).await >= 1.0);
    // The gauge follows when the workers next look.
    eventually("every worker knows", async || {
        let run = stack
            .execute(&stack.session().await, &plan(&web.url("/page")))
            .await;
        assert_eq!(stack.ended(&run).await["status"], "succeeded");
        let gauge = "agenthub_breaker_state{tool=\"http_fetch\"}";
        (sum(&stack, &executors, gauge).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_run_that_would_wait_long_is_parked_and_others_are_not_touched() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_BREAKER_FAILURES", "2"),
        ("AGENTHUB_BREAKER_OPEN_MS", "300000"),
        ("AGENTHUB_MAX_ATTEMPTS", "1"),
        (
            "AGENTHUB_KAFKA_PROPERTIES",
            "session.timeout.ms=2000,heartbeat.interval.ms=300",
        ),
    ])
    .await;
    stack.spawn_all(&["api", "executor"]).await;
    let bad = Web::start(|_, _| Reply::Status(500)).await;
    let good = Web::start(|_, _| Reply::Page("<title>Well</title>")).await;

    // Refusals by our own rules say nothing of the tool.
    let session = stack.session().await;
    for _ in 0..4 {
        let run = stack.execute(&session, &plan("http://127.0.0.1:1/")).await;
        assert_eq!(stack.ended(&run).await["status"], "failed");
    }
    assert_eq!(breaker(&stack, "http_fetch").await["state"], "closed");

    fail_until_open(&stack, &bad.url("/page")).await;
    let hits = bad.hits("/page");
    let run = stack.execute(&session, &plan(&bad.url("/page"))).await;
    let parked = eventually("the run is parked", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
        (run["status"] == "retry_wait").then_some(run)
    })
    .await;
    assert_eq!(
        parked["steps"].as_array().map_or(0, |steps| {
            steps
                .iter()
                .filter(|step| step["attempts"].as_u64() > Some(0))
                .count()
        }),
        0,
        "{parked}"
    );
    // Another host of the same tool is another matter, even while this one is held back.
    let other = stack
        .execute(&stack.session().await, &plan(&good.url("/page")))
        .await;
    assert_eq!(stack.ended(&other).await["status"], "succeeded");
    // A new worker knows at once.
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;
    let second = stack
        .execute(&stack.session().await, &plan(&bad.url("/page")))
        .await;
    eventually("the second run is parked", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{second}")).await;
        (run["status"] == "retry_wait").then_some(())
    })
    .await;
    assert_eq!(bad.hits("/page"), hits, "no call passed");

    let told = stack
        .command(&[
            "tools",
            "--url",
            &stack.url(""),
            "--api-key",
            &stack.api_key,
        ])
        .await;
    let line = told
        .lines()
        .find(|line| line.starts_with("http_fetch"))
        .unwrap();
    assert!(line.contains("open for "), "{line}");
    for run in [run, second] {
        stack.cancel(&run, "graceful").await;
        let events = stack.events(&run).await;
        assert!(!kinds(&events).contains(&"step.started"), "{events:?}");
        assert_eq!(stack.ended(&run).await["status"], "cancelled");
    }
}

#[tokio::test]
async fn further_attempts_of_a_run_are_bounded_and_a_takeover_does_not_begin_anew() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_BREAKER_FAILURES", "1000"),
        ("AGENTHUB_BREAKER_MIN_CALLS", "1000"),
        ("AGENTHUB_MAX_ATTEMPTS", "10"),
        ("AGENTHUB_MAX_RUN_RETRIES", "3"),
        ("AGENTHUB_LEASE_MS", "2000"),
        ("AGENTHUB_OUTBOX_RETRY_MS", "500"),
        (
            "AGENTHUB_KAFKA_PROPERTIES",
            "session.timeout.ms=2000,heartbeat.interval.ms=300",
        ),
    ])
    .await;
    stack.spawn_all(&["api", "executor"]).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/hangs", 3) => Reply::Never,
        _ => Reply::Status(503),
    })
    .await;

    let steps: Vec<_> = ["a", "b", "c"]
        .map(|id| fetch(id, &web.url(&format!("/{id}"))))
        .to_vec();
    let run = stack
        .execute(&stack.session().await, &json!({ "steps": steps }))
        .await;
    let events = stack.events(&run).await;
    let failed = find(&events, "step.failed");
    assert_eq!(
        failed["data"]["gave_up"], "run_retries_exhausted",
        "{failed}"
    );
    let retries = kinds(&events)
        .iter()
        .filter(|k| **k == "step.retrying")
        .count();
    assert_eq!(retries, 3);
    let hits: usize = ["/a", "/b", "/c"].map(|path| web.hits(path)).iter().sum();
    assert!(hits <= 3 + 3, "{hits}");

    let run = stack
        .execute(&stack.session().await, &plan(&web.url("/hangs")))
        .await;
    web.until_hit("/hangs", 3).await;
    stack.processes.get_mut("executor").unwrap().kill();
    stack.spawn_all(&["executor-2"]).await;
    let events = stack.events(&run).await;
    let failed = find(&events, "step.failed");
    assert_eq!(
        failed["data"]["gave_up"], "run_retries_exhausted",
        "{failed}"
    );
    // Two before the worker was lost, one after; what was lost is made again and counts for nothing.
    assert_eq!(web.hits("/hangs"), 5);
}

#[tokio::test]
async fn another_endpoint_answers_when_the_first_does_not() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_BREAKER_FAILURES", "2"),
        ("AGENTHUB_BREAKER_OPEN_MS", "600000"),
    ])
    .await;
    stack.spawn_simulator(&[]).await;
    let simulator = format!("http://{}/v1", stack.processes["llm-sim"].addr);
    let broken = Web::start(|_, _| Reply::Status(503)).await;
    stack.set("OPENAI_BASE_URL", &broken.url("/v1"));
    stack.set("AGENTHUB_LLM_FALLBACK", &format!("gpt-4o@{simulator}"));
    stack.set("AGENTHUB_LLM_FALLBACK_KEYS", "simulated");
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let goal = "Get ROAS for advertiser 123 over 7 days";
    for _ in 0..4 {
        let run = stack.submit(&stack.session().await, goal).await;
        let ended = stack.ended(&run).await;
        assert_eq!(ended["status"], "succeeded", "{ended}");
        let calls = ended["model_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1, "{ended}");
        assert_eq!(calls[0]["model"], "gpt-4o", "{ended}");
    }
    // Twice it was asked first; from then on it is left alone.
    assert_eq!(broken.hits("/v1/chat/completions"), 2);
    let gauge = "agenthub_breaker_state{tool=\"llm/primary\"}";
    assert!((stack.metric("planner", gauge).await - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_fall_back_keeps_to_the_models_of_the_key() {
    let mut stack = Stack::bare(&[("AGENTHUB_MAX_ATTEMPTS", "2")]).await;
    stack.spawn_simulator(&[]).await;
    let simulator = format!("http://{}/v1", stack.processes["llm-sim"].addr);
    let broken = Web::start(|_, _| Reply::Status(503)).await;
    let other = Web::start(|_, _| Reply::Status(503)).await;
    stack.set("OPENAI_BASE_URL", &broken.url("/v1"));
    let list = format!("gpt-4o@{},gpt-4.1@{simulator}", other.url("/v1"));
    stack.set("AGENTHUB_LLM_FALLBACK", &list);
    stack.set("AGENTHUB_LLM_FALLBACK_KEYS", ",simulated");
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let session = stack.session().await;
    let ended = async |models: &[&str]| {
        let new = json!({ "name": "narrow", "role": "client", "models_allowed": models });
        let request = stack.http.post(stack.url("/v1/admin/api-keys"));
        let request = request.bearer_auth(&stack.admin_key).json(&new);
        let (_, key) = body(request.send().await.unwrap()).await;
        let goal =
            json!({ "session_id": session, "goal": "Get ROAS for advertiser 123 over 7 days" });
        let request = stack.http.post(stack.url("/v1/runs")).json(&goal);
        let request = request.bearer_auth(key["api_key"].as_str().unwrap());
        let (status, run) = body(request.send().await.unwrap()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        stack.ended(run["run_id"].as_str().unwrap()).await
    };
    // Its own model fails, and the key allows nothing else that could answer.
    let run = ended(&["gpt-4o-mini"]).await;
    assert_eq!(run["status"], "failed", "{run}");
    // The first of the list is passed over.
    let run = ended(&["gpt-4o-mini", "gpt-4.1"]).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["model_calls"][0]["model"], "gpt-4.1", "{run}");
    assert_eq!(broken.hits("/v1/chat/completions"), 3);
    assert_eq!(other.hits("/v1/chat/completions"), 0);
}

/// The breakers of several workers over one Redis.
fn workers<const N: usize>(extra: &[(&str, &str)]) -> ([Arc<Breakers>; N], Redis) {
    let settings = settings(&namespace(), extra);
    let redis = Redis::connect(&settings, Duration::from_secs(5)).unwrap();
    let keys = KeyCache::new(KeyRing::parse(MASTER).unwrap(), 10);
    let worker = |_| {
        let supervisor = Supervisor::new(CancellationToken::new());
        let breakers = Breakers::new(redis.clone(), keys.clone(), supervisor, &settings);
        Arc::new(breakers)
    };
    (std::array::from_fn(worker), redis)
}

async fn admitted(worker: &Arc<Breakers>, guarded: &Guarded) -> Permit {
    eventually("a call may pass", async || worker.admit(guarded).await.ok()).await
}

#[tokio::test]
async fn workers_share_what_they_find_out_and_the_places_for_probes() {
    let ([a, b, c], redis) = workers(&[
        ("AGENTHUB_BREAKER_FAILURES", "3"),
        ("AGENTHUB_BREAKER_OPEN_MS", "2500"),
        ("AGENTHUB_BREAKER_PROBES", "2"),
    ]);
    let tenant: TenantId = "acme".parse().unwrap();
    let guarded = a.of_tool(&tenant, "http_fetch", Some("host:1"));
    let other = a.of_tool(&tenant, "http_fetch", Some("host:2"));
    assert!(!guarded.name.contains("host"), "{guarded:?}");
    b.read(&tenant).await;
    for _ in 0..3 {
        admitted(&a, &guarded).await.report(Verdict::Failure);
    }
    assert!(!a.is_closed(&guarded));
    eventually("the others hear of it", async || {
        b.read(&tenant).await;
        (!b.is_closed(&guarded)).then_some(())
    })
    .await;
    let wait = b.admit(&guarded).await.unwrap_err();
    assert!(wait <= Duration::from_millis(2500), "{wait:?}");
    // One that starts now knows from its first look on.
    assert!(c.admit(&guarded).await.is_err());
    for worker in [&a, &b, &c] {
        admitted(worker, &other).await.report(Verdict::Success);
    }
    let shared = redis.open_breakers(&tenant).await.unwrap();
    let brief: Vec<_> = shared.iter().map(|s| (s.tool(), s.trips)).collect();
    assert_eq!(brief, [("http_fetch", 1)]);

    // Half-open: of the three workers, two calls pass.
    let first = admitted(&a, &guarded).await;
    let second = admitted(&b, &guarded).await;
    assert!(c.admit(&guarded).await.is_err(), "no place is left");
    // One that says nothing gives its place back, and one that fails opens it for all.
    drop(first);
    let third = admitted(&c, &guarded).await;
    third.report(Verdict::Failure);
    eventually("it has opened again", async || {
        let shared = redis.open_breakers(&tenant).await.unwrap();
        (shared.first()?.trips == 2).then_some(())
    })
    .await;
    eventually("everybody knows", async || {
        for worker in [&a, &b] {
            worker.read(&tenant).await;
        }
        (a.wait(&guarded) > Duration::from_secs(1) && b.wait(&guarded) > Duration::from_secs(1))
            .then_some(())
    })
    .await;
    // What comes back from before says nothing of now.
    second.report(Verdict::Success);
    assert!(!b.is_closed(&guarded));

    for _ in 0..2 {
        admitted(&b, &guarded).await.report(Verdict::Success);
    }
    assert!(b.is_closed(&guarded));
    eventually("it is closed for all", async || {
        for worker in [&a, &c] {
            worker.read(&tenant).await;
        }
        let shared = redis.open_breakers(&tenant).await.unwrap();
        (shared.is_empty() && a.is_closed(&guarded) && c.is_closed(&guarded)).then_some(())
    })
    .await;
}
