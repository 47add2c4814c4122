//! The main job: HTTP → Kafka → planner → Kafka → executor → tools → Redis → SSE.

use serde_json::json;

use crate::support::stack::Stack;

#[tokio::test]
async fn a_goal_is_planned_executed_and_told() {
    let stack = Stack::start(&[]).await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 123 over 7 days")
        .await;
    let events = stack.events(&run).await;
    let types: Vec<&str> = events.iter().map(|(t, _)| t.as_str()).collect();
    assert_eq!(
        types,
        [
            "run.queued",
            "plan.started",
            "plan.created",
            "run.started",
            "step.started",
            "step.completed",
            "run.succeeded"
        ]
    );
    for pair in events.windows(2) {
        assert_eq!(pair[1].1["prev"], pair[0].1["id"]);
    }
    let run = stack.ended(&run).await;
    assert_eq!(run["status"], "succeeded", "{run}");
    assert_eq!(run["steps"].as_array().map(Vec::len), Some(1), "{run}");
    let output = &run["steps"][0]["output"];
    assert_eq!(output["metric"], "roas", "{run}");
    assert_eq!(output["value"], json!(5.5627), "{run}");
}
