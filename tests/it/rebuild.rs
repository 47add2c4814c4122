//! A Redis that lost everything, filled again from the topics: compared key by key.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agenthub::messages::Topic;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use redis::AsyncCommands;
use redis::streams::StreamRangeReply;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::replay::{count, decided, summary};
use crate::support::eventually;
use crate::support::records::Found;
use crate::support::sse::kinds;
use crate::support::stack::{Stack, body};
use crate::support::web::{Reply, Web};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// What a key holds.
#[derive(Debug, Clone, PartialEq)]
enum Held {
    Text(Vec<u8>),
    Hash(BTreeMap<String, String>),
    Set(BTreeSet<String>),
    Scores(BTreeMap<String, String>),
    List(Vec<String>),
    Stream(Vec<(String, BTreeMap<String, String>)>),
}

/// Every key of the installation, without its prefix.
async fn dump(stack: &Stack) -> BTreeMap<String, Held> {
    let mut redis = stack.redis().connection();
    let prefix = stack.redis().prefix().to_owned();
    let mut held = BTreeMap::new();
    for key in keys(stack).await {
        let kind: String = redis::cmd("TYPE")
            .arg(&key)
            .query_async(&mut redis)
            .await
            .unwrap();
        let value = match kind.as_str() {
            "string" => Held::Text(redis.get(&key).await.unwrap()),
            "hash" => Held::Hash(redis.hgetall(&key).await.unwrap()),
            "set" => Held::Set(redis.smembers(&key).await.unwrap()),
            "zset" => Held::Scores(
                redis
                    .zrange_withscores::<_, Vec<(String, String)>>(&key, 0, -1)
                    .await
                    .unwrap()
                    .into_iter()
                    .collect(),
            ),
            "list" => Held::List(redis.lrange(&key, 0, -1).await.unwrap()),
            "stream" => {
                let reply: StreamRangeReply = redis.xrange_all(&key).await.unwrap();
                let entries = reply.ids.into_iter().map(|entry| {
                    let fields = entry.map.into_iter().map(|(name, value)| {
                        let text: String = redis::from_redis_value(value).unwrap();
                        (name, text)
                    });
                    (entry.id, fields.collect())
                });
                Held::Stream(entries.collect())
            }
            "none" => continue, // it has just expired
            other => panic!("{key}: {other}"),
        };
        held.insert(key[prefix.len() + 1..].to_owned(), value);
    }
    held
}

async fn keys(stack: &Stack) -> Vec<String> {
    let mut redis = stack.redis().connection();
    let pattern = format!("{}:*", stack.redis().prefix());
    let mut cursor = 0_u64;
    let mut keys = Vec::new();
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(&pattern)
            .arg("COUNT")
            .arg(1000);
        let (next, found): (u64, Vec<String>) = scan.query_async(&mut redis).await.unwrap();
        keys.extend(found);
        if next == 0 {
            keys.sort();
            keys.dedup();
            return keys;
        }
        cursor = next;
    }
}

async fn flush(stack: &Stack) {
    let mut redis = stack.redis().connection();
    for key in keys(stack).await {
        let _: () = redis.del(key).await.unwrap();
    }
}

/// What by design is not restored, or not to the letter. `ARCHITECTURE.md` and the operations page name
/// the same.
mod by_design {
    use super::*;

    /// Keys that do not come back: windows of rate limits, and the index of dead letters.
    pub fn is_lost(key: &str) -> bool {
        ["}:rl:", "}:dlq", "}:res:", "}:brk", "}:lock:"]
            .iter()
            .any(|kind| key.contains(kind))
    }

