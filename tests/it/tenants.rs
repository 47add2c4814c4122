//! What admins set for tenants.

use agenthub::governance::Role;
use agenthub::ids::TenantId;
use agenthub::messages::{State, StateRecord, TenantRecord, Topic};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::stack::{Stack, body, mint};

const LIMITS: &str = "/v1/admin/tenants/acme/limits";

async fn put(stack: &Stack, limits: &Value) -> (StatusCode, Value) {
    let request = stack.http.put(stack.url(LIMITS)).json(limits);
    body(request.bearer_auth(&stack.admin_key).send().await.unwrap()).await
}

/// The newest record of the tenant on `agent.state`.
async fn recorded(stack: &Stack) -> Option<TenantRecord> {
    let records = stack.records(Topic::AgentState).await;
    let mut tenants = records.iter().rev().filter_map(|record| {
        let record: StateRecord = serde_json::from_slice(&record.value).ok()?;
        match record.state {
            State::Tenant(tenant) => Some(tenant),
            _ => None,
        }
    });
    tenants.next()
}

#[tokio::test]
async fn limits_hold_from_the_next_request_on() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let ask = async || {
        let request = stack.request(Method::GET, "/v1/runs");
        let response = request.send().await.unwrap();
        let policy = response.headers()["ratelimit-policy"].to_str().unwrap();
        (response.status(), policy.to_owned())
    };
    let defaults = "\"key-1000ms\";q=100000;w=1, \"tenant-1000ms\";q=100000;w=1";
    assert_eq!(ask().await, (StatusCode::OK, defaults.to_owned()));
    let (_, before) = body(
        stack
            .http
            .get(stack.url(LIMITS))
            .bearer_auth(&stack.admin_key)
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(before, json!({}));

    let limits = json!({
        "per_key": [{ "limit": 2, "window_ms": 60_000 }],
        "per_tenant": [{ "limit": 50, "window_ms": 60_000 }],
        "max_live_runs": 7,
        "max_live_runs_per_key": 3,
    });
    let (status, set) = put(&stack, &limits).await;
    assert_eq!((status, &set), (StatusCode::OK, &limits));
    let record = recorded(&stack).await.unwrap();
    assert_eq!(
        (record.tenant.as_str(), record.max_live_runs),
        ("acme", Some(7))
    );
    let own = "\"key-60000ms\";q=2;w=60, \"tenant-60000ms\";q=50;w=60";
    for status in [200, 200, 429] {
        let (got, policy) = ask().await;
        assert_eq!((got.as_u16(), policy.as_str()), (status, own));
    }
    // They are replaced as a whole: what is left out is the default again.
    let (status, set) = put(&stack, &json!({ "max_live_runs": 9 })).await;
    assert_eq!(
        (status, set),
        (StatusCode::OK, json!({ "max_live_runs": 9 }))
    );
    assert_eq!(ask().await, (StatusCode::OK, defaults.to_owned()));
    assert_eq!(recorded(&stack).await.unwrap().per_key, None);

    for (wrong, field) in [
        (json!({ "per_keys": [] }), "/per_keys"),
        (json!({ "per_key": [] }), "/per_key"),
        (
            json!({ "per_tenant": [{ "limit": 1 }] }),
            "/per_tenant/0/window_ms",
        ),
        (json!({ "max_live_runs": 0 }), "/max_live_runs"),
        (json!({ "max_live_runs": -1 }), "/max_live_runs"),
    ] {
        let (status, problem) = put(&stack, &wrong).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{problem}");
        assert_eq!(problem["details"]["field"], field, "{problem}");
    }
}

/// Whatever is asked of a key at the same time, it is revoked in the end: in Redis and on Kafka.
#[tokio::test]
async fn a_revoked_key_never_comes_back() {
    let stack = Stack::bare(&[]).await;
    let keys = stack.keys();
    let tenant: TenantId = "acme".parse().unwrap();
    for _ in 0..5 {
        let text = mint(&keys, &tenant, Role::Client).await;
        let id = text.split('_').nth(2).unwrap().parse().unwrap();
        let rotate = || keys.rotate(&tenant, &id, 60, None);
        let (_, _, revoked, _, _) = tokio::join!(
            rotate(),
            rotate(),
            keys.revoke(&tenant, &id),
            rotate(),
            rotate()
        );
        assert_eq!(revoked.unwrap().status, "revoked");
        let (kept, _) = keys.get(&tenant, &id).await.unwrap();
        assert_eq!(kept.status, "revoked");
        let records = stack.records(Topic::AgentState).await;
        let mut states = records.iter().filter_map(|record| {
            let record: StateRecord = serde_json::from_slice(&record.value).ok()?;
            match record.state {
                State::ApiKey(key) if key.key_id == id => Some(key),
                _ => None,
            }
        });
        assert_eq!(states.next_back(), Some(kept));
        assert!(keys.rotate(&tenant, &id, 60, None).await.is_err());
    }
}
