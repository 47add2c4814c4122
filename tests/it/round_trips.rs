//! How often a request asks Redis: once, whatever governs it.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::stack::Stack;

/// The commands about this installation that clients send while `work` goes on, without those that scripts
/// make within Redis.
async fn commands(stack: &Stack, work: impl Future<Output = ()>) -> Vec<String> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/".to_owned());
    let client = redis::Client::open(url).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    work.await;
    // What marks the end comes through the same connection's order.
    let end = format!("{}-end", stack.namespace);
    let mut redis = stack.redis().connection();
    redis::cmd("EXISTS")
        .arg(&end)
        .exec_async(&mut redis)
        .await
        .unwrap();
    let mut found = Vec::new();
    loop {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next()).await;
        let line = line.unwrap().unwrap();
        if line.contains(&end) {
            return found;
        }
        // The probe of a rebuild is the process' own, whatever is asked of it.
        let probe = line.contains(":rebuilding");
        if line.contains(&stack.namespace) && !line.contains(" lua]") && !probe {
            found.push(line);
        }
    }
}

#[tokio::test]
async fn a_request_is_governed_in_one_round_trip() {
    // No worker, so that nothing but the requests speaks to Redis.
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    let goal = json!({ "session_id": session, "goal": "Get ROAS for advertiser 123 over 7 days" });
    let submit = async |key: Option<&str>| {
        let mut request = stack.request(Method::POST, "/v1/runs").json(&goal);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        assert_eq!(request.send().await.unwrap().status(), StatusCode::ACCEPTED);
    };
    let read = async || {
        let path = format!("/v1/sessions/{session}");
        assert_eq!(stack.get(&path).await.0, StatusCode::OK);
    };
    // The process' first touch of the session reads its data key, and the scripts are loaded once.
    submit(None).await;
    read().await;

    let scripts = |lines: &[String]| {
        let governing = |line: &&String| line.contains("EVALSHA") || line.contains("EVAL\"");
        let removals = |line: &&String| line.contains("\\\"runs\\\":[[");
        let all = lines.iter().filter(governing);
        // Acknowledged outbox entries are removed behind the answer, for many runs at once.
        all.filter(|line| !removals(line)).count()
    };
    for (what, lines) in [
        ("a read", commands(&stack, read()).await),
        ("a submission", commands(&stack, submit(None)).await),
        (
            "one with a key",
            commands(&stack, submit(Some("k-1"))).await,
        ),
        ("its repeat", commands(&stack, submit(Some("k-1"))).await),
    ] {
        assert_eq!(scripts(&lines), 1, "{what}: {lines:#?}");
        let others = lines.iter().filter(|line| !line.contains("EVALSHA"));
        assert_eq!(others.count(), 0, "{what}: {lines:#?}");
    }
}
