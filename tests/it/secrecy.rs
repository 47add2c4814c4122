//! What is at rest: neither the broker's segments nor Redis' file hold what clients wrote, and once a
//! session is erased nothing that is left opens.

use std::path::Path;

use agenthub::ids::SessionId;
use agenthub::messages::Topic;
use agenthub::privacy::KeyRing;
use agenthub::rollup::AuditSigner;
use reqwest::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::support::broker::Broker;
use crate::support::redis::OwnRedis;
use crate::support::stack::Stack;
use crate::support::web::{Reply, Web};
use crate::support::{MASTER, eventually};

/// Planted where clients write and tools answer: in a goal, in contexts, in arguments, in a fetched page, in
/// an agent's answer, in an error that quotes what was given, and in a session's subject. No rule of masking
/// would hide any of them.
const GOAL: &str = "ottilie-querengasser";
const SESSION_CONTEXT: &str = "zebulon-wackerbarth";
const ARGUMENT: &str = "leopoldine-quastenflosser";
const RESULT: &str = "kunibert-sauerampfer";
const ANSWER: &str = "gundula-pfefferminz";
const QUOTED: &str = "hildegund-tausendschoen";
const SUBJECT: &str = "walpurga-zickzack";
const CANARIES: [&str; 7] = [
    GOAL,
    SESSION_CONTEXT,
    ARGUMENT,
    RESULT,
    ANSWER,
    QUOTED,
    SUBJECT,
];
/// A run's label, which is kept as it was given: what is at rest in the clear is found.
const LABEL: &str = "in-the-clear-on-purpose";

