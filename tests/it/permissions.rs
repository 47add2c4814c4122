//! Who may do what: every route × every role × (its own tenant, another one, the operator's). The
//! routes are read from the API's own document, so that a route without a recipe here fails.

use std::collections::BTreeMap;

use agenthub::api::{RouteAccess, access};
use agenthub::governance::{Permission, Role};
use agenthub::ids::{KeyId, RunId, SessionId, TenantId};
use agenthub::messages::{DeadLetter, LetterId};
use agenthub::store::IndexedLetter;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::stack::{Stack, body, mint};

const PLAN: &str = r#"{ "steps": [{ "id": "a", "tool": "retrieval", "args": { "query": "x" } }] }"#;

/// What a request may name.
struct Ids {
    session: String,
    run: String,
    key: String,
    tenant: String,
    letter: String,
}

impl Ids {
    /// Things that nobody has.
    fn unknown() -> Self {
        Self {
            session: SessionId::generate().to_string(),
            run: RunId::generate().to_string(),
            key: KeyId::generate().to_string(),
            tenant: "nobody".to_owned(),
            letter: "execute.commands.0.1".to_owned(),
        }
    }

    /// Fresh things of the stack's tenant. The run has ended, since nobody carries runs out here.
    async fn fresh(stack: &Stack) -> Self {
        let session = stack.session().await;
        let run = stack.submit(&session, "x").await;
        let (status, _) = stack.cancel(&run, "graceful").await;
        assert_eq!(status, StatusCode::OK);
        let key = mint(&stack.keys(), &stack.tenant, Role::Client).await;
        let letter = letter_about(stack, &run).await;
        Self {
            session,
            run,
            key: key.split('_').nth(2).unwrap().to_owned(),
            tenant: stack.tenant.to_string(),
            letter,
        }
    }
}

/// A dead letter about a run, in the index; its id.
async fn letter_about(stack: &Stack, run: &str) -> String {
    let letter: DeadLetter = serde_json::from_value(json!({
        "v": 1, "topic": "execute.commands", "partition": 1, "offset": rand::random::<u32>(),
        "headers": [], "class": "permanent", "error": "by intent", "attempts": 1,
        "first_ms": 1, "last_ms": 2, "worker": "it", "tenant": stack.tenant, "run_id": run,
    }))
    .unwrap();
    let id = LetterId::from(&letter).to_string();
    let indexed = IndexedLetter::new(letter, 0, 0);
    let new = stack.redis().index_letter(&stack.tenant, &indexed).await;
    assert!(new.unwrap());
    id
}

/// How a request for a route names things.
struct Recipe {
    path: String,
    body: Option<Value>,
    /// Whether another tenant's answer must be that of an unknown thing.
    names: bool,
}

fn recipe(method: &str, path: &str, ids: &Ids) -> Recipe {
    let Ids {
        session,
        run,
        key,
        tenant,
        letter,
    } = ids;
    let with = |path: &str, body: Option<Value>, names| Recipe {
        path: path.to_owned(),
        body,
        names,
    };
    let plan: Value = serde_json::from_str(PLAN).unwrap();
    match (method, path) {
        ("POST", "/v1/sessions") => with(path, Some(json!({})), false),
        (
            "GET",
            "/v1/sessions"
            | "/v1/runs"
            | "/v1/tools"
            | "/v1/admin/api-keys"
            | "/v1/admin/audit/head"
            | "/v1/admin/dlq"
            | "/v1/admin/dlq/groups",
        ) => with(path, None, false),
        ("GET" | "DELETE", "/v1/sessions/{session_id}") => {
            with(&format!("/v1/sessions/{session}"), None, true)
        }
        ("POST", "/v1/plan" | "/v1/runs") => with(
            path,
            Some(json!({ "session_id": session, "goal": "x" })),
            true,
        ),
        ("POST", "/v1/execute") => with(
            path,
            Some(json!({ "session_id": session, "plan": plan })),
            true,
        ),
        ("GET", "/v1/runs/{run_id}") => with(&format!("/v1/runs/{run}"), None, true),
        ("POST", "/v1/runs/{run_id}/cancel") => {
            with(&format!("/v1/runs/{run}/cancel"), Some(json!({})), true)
        }
        ("POST", "/v1/runs/{run_id}/retry") => {
            with(&format!("/v1/runs/{run}/retry"), Some(json!({})), true)
        }
        ("POST", "/v1/runs/{run_id}/steps/{step_id}/resolve") => with(
            &format!("/v1/runs/{run}/steps/a/resolve"),
            Some(json!({ "outcome": "failed" })),
            true,
        ),
        ("PUT", "/v1/admin/tenants/{tenant}/budget") => with(
            &format!("/v1/admin/tenants/{tenant}/budget"),
            Some(json!({ "limit_micro_usd": null })),
            true,
        ),
        ("GET", "/v1/admin/tenants/{tenant}/budget") => {
            with(&format!("/v1/admin/tenants/{tenant}/budget"), None, true)
        }
        ("GET", "/v1/admin/tenants/{tenant}/usage") => {
            with(&format!("/v1/admin/tenants/{tenant}/usage"), None, true)
        }
        ("GET", "/v1/stream") => with(&format!("/v1/stream?run_id={run}"), None, true),
        ("POST", "/v1/admin/api-keys") => {
            with(path, Some(json!({ "name": "n", "role": "client" })), false)
        }
        ("GET", "/v1/admin/api-keys/{key_id}") => {
            with(&format!("/v1/admin/api-keys/{key}"), None, true)
        }
        ("POST", "/v1/admin/api-keys/{key_id}/rotate") => with(
            &format!("/v1/admin/api-keys/{key}/rotate"),
            Some(json!({})),
            true,
        ),
        ("POST", "/v1/admin/api-keys/{key_id}/revoke") => {
            with(&format!("/v1/admin/api-keys/{key}/revoke"), None, true)
        }
        ("PUT", "/v1/admin/tenants/{tenant}/limits") => with(
            &format!("/v1/admin/tenants/{tenant}/limits"),
            Some(json!({})),
            true,
        ),
        ("GET", "/v1/admin/tenants/{tenant}/limits") => {
            with(&format!("/v1/admin/tenants/{tenant}/limits"), None, true)
        }
        ("DELETE", "/v1/admin/cache/{tool}") => with("/v1/admin/cache/http_fetch", None, false),
        ("GET", "/v1/admin/dlq/{letter_id}") => {
            with(&format!("/v1/admin/dlq/{letter}"), None, true)
        }
        ("POST", "/v1/admin/dlq/{letter_id}/redrive") => with(
            &format!("/v1/admin/dlq/{letter}/redrive"),
            Some(json!({})),
            true,
        ),
        _ => panic!("{method} {path} has no recipe here: who may use it, and what does it name?"),
    }
}

