//! API keys: what narrows them, how they change, and how they end.

use agenthub::messages::{State, StateRecord, Topic};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::stack::{Stack, body, shared};

const ADS: &str = "Get ROAS for advertiser 123 over 7 days";

/// A request with a key of its own.
fn with(stack: &Stack, key: &str, method: Method, path: &str) -> RequestBuilder {
    stack.http.request(method, stack.url(path)).bearer_auth(key)
}

/// Creates a key as an admin does; its record.
async fn created(stack: &Stack, more: Value) -> Value {
    let mut new = json!({ "name": "narrow", "role": "client" });
    for (name, value) in more.as_object().unwrap() {
        new[name] = value.clone();
    }
    let request = with(stack, &stack.admin_key, Method::POST, "/v1/admin/api-keys");
    let (status, key) = body(request.json(&new).send().await.unwrap()).await;
    assert_eq!(status, StatusCode::CREATED, "{key}");
    key
}

fn secret(key: &Value) -> &str {
    key["api_key"].as_str().unwrap()
}

/// Sends what must be refused by a rule.
async fn forbidden(request: RequestBuilder, rule: &str) {
    let response = request.send().await.unwrap();
    // What is forbidden counts against nobody's limits.
    assert!(!response.headers().contains_key("ratelimit"));
    let (status, problem) = body(response).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{problem}");
    assert_eq!(problem["code"], "forbidden", "{problem}");
    assert_eq!(problem["details"]["rule"], rule, "{problem}");
}

