//! `agenthub why`: what operators are told of a run.

use agenthub::ids::RunId;
use serde_json::{Value, json};

use crate::support::stack::{Stack, allowing};
use crate::support::web::{Reply, Web};

async fn story(stack: &Stack, run: &str) -> Value {
    let told = stack.command(&["why", "--json", run]).await;
    serde_json::from_str(&told).unwrap()
}

#[tokio::test]
async fn a_run_is_told_with_its_attempts_its_places_and_its_end() {
    let stack = allowing().await;
    let web = Web::start(|_, nth| match nth {
        1 => Reply::Status(503),
        _ => Reply::Status(404),
    })
    .await;
    let session = stack.session().await;
    let plan = json!({ "steps": [
        { "id": "page", "tool": "http_fetch", "args": { "url": web.url("/why") } }
    ] });
    let run = stack.execute(&session, &plan).await;
    stack.ended(&run).await;
    stack.assert_settled(&run).await;

    let told = story(stack, &run).await;
    let story = &told["story"];
    let happenings = story["happenings"].as_array().unwrap();
    let what: Vec<&str> = happenings
        .iter()
        .map(|h| h["what"].as_str().unwrap())
        .collect();
    for expected in [
        "request",
        "execute command",
        "run.queued",
        "run.started",
        "step.retrying",
        "step.failed",
        "run.failed",
        "dead letter",
    ] {
        assert!(what.contains(&expected), "{expected}: {told}");
    }
    let retrying = happenings
        .iter()
        .find(|h| h["what"] == "step.retrying")
        .unwrap();
    let detail = retrying["detail"].as_str().unwrap();
    assert!(
        detail.contains("page, attempt 1") && detail.contains("waits"),
        "{told}"
    );
    let worker = retrying["worker"].as_str().unwrap();
    assert!(worker.contains("executor"), "{told}");
    assert!(
        retrying["offset"].is_u64() && retrying["topic"].is_string(),
        "{told}"
    );
    assert_eq!(story["ended"], "failed", "{told}");
    assert!(
        story["because"].as_str().unwrap().contains("http_status"),
        "{told}"
    );

    // For people: one line for each, and why at the end.
    let text = stack.command(&["why", &run]).await;
    assert!(
        text.contains("step.retrying") && text.contains("\nfailed after "),
        "{text}"
    );
}

#[tokio::test]
async fn what_a_run_cost_is_what_was_settled() {
    let stack = allowing().await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 123 over 7 days")
        .await;
    let ended = stack.ended(&run).await;
    stack.assert_settled(&run).await;
    let told = story(stack, &run).await;
    assert_eq!(told["story"]["ended"], "succeeded", "{told}");
    let cost = &ended["usage"]["cost_micro_usd"];
    assert_eq!(&told["story"]["cost_micro_usd"], cost, "{told}");
    assert!(told["story"]["queued_ms"].is_u64(), "{told}");
}

#[tokio::test]
async fn an_unknown_run_is_said_to_be_unknown() {
    let stack = allowing().await;
    let error = stack
        .refused_command(&["why", RunId::generate().as_str()])
        .await;
    assert!(error.contains("hold nothing of"), "{error}");
}
