//! Streams: nothing lost, nothing twice, and an end when there is one.

use std::time::{Duration, Instant};

use agenthub::governance::{NewKey, Role};
use agenthub::messages::KeyPolicy;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::sse::{Follow, Frame, ids, kinds};
use crate::support::stack::{Stack, allowing, shared};
use crate::support::web::{Reply, Web};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// Each event names the one before it.
fn assert_chained(events: &[Frame]) {
    for pair in events.windows(2) {
        assert_eq!(pair[1].data["prev"], pair[0].data["id"], "{pair:?}");
    }
}

#[tokio::test]
async fn a_stream_goes_on_where_it_was_cut() {
    let stack = allowing().await;
    let web = Web::start(|path, _| match path {
        "/b" => Reply::Held("<title>B</title>"),
        _ => Reply::Page("<title>A</title>"),
    })
    .await;
    let fetch = |id: &str, after: &[&str]| {
        let url = web.url(&format!("/{id}"));
        json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
    };
    let plan = json!({ "steps": [fetch("a", &[]), fetch("b", &["a"]), fetch("c", &["b"])] });
    let run = stack.execute(&stack.session().await, &plan).await;
    let query = format!("run_id={run}");
    let mut first = stack.follow(&query, None).await;
    let mut seen = first.until("step.completed").await;
    drop(first);
    web.until_hit("/b", 1).await;

    let last = seen.last().unwrap().id.clone();
    let mut second = stack.follow(&query, last.as_deref()).await;
    let mut other = stack.follow(&query, None).await;
    web.release();
    seen.extend(second.rest().await);
    let all = other.rest().await;
    assert_eq!(ids(&seen), ids(&all));
    assert_chained(&all);
    assert_eq!(kinds(&all).last(), Some(&"run.succeeded"));

    // After the end as before it: exactly the rest, from wherever.
    for (index, frame) in all.iter().enumerate().take(all.len() - 1) {
        let mut rest = stack.follow(&query, frame.id.as_deref()).await;
        assert_eq!(ids(&rest.rest().await), ids(&all[index + 1..]));
        let after = format!("{query}&after={}", frame.id.as_ref().unwrap());
        let mut rest = stack.follow(&after, None).await;
        assert_eq!(ids(&rest.rest().await), ids(&all[index + 1..]));
    }
    let end = all.last().unwrap().id.as_ref().unwrap();
    let beyond = end.replace("1-", "1-9");
    for id in [end, &beyond] {
        let request = stack.request(Method::GET, &format!("/v1/stream?{query}"));
        let response = request.header("Last-Event-ID", id).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "{id}");
        assert_eq!(response.bytes().await.unwrap(), "");
    }
}

#[tokio::test]
async fn a_session_is_followed_over_its_runs() {
    let stack = shared().await;
    let session = stack.session().await;
    let query = format!("session_id={session}");
    let mut followers = [
        stack.follow(&query, None).await,
        stack.follow(&query, None).await,
    ];
    for _ in 0..3 {
        stack.submit(&session, ADS).await;
    }
    let mut told = Vec::new();
    for follower in &mut followers {
        let mut events = Vec::new();
        for _ in 0..3 {
            events.extend(follower.until("run.succeeded").await);
        }
        assert_chained(&events);
        assert_eq!(events[0].data["prev"], Value::Null);
        told.push(events);
    }
    assert_eq!(ids(&told[0]), ids(&told[1]));
    let texts = |events: &[Frame]| events.iter().map(|e| e.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&told[0]), texts(&told[1]));
    // One who comes later reads the same, and then what is new.
    let mut late = stack.follow(&query, None).await;
    let mut read = Vec::new();
    for _ in 0..3 {
        read.extend(late.until("run.succeeded").await);
    }
    assert_eq!(texts(&read), texts(&told[0]));
    let next = stack.submit(&session, ADS).await;
    let news = late.until("run.succeeded").await;
    assert!(news.iter().all(|event| event.data["run_id"] == next));
    assert_eq!(news[0].data["prev"], read.last().unwrap().data["id"]);
}

#[tokio::test]
async fn a_silent_stream_has_a_heartbeat_and_a_short_history_says_so() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_SSE_HEARTBEAT_MS", "200"),
        ("AGENTHUB_HISTORY_EVENTS", "150"),
    ])
    .await;
    stack.spawn_all(&["api", "executor"]).await;
    let session = stack.session().await;
    let query = format!("session_id={session}");
    let mut silent = stack.follow(&query, None).await;
    assert_eq!(silent.next().await.unwrap().text, "retry: 2000");
    for _ in 0..3 {
        let frame = tokio::time::timeout(Duration::from_secs(5), silent.next()).await;
        assert_eq!(frame.unwrap().unwrap().text, ": heartbeat");
    }

    // Redis drops events from the history by the hundred, so this takes some.
    let step = |n: usize| json!({ "id": format!("s{n}"), "tool": "ads_metrics_mock", "args": { "advertiser_id": "1" } });
    let plan = json!({ "steps": (0..32).map(step).collect::<Vec<_>>() });
    let (mut runs, mut all) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        runs.push(stack.execute(&session, &plan).await);
        // Who keeps up misses nothing.
        all.extend(silent.until("run.succeeded").await);
    }
    assert_chained(&all);
    assert!(all.len() > 350, "{}", all.len());

    let mut late = stack.follow(&query, Some("1-1")).await;
    let told = late.until("run.succeeded").await;
    assert_eq!(kinds(&told)[..2], ["stream.truncated", "stream.snapshot"]);
    assert_eq!(told[1].data["session_id"], session.as_str());
    assert_chained(&told[2..]);
    let oldest = told[2].id.as_ref().unwrap();
    assert!(
        all[2..]
            .iter()
            .any(|event| event.id.as_ref() == Some(oldest))
    );
    // Of the first run nothing is left but how it stands.
    let mut first = stack
        .follow(&format!("run_id={}", runs[0]), Some("1-1"))
        .await;
    let told = first.rest().await;
    assert_eq!(kinds(&told), ["stream.truncated", "stream.snapshot"]);
    assert_eq!(told[1].data["status"], "succeeded");
    // Another numbering is not continued.
    let mut other = stack.follow(&query, Some("7-1")).await;
    let told = other.event().await.unwrap();
    assert_eq!(told.event.as_deref(), Some("stream.truncated"));
}

#[tokio::test]
async fn a_revoked_key_loses_its_streams() {
    let stack = shared().await;
    let keys = stack.keys();
    let new = NewKey {
        tenant: stack.tenant.clone(),
        name: "short-lived".into(),
        role: Role::Client,
        expires_in_s: None,
        policy: KeyPolicy::default(),
    };
    let (record, key) = keys.create(new).await.unwrap();
    let session = stack.session().await;
    let query = format!("session_id={session}");
    let request = stack.http.get(stack.url(&format!("/v1/stream?{query}")));
    let mut doomed = Follow::new(request.bearer_auth(key.text).send().await.unwrap());
    let mut other = stack.follow(&query, None).await;
    assert_eq!(doomed.next().await.unwrap().text, "retry: 2000");
    keys.revoke(&stack.tenant, &record.key_id).await.unwrap();
    let revoked = Instant::now();
    assert!(doomed.event().await.is_none());
    let took = revoked.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    // It was the key's, and not everybody's.
    stack.submit(&session, ADS).await;
    other.until("run.succeeded").await;
}
