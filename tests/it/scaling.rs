//! Several workers of a kind share the work, and one that leaves hands its share over.

use crate::support::eventually;
use crate::support::stack::Stack;

const WORKERS: [&str; 4] = ["planner", "planner-2", "executor", "executor-2"];

/// Each worker is told its part of the partitions.
async fn stack() -> Stack {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_simulator(&["--latency-ms", "50"]).await;
    stack.spawn_all(&["api"]).await;
    stack.spawn_all(&WORKERS).await;
    for worker in WORKERS {
        eventually(&format!("{worker} has partitions"), async || {
            let assigned = stack.metric(worker, "agenthub_consumer_assigned_partitions");
            (assigned.await > 0.0).then_some(())
        })
        .await;
    }
    stack
}

async fn submit(stack: &Stack, number: usize) -> Vec<String> {
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(stack.session().await);
    }
    let mut runs = Vec::new();
    for n in 0..number {
        let goal = format!("Get ROAS for advertiser {n} over 7 days");
        runs.push(stack.submit(&sessions[n % sessions.len()], &goal).await);
    }
    runs
}

async fn all_succeed(stack: &Stack, runs: &[String]) {
    for run in runs {
        let ended = stack.ended(run).await;
        assert_eq!(ended["status"], "succeeded", "{ended}");
    }
    for run in runs {
        stack.assert_settled(run).await;
    }
}

async fn acquired(stack: &Stack, worker: &str) -> f64 {
    let stage = if worker.starts_with("planner") {
        "plan"
    } else {
        "execute"
    };
    let metric = format!("agenthub_acquires_total{{stage=\"{stage}\",outcome=\"acquired\"}}");
    stack.metric(worker, &metric).await
}

#[tokio::test]
async fn every_worker_gets_work() {
    let stack = stack().await;
    let runs = submit(&stack, 40).await;
    all_succeed(&stack, &runs).await;
    let mut planned = 0.0;
    let mut executed = 0.0;
    for worker in WORKERS {
        let acquired = acquired(&stack, worker).await;
        assert!(acquired > 0.0, "{worker} got nothing");
        if worker.starts_with("planner") {
            planned += acquired;
        } else {
            executed += acquired;
        }
    }
    // Each run once.
    assert_eq!((planned, executed), (40.0, 40.0));
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_hands_over() {
    let mut stack = stack().await;
    let runs = submit(&stack, 40).await;
    let leaving = ["executor-2", "planner-2"];
    for worker in leaving {
        stack.processes[worker].tell_to_stop();
    }
    // They leave under load.
    let (_, last) = stack.get(&format!("/v1/runs/{}", runs[39])).await;
    assert!(last["ended_at"].is_null(), "{last}");
    for worker in leaving {
        let process = stack.processes.get_mut(worker).unwrap();
        assert!(process.stopped().await, "{}", process.log());
        let log = process.log();
        assert!(log.contains("\"message\":\"stopped\""), "{log}");
    }
    all_succeed(&stack, &runs).await;
}