/// An answer without what differs from request to request.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    headers: Vec<String>,
    body: Value,
}

async fn ask(stack: &Stack, key: &str, method: &str, recipe: &Recipe) -> Answer {
    let method: Method = method.parse().unwrap();
    let mut request = stack.http.request(method, stack.url(&recipe.path));
    if !key.is_empty() {
        request = request.bearer_auth(key);
    }
    if let Some(json) = &recipe.body {
        request = request.json(json);
    }
    let response = request.send().await.unwrap();
    let mut headers: Vec<String> = response.headers().keys().map(ToString::to_string).collect();
    headers.sort();
    let (status, mut body) = body(response).await;
    if let Some(body) = body.as_object_mut() {
        body.remove("trace_id");
    }
    Answer {
        status,
        headers,
        body,
    }
}

fn governed() -> Vec<RouteAccess> {
    let all = access().into_iter();
    all.filter(|route| route.path.starts_with("/v1/")).collect()
}

#[test]
fn every_route_of_the_document_is_in_the_table() {
    let document: Value = serde_json::from_str(agenthub::api::openapi()).unwrap();
    let mut documented = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            documented.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    let rows = access().into_iter();
    let mut rows: Vec<String> = rows.map(|r| format!("{} {}", r.method, r.path)).collect();
    documented.sort();
    rows.sort();
    assert_eq!(rows, documented);
    // What is under /v1 needs a permission, and nothing else does.
    for route in access() {
        let needs = route.permission.is_some();
        assert_eq!(needs, route.path.starts_with("/v1/"), "{}", route.path);
    }
    for permission in Permission::ALL {
        // An admin may do whatever others may.
        assert!(permission.roles().contains(&Role::Admin), "{permission:?}");
    }
}

/// An installation with an API and no workers, and keys of each role in three tenants.
async fn installation() -> (Stack, BTreeMap<(&'static str, &'static str), String>) {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api"]).await;
    let minting = stack.keys();
    let mut keys = BTreeMap::new();
    for name in ["acme", "rival", "system"] {
        let tenant: TenantId = name.parse().unwrap();
        for role in Role::ALL {
            keys.insert((name, role.as_str()), mint(&minting, &tenant, role).await);
        }
    }
    (stack, keys)
}

