//! Replay of topics: what is printed, kept and re-enqueued, and what is never done twice.

use std::collections::BTreeMap;
use std::time::Duration;

use agenthub::kafka::{Extent, TopicReader};
use agenthub::messages::{Topic, header};
use redis::AsyncCommands;
use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::stack::{Stack, shared};
use crate::support::web::{Reply, Web};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// A summary as `--json` tells it.
pub async fn summary(stack: &Stack, args: &[&str]) -> Value {
    let args: Vec<&str> = ["replay", "--json"].iter().chain(args).copied().collect();
    let text = stack.command(&args).await;
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// What each process of the stack has decided about commands, by outcome.
pub async fn decided(stack: &Stack, outcome: &str) -> f64 {
    let mut total = 0.0;
    for (process, stage) in [("planner", "plan"), ("executor", "execute")] {
        let metric = format!("agenthub_acquires_total{{stage=\"{stage}\",outcome=\"{outcome}\"");
        total += stack.metric(process, &metric).await;
    }
    total
}

pub fn count(summary: &Value, what: &str) -> u64 {
    summary[what].as_u64().unwrap()
}

#[tokio::test]
async fn replaying_every_command_executes_nothing_again() {
    const RUNS: usize = 12;
    let mut stack = Stack::bare(&[("AGENTHUB_FETCH_ALLOW", "127.0.0.2")]).await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let web = Web::start(|path, _| match path {
        "/fails" => Reply::Status(404),
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let session = stack.session().await;
    let mut runs = Vec::new();
    for n in 0..RUNS {
        let page = if n == 5 {
            "fails".to_owned()
        } else {
            n.to_string()
        };
        let goal = format!(
            "Fetch {} and tell me its title",
            web.url(&format!("/{page}"))
        );
        runs.push(stack.submit(&session, &goal).await);
    }
    let mut before = BTreeMap::new();
    for run in &runs {
        let ended = stack.ended(run).await;
        before.insert(run.clone(), ended);
        stack.assert_settled(run).await;
    }
    let hits = |web: &Web| {
        let pages = (0..RUNS).map(|n| n.to_string()).chain(["fails".to_owned()]);
        pages
            .map(|page| web.hits(&format!("/{page}")))
            .collect::<Vec<_>>()
    };
    let called = hits(&web);
    assert!(called.iter().sum::<usize>() >= RUNS, "{called:?}");
    let calls = stack.metric("planner", "agenthub_llm_calls_total").await;

    let mut replayed = 0;
    for topic in ["plan.commands", "execute.commands"] {
        let dry = summary(&stack, &["--topic", topic, "--enqueue"]).await;
        assert_eq!(
            (count(&dry, "produced"), dry["dry_run"].as_bool()),
            (0, Some(true))
        );
        let done = summary(&stack, &["--topic", topic, "--enqueue", "--execute"]).await;
        assert_eq!(count(&done, "produced"), count(&dry, "matched"), "{done}");
        assert!(count(&done, "produced") >= RUNS as u64, "{done}");
        replayed += count(&done, "produced");
    }
    eventually("every replayed command was looked at", async || {
        let ended = decided(&stack, "ended").await + decided(&stack, "stale").await;
        #[allow(clippy::cast_precision_loss)]
        (ended >= replayed as f64).then_some(())
    })
    .await;

    assert_eq!(hits(&web), called, "a tool was called again");
    let again = stack.metric("planner", "agenthub_llm_calls_total").await;
    assert!((again - calls).abs() < 0.5, "the model was asked again");
    for (run, before) in &before {
        assert_eq!(&stack.ended(run).await, before);
        assert_eq!(stack.terminal_events_on_kafka(run).await.len(), 1);
    }
    // Once by each stage, and never since.
    assert!(decided(&stack, "acquired").await <= 24.0);
}

#[tokio::test]
async fn re_enqueued_records_are_the_same_to_the_byte() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    let run_id = stack.submit(&session, ADS).await;
    stack.submit(&session, ADS).await;

    // From the topic to a file, and from there back onto the topic.
    let file = std::env::temp_dir().join(format!("{}.jsonl", stack.namespace));
    let file = file.to_str().unwrap();
    let saved = summary(
        &stack,
        &["--topic", "plan.commands", "--run", &run_id, "--out", file],
    )
    .await;
    assert_eq!(
        (count(&saved, "read"), count(&saved, "matched")),
        (2, 1),
        "{saved}"
    );
    assert_eq!(saved["skipped"]["another_run"], 1);
    let enqueued = summary(&stack, &["--in", file, "--enqueue", "--execute"]).await;
    assert_eq!(count(&enqueued, "produced"), 1, "{enqueued}");

    let records = stored(&stack, Topic::PlanCommands).await;
    let of_run: Vec<_> = records
        .iter()
        .filter(|r| r.header(header::CE_SUBJECT) == Some(&run_id))
        .collect();
    let [first, second] = of_run[..] else {
        panic!("{of_run:?}")
    };
    assert_eq!(first.key, second.key);
    assert_eq!(first.value, second.value);
    assert_eq!(
        first.headers, second.headers,
        "order and signature included"
    );
    assert_eq!(first.partition, second.partition);

    // A file that was changed is not taken: its signature does not fit any more.
    let text = std::fs::read_to_string(file).unwrap();
    let mut line: Value = serde_json::from_str(text.trim()).unwrap();
    line["value"] = json!("e30=");
    std::fs::write(file, format!("{line}\n")).unwrap();
    let refused = summary(&stack, &["--in", file, "--enqueue", "--execute"]).await;
    assert_eq!(count(&refused, "produced"), 0);
    assert_eq!(refused["skipped"]["signature"], 1, "{refused}");
    // Nor is one of another installation.
    line["topic"] = json!("elsewhere.plan.commands");
    std::fs::write(file, format!("{line}\n")).unwrap();
    let refused = summary(&stack, &["--in", file, "--enqueue", "--execute"]).await;
    assert_eq!(refused["skipped"]["topic"], 1, "{refused}");
    std::fs::remove_file(file).unwrap();
    assert_eq!(stored(&stack, Topic::PlanCommands).await.len(), 3);
}

async fn stored(stack: &Stack, topic: Topic) -> Vec<agenthub::kafka::StoredRecord> {
    let mut reader = TopicReader::open(&stack.kafka(), topic, Extent::ALL)
        .await
        .unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next().await.unwrap() {
        records.push(record);
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

#[tokio::test]
async fn a_command_whose_run_is_gone_and_whose_time_is_over_is_acknowledged() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let session = stack.session().await;
    let request =
        json!({ "session_id": session, "goal": ADS, "mode": "plan_execute", "timeout_s": 3 });
    let (_, accepted) = stack.post("/v1/runs", &request).await;
    let run = accepted["run_id"].as_str().unwrap().to_owned();
    stack.ended(&run).await;
    stack.assert_settled(&run).await;
    // The record of a run outlives the time for which its commands could recreate it.
    let mut redis = stack.redis().connection();
    let key = stack.key(&format!("run:{run}"));
    let ttl: i64 = redis.pttl(&key).await.unwrap();
    assert!(ttl > 3_000, "{ttl}");
    let _: () = redis.del(&key).await.unwrap();
    let (expired, acquired) = (
        decided(&stack, "expired").await,
        decided(&stack, "acquired").await,
    );
    eventually("the command's time is over", async || {
        let dry = summary(&stack, &["--topic", "plan.commands", "--enqueue"]).await;
        (count(&dry, "past_their_time") == 1).then_some(())
    })
    .await;
    for topic in ["plan.commands", "execute.commands"] {
        let done = summary(&stack, &["--topic", topic, "--enqueue", "--execute"]).await;
        assert_eq!(count(&done, "produced"), 1, "{done}");
    }
    eventually("both are acknowledged as expired", async || {
        (decided(&stack, "expired").await >= expired + 2.0).then_some(())
    })
    .await;
    assert!((decided(&stack, "acquired").await - acquired).abs() < 0.5);
    let exists: bool = redis.exists(&key).await.unwrap();
    assert!(!exists, "the run came back");
}

#[tokio::test]
async fn an_ended_run_outlives_its_commands_however_short_the_retention() {
    let mut stack = Stack::bare(&[("AGENTHUB_RUN_RETENTION_S", "1")]).await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner", "executor"]).await;
    let run = stack.submit(&stack.session().await, ADS).await;
    stack.ended(&run).await;
    let key = stack.key(&format!("run:{run}"));
    let ttl: i64 = stack.redis().connection().pttl(key).await.unwrap();
    // Its timeout is ten minutes.
    assert!(ttl > 500_000, "{ttl}");
}

#[tokio::test]
async fn what_happened_is_not_put_onto_its_topic_again() {
    let stack = shared().await;
    for topic in ["agent.events", "audit.logs", "agent.state", "dead.letter"] {
        let error = stack
            .refused_command(&["replay", "--topic", topic, "--enqueue", "--execute"])
            .await;
        assert!(error.contains(topic), "{error}");
    }
}

#[tokio::test]
async fn records_are_printed_masked_and_opened_for_the_operator() {
    let stack = shared().await;
    let session = stack.session().await;
    let goal = format!("{ADS} and write to who@example.org");
    let run = stack.submit(&session, &goal).await;
    stack.ended(&run).await;

    let cat = async |more: &[&str]| {
        let base = ["topics", "cat", "plan.commands", "--run", &run, "--json"];
        let args: Vec<&str> = base.iter().chain(more).copied().collect();
        let text = stack.command(&args).await;
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 1, "{text}");
        lines[0].clone()
    };
    let closed = cat(&[]).await;
    let goal_of = |record: &Value| record["value"]["spec"]["goal"].as_str().unwrap().to_owned();
    assert!(goal_of(&closed).starts_with("[sealed, "), "{closed}");
    assert!(!closed.to_string().contains("ah_signature"), "{closed}");
    let opened = goal_of(&cat(&["--open"]).await);
    assert!(
        opened.starts_with(ADS) && !opened.contains("example.org"),
        "{opened}"
    );
    let plain = goal_of(&cat(&["--open", "--unmasked"]).await);
    assert_eq!(plain, goal);

    // The plan is in the event's sealed state.
    let text = stack
        .command(&[
            "topics",
            "cat",
            "agent.events",
            "--run",
            &run,
            "--open",
            "--json",
        ])
        .await;
    let batches: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let events = batches
        .iter()
        .flat_map(|b| b["value"]["events"].as_array().unwrap());
    let state = events
        .filter(|e| e["type"] == "plan.created")
        .map(|e| e["state"]["steps"][0]["tool"].clone());
    assert_eq!(state.collect::<Vec<_>>(), ["ads_metrics_mock"]);

    // For people, by an expression, from a time on.
    let filter = format!("@.value.spec.run_id == '{run}'");
    let text = stack
        .command(&[
            "replay",
            "--topic",
            "plan.commands",
            "--from",
            "2020-01-01T00:00:00Z",
            "--where",
            &filter,
        ])
        .await;
    assert!(text.lines().count() == 1 && text.contains(&run), "{text}");
    let none = stack
        .command(&[
            "replay",
            "--topic",
            "plan.commands",
            "--from",
            "2100-01-01T00:00:00Z",
        ])
        .await;
    assert_eq!(none, "");
}

#[tokio::test]
async fn a_rate_is_kept() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    for _ in 0..8 {
        stack.submit(&session, ADS).await;
    }
    let began = std::time::Instant::now();
    let args = [
        "--topic",
        "plan.commands",
        "--enqueue",
        "--execute",
        "--rate",
        "4",
    ];
    let done = summary(&stack, &args).await;
    assert_eq!(count(&done, "produced"), 8, "{done}");
    // The first at once, the eighth 1.75 s later: never earlier, however fast the machine.
    assert!(began.elapsed() >= Duration::from_millis(1_750), "{done}");
}

#[tokio::test]
async fn new_runs_are_asked_of_the_api_once_for_each_run() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    let runs = [
        stack.submit(&session, ADS).await,
        stack.submit(&session, ADS).await,
    ];
    // The first run's command is on the topic twice.
    let again = [
        "--topic",
        "plan.commands",
        "--run",
        &runs[0],
        "--enqueue",
        "--execute",
    ];
    summary(&stack, &again).await;

    let api = Web::start(|_, _| Reply::Json(r#"{"run_id":"run_new"}"#)).await;
    stack.set("AGENTHUB_URL", &api.url(""));
    let key = stack.api_key.clone();
    stack.set("AGENTHUB_API_KEY", &key);
    let retry = |run: &str| format!("/v1/runs/{run}/retry");
    let dry = summary(&stack, &["--topic", "plan.commands", "--as-new"]).await;
    assert_eq!(
        (count(&dry, "matched"), count(&dry, "produced")),
        (2, 0),
        "{dry}"
    );
    assert!(runs.iter().all(|run| api.hits(&retry(run)) == 0));

    let done = summary(
        &stack,
        &["--topic", "plan.commands", "--as-new", "--execute"],
    )
    .await;
    assert_eq!(
        (count(&done, "matched"), count(&done, "produced")),
        (2, 2),
        "{done}"
    );
    assert_eq!(done["skipped"]["same_run"], 1, "{done}");
    for run in &runs {
        assert_eq!(api.hits(&retry(run)), 1);
    }
}
