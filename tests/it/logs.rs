//! What processes log: one line per request and per run, and as much else as the operator asks for.

use serde_json::Value;

use crate::support::eventually;
use crate::support::stack::{Process, Stack};

/// The log's lines that say `message`.
fn lines(process: &Process, message: &str) -> Vec<Value> {
    let log = process.log();
    let lines = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    lines
        .filter(|line: &Value| line["message"] == message)
        .collect()
}

#[tokio::test]
async fn one_line_tells_of_a_request_and_one_of_a_run() {
    let stack = Stack::start(&[]).await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 123 over 7 days")
        .await;
    stack.ended(&run).await;
    let of_run = |line: &Value| line["run_id"] == run.as_str();

    let api = &stack.processes["api"];
    let requests: Vec<Value> = lines(api, "request").into_iter().filter(of_run).collect();
    let posts: Vec<&Value> = requests
        .iter()
        .filter(|line| line["method"] == "POST")
        .collect();
    let [post] = posts[..] else {
        panic!("{posts:?}");
    };
    assert_eq!(post["route"], "/v1/runs");
    assert_eq!(post["status"], 202);
    assert_eq!(post["tenant"], "acme");
    assert_eq!(post["session_id"], session.as_str());
    for field in ["duration_ms", "key_id", "trace_id"] {
        assert!(!post[field].is_null(), "{field}: {post}");
    }

    let executor = &stack.processes["executor"];
    let ended = eventually("the run's line is there", async || {
        let ended: Vec<Value> = lines(executor, "run ended")
            .into_iter()
            .filter(of_run)
            .collect();
        (!ended.is_empty()).then_some(ended)
    })
    .await;
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["outcome"], "succeeded");
    assert_eq!(ended[0]["span"]["trace_id"], post["trace_id"], "one trace");
    assert!(lines(&stack.processes["planner"], "run ended").is_empty());
}

/// A run that no worker has ends by its client alone, and is told of all the same.
#[tokio::test]
async fn a_run_that_is_cancelled_while_it_waits_is_told_by_the_api() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 123 over 7 days")
        .await;
    let (status, told) = stack.cancel(&run, "graceful").await;
    assert!(status.is_success(), "{told}");
    let ended = lines(&stack.processes["api"], "run ended");
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert_eq!(ended[0]["run_id"], run.as_str());
    assert_eq!(ended[0]["outcome"], "cancelled");
    let counted =
        "agenthub_runs_total{tenant=\"acme\",kind=\"plan_execute\",outcome=\"cancelled\"}";
    assert!((stack.metric("api", counted).await - 1.0).abs() < f64::EPSILON);
}

/// The level of each module is changed while the process runs, and a mistake changes nothing.
#[tokio::test]
async fn sighup_reads_the_filter_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let file = file.to_str().unwrap();
    std::fs::write(
        file,
        "warn,agenthub::app=info,agenthub::runtime=info,agenthub::request=off",
    )
    .unwrap();
    let mut stack = Stack::bare(&[("AGENTHUB_LOG_FILE", file)]).await;
    stack.unset("AGENTHUB_LOG");
    stack.spawn_all(&["api"]).await;
    let api = &stack.processes["api"];
    let requests = || lines(api, "request").len();
    stack.get("/v1/tools").await;
    assert_eq!(requests(), 0, "{}", api.log());

    std::fs::write(file, "info").unwrap();
    api.signal("HUP");
    eventually("the filter is read", async || {
        let told = lines(api, "SIGHUP: log filter");
        told.first().map(|line| assert_eq!(line["changed"], true))
    })
    .await;
    stack.get("/v1/tools").await;
    assert_eq!(requests(), 1);

    std::fs::write(file, "agenthub=loud,=").unwrap();
    api.signal("HUP");
    eventually("the mistake is told", async || {
        let told = lines(api, "SIGHUP: the log filter stays");
        let line = told.first()?;
        assert!(
            line["error"].as_str().unwrap().contains("AGENTHUB_LOG"),
            "{line}"
        );
        Some(())
    })
    .await;
    stack.get("/v1/tools").await;
    assert_eq!(requests(), 2);
}