#[tokio::test]
async fn a_key_is_held_to_its_models() {
    let stack = shared().await;
    let session = stack.session().await;
    let key = created(stack, json!({ "models_allowed": ["gpt-4o", "gpt-4.1"] })).await;
    let run = |model: Option<&str>| {
        let mut goal = json!({ "session_id": session, "goal": ADS });
        if let Some(model) = model {
            goal["model"] = json!(model);
        }
        with(stack, secret(&key), Method::POST, "/v1/runs").json(&goal)
    };
    forbidden(run(None), "models_allowed").await; // the installation's default is another one
    forbidden(run(Some("gpt-4")), "models_allowed").await;
    let (_, runs) = stack.get(&format!("/v1/runs?session_id={session}")).await;
    assert_eq!(runs["data"], json!([]));
    let (status, run) = body(run(Some("gpt-4.1")).send().await.unwrap()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{run}");
}

#[tokio::test]
async fn a_key_is_held_to_its_tools() {
    let stack = shared().await;
    let session = stack.session().await;
    let key = created(stack, json!({ "tools_allowed": ["ads_metrics_mock"] })).await;
    let send =
        |path: &str, request: Value| with(stack, secret(&key), Method::POST, path).json(&request);
    let goal =
        |tools: &[&str]| json!({ "session_id": session, "goal": ADS, "tools_allowed": tools });
    forbidden(send("/v1/runs", goal(&["retrieval"])), "tools_allowed").await;
    // A plan that is given, and one that is named.
    let plan = json!({ "steps": [{ "id": "a", "tool": "retrieval", "args": { "query": "x" } }] });
    let given = json!({ "session_id": session, "plan": plan });
    forbidden(send("/v1/execute", given), "tools_allowed").await;
    let (_, planning) = stack
        .post(
            "/v1/plan",
            &json!({ "session_id": session, "goal": "Find what the docs say about idempotency" }),
        )
        .await;
    let planned = planning["run_id"].as_str().unwrap();
    assert_eq!(stack.ended(planned).await["status"], "succeeded");
    let named = json!({ "session_id": session, "plan_id": planned });
    forbidden(send("/v1/execute", named), "tools_allowed").await;

    // What both allow travels with the run, to planner and executor.
    let both = goal(&["retrieval", "ads_metrics_mock"]);
    let no_list = json!({ "session_id": session, "goal": ADS });
    for request in [both, no_list] {
        let (status, run) = body(send("/v1/runs", request).send().await.unwrap()).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{run}");
        let run = stack.ended(run["run_id"].as_str().unwrap()).await;
        assert_eq!(run["status"], "succeeded", "{run}");
        assert_eq!(run["tools_allowed"], json!(["ads_metrics_mock"]), "{run}");
    }
    // Nor does the planner get round it with a goal that asks for another tool.
    let request =
        json!({ "session_id": session, "goal": "Find what the docs say about idempotency" });
    let (_, run) = body(send("/v1/runs", request).send().await.unwrap()).await;
    let run = stack.ended(run["run_id"].as_str().unwrap()).await;
    let steps = run["steps"].as_array().unwrap();
    assert!(
        steps.iter().all(|step| step["tool"] == "ads_metrics_mock"),
        "{run}"
    );
}

#[tokio::test]
async fn a_key_is_held_to_its_networks() {
    let stack = shared().await;
    let elsewhere = created(
        stack,
        json!({ "ips_allowed": ["192.0.2.0/24", "2001:db8::/32"] }),
    )
    .await;
    let at = |key: &Value| with(stack, secret(key), Method::GET, "/v1/runs");
    forbidden(at(&elsewhere), "ips_allowed").await;
    let here = created(stack, json!({ "ips_allowed": ["::ffff:127.0.0.0/104"] })).await;
    assert_eq!(at(&here).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(here["ips_allowed"], json!(["127.0.0.0/8"]));
}

#[tokio::test]
async fn a_key_has_limits_of_its_own() {
    let stack = shared().await;
    let limits = json!([{ "limit": 2, "window_ms": 60_000 }]);
    let key = created(stack, json!({ "limits": limits })).await;
    let ask = || with(stack, secret(&key), Method::GET, "/v1/runs").send();
    for left in ["1", "0"] {
        let response = ask().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["x-ratelimit-remaining"], left);
    }
    let (status, problem) = body(ask().await.unwrap()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(problem["details"]["rule"], "key_rate_limit", "{problem}");
}

/// What narrows a key is shown, and is on Kafka before it counts.
#[tokio::test]
async fn a_policy_is_kept_and_shown() {
    let stack = shared().await;
    let policy = json!({
        "limits": [{ "limit": 10, "window_ms": 1000 }, { "limit": 100, "window_ms": 60_000 }],
        "tools_allowed": ["retrieval", "summarize"],
        "models_allowed": ["gpt-4o"],
        "ips_allowed": ["127.0.0.1/32", "2001:db8::/32"],
    });
    let key = created(stack, policy.clone()).await;
    let id = key["key_id"].as_str().unwrap();
    let path = format!("/v1/admin/api-keys/{id}");
    let read = with(stack, &stack.admin_key, Method::GET, &path).send();
    let (_, shown) = body(read.await.unwrap()).await;
    let args = [
        "keys",
        "create",
        "--tenant",
        "acme",
        "--role",
        "client",
        "--name",
        "narrow",
        "--json",
        "--limit",
        "10/1000",
        "--limit",
        "100/60000",
        "--tools-allowed",
        "retrieval,summarize",
        "--models-allowed",
        "gpt-4o",
        "--ips-allowed",
        "127.0.0.1,2001:db8::1/32",
    ];
    let by_command: Value = serde_json::from_str(&stack.command(&args).await).unwrap();
    let state = key_states(stack).await;
    let recorded = state.iter().find(|key| key["key_id"] == id).unwrap();
    for (name, value) in policy.as_object().unwrap() {
        for place in [&key, &shown, &by_command, recorded] {
            assert_eq!(&place[name], value, "{name}: {place}");
        }
    }
    // A rotated key stays narrow.
    let rotate = format!("{path}/rotate");
    let rotated = with(stack, &stack.admin_key, Method::POST, &rotate).send();
    let (_, rotated) = body(rotated.await.unwrap()).await;
    assert_eq!(rotated["ips_allowed"], policy["ips_allowed"], "{rotated}");
    assert_eq!(rotated["version"], 2);
}

/// The records of keys on `agent.state`, in their order.
async fn key_states(stack: &Stack) -> Vec<Value> {
    let records = stack.records(Topic::AgentState).await;
    let states = records.iter().filter(|record| !record.value.is_empty());
    let states = states.map(|record| serde_json::from_slice(&record.value).unwrap());
    let keys = states.filter_map(|record: StateRecord| match record.state {
        State::ApiKey(key) => Some(serde_json::to_value(key).unwrap()),
        _ => None,
    });
    keys.collect()
}

#[tokio::test]
async fn a_policy_that_cannot_be_meant_is_refused() {
    let stack = shared().await;
    for (more, field) in [
        (json!({ "limits": [] }), "/limits"),
        (
            json!({ "limits": [{ "limit": 0, "window_ms": 1 }] }),
            "/limits/0/limit",
        ),
        (
            json!({ "limits": [{ "limit": 1, "window": 1 }] }),
            "/limits/0/window",
        ),
        (json!({ "tools_allowed": ["rm"] }), "/tools_allowed/0"),
        (json!({ "models_allowed": [] }), "/models_allowed"),
        (json!({ "ips_allowed": ["10.0.0.0/33"] }), "/ips_allowed/0"),
        (json!({ "tools_alowed": ["retrieval"] }), "/tools_alowed"),
    ] {
        let mut new = json!({ "name": "n", "role": "client" });
        for (name, value) in more.as_object().unwrap() {
            new[name] = value.clone();
        }
        let request = with(stack, &stack.admin_key, Method::POST, "/v1/admin/api-keys");
        let (status, problem) = body(request.json(&new).send().await.unwrap()).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        assert_eq!(problem["details"]["field"], field, "{problem}");
    }
}