/// Waits until the append-only file that was asked for is there.
async fn until_rewritten(own: &OwnRedis) {
    let client = redis::Client::open(own.url.as_str()).unwrap();
    let redis = &client.get_multiplexed_async_connection().await.unwrap();
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

/// Writes a snapshot beside the append-only file.
async fn snapshot(own: &OwnRedis) {
    let client = redis::Client::open(own.url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    // A compressed text would not be found.
    let mut plain = redis::cmd("CONFIG");
    plain.arg("SET").arg("rdbcompression").arg("no");
    plain.exec_async(&mut redis).await.unwrap();
    redis::cmd("SAVE").exec_async(&mut redis).await.unwrap();
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

fn found_in(folders: &[&Path], texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for folder in folders {
        holding(folder, texts, &mut found);
    }
    found
}

/// What the operator's command shows of a topic, opened where it opens.
async fn opened(stack: &Stack, topic: &str) -> String {
    let command = ["replay", "--topic", topic, "--open", "--json"];
    stack.command(&command).await
}

#[tokio::test]
async fn canaries_are_nowhere_at_rest_and_an_erased_subject_opens_no_more() {
    let broker = Broker::start().await;
    let redis = OwnRedis::start().await;
    let signer = AuditSigner::generate(None).unwrap();
    let audit = tempfile::tempdir().unwrap();
    let mut stack = Stack::bare(&[
        ("KAFKA_BROKERS", &broker.brokers),
        ("REDIS_URL", &redis.url),
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_ROLLUP_MAX_AGE_MS", "500"),
        ("AGENTHUB_STORAGE_URL", audit.path().to_str().unwrap()),
        (
            "AGENTHUB_AUDIT_SIGNING_KEY",
            signer.private_text().expose_secret(),
        ),
        ("AGENTHUB_AUDIT_PUBLIC_KEYS", &signer.public_text()),
    ])
    .await;
    stack.spawn_simulator(&[]).await;
    stack
        .spawn_all(&["api", "planner", "executor", "audit-rollup", "dlq"])
        .await;
    let web = Web::start(|path, _| match path {
        "/refuses" => Reply::Status(404),
        _ => Reply::Page("<title>kunibert-sauerampfer</title>"),
    })
    .await;

    let request = json!({ "subject": SUBJECT, "context": { "note": SESSION_CONTEXT } });
    let (status, session) = stack.post("/v1/sessions", &request).await;
    assert_eq!(status, StatusCode::CREATED, "{session}");
    let session = session["session_id"].as_str().unwrap().to_owned();
    // Of somebody else: it stays.
    let request = json!({ "subject": "somebody-else" });
    let (_, other) = stack.post("/v1/sessions", &request).await;
    let other = other["session_id"].as_str().unwrap().to_owned();

    let goal = format!("Get ROAS for advertiser 123 over 7 days, {GOAL}");
    let request = json!({ "session_id": session, "goal": goal, "mode": "plan_execute",
        "metadata": { "note": LABEL } });
    let (status, run) = stack.post("/v1/runs", &request).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
    let planned = run["run_id"].as_str().unwrap().to_owned();
    assert_eq!(stack.ended(&planned).await["status"], "succeeded");
    let fetch = |path: &str| {
        json!({ "steps": [{ "id": "s1", "tool": "http_fetch",
        "args": { "url": web.url(path) } }] })
    };
    let given = stack
        .execute(&session, &fetch(&format!("/page?q={ARGUMENT}")))
        .await;
    let told = stack.ended(&given).await;
    assert_eq!(told["status"], "succeeded");
    assert!(told.to_string().contains(RESULT), "{told}");
    let failed = stack.execute(&session, &fetch("/refuses")).await;
    assert_eq!(stack.ended(&failed).await["status"], "failed");
    let reference = json!({ "steps": [
        { "id": "s1", "tool": "http_fetch", "args": { "url": web.url("/page") } },
        { "id": "s2", "tool": "retrieval", "depends_on": ["s1"],
            "args": { "query": format!("${{steps.s1.output.{QUOTED}}}") } },
    ] });
    let quoting = stack.execute(&session, &reference).await;
    let told = stack.ended(&quoting).await;
    assert_eq!(told["status"], "failed", "{told}");
    assert!(told["error"].to_string().contains(QUOTED), "{told}");
    let script = format!(r#"Say it [[sim: {{"content": "It is {ANSWER}."}}]]"#);
    let agent = stack.submit_agent(&session, &script, &json!({})).await;
    let answer = stack.ended(&agent).await["result"]["answer"].to_string();
    assert!(answer.contains(ANSWER), "{answer}");
    let runs = [&planned, &given, &failed, &quoting, &agent];
    for run in runs {
        stack.assert_settled(run).await;
    }
    // Clients see what happened as ever.
    for (run, canary) in [
        (&given, ARGUMENT),
        (&given, RESULT),
        (&quoting, QUOTED),
        (&agent, ANSWER),
    ] {
        let events = stack.events(run).await;
        let seen = events
            .iter()
            .any(|event| event.data["data"].to_string().contains(canary));
        assert!(seen, "{canary}: {events:?}");
    }
    let audited = eventually("the roll-up has every run", async || {
        let query = [
            "audit", "query", "--tenant", "acme", "--from", "1h", "--limit", "100000", "--json",
        ];
        let records = stack.command(&query).await;
        runs.iter()
            .all(|run| records.contains(*run))
            .then_some(records)
    })
    .await;

    snapshot(&redis).await;
    let folders = [broker.folder(), redis.folder(), audit.path()];
    let found = found_in(&folders, &CANARIES);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(
        !CANARIES.iter().any(|canary| audited.contains(canary)),
        "{audited}"
    );
    // What is there in the clear is found in each: the search would see a canary.
    for folder in [broker.folder(), redis.folder()] {
        assert!(
            !found_in(&[folder], &[LABEL]).is_empty(),
            "{}",
            folder.display()
        );
    }
    // With the ring and the session's key, an operator opens all of it.
    let events = opened(&stack, "agent.events").await;
    for canary in [ARGUMENT, RESULT, ANSWER] {
        assert!(events.contains(canary), "{canary}: {events}");
    }
    assert!(stack.command(&["why", &quoting]).await.contains(QUOTED));

    let ring = KeyRing::parse(MASTER).unwrap();
    let wrapped = wrapped_keys(&stack, &session).await;
    assert_eq!(wrapped.len(), 1, "the session's key is on agent.state");
    let id: SessionId = session.parse().unwrap();
    assert!(ring.unwrap(&wrapped[0], &stack.tenant, &id).is_ok());

    let erase = ["erase", "--tenant", "acme", "--subject", SUBJECT, "--json"];
    let dry = stack.command(&[&erase[..], &["--dry-run"]].concat()).await;
    let dry: Value = serde_json::from_str(&dry).unwrap();
    let expected = json!([{ "session_id": session, "live": true, "runs": 5 }]);
    assert_eq!(
        (&dry["dry_run"], &dry["sessions"]),
        (&json!(true), &expected)
    );
    assert_eq!(
        stack.get(&format!("/v1/sessions/{session}")).await.0,
        StatusCode::OK
    );
    let erased: Value = serde_json::from_str(&stack.command(&erase).await).unwrap();
    assert_eq!(erased["sessions"], expected, "{erased}");
    let left = ["left_in_redis", "left_on_agent_state", "unreadable_records"];
    assert!(left.iter().all(|name| erased[name] == 0), "{erased}");
    assert_eq!(erased["aof_rewrite"], "started", "{erased}");
    let stores = erased["stores"].as_array().unwrap();
    let state = stores
        .iter()
        .find(|store| store["store"] == "agent.state")
        .unwrap();
    assert_eq!(state["gone_within_ms"], 86_400_000, "{state}");
    // A second time there is nothing to erase.
    let again: Value = serde_json::from_str(&stack.command(&erase).await).unwrap();
    assert_eq!(again["sessions"], json!([]), "{again}");

    until_rewritten(&redis).await;
    snapshot(&redis).await;
    // Redis' files have the key no more; on the compacted topic its record is followed by its erasure, and
    // is removed within `max.compaction.lag.ms`.
    let found = found_in(&[redis.folder()], &[wrapped[0].as_str()]);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(wrapped_keys(&stack, &session).await.is_empty());
    let (status, _) = stack.get(&format!("/v1/runs/{given}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        stack.get(&format!("/v1/sessions/{other}")).await.0,
        StatusCode::OK
    );

    // The topics still hold the records, and nothing opens them.
    for topic in [
        "agent.events",
        "execute.commands",
        "plan.commands",
        "dead.letter",
    ] {
        let shown = opened(&stack, topic).await;
        let canary = CANARIES.iter().find(|canary| shown.contains(**canary));
        assert_eq!(canary, None, "{topic}: {shown}");
        let says_so = topic == "dead.letter" || shown.contains("the session's key is gone");
        assert!(says_so, "{topic}: {shown}");
    }
    let story = stack.command(&["why", &quoting]).await;
    assert!(
        story.contains("the session's key is gone") && !story.contains(QUOTED),
        "{story}"
    );
    let found = found_in(&folders, &CANARIES);
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(
        stack
            .command(&["audit", "verify"])
            .await
            .contains("verified: ")
    );
}

/// The wrapped keys of a session that compaction of `agent.state` would keep.
async fn wrapped_keys(stack: &Stack, session: &str) -> Vec<String> {
    let mut last = None;
    for record in stack.records(Topic::AgentState).await {
        let key = String::from_utf8_lossy(&record.key).into_owned();
        if key.ends_with(session) {
            last = serde_json::from_slice::<Value>(&record.value).ok();
        }
    }
    let key = last.and_then(|state| Some(state["wrapped_key"].as_str()?.to_owned()));
    key.into_iter().collect()
}