#[tokio::test]
async fn every_route_by_every_role_of_every_tenant() {
    let (stack, keys) = installation().await;
    let anonymous = ask(
        &stack,
        "",
        "GET",
        &recipe("GET", "/v1/tools", &Ids::unknown()),
    )
    .await;
    assert_eq!(anonymous.status, StatusCode::UNAUTHORIZED);
    for RouteAccess {
        method,
        path,
        permission,
    } in governed()
    {
        let allowed = permission.unwrap().roles();
        let unknown = recipe(&method, path, &Ids::unknown());
        // Without a key nothing tells one route, or one thing, from another.
        assert_eq!(
            ask(&stack, "", &method, &unknown).await,
            anonymous,
            "{method} {path}"
        );
        for role in Role::ALL {
            let place = format!("{method} {path} by {}", role.as_str());
            let key = |tenant| &keys[&(tenant, role.as_str())];
            let ids = Ids::fresh(&stack).await;
            let known = recipe(&method, path, &ids);

            // Others first: they must not change what is not theirs.
            for other in ["rival", "system"] {
                let operator = other == "system" && path.starts_with("/v1/admin/tenants/");
                let theirs = ask(&stack, key(other), &method, &known).await;
                let nobodys = ask(&stack, key(other), &method, &unknown).await;
                let text = theirs.body.to_string();
                if !allowed.contains(&role) {
                    assert_eq!(theirs.status, StatusCode::FORBIDDEN, "{place}: {theirs:?}");
                    assert_eq!(theirs.body["details"]["rule"], "role", "{place}");
                    assert_eq!(theirs, nobodys, "{place} of {other}");
                } else if operator {
                    assert_eq!(theirs.status, StatusCode::OK, "{place}: {theirs:?}");
                    let budget = path.ends_with("/budget") || path.ends_with("/usage");
                    let missing = nobodys.status == StatusCode::NOT_FOUND;
                    assert!(missing || budget, "{place}: {nobodys:?}");
                } else if known.names {
                    assert_eq!(theirs.status, StatusCode::NOT_FOUND, "{place}: {theirs:?}");
                    assert_eq!(theirs, nobodys, "{place} of {other}");
                } else {
                    assert!(theirs.status.is_success(), "{place}: {theirs:?}");
                    for id in [&ids.session, &ids.run, &ids.key] {
                        assert!(!text.contains(id.as_str()), "{place} shows {id}: {text}");
                    }
                }
            }

            let own = ask(&stack, key("acme"), &method, &known).await;
            if allowed.contains(&role) {
                // The run has no step that could be resolved.
                let reached = own.status.is_success()
                    || path.ends_with("/resolve") && own.status == StatusCode::NOT_FOUND;
                assert!(reached, "{place}: {own:?}");
            } else {
                assert_eq!(own.status, StatusCode::FORBIDDEN, "{place}: {own:?}");
                assert_eq!(own.body["details"]["rule"], "role", "{place}");
            }
        }
    }
}

/// What is named in a body or a query instead of the path.
#[tokio::test]
async fn what_is_named_elsewhere_is_nobodys_either() {
    let (stack, keys) = installation().await;
    let ids = Ids::fresh(&stack).await;
    let rival = &keys[&("rival", "admin")];
    let their_session = {
        let request = stack
            .http
            .post(stack.url("/v1/sessions"))
            .bearer_auth(rival);
        let (_, session) = body(request.json(&json!({})).send().await.unwrap()).await;
        session["session_id"].as_str().unwrap().to_owned()
    };
    let unknown = Ids::unknown();
    let execute = |plan: &str| json!({ "session_id": their_session, "plan_id": plan });
    let new = |tenant: &str| json!({ "name": "n", "role": "admin", "tenant": tenant });
    let key = |id: &str, tenant: &str| format!("/v1/admin/api-keys/{id}?tenant={tenant}");
    let pairs = [
        (
            "POST",
            ["/v1/execute".to_owned(), "/v1/execute".to_owned()],
            [Some(execute(&ids.run)), Some(execute(&unknown.run))],
        ),
        (
            "GET",
            [
                format!("/v1/stream?session_id={}", ids.session),
                format!("/v1/stream?session_id={}", unknown.session),
            ],
            [None, None],
        ),
        (
            "GET",
            [
                format!("/v1/runs?session_id={}", ids.session),
                format!("/v1/runs?session_id={}", unknown.session),
            ],
            [None, None],
        ),
        (
            "POST",
            [
                "/v1/admin/api-keys".to_owned(),
                "/v1/admin/api-keys".to_owned(),
            ],
            [Some(new("acme")), Some(new("nobody"))],
        ),
        (
            "GET",
            [key(&ids.key, "acme"), key(&unknown.key, "nobody")],
            [None, None],
        ),
        (
            "GET",
            [
                "/v1/admin/api-keys?tenant=acme".to_owned(),
                "/v1/admin/api-keys?tenant=nobody".to_owned(),
            ],
            [None, None],
        ),
    ];
    for (method, paths, bodies) in pairs {
        let mut answers = Vec::new();
        for (path, body) in paths.into_iter().zip(bodies) {
            let recipe = Recipe {
                path,
                body,
                names: true,
            };
            answers.push(ask(&stack, rival, method, &recipe).await);
        }
        assert_eq!(answers[0], answers[1]);
    }
    // The operator's admins may name any tenant.
    let operator = &keys[&("system", "admin")];
    let named = Recipe {
        path: key(&ids.key, "acme"),
        body: None,
        names: true,
    };
    let read = ask(&stack, operator, "GET", &named).await;
    assert_eq!(read.body["key_id"], ids.key.as_str(), "{read:?}");
}