    /// Fields of a hash that do not come back, by the kind of key.
    pub fn lost_fields(key: &str, fields: &mut BTreeMap<String, String>, live: bool) {
        let kind = key
            .split("}:")
            .nth(1)
            .unwrap_or(key)
            .split(':')
            .next()
            .unwrap_or(key)
            .to_owned();
        let lost = |name: &str| match kind.as_str() {
            // When a key was last used.
            "key" => name == "used",
            // Their numbering begins anew, above what was.
            "ses" => matches!(name, "gen" | "seq" | "warned"),
            // Calls under way, of which no topic tells; a warning may be told again.
            "spend" => name.ends_with(".reserved") || name.ends_with(".warned"),
            "run" => {
                // Ownership, and where the outbox stands.
                let own = name.starts_with("did:")
                    || name.starts_with("o:")
                    || matches!(
                        name,
                        "owner"
                            | "lease"
                            | "open"
                            | "warned"
                            | "deliveries"
                            | "begun"
                            | "begun_by"
                            | "wake"
                    );
                // Live runs are woken at once, wherever they waited.
                let waits = live && matches!(name, "wake_at" | "parked" | "status" | "calls");
                own || waits || name.starts_with("outbox_")
            }
            _ => false,
        };
        // Which dead letter a failed step was to make of its run.
        let steps = |name: &str| kind == "run" && name.starts_with("s:");
        for entry in fields.iter_mut().filter(|(name, _)| steps(name)) {
            let mut step: Value = serde_json::from_str(entry.1).unwrap();
            step.as_object_mut().unwrap().remove("letter");
            *entry.1 = step.to_string();
        }
        fields.retain(|name, value| !(lost(name) || value == "0" && name.contains('_')));
        let cancelled = fields
            .get("status")
            .is_some_and(|status| status == "cancelled");
        if kind == "use" {
            *fields = used(fields);
        }
        fields.retain(|name, value| {
            !(name.starts_with("b:")
                && (value.starts_with("open") || value.starts_with("bounded 0 ")))
        });
        for (name, value) in fields.iter_mut() {
            if name.starts_with("b:") {
                // The day is that of the settlement, and the model what the call's record names.
                let parts: Vec<&str> = value.split(' ').take(3).collect();
                *value = parts.join(" ");
            } else if name.starts_with("m:") {
                // The model's answer is not on the topics; nor are the parts of the counts.
                let mut call: Value = serde_json::from_str(value).unwrap();
                call["answer"] = json!("");
                if let Some(usage) = call.get_mut("usage").and_then(Value::as_object_mut) {
                    usage.retain(|name, _| {
                        matches!(name.as_str(), "input_tokens" | "output_tokens")
                    });
                }
                *value = call.to_string();
            } else if name.starts_with("s:") {
                let mut step: Value = serde_json::from_str(value).unwrap();
                // The worker's clock and Redis' clock.
                for time in ["started_ms", "ended_ms"] {
                    if let Some(ms) = step[time].as_u64() {
                        step[time] = json!(ms / 60_000);
                    }
                }
                // A step that was cut off when its run was cancelled tells no event of its own.
                if cancelled && (step["code"] == "cancelled" || step["status"] == "running") {
                    step = json!({ "tool": step["tool"], "attempts": step["attempts"] });
                }
                *value = step.to_string();
            } else if kind == "ses" && name == "created" {
                *value = (value.parse::<u64>().unwrap() / 60_000).to_string();
            }
        }
    }
}

/// Use by session and by key, whatever the models; without the parts of the counts, which no topic has.
fn used(fields: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut sums: BTreeMap<String, [u64; 4]> = BTreeMap::new();
    for (user, text) in fields {
        let parts: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        let user = user.splitn(3, ':').take(2).collect::<Vec<_>>().join(":");
        let sum = sums.entry(user).or_default();
        for (sum, part) in sum.iter_mut().zip([0, 1, 3, 5]) {
            *sum += parts[part];
        }
    }
    let text = |(user, sum): (String, [u64; 4])| (user, format!("{sum:?}"));
    sums.into_iter().map(text).collect()
}

/// Compares two dumps; every difference that is not by design.
fn differences(
    before: &BTreeMap<String, Held>,
    after: &BTreeMap<String, Held>,
    live: &BTreeSet<String>,
) -> Vec<String> {
    let mut found = Vec::new();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        if by_design::is_lost(name) || name.ends_with("}:timers") || name.ends_with("}:live") {
            continue;
        }
        let is_live = live.iter().any(|run| name.ends_with(run));
        let normal = |held: Option<&Held>| match held.cloned() {
            Some(Held::Hash(mut fields)) => {
                by_design::lost_fields(name, &mut fields, is_live);
                Some(Held::Hash(fields))
            }
            other => other,
        };
        let (was, is) = (normal(before.get(name)), normal(after.get(name)));
        if was != is {
            found.push(format!("{name}:\n  was {was:?}\n  is  {is:?}"));
        }
    }
    found
}

