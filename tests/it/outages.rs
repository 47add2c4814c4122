//! What a dependency that is away does to requests and to runs.
//!
//! Kafka is away from the start here, and not cut in the middle: a client finds the brokers by the
//! addresses that they advertise, past any forwarder.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::forwarder::Forwarder;
use crate::support::sse::ids;
use crate::support::stack::{Stack, body};
use crate::support::web::{Reply, Web};
use crate::support::{environment, eventually};

const PROMPT: Duration = Duration::from_secs(2);

/// How the process sees its dependencies.
async fn readiness(stack: &Stack, process: &str) -> (StatusCode, Value) {
    let url = format!("http://{}/readyz", stack.processes[process].addr);
    body(stack.http.get(url).send().await.unwrap()).await
}

/// Waits until a process says that a dependency is down, and nothing else.
async fn until_down(stack: &Stack, process: &str, dependency: &str) {
    eventually(&format!("{process} misses {dependency}"), async || {
        let (status, seen) = readiness(stack, process).await;
        let down = status == StatusCode::SERVICE_UNAVAILABLE;
        let mut expected = json!({ "kafka": "up", "redis": "up" });
        expected[dependency] = json!("down");
        // The workers' probes have no further members.
        (down && seen.get("dependencies").unwrap_or(&seen) == &expected).then_some(())
    })
    .await;
}

/// Sends a request that must be refused for want of a dependency; how long that took.
async fn unavailable(request: RequestBuilder, dependency: &str) -> Duration {
    let began = Instant::now();
    let response = request.send().await.unwrap();
    let took = began.elapsed();
    let retry_after = response.headers().get("retry-after").cloned();
    let (status, problem) = body(response).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{problem}");
    assert!(took < PROMPT, "{took:?}: {problem}");
    let retry_after = retry_after.unwrap().to_str().unwrap().parse::<u64>();
    assert!(retry_after.unwrap() >= 1);
    assert_eq!(problem["code"], "dependency_unavailable", "{problem}");
    assert_eq!(problem["details"]["dependency"], dependency, "{problem}");
    took
}

/// Whether Redis' connections break or fall silent.
async fn redis_goes_away_and_comes_back(go_away: fn(&Forwarder)) {
    let settings = [
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_REDIS_TIMEOUT_MS", "400"), // the default
    ];
    let mut stack = Stack::bare(&settings).await;
    let mut url = url::Url::parse(&environment("", &[])["REDIS_URL"]).unwrap();
    let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(6379));
    let redis = Forwarder::to(target).await;
    url.set_ip_host(redis.addr.ip()).unwrap();
    url.set_port(Some(redis.addr.port())).unwrap();
    stack.set("REDIS_URL", url.as_str());
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;

    let web = Web::start(|_, _| Reply::Held("<title>Page</title>")).await;
    let session = stack.session().await;
    let fetch = |id: &str, after: &[&str]| {
        let url = web.url(&format!("/{id}"));
        json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
    };
    let plan = json!({ "steps": [fetch("a", &[]), fetch("b", &["a"])] });
    let run = stack.execute(&session, &plan).await;
    let mut follow = stack.follow(&format!("run_id={run}"), None).await;
    let mut told = follow.until("step.started").await;
    web.until_hit("/a", 1).await;

    go_away(&redis);
    let goal = json!({ "session_id": session, "goal": "Get ROAS for advertiser 123 over 7 days" });
    // From the first moment on, whether or not the probes have noticed.
    let mut took = Vec::new();
    for _ in 0..2 {
        for request in [
            stack.request(Method::GET, &format!("/v1/sessions/{session}")),
            stack.request(Method::GET, &format!("/v1/runs/{run}")),
            stack.request(Method::GET, &format!("/v1/stream?run_id={run}")),
            stack.request(Method::POST, "/v1/runs").json(&goal),
            stack.request(Method::POST, "/v1/sessions").json(&json!({})),
        ] {
            took.push(unavailable(request, "redis").await);
        }
        for process in ["api", "planner", "executor"] {
            until_down(&stack, process, "redis").await;
        }
    }
    // A busy machine makes some of them late, and no deadline short.
    let quickest = took.iter().min().unwrap();
    assert!(*quickest < Duration::from_millis(500), "{took:?}");
    let health = stack.http.get(stack.url("/healthz")).send().await.unwrap();
    assert_eq!(health.status(), 200);
    // The call ends while what it gave cannot be recorded.
    web.release();

    redis.restore();
    for process in ["api", "planner", "executor"] {
        stack.until_ready(process).await;
    }
    let after = stack.submit(&session, goal["goal"].as_str().unwrap()).await;
    let ended = stack.ended(&run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!((web.hits("/a"), web.hits("/b")), (1, 1));
    assert_eq!(stack.ended(&after).await["status"], "succeeded");
    stack.assert_settled(&run).await;
    stack.assert_settled(&after).await;

    // The follower missed nothing, whether its stream was cut or not.
    told.extend(follow.rest().await);
    if !told
        .last()
        .unwrap()
        .event
        .as_ref()
        .unwrap()
        .starts_with("run.")
    {
        let last = told.last().unwrap().id.clone();
        let mut again = stack
            .follow(&format!("run_id={run}"), last.as_deref())
            .await;
        told.extend(again.rest().await);
    }
    assert_eq!(ids(&told), ids(&stack.events(&run).await));
}

#[tokio::test]
async fn redis_is_cut_and_comes_back() {
    redis_goes_away_and_comes_back(Forwarder::cut).await;
}

#[tokio::test]
async fn redis_falls_silent_and_comes_back() {
    redis_goes_away_and_comes_back(Forwarder::stall).await;
}

#[tokio::test]
async fn without_kafka_nothing_is_taken_in_and_reading_goes_on() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    stack.processes.get_mut("api").unwrap().kill();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    stack.set("KAFKA_BROKERS", &closed);
    stack.begin("api");
    stack.until_listening("api").await;

    until_down(&stack, "api", "kafka").await;
    let goal = json!({ "session_id": session, "goal": "Get ROAS for advertiser 123 over 7 days" });
    for (path, json) in [
        ("/v1/runs", &goal),
        ("/v1/plan", &json!({ "session_id": session, "goal": "x" })),
        ("/v1/sessions", &json!({})),
    ] {
        let request = stack.request(Method::POST, path).json(json);
        unavailable(request, "kafka").await;
    }
    let began = Instant::now();
    let (status, read) = stack.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(status, StatusCode::OK, "{read}");
    assert!(began.elapsed() < PROMPT);
    // What was refused left nothing behind.
    assert_eq!(read["live_runs"], 0, "{read}");
    let (_, runs) = stack.get(&format!("/v1/runs?session_id={session}")).await;
    assert_eq!(runs["data"], json!([]));
    let (_, sessions) = stack.get("/v1/sessions").await;
    assert_eq!(sessions["data"].as_array().unwrap().len(), 1, "{sessions}");
}
