//! Going on after a run that did not succeed: retry, and what is said of steps whose outcome is unknown.

use agenthub::ids::RunId;
use redis::AsyncCommands;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::stack::{Stack, allowing, body};
use crate::support::web::{Reply, Web};

fn fetch(id: &str, url: &str, after: &[&str]) -> Value {
    json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
}

fn status<'a>(run: &'a Value, step: &str) -> &'a str {
    let steps = run["steps"].as_array().unwrap();
    let step = steps.iter().find(|s| s["id"] == step).unwrap();
    step["status"].as_str().unwrap()
}

async fn retry(stack: &Stack, run: &str) -> (StatusCode, Value) {
    stack
        .post(&format!("/v1/runs/{run}/retry"), &json!({}))
        .await
}

/// A server whose `/second` fails once for good.
async fn fails_once() -> Web {
    Web::start(|path, nth| match (path, nth) {
        ("/second", 1) => Reply::Status(404),
        _ => Reply::Page("<title>Fine</title>"),
    })
    .await
}

#[tokio::test]
async fn a_retry_takes_over_what_was_finished() {
    let stack = allowing().await;
    let web = fails_once().await;
    let session = stack.session().await;
    let plan = json!({ "steps": [
        fetch("s1", &web.url("/first"), &[]),
        fetch("s2", &web.url("/second"), &["s1"]),
        fetch("s3", &web.url("/third"), &["s2"]),
    ] });
    let old = stack.execute(&session, &plan).await;
    let failed = stack.ended(&old).await;
    assert_eq!(failed["status"], "failed", "{failed}");

    let (code, accepted) = retry(stack, &old).await;
    assert_eq!(code, StatusCode::ACCEPTED, "{accepted}");
    let run = stack.ended(accepted["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["retry_of"], old.as_str(), "{run}");
    for step in ["s1", "s2", "s3"] {
        assert_eq!(status(&run, step), "succeeded", "{run}");
    }
    assert_eq!(
        (web.hits("/first"), web.hits("/second"), web.hits("/third")),
        (1, 2, 1)
    );
    // The run before it stays as it ended.
    assert_eq!(stack.ended(&old).await["status"], "failed");
    stack
        .assert_settled(accepted["run_id"].as_str().unwrap())
        .await;

    // One that succeeded is not retried, nor one that nobody knows.
    let (code, refusal) = retry(stack, accepted["run_id"].as_str().unwrap()).await;
    assert_eq!(code, StatusCode::CONFLICT, "{refusal}");
    assert_eq!(refusal["code"], "not_retryable");
    assert_eq!(refusal["details"]["status"], "succeeded");
    assert_eq!(
        retry(stack, RunId::generate().as_str()).await.0,
        StatusCode::NOT_FOUND
    );
    assert_eq!(retry(stack, "nonsense").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_live_run_is_not_retried() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Held("<title>Late</title>")).await;
    let session = stack.session().await;
    let plan = json!({ "steps": [fetch("s1", &web.url("/held"), &[])] });
    let run = stack.execute(&session, &plan).await;
    web.until_hit("/held", 1).await;
    let (code, refusal) = retry(stack, &run).await;
    assert_eq!(code, StatusCode::CONFLICT, "{refusal}");
    assert_eq!(refusal["details"]["status"], "executing", "{refusal}");
    web.release();
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
}

#[tokio::test]
async fn the_same_key_retries_once_and_names_one_run() {
    let stack = allowing().await;
    let web = Web::start(|_, _| Reply::Status(404)).await;
    let session = stack.session().await;
    let mut failed = Vec::new();
    for _ in 0..2 {
        let plan = json!({ "steps": [fetch("s1", &web.url("/gone"), &[])] });
        let run = stack.execute(&session, &plan).await;
        stack.ended(&run).await;
        failed.push(run);
    }
    let key = uuid::Uuid::new_v4().to_string();
    let send = async |run: &str| {
        let request = stack.request(Method::POST, &format!("/v1/runs/{run}/retry"));
        body(
            request
                .header("Idempotency-Key", &key)
                .send()
                .await
                .unwrap(),
        )
        .await
    };
    let (code, first) = send(&failed[0]).await;
    assert_eq!(code, StatusCode::ACCEPTED, "{first}");
    let (code, again) = send(&failed[0]).await;
    assert_eq!(
        (code, &again["run_id"]),
        (StatusCode::ACCEPTED, &first["run_id"])
    );
    let (code, other) = send(&failed[1]).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{other}");
    stack.ended(first["run_id"].as_str().unwrap()).await;
}

#[tokio::test]
async fn a_planning_run_that_failed_is_planned_anew() {
    let stack = allowing().await;
    let session = stack.session().await;
    // A goal for which the first model answers with nothing that is a plan.
    let script = json!({
        "key": uuid::Uuid::new_v4(),
        "sequence": [{ "status": 400 }],
    });
    let goal = format!("Get ROAS for advertiser 123 over 7 days [[sim: {script}]]");
    let old = stack.submit(&session, &goal).await;
    let failed = stack.ended(&old).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let (code, accepted) = retry(stack, &old).await;
    assert_eq!(code, StatusCode::ACCEPTED, "{accepted}");
    let run = stack.ended(accepted["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
}

#[tokio::test]
async fn a_step_whose_outcome_is_unknown_is_resolved_before_a_retry() {
    let stack = allowing().await;
    let web = fails_once().await;
    let session = stack.session().await;
    let plan = json!({ "steps": [
        fetch("pay", &web.url("/second"), &[]),
        { "id": "tell", "tool": "summarize", "args": { "text": "${steps.pay.output.receipt}" } },
    ] });
    let old = stack.execute(&session, &plan).await;
    stack.ended(&old).await;
    // As a step with unsafe effects ends whose worker died in the call.
    let name = format!("{}:run:{old}", stack.redis().base(&stack.tenant));
    let mut connection = stack.redis().connection();
    let entry: String = connection.hget(&name, "s:pay").await.unwrap();
    let mut entry: Value = serde_json::from_str(&entry).unwrap();
    entry["status"] = json!("outcome_unknown");
    connection
        .hset::<_, _, _, ()>(&name, "s:pay", entry.to_string())
        .await
        .unwrap();
    assert_eq!(status(&stack.ended(&old).await, "pay"), "outcome_unknown");

    // It is never repeated in silence.
    let (code, refusal) = retry(stack, &old).await;
    assert_eq!(code, StatusCode::CONFLICT, "{refusal}");
    assert_eq!(refusal["details"]["steps"], json!(["pay"]), "{refusal}");

    let path = |step: &str| format!("/v1/runs/{old}/steps/{step}/resolve");
    for (step, request, expected) in [
        (
            "nope",
            json!({ "outcome": "failed" }),
            StatusCode::NOT_FOUND,
        ),
        (
            "pay",
            json!({ "outcome": "perhaps" }),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
        (
            "pay",
            json!({ "outcome": "failed", "output": 1 }),
            StatusCode::UNPROCESSABLE_ENTITY,
        ),
    ] {
        let (code, refusal) = stack.post(&path(step), &request).await;
        assert_eq!(code, expected, "{refusal}");
    }
    let output = r#"{"receipt": "Receipt 7: paid in full."}"#;
    let told = stack
        .client_command(&[
            "runs",
            "resolve",
            &old,
            "--step",
            "pay",
            "--outcome",
            "succeeded",
            "--output",
            output,
        ])
        .await;
    assert_eq!(told.trim(), format!("{old} pay succeeded"));
    let (code, refusal) = stack
        .post(&path("pay"), &json!({ "outcome": "failed" }))
        .await;
    assert_eq!(code, StatusCode::CONFLICT, "{refusal}");
    assert_eq!(refusal["code"], "outcome_known", "{refusal}");

    let told = stack
        .client_command(&["runs", "retry", "--json", &old])
        .await;
    let told: Value = serde_json::from_str(&told).unwrap();
    let run = stack.ended(told["run_id"].as_str().unwrap()).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(web.hits("/second"), 1, "it was not paid twice");
    let summary = run["steps"][1]["output"]["summary"].as_str().unwrap();
    assert!(summary.contains("Receipt 7"), "{run}");
}