/// Waits until nothing is in any outbox: what Kafka has not got cannot be restored.
async fn until_flushed(stack: &Stack) {
    eventually("every outbox is empty", async || {
        let held = dump(stack).await;
        let full = held.iter().any(|(name, held)| match held {
            Held::Hash(fields) => {
                name.contains("}:run:") && fields.keys().any(|field| field.starts_with("o:"))
            }
            _ => false,
        });
        (!full).then_some(())
    })
    .await;
}

fn scripted(goal: &str, mut script: Value) -> String {
    script["key"] = json!(uuid::Uuid::new_v4());
    format!("{goal} [[sim: {script}]]")
}

#[tokio::test]
async fn a_lost_redis_comes_back_and_live_runs_go_on() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_LEASE_MS", "2000"),
        ("AGENTHUB_MAX_LIVE_RUNS", "20"),
    ])
    .await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/fails", _) => Reply::Status(404),
        ("/hangs" | "/cancelled", 1) => Reply::Never,
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let fetch = |id: &str, path: &str, after: &[&str]| json!({ "id": id, "tool": "http_fetch", "args": { "url": web.url(path) }, "depends_on": after });

    let budget = json!({ "limit_micro_usd": 5_000_000, "window": "month" });
    let budget_of = format!("/v1/admin/tenants/{}/budget", stack.tenant);
    let request = stack.http.request(Method::PUT, stack.url(&budget_of));
    let answer = request
        .bearer_auth(&stack.admin_key)
        .json(&budget)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);

    // Sessions of every kind, an erased one among them.
    let request =
        json!({ "subject": "who", "context": { "team": "ads" }, "metadata": { "a": "b" } });
    let (_, session) = stack.post("/v1/sessions", &request).await;
    let done = session["session_id"].as_str().unwrap().to_owned();
    let (busy, idle, erased, planning, both) = (
        stack.session().await,
        stack.session().await,
        stack.session().await,
        stack.session().await,
        stack.session().await,
    );
    let run = stack.submit(&erased, ADS).await;
    stack.ended(&run).await;
    stack.assert_settled(&run).await;
    let url = format!("/v1/sessions/{erased}");
    stack.request(Method::DELETE, &url).send().await.unwrap();

    // Runs that have ended: planned and executed, one answered without a step, failed, cancelled, only
    // planned.
    let (_, first) = body(keyed(&stack, &done, ADS).await).await;
    let first = first["run_id"].as_str().unwrap().to_owned();
    let mut ended = vec![first.clone()];
    ended.push(
        stack
            .submit(
                &done,
                "Find what the docs say about idempotency and summarise it",
            )
            .await,
    );
    ended.push(
        stack
            .execute(&done, &json!({ "steps": [fetch("a", "/fails", &[])] }))
            .await,
    );
    let (_, planned) = stack
        .post("/v1/plan", &json!({ "session_id": done, "goal": ADS }))
        .await;
    ended.push(planned["run_id"].as_str().unwrap().to_owned());
    let cancelled = stack
        .execute(&both, &json!({ "steps": [fetch("a", "/cancelled", &[])] }))
        .await;
    web.until_hit("/cancelled", 1).await;
    stack.cancel(&cancelled, "force").await;
    ended.push(cancelled);
    for run in &ended {
        stack.ended(run).await;
        stack.assert_settled(run).await;
    }

    // Runs that are live: one in the middle of a plan, one behind it in its session, one whose model
    // wants to be left alone for a while, and one that nobody has taken up.
    let plan =
        json!({ "steps": [fetch("first", "/first", &[]), fetch("hangs", "/hangs", &["first"])] });
    let hanging = stack.execute(&busy, &plan).await;
    web.until_hit("/hangs", 1).await;
    let behind = stack.submit(&busy, ADS).await;
    let limited = json!({ "sequence": [{ "status": 429, "retry_after": 120 }] });
    let parked = stack.submit(&planning, &scripted(ADS, limited)).await;
    eventually("the run is parked", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{parked}")).await;
        (run["status"] == "retry_wait").then_some(())
    })
    .await;
    // Entries that were acknowledged during a call are removed with the next transition or by a sweep.
    until_flushed(&stack).await;
    for process in ["planner", "executor"] {
        stack.processes.get_mut(process).unwrap().kill();
    }
    let waiting = stack.submit(&both, ADS).await;
    // What Kafka has is what can come back. The workers are dead, so that nothing is added.
    until_flushed(&stack).await;
    let live: BTreeSet<String> = [&hanging, &behind, &parked, &waiting]
        .map(String::clone)
        .into();
    let mut told = BTreeMap::new();
    for run in ended.iter().chain(&live) {
        told.insert(run.clone(), stack.get(&format!("/v1/runs/{run}")).await.1);
    }
    let (_, session_told) = stack.get(&format!("/v1/sessions/{done}")).await;
    let seen = stack.follow(&format!("run_id={hanging}"), None).await;
    let last_seen = last_id(seen, "step.completed").await;

    // A Redis that holds anything is not touched.
    let error = stack.refused_command(&["replay", "rebuild"]).await;
    assert!(error.contains("not empty"), "{error}");

    let before = dump(&stack).await;
    flush(&stack).await;
    let text = stack.command(&["replay", "rebuild", "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    let after = dump(&stack).await;
    let found = differences(&before, &after, &live);
    assert!(found.is_empty(), "{}\n{report}", found.join("\n"));
    for (what, expected) in [
        ("sessions", 5),
        ("ended_runs", ended.len() as u64),
        ("live_runs", 4),
        ("claims", 1),
        ("keys", 2),
        ("tenants", 1),
        ("runs_without_command", 0),
    ] {
        assert_eq!(report[what], expected, "{what}: {report}");
    }
    assert_eq!(report["unusable"], json!({}), "{report}");
    // Heads of their sessions are woken, the one behind waits for its place.
    let Held::Set(slots) = &after[&key(&stack, "live")] else {
        panic!("{after:?}")
    };
    let heads: BTreeSet<String> = live.iter().filter(|run| **run != behind).cloned().collect();
    assert_eq!(slots, &heads);
    let Held::Scores(timers) = &after[&key(&stack, "timers")] else {
        panic!("{after:?}")
    };
    assert_eq!(timers.keys().cloned().collect::<BTreeSet<_>>(), live);

    // Clients see what they saw.
    until_open(&stack).await;
    for run in &ended {
        let (_, now) = stack.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(without_times(&now), without_times(&told[run]));
    }
    let (_, session_now) = stack.get(&format!("/v1/sessions/{done}")).await;
    for part in [
        "subject",
        "context",
        "metadata",
        "usage",
        "ttl_s",
        "live_runs",
    ] {
        assert_eq!(session_now[part], session_told[part], "{part}");
    }
    let (status, _) = stack.get(&format!("/v1/sessions/{erased}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = stack.get(&format!("/v1/sessions/{idle}")).await;
    assert_eq!(status, StatusCode::OK);
    // What was spent still counts.
    let request = stack.http.request(Method::GET, stack.url(&budget_of));
    let answer = request.bearer_auth(&stack.admin_key).send().await.unwrap();
    let (_, money) = body(answer).await;
    assert_eq!(money["limit_micro_usd"], 5_000_000, "{money}");
    assert!(money["spent_micro_usd"].as_u64().unwrap() > 0, "{money}");
    // A late repeat starts nothing.
    let answer = keyed(&stack, &done, ADS).await;
    assert_eq!(answer.headers()["idempotency-replayed"], "true");
    assert_eq!(body(answer).await.1["run_id"], first);
    let answer = keyed(&stack, &done, "something else").await;
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);

    // Live runs go on: finished steps are not made again, and order is kept.
    stack.spawn_all(&["planner", "executor"]).await;
    let rest = stack
        .follow(&format!("run_id={hanging}"), Some(&last_seen))
        .await
        .rest()
        .await;
    for run in &live {
        let now = stack.ended(run).await;
        assert_eq!(now["status"], "succeeded", "{now}");
        stack.assert_settled(run).await;
        assert_eq!(stack.terminal_events_on_kafka(run).await.len(), 1, "{run}");
    }
    assert_eq!((web.hits("/first"), web.hits("/hangs")), (1, 2));
    // The client that was in the middle of it goes on where it was.
    let mut rest_kinds = kinds(&rest);
    assert_eq!(rest_kinds.pop(), Some("run.succeeded"));
    assert!(rest_kinds.contains(&"step.started"), "{rest_kinds:?}");
    let ids: Vec<_> = rest.iter().filter_map(|frame| frame.id.clone()).collect();
    let distinct: BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    assert!(!ids.contains(&last_seen));

    // Ids never regress: the new ones are of a later generation, and can be gone on from.
    let (old, new) = (generation(&last_seen), generation(ids.last().unwrap()));
    assert!(new > old, "{old} {new}");
    let middle = ids.iter().position(|id| generation(id) == new).unwrap();
    let again = stack
        .follow(&format!("run_id={hanging}"), Some(&ids[middle]))
        .await
        .rest()
        .await;
    let again: Vec<_> = again.iter().filter_map(|frame| frame.id.clone()).collect();
    assert_eq!(again, ids[middle + 1..]);
    // An event that was told and that no topic has: the client is told that something is missing.
    let lost = format!("{old}-4000");
    let mut follow = stack
        .follow(&format!("session_id={busy}"), Some(&lost))
        .await;
    let told = follow.until("stream.snapshot").await;
    assert_eq!(kinds(&told), ["stream.truncated", "stream.snapshot"]);

    // What was executed before is not executed by its commands.
    let looked_at = async || decided(&stack, "ended").await + decided(&stack, "stale").await;
    let before = looked_at().await;
    let mut replayed = 0;
    for topic in ["plan.commands", "execute.commands"] {
        let done = summary(&stack, &["--topic", topic, "--enqueue", "--execute"]).await;
        replayed += count(&done, "produced");
    }
    // One of the commands is of the erased session.
    eventually("every replayed command was looked at", async || {
        let expired = decided(&stack, "expired").await;
        #[allow(clippy::cast_precision_loss)]
        (looked_at().await + expired >= before + replayed as f64).then_some(())
    })
    .await;
    let hits = ["/first", "/hangs", "/fails", "/cancelled"].map(|path| web.hits(path));
    assert_eq!(hits, [1, 2, 1, 1]);
}

/// The API hears of the end of a rebuild within half a second.
async fn until_open(stack: &Stack) {
    eventually("the API is open", async || {
        let (status, _) = stack.get("/v1/sessions").await;
        (status == StatusCode::OK).then_some(())
    })
    .await;
}

/// Submits a goal under a name of the client's.
async fn keyed(stack: &Stack, session: &str, goal: &str) -> Response {
    let run = json!({
        "session_id": session, "goal": goal, "mode": "plan_execute", "metadata": { "n": "1" },
    });
    let request = stack.request(Method::POST, "/v1/runs");
    let request = request.header("Idempotency-Key", "key-1").json(&run);
    request.send().await.unwrap()
}

fn key(stack: &Stack, rest: &str) -> String {
    format!("{{{}}}:{rest}", stack.tenant)
}

fn generation(id: &str) -> u64 {
    id.split_once('-').unwrap().0.parse().unwrap()
}

async fn last_id(mut follow: crate::support::sse::Follow, kind: &str) -> String {
    let told = follow.until(kind).await;
    told.last().unwrap().id.clone().unwrap()
}

/// A run without the times of its steps, which are those of its events.
fn without_times(run: &Value) -> Value {
    let mut run = run.clone();
    for step in run["steps"].as_array_mut().unwrap() {
        let step = step.as_object_mut().unwrap();
        step.remove("started_at");
        step.remove("ended_at");
    }
    run
}

#[tokio::test]
async fn a_rebuild_that_was_broken_off_keeps_the_api_closed() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    assert!(stack.redis().begin_rebuild().await.unwrap());
    eventually("the API is closed", async || {
        let (status, problem) = stack.get("/v1/sessions").await;
        (status == StatusCode::SERVICE_UNAVAILABLE && problem["code"] == "dependency_unavailable")
            .then_some(())
    })
    .await;
    let answer = stack
        .request(Method::GET, "/v1/sessions")
        .send()
        .await
        .unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    let error = stack.refused_command(&["replay", "rebuild"]).await;
    assert!(error.contains("broken off"), "{error}");
    stack.redis().end_rebuild().await.unwrap();
    until_open(&stack).await;
}

/// Produces what our producer would not.
async fn produce(stack: &Stack, topic: Topic, key: &[u8], like: &Found) {
    let kafka = stack.kafka();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .create()
        .unwrap();
    let mut headers = OwnedHeaders::new();
    for (key, value) in &like.headers {
        let value = Some(value);
        headers = headers.insert(Header { key, value });
    }
    let topic = kafka.topic(topic);
    let record = FutureRecord::to(&topic)
        .key(key)
        .payload(&like.value)
        .headers(headers);
    producer
        .send(record, Duration::from_secs(10))
        .await
        .unwrap();
}

#[tokio::test]
async fn records_that_nobody_signed_restore_nothing() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    // A copy of the session's record, for another tenant's session, by somebody without the secret.
    let records = stack.records(Topic::AgentState).await;
    let forged = records.last().unwrap();
    produce(&stack, Topic::AgentState, b"session/acme/ses_0", forged).await;
    flush(&stack).await;
    let text = stack.command(&["replay", "rebuild", "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["unusable"], json!({ "signature": 1 }), "{report}");
    until_open(&stack).await;
    assert_eq!(report["sessions"], 1, "{report}");
    let (status, _) = stack.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn expired_sessions_stay_away() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let (_, short) = stack.post("/v1/sessions", &json!({ "ttl_s": 1 })).await;
    let short = short["session_id"].as_str().unwrap().to_owned();
    let long = stack.session().await;
    eventually("the session expires", async || {
        let (status, _) = stack.get("/v1/sessions").await;
        assert_eq!(status, StatusCode::OK);
        let mut redis = stack.redis().connection();
        let there: bool = redis
            .exists(stack.key(&format!("ses:{short}")))
            .await
            .unwrap();
        (!there).then_some(())
    })
    .await;
    flush(&stack).await;
    let text = stack.command(&["replay", "rebuild", "--json"]).await;
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["sessions"], &report["expired_sessions"]),
        (&json!(1), &json!(1)),
        "{report}"
    );
    until_open(&stack).await;
    let (status, _) = stack.get(&format!("/v1/sessions/{long}")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn agents_go_on_from_what_was_said_and_done() {
    let mut stack = Stack::bare(&[
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_LEASE_MS", "2000"),
    ])
    .await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/hangs", 1) => Reply::Never,
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let call = |path: &str| json!({ "name": "http_fetch", "arguments": { "url": web.url(path) } });
    let agent = async |sequence: Value| {
        let script = json!({ "sequence": sequence, "content": "asked too often" });
        let goal = scripted("Do it", script);
        let session = stack.session().await;
        stack.submit_agent(&session, &goal, &json!({})).await
    };
    // One in the middle of its second turn's calls, one while it asks, and one that was cancelled.
    let calling = agent(json!([
        { "tool_calls": [call("/a1")] },
        { "tool_calls": [call("/hangs"), call("/beside")] },
        { "content": "the third" },
    ]))
    .await;
    let asking = agent(json!([
        { "tool_calls": [call("/b1")] },
        { "latency_ms": 60_000 },
        { "content": "the third" },
    ]))
    .await;
    let cancelled = agent(json!([
        { "tool_calls": [call("/c1")] },
        { "latency_ms": 60_000 },
        { "content": "the third" },
    ]))
    .await;
    let step = async |run: &str, step: &str| {
        eventually(&format!("{step} of {run} is done"), async || {
            let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
            let mut steps = run["steps"].as_array().unwrap().iter();
            let done = steps.any(|s| s["id"] == step && s["status"] == "succeeded");
            done.then_some(())
        })
        .await;
    };
    let asks_again = async |run: &str| {
        step(run, "t1s1").await;
        eventually(&format!("{run} asks again"), async || {
            let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
            (run["status"] == "planning").then_some(())
        })
        .await;
    };
    step(&calling, "t2s2").await;
    asks_again(&asking).await;
    asks_again(&cancelled).await;
    assert!(stack.cancel(&cancelled, "force").await.0.is_success());
    assert_eq!(stack.ended(&cancelled).await["status"], "cancelled");
    until_flushed(&stack).await;
    for process in ["planner", "executor"] {
        stack.processes.get_mut(process).unwrap().kill();
    }
    until_flushed(&stack).await;

    flush(&stack).await;
    stack.command(&["replay", "rebuild", "--json"]).await;
    until_open(&stack).await;
    stack.spawn_all(&["planner", "executor"]).await;
    let (status, accepted) = stack
        .post(&format!("/v1/runs/{cancelled}/retry"), &json!({}))
        .await;
    assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
    let retried = accepted["run_id"].as_str().unwrap().to_owned();
    for run in [&calling, &asking, &retried] {
        let now = stack.ended(run).await;
        assert_eq!(now["status"], "succeeded", "{now}");
        // No question that was answered was asked again: the answers of the script are in order.
        assert_eq!(now["result"]["answer"], "the third", "{now}");
        stack.assert_settled(run).await;
    }
    for (path, hits) in [
        ("/a1", 1),
        ("/hangs", 2),
        ("/beside", 1),
        ("/b1", 1),
        ("/c1", 1),
    ] {
        assert_eq!(web.hits(path), hits, "{path}");
    }
}

#[tokio::test]
async fn what_was_said_of_a_step_is_restored() {
    let mut stack = Stack::bare(&[("AGENTHUB_FETCH_ALLOW", "127.0.0.2")]).await;
    stack.spawn_all(&["api", "executor"]).await;
    let web = Web::start(|_, _| Reply::Status(404)).await;
    let session = stack.session().await;
    let plan = json!({ "steps": [
        { "id": "pay", "tool": "http_fetch", "args": { "url": web.url("/pay") } },
        { "id": "tell", "tool": "ads_metrics_mock", "depends_on": ["pay"],
          "args": { "advertiser_id": "${steps.pay.output.id}", "metric": "roas" } },
    ] });
    let run = stack.execute(&session, &plan).await;
    assert_eq!(stack.ended(&run).await["status"], "failed");
    until_flushed(&stack).await;
    // As a step with unsafe effects ends whose worker died in the call.
    let name = stack.key(&format!("run:{run}"));
    let mut redis = stack.redis().connection();
    let entry: String = redis.hget(&name, "s:pay").await.unwrap();
    let mut entry: Value = serde_json::from_str(&entry).unwrap();
    entry["status"] = json!("outcome_unknown");
    let _: () = redis.hset(&name, "s:pay", entry.to_string()).await.unwrap();
    let resolve = json!({ "outcome": "succeeded", "output": { "id": "123" } });
    let path = format!("/v1/runs/{run}/steps/pay/resolve");
    let (status, told) = stack.post(&path, &resolve).await;
    assert_eq!(status, StatusCode::OK, "{told}");
    until_flushed(&stack).await;
    let (_, before) = stack.get(&format!("/v1/runs/{run}")).await;

    flush(&stack).await;
    stack.command(&["replay", "rebuild", "--json"]).await;
    until_open(&stack).await;
    let (_, after) = stack.get(&format!("/v1/runs/{run}")).await;
    assert_eq!(without_times(&after), without_times(&before));
    assert_eq!(after["steps"][0]["output"]["id"], "123", "{after}");
    // A retry builds on it.
    let (_, accepted) = stack
        .post(&format!("/v1/runs/{run}/retry"), &json!({}))
        .await;
    let ended = stack.ended(accepted["run_id"].as_str().unwrap()).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    assert_eq!(web.hits("/pay"), 1, "it was not paid twice");
    // Its end stays the last of its events.
    let events = stack.events(&run).await;
    assert_eq!(kinds(&events).last(), Some(&"run.failed"));
}
