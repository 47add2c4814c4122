//! API keys: what narrows them, how they change, and how they end.

use std::time::{Duration, Instant};

use agenthub::governance::{NewKey, Role};
use agenthub::messages::{KeyPolicy, State, StateRecord, Topic};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::SIGNING;
use crate::support::sse::Follow;
use crate::support::stack::{Stack, body, mint, shared};

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
    let key = created(stack, json!({ "models_allowed": ["gpt-4.1"] })).await;
    let run = |model: Option<&str>| {
        let mut goal = json!({ "session_id": session, "goal": ADS });
        if let Some(model) = model {
            goal["model"] = json!(model);
        }
        with(stack, secret(&key), Method::POST, "/v1/runs").json(&goal)
    };
    forbidden(run(None), "models_allowed").await; // the installation's default is another one
    forbidden(run(Some("gpt-4o")), "models_allowed").await;
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

/// Secrets rotate without a moment in which a key that was issued does not hold.
#[tokio::test]
async fn signing_secrets_rotate() {
    const NEXT: &str = "t2:bmV4dC1zaWduaW5nLXNlY3JldC1uZXh0LXNpZ25pbmctc2VjcmV0";
    let mut stack = Stack::bare(&[]).await;
    let old = mint(&stack.keys(), &stack.tenant, Role::Client).await;
    let ask = async |stack: &Stack, key: &str| {
        let response = with(stack, key, Method::GET, "/v1/tools").send().await;
        response.unwrap().status().as_u16()
    };
    let by_command = async |stack: &Stack| {
        let args = [
            "keys", "create", "--tenant", "acme", "--role", "client", "--name", "n", "--json",
        ];
        let key: Value = serde_json::from_str(&stack.command(&args).await).unwrap();
        secret(&key).to_owned()
    };
    // The new secret is accepted before it signs, it signs while the old one is accepted, and at last
    // the old one goes.
    let settings = [
        (format!("{SIGNING},{NEXT}"), 200, 200),
        (format!("{NEXT},{SIGNING}"), 200, 200),
        (NEXT.to_owned(), 401, 200),
    ];
    for (secrets, status_of_old, status_of_new) in settings {
        stack.set("AGENTHUB_SIGNING_SECRETS", &secrets);
        stack.spawn_all(&["api"]).await;
        let new = by_command(&stack).await;
        assert_eq!(ask(&stack, &old).await, status_of_old, "{secrets}");
        assert_eq!(ask(&stack, &new).await, status_of_new, "{secrets}");
        stack.processes.remove("api");
    }
}

#[tokio::test]
async fn an_expired_key_loses_its_streams() {
    let stack = shared().await;
    let new = NewKey {
        tenant: stack.tenant.clone(),
        name: "short-lived".into(),
        role: Role::Client,
        expires_in_s: Some(3),
        policy: KeyPolicy::default(),
    };
    let began = Instant::now();
    let (_, key) = stack.keys().create(new).await.unwrap();
    let session = stack.session().await;
    let path = format!("/v1/stream?session_id={session}");
    let request = with(stack, &key.text, Method::GET, &path);
    let mut doomed = Follow::new(request.send().await.unwrap());
    assert_eq!(doomed.next().await.unwrap().text, "retry: 2000");
    assert!(doomed.event().await.is_none());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3 + 5), "{took:?}");
    let again = with(stack, &key.text, Method::GET, "/v1/tools")
        .send()
        .await;
    assert_eq!(again.unwrap().status(), StatusCode::UNAUTHORIZED);
}

/// The next request anywhere is refused, and when the key was last used is told.
#[tokio::test]
async fn a_revocation_holds_everywhere_at_once() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api", "api-2"]).await;
    let key = created(&stack, json!({})).await;
    let id = key["key_id"].as_str().unwrap();
    let path = format!("/v1/admin/api-keys/{id}");
    let (_, unused) = body(
        with(&stack, &stack.admin_key, Method::GET, &path)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(unused["last_used_at"], Value::Null);
    let ask = async |process: &str| {
        let url = format!("http://{}/v1/tools", stack.processes[process].addr);
        let request = stack.http.get(url).bearer_auth(secret(&key));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((ask("api").await, ask("api-2").await), (200, 200));
    let (_, used) = body(
        with(&stack, &stack.admin_key, Method::GET, &path)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert!(used["last_used_at"].is_string(), "{used}");
    let revoke = format!("{path}/revoke");
    let revoked = with(&stack, &stack.admin_key, Method::POST, &revoke)
        .send()
        .await;
    assert_eq!(revoked.unwrap().status(), StatusCode::OK);
    assert_eq!((ask("api-2").await, ask("api").await), (401, 401));
    // Revoking again finds what it asks for; nothing brings the key back.
    let again = with(&stack, &stack.admin_key, Method::POST, &revoke)
        .send()
        .await;
    assert_eq!(again.unwrap().status(), StatusCode::OK);
    let rotate = with(
        &stack,
        &stack.admin_key,
        Method::POST,
        &format!("{path}/rotate"),
    )
    .send()
    .await;
    assert_eq!(rotate.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(ask("api").await, 401);
}

/// The first key of an installation: by the command line with the signing secret, and in no other way.
#[tokio::test]
async fn the_first_key_is_made_with_the_signing_secret() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let args = [
        "keys", "create", "--tenant", "system", "--role", "admin", "--name", "operator", "--json",
    ];
    let key: Value = serde_json::from_str(&stack.command(&args).await).unwrap();
    let path = "/v1/admin/api-keys?tenant=acme";
    let listed = with(&stack, secret(&key), Method::GET, path)
        .send()
        .await
        .unwrap();
    assert_eq!(listed.status(), StatusCode::OK);
    // Another secret's keys are nobody's.
    stack.set(
        "AGENTHUB_SIGNING_SECRETS",
        "x1:Zm9yZ2VkLXNpZ25pbmctc2VjcmV0LWZvcmdlZC1zaWduaW5nLXM=",
    );
    let forged: Value = serde_json::from_str(&stack.command(&args).await).unwrap();
    let refused = with(&stack, secret(&forged), Method::GET, path)
        .send()
        .await
        .unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
}
