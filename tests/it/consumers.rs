//! Consumers as jobs: where they begin, that they end when they have caught up, and their exit codes.

use std::process::Command;

use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{Delivery, Producer};
use agenthub::messages::{Outgoing, Signer, Topic};
use agenthub::store::LetterFilter;
use serde_json::json;

use crate::support::SIGNING;
use crate::support::stack::Stack;

fn letter(offset: i64) -> Outgoing {
    let letter = json!({
        "v": 1, "topic": "execute.commands", "partition": 0, "offset": offset, "headers": [],
        "class": "unsigned", "error": "by intent", "attempts": 1, "first_ms": 1, "last_ms": 2 + offset,
        "worker": "it", "tenant": "acme",
    });
    Outgoing {
        topic: Topic::DeadLetter,
        key: format!("k{offset}"),
        ce_id: format!("execute.commands/0/{offset}"),
        ce_type: "agenthub.dead_letter".to_owned(),
        tenant: "acme".parse().unwrap(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: letter.to_string().into(),
    }
}

async fn write(stack: &Stack, offsets: std::ops::Range<i64>) -> Vec<Delivery> {
    let producer = Producer::new(&stack.kafka(), Signer::parse(SIGNING).unwrap(), "it").unwrap();
    let mut deliveries = Vec::new();
    for offset in offsets {
        deliveries.push(producer.publish(&letter(offset)).await.unwrap());
    }
    deliveries
}

/// Records that a group has still to read of `dead.letter`.
async fn lag(stack: &Stack, group: &str) -> i64 {
    let mut catalogue = Catalogue::embedded(true).unwrap();
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::DeadLetter);
    catalogue.topics[0].consumers = vec![group.to_owned()];
    let admin = Admin::new(&stack.kafka()).unwrap();
    admin.describe(&catalogue).await.unwrap().topics[0].groups[0].lag
}

async fn indexed(stack: &Stack) -> usize {
    let all = LetterFilter::default();
    let letters = stack.redis().letters(&stack.tenant, &all, None, 1000).await;
    letters.unwrap().len()
}

/// Runs the indexer of dead letters to its end; its exit code and its log.
async fn run(stack: &mut Stack, name: &str, args: &[&str]) -> (Option<i32>, String) {
    stack.begin_with(name, args);
    let process = stack.processes.get_mut(name).unwrap();
    let code = process.exit_code().await;
    (code, process.log())
}

#[tokio::test]
async fn a_job_reads_what_is_there_and_ends() {
    let mut stack = Stack::bare(&[]).await;
    // An empty topic is read already.
    let (code, log) = run(&mut stack, "dlq-1", &["--until-caught-up"]).await;
    assert_eq!(code, Some(0), "{log}");
    let written = write(&stack, 0..40).await;
    assert!(written.iter().any(|d| d.partition != written[0].partition));
    let (code, log) = run(&mut stack, "dlq-2", &["--until-caught-up"]).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        (indexed(&stack).await, lag(&stack, "dlq").await),
        (40, 0),
        "{log}"
    );
    // What was committed is not read again, and there is nothing else.
    let (code, log) = run(&mut stack, "dlq-3", &["--until-caught-up"]).await;
    assert_eq!(code, Some(0), "{log}");

    // Another group has its own place, and may begin anywhere.
    let time = jiff::Timestamp::now().to_string();
    for (name, group, from, left) in [
        ("dlq-4", "later", time.as_str(), 40),
        ("dlq-5", "again", "earliest", 0),
        ("dlq-6", "dlq", "earliest", 0),
    ] {
        let args = ["--until-caught-up", "--group", group, "--from", from];
        let (code, log) = run(&mut stack, name, &args).await;
        assert_eq!(code, Some(0), "{args:?}: {log}");
        assert_eq!(lag(&stack, group).await, left, "{args:?}: {log}");
    }
    assert_eq!(indexed(&stack).await, 40);
}

#[tokio::test]
async fn a_group_with_members_is_not_reset() {
    let mut stack = Stack::bare(&[]).await;
    write(&stack, 0..10).await;
    stack.spawn_all(&["dlq"]).await;
    crate::support::eventually("the member has joined", async || {
        let assigned = stack
            .metric("dlq", "agenthub_consumer_assigned_partitions")
            .await;
        (assigned > 0.0).then_some(())
    })
    .await;
    let (code, log) = run(&mut stack, "dlq-2", &["--from", "earliest"]).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("which has 1 members"), "{log}");
    // A second member may well wait for the group to have caught up.
    let (code, log) = run(&mut stack, "dlq-3", &["--until-caught-up"]).await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!((indexed(&stack).await, lag(&stack, "dlq").await), (10, 0));
    let process = stack.processes.get_mut("dlq").unwrap();
    process.tell_to_stop();
    assert!(process.stopped().await, "{}", process.log());
}

#[tokio::test]
async fn an_executor_as_a_job_ends_when_its_runs_have() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&["api", "planner"]).await;
    let session = stack.session().await;
    let goal = "Get ROAS for advertiser 123 over 7 days";
    let runs = [
        stack.submit(&session, goal).await,
        stack.submit(&session, goal).await,
    ];
    crate::support::eventually("the first run is planned", async || {
        let (_, run) = stack.get(&format!("/v1/runs/{}", runs[0])).await;
        run["plan"].is_object().then_some(())
    })
    .await;
    stack.begin_with("executor", &["--until-caught-up"]);
    let run = stack.ended(&runs[0]).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    let process = stack.processes.get_mut("executor").unwrap();
    assert_eq!(process.exit_code().await, Some(0), "{}", process.log());
}

#[test]
fn wrong_usage_is_told_and_help_has_an_example() {
    let run = |binary: &str, args: &[&str]| {
        let environment = crate::support::environment("t0", &[]);
        let mut command = Command::new(binary);
        let output = command
            .args(args)
            .env_clear()
            .envs(environment)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    for binary in [
        env!("CARGO_BIN_EXE_agenthub-planner"),
        env!("CARGO_BIN_EXE_agenthub-executor"),
        env!("CARGO_BIN_EXE_agenthub-audit-rollup"),
        env!("CARGO_BIN_EXE_agenthub-dlq"),
    ] {
        let (code, text) = run(binary, &["--help"]);
        assert_eq!(code, Some(0), "{text}");
        for expected in [
            "Examples:",
            "--until-caught-up",
            "--from",
            "--group",
            "Exit codes:",
        ] {
            assert!(text.contains(expected), "{binary}: {expected}: {text}");
        }
        assert_eq!(run(binary, &["--check-config"]).0, Some(0));
        for wrong in [
            &["--from", "yesterday"][..],
            &["--from", "latest", "--until-caught-up"],
            &["--group", "a b"],
            &["--odd"],
        ] {
            let (code, text) = run(binary, wrong);
            assert_eq!(code, Some(2), "{binary} {wrong:?}: {text}");
        }
    }
    let (code, text) = run(
        env!("CARGO_BIN_EXE_agenthub-audit-rollup"),
        &["--from", "earliest"],
    );
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("goes on after what its files hold"), "{text}");
    let (code, text) = run(env!("CARGO_BIN_EXE_agenthub-api"), &["--help"]);
    assert!(code == Some(0) && text.contains("Example"), "{text}");
}
