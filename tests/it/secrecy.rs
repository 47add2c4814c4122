//! What is at rest: neither the broker's segments nor Redis' file hold what clients wrote, and once a
//! session is erased nothing that is left opens.

use std::path::Path;

use agenthub::ids::SessionId;
use agenthub::messages::Topic;
use agenthub::privacy::KeyRing;
use reqwest::{Method, StatusCode};
use serde_json::json;

use crate::support::broker::Broker;
use crate::support::redis::OwnRedis;
use crate::support::stack::Stack;
use crate::support::web::{Reply, Web};
use crate::support::{MASTER, eventually};

/// Planted in a goal, in a context, in arguments, in a fetched page and in a session's subject. Events tell
/// of arguments and results, masked: what is planted there is of a kind that masking hides.
const CANARIES: [&str; 5] = [
    "canary-goal-7f3a",
    "canary-context-91bc",
    "canary.argument@example.org",
    "canary.result@example.org",
    "canary-subject-5d16",
];

/// Writes the append-only file anew, from what is there now.
async fn rewrite(own: &OwnRedis) {
    let client = redis::Client::open(own.url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("BGREWRITEAOF")
        .exec_async(&mut redis)
        .await
        .unwrap();
    let redis = &redis;
    eventually("the file is rewritten", async || {
        let mut redis = redis.clone();
        let mut info = redis::cmd("INFO");
        let info: String = info.arg("persistence").query_async(&mut redis).await.ok()?;
        let over = info.contains("aof_rewrite_in_progress:0")
            && info.contains("aof_rewrite_scheduled:0")
            && info.contains("aof_last_bgrewrite_status:ok");
        over.then_some(())
    })
    .await;
}

/// The files below a folder that hold any of the texts.
fn holding(folder: &Path, texts: &[&str], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holding(&path, texts, found);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        for text in texts {
            if bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
            {
                found.push(format!("{} holds {text}", path.display()));
            }
        }
    }
}

#[tokio::test]
async fn canaries_are_nowhere_at_rest_and_an_erased_session_opens_no_more() {
    let broker = Broker::start().await;
    let redis = OwnRedis::start().await;
    let mut stack = Stack::bare(&[
        ("KAFKA_BROKERS", &broker.brokers),
        ("REDIS_URL", &redis.url),
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
    ])
    .await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let web = Web::start(|_, _| Reply::Page("<title>Mail canary.result@example.org</title>")).await;

    let request = json!({ "subject": CANARIES[4], "context": { "note": CANARIES[1] } });
    let (status, session) = stack.post("/v1/sessions", &request).await;
    assert_eq!(status, StatusCode::CREATED, "{session}");
    let session = session["session_id"].as_str().unwrap().to_owned();
    let goal = format!("Get ROAS for advertiser 123 over 7 days, {}", CANARIES[0]);
    let run = stack.submit(&session, &goal).await;
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
    let url = web.url(&format!("/page?q={}", CANARIES[2]));
    let plan = json!({ "steps": [{ "id": "s1", "tool": "http_fetch", "args": { "url": url } }] });
    let run = stack.execute(&session, &plan).await;
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
    assert_eq!(web.hits("/page"), 1);
    stack.assert_settled(&run).await;

    let ring = KeyRing::parse(MASTER).unwrap();
    let wrapped = wrapped_keys(&stack, &session).await;
    assert_eq!(wrapped.len(), 1, "the session's key is on agent.state");
    let id: SessionId = session.parse().unwrap();
    assert!(ring.unwrap(&wrapped[0], &stack.tenant, &id).is_ok());

    let mut found = Vec::new();
    holding(broker.folder(), &CANARIES, &mut found);
    holding(redis.folder(), &CANARIES, &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));

    let path = format!("/v1/sessions/{session}");
    let deleted = stack.request(Method::DELETE, &path).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    rewrite(&redis).await;
    // Redis' file has the key no more; on the compacted topic its record is followed by its erasure, and
    // is removed within `max.compaction.lag.ms`.
    let mut found = Vec::new();
    holding(redis.folder(), &[wrapped[0].as_str()], &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(wrapped_keys(&stack, &session).await.is_empty());
    let (status, _) = stack.get(&format!("/v1/runs/{run}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

/// The wrapped keys of a session that compaction of `agent.state` would keep.
async fn wrapped_keys(stack: &Stack, session: &str) -> Vec<String> {
    let mut last = None;
    for record in stack.records(Topic::AgentState).await {
        let key = String::from_utf8_lossy(&record.key).into_owned();
        if key.ends_with(session) {
            last = serde_json::from_slice::<serde_json::Value>(&record.value).ok();
        }
    }
    let key = last.and_then(|state| Some(state["wrapped_key"].as_str()?.to_owned()));
    key.into_iter().collect()
}
