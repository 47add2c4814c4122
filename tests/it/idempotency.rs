//! `Idempotency-Key`: whatever is sent however often happens once, and is answered the same.

use std::collections::BTreeSet;
use std::time::Duration;

use agenthub::governance::{Governance, IdempotencyKey, Permission, fingerprint};
use agenthub::ids::SessionId;
use agenthub::messages::{Signer, Topic};
use agenthub::runs::{Claimed, Claiming, Fence, SessionCreation};
use bytes::Bytes;
use futures_util::future::join_all;
use redis::AsyncCommands;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::ledger::Ledger;
use crate::support::stack::{Stack, body, shared};
use crate::support::{SIGNING, settings};

const DUPLICATES: usize = 1000;

/// An answer, to the byte.
#[derive(Debug, PartialEq)]
struct Answer {
    status: StatusCode,
    location: Option<String>,
    content_type: Option<String>,
    bytes: Bytes,
}

/// Sends a request under an idempotency key; its answer, and whether it says that it is a repeat's.
async fn send(
    stack: &Stack,
    (method, path): (Method, &str),
    (key, idempotency): (&str, &str),
    json: Option<&Value>,
) -> (Answer, bool) {
    let request = stack.http.request(method, stack.url(path));
    let mut request = request
        .bearer_auth(key)
        .header("Idempotency-Key", idempotency);
    if let Some(json) = json {
        request = request.json(json);
    }
    let response = request.send().await.unwrap();
    let header = |name: &str| {
        let value = response.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned())
    };
    let (location, content_type) = (header("location"), header("content-type"));
    let replayed = header("idempotency-replayed").is_some_and(|value| value == "true");
    let answer = Answer {
        status: response.status(),
        location,
        content_type,
        bytes: response.bytes().await.unwrap(),
    };
    (answer, replayed)
}

fn unique() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Two API processes, a thousand requests at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_duplicates_over_two_processes_do_one_thing() {
    let mut stack = Stack::bare(&[]).await;
    stack.spawn_all(&["api", "api-2"]).await;
    let session = stack.session().await;
    let addresses = ["api", "api-2"].map(|name| stack.processes[name].addr.clone());
    let storm = async |path: &str, json: &Value| {
        let key = unique();
        let requests = (0..DUPLICATES).map(|number| {
            let url = format!("http://{}{path}", addresses[number % 2]);
            let request = stack.http.post(url).bearer_auth(&stack.api_key).json(json);
            let request = request.header("Idempotency-Key", &key);
            async move {
                // As the contract asks of clients: one that is told that it is in flight asks again.
                loop {
                    let response = request.try_clone().unwrap().send().await.unwrap();
                    let status = response.status();
                    if status == StatusCode::CONFLICT {
                        assert_eq!(response.headers()["retry-after"], "1");
                    } else if status != StatusCode::SERVICE_UNAVAILABLE {
                        return (status, response.bytes().await.unwrap());
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        });
        let answers: BTreeSet<_> = join_all(requests).await.into_iter().collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        answers.into_iter().next().unwrap()
    };

    let goal = json!({ "session_id": session, "goal": "x" });
    let (status, run) = storm("/v1/runs", &goal).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let run: Value = serde_json::from_slice(&run).unwrap();
    let commands = stack.records(Topic::PlanCommands).await;
    let keys: BTreeSet<_> = commands.iter().map(|command| command.key.clone()).collect();
    let expected = run["run_id"].as_str().unwrap().as_bytes().to_vec();
    assert_eq!(keys, BTreeSet::from([expected]));
    assert_eq!(commands.len(), 1, "one command on Kafka");

    let (status, made) = storm("/v1/sessions", &json!({})).await;
    assert_eq!(status, StatusCode::CREATED);
    let made: Value = serde_json::from_slice(&made).unwrap();
    let (_, sessions) = stack.get("/v1/sessions").await;
    let ids: Vec<&Value> = sessions["data"].as_array().unwrap().iter().collect();
    let ids: Vec<&str> = ids
        .iter()
        .map(|s| s["session_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, [made["session_id"].as_str().unwrap(), &session]);
    // The session and its record on `agent.state`, each once; the first one is the test's own.
    let of_sessions = stack.records(Topic::AgentState).await;
    let of_sessions = of_sessions
        .iter()
        .filter(|r| r.key.starts_with(b"session/"));
    assert_eq!(of_sessions.count(), 2);
}

/// Every POST that changes something and starts no run.
#[tokio::test]
async fn a_repeat_is_answered_byte_for_byte() {
    let stack = shared().await;
    let session = stack.session().await;
    let long = stack
        .execute(
            &session,
            &json!({ "steps": [{ "id": "a", "tool": "retrieval", "args": { "query": "x" } }] }),
        )
        .await;
    stack.ended(&long).await;
    // Behind one that takes long, so that nobody has it yet; its cancellation is at once.
    let queued = {
        let client = &stack.api_key;
        let goal = json!({ "session_id": session, "goal": "x" });
        let (answer, _) = send(
            stack,
            (Method::POST, "/v1/runs"),
            (client, &unique()),
            Some(&goal),
        )
        .await;
        let run: Value = serde_json::from_slice(&answer.bytes).unwrap();
        run["run_id"].as_str().unwrap().to_owned()
    };
    let (client, admin) = (&stack.api_key, &stack.admin_key);
    let new = json!({ "name": "n", "role": "client" });
    let create = (Method::POST, "/v1/admin/api-keys");
    let (made, _) = send(stack, create.clone(), (admin, &unique()), Some(&new)).await;
    let made: Value = serde_json::from_slice(&made.bytes).unwrap();
    let id = made["key_id"].as_str().unwrap();
    let rotate = format!("/v1/admin/api-keys/{id}/rotate");
    let revoke = format!("/v1/admin/api-keys/{id}/revoke");
    let cancel = format!("/v1/runs/{queued}/cancel");
    let post = |path: &'static str| (Method::POST, path.to_owned());
    for ((method, path), key, json, other) in [
        (
            post("/v1/sessions"),
            client,
            Some(json!({ "ttl_s": 60 })),
            json!({ "ttl_s": 61 }),
        ),
        (
            post("/v1/admin/api-keys"),
            admin,
            Some(new),
            json!({ "name": "m", "role": "client" }),
        ),
        (
            (Method::POST, rotate),
            admin,
            Some(json!({ "grace_s": 5 })),
            json!({ "grace_s": 6 }),
        ),
        ((Method::POST, revoke), admin, None, Value::Null),
        (
            (Method::POST, cancel),
            client,
            Some(json!({})),
            json!({ "mode": "force" }),
        ),
    ] {
        let idempotency = unique();
        let again = async |json: Option<&Value>| {
            send(stack, (method.clone(), &path), (key, &idempotency), json).await
        };
        let (first, replayed) = again(json.as_ref()).await;
        if path.ends_with("/cancel") && first.status == StatusCode::CONFLICT {
            continue; // it had ended before anybody could cancel it
        }
        assert!(first.status.is_success() && !replayed, "{path}: {first:?}");
        for _ in 0..2 {
            assert_eq!(
                again(json.as_ref()).await,
                (first_of(&first), true),
                "{path}"
            );
        }
        if !other.is_null() {
            let (refused, _) = again(Some(&other)).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
            let problem: Value = serde_json::from_slice(&refused.bytes).unwrap();
            assert_eq!(problem["code"], "idempotency_mismatch", "{path}");
        }
    }
}

fn first_of(answer: &Answer) -> Answer {
    Answer {
        status: answer.status,
        location: answer.location.clone(),
        content_type: answer.content_type.clone(),
        bytes: answer.bytes.clone(),
    }
}

#[tokio::test]
async fn what_is_refused_uses_no_key_up_and_another_id_is_another_request() {
    let stack = shared().await;
    let (client, admin) = (stack.api_key.as_str(), stack.admin_key.as_str());
    let key = unique();
    let sessions = (Method::POST, "/v1/sessions");
    for (json, status) in [(json!({ "ttl_s": 0 }), 422), (json!({ "ttl": 1 }), 422)] {
        let (refused, _) = send(stack, sessions.clone(), (client, &key), Some(&json)).await;
        assert_eq!(refused.status.as_u16(), status);
    }
    let (made, _) = send(stack, sessions.clone(), (client, &key), Some(&json!({}))).await;
    assert_eq!(made.status, StatusCode::CREATED);

    // Refused after the claim: the key is free again.
    let (ghost, revoke) = (unique(), unique());
    let path = format!(
        "/v1/admin/api-keys/{}/revoke",
        agenthub::ids::KeyId::generate()
    );
    for _ in 0..2 {
        let (missing, replayed) = send(stack, (Method::POST, &path), (admin, &ghost), None).await;
        assert_eq!((missing.status, replayed), (StatusCode::NOT_FOUND, false));
    }
    // The same key for two things of one route.
    let mut revoked = Vec::new();
    for _ in 0..2 {
        let new = json!({ "name": "n", "role": "client" });
        let create = (Method::POST, "/v1/admin/api-keys");
        let (made, _) = send(stack, create, (admin, &unique()), Some(&new)).await;
        let made: Value = serde_json::from_slice(&made.bytes).unwrap();
        let path = format!(
            "/v1/admin/api-keys/{}/revoke",
            made["key_id"].as_str().unwrap()
        );
        revoked.push(
            send(stack, (Method::POST, &path), (admin, &revoke), None)
                .await
                .0,
        );
    }
    assert_eq!(revoked[0].status, StatusCode::OK);
    assert_eq!(revoked[1].status, StatusCode::UNPROCESSABLE_ENTITY);

    // Another tenant's key of the same name is another key.
    let rival = crate::support::stack::mint(
        &stack.keys(),
        &"rival".parse().unwrap(),
        agenthub::governance::Role::Client,
    )
    .await;
    let (theirs, replayed) = send(stack, sessions, (&rival, &key), Some(&json!({}))).await;
    assert_eq!((theirs.status, replayed), (StatusCode::CREATED, false));
    assert_ne!(theirs.bytes, made.bytes);
}

/// Claims as an API process would that dies, or is slow, after its claim.
async fn claim(stack: &Stack, key: &str, lease_ms: u64) -> (String, Fence) {
    let signer = Signer::parse(SIGNING).unwrap();
    let governance = Governance::new(signer, &settings(&stack.namespace, &[]));
    let presented = governance.recognise(&stack.api_key).unwrap();
    let key = IdempotencyKey::parse(key.as_bytes()).unwrap();
    let key = key.claim("POST", "/v1/sessions");
    let (owner, subject) = (unique(), SessionId::generate().to_string());
    let claiming = Claiming {
        gate: governance.gate(&presented, None, Permission::Sessions),
        key: &key,
        fingerprint: &fingerprint(&json!({}), "/v1/sessions"),
        owner: &owner,
        subject: &subject,
        lease_ms,
        ttl_ms: 60_000,
    };
    let claimed = stack.runs().claim(&stack.tenant, &claiming).await.unwrap();
    assert!(matches!(claimed, Claimed::Mine { .. }), "{claimed:?}");
    (subject, Fence { key, owner })
}

#[tokio::test]
async fn a_request_in_flight_is_waited_for_and_one_that_died_is_taken_over() {
    let stack = shared().await;
    let sessions = (Method::POST, "/v1/sessions");
    let empty = json!({});
    let slow = unique();
    claim(stack, &slow, 60_000).await;
    let request = stack.request(Method::POST, "/v1/sessions").json(&empty);
    let response = request
        .header("Idempotency-Key", &slow)
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, problem) = body(response).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(problem["code"], "request_in_flight", "{problem}");

    let died = unique();
    let (subject, fence) = claim(stack, &died, 0).await;
    let client = (stack.api_key.as_str(), died.as_str());
    let (made, replayed) = send(stack, sessions.clone(), client, Some(&empty)).await;
    assert_eq!((made.status, replayed), (StatusCode::CREATED, false));
    // It made what the first attempt would have made …
    let session: Value = serde_json::from_slice(&made.bytes).unwrap();
    assert_eq!(session["session_id"], subject.as_str());
    // … and the first one, should it still live, makes nothing any more.
    let settlement = agenthub::runs::ClaimEnd::Refused;
    let runs = stack.runs();
    let settled = runs.settle(&stack.tenant, &fence, settlement, 1000);
    assert!(!settled.await.unwrap());
    let (again, replayed) = send(stack, sessions, client, Some(&empty)).await;
    assert_eq!((again, replayed), (first_of(&made), true));
}

#[tokio::test]
async fn an_attempt_that_was_overtaken_creates_no_session() {
    let ledger = Ledger::new(&[]).await;
    let session = SessionId::generate();
    let creation = |owner: &str| SessionCreation {
        session: &session,
        key: "wrapped",
        context: None,
        subject: None,
        metadata: None,
        budget: None,
        ttl_ms: 60_000,
        key_id: &ledger.key_id,
        generation: 1,
        claim: Some(Fence {
            key: "k".to_owned(),
            owner: owner.to_owned(),
        }),
    };
    let claiming = |owner| Claiming {
        gate: ledger.gate(&[]),
        key: "k",
        fingerprint: "f",
        owner,
        subject: "s",
        lease_ms: 0,
        ttl_ms: 60_000,
    };
    for owner in ["first", "second"] {
        let claimed = ledger.runs.claim(&ledger.tenant, &claiming(owner)).await;
        assert!(matches!(claimed.unwrap(), Claimed::Mine { .. }));
    }
    let create = async |owner| {
        let creation = creation(owner);
        ledger
            .runs
            .create_session(&ledger.tenant, &creation)
            .await
            .unwrap()
    };
    assert_eq!(create("first").await, None);
    assert!(create("second").await.is_some());
}

#[tokio::test]
async fn a_kept_answer_is_sealed() {
    let stack = shared().await;
    let key = unique();
    let new = json!({ "name": "n", "role": "client" });
    let create = (Method::POST, "/v1/admin/api-keys");
    let (made, _) = send(stack, create, (&stack.admin_key, &key), Some(&new)).await;
    let made: Value = serde_json::from_slice(&made.bytes).unwrap();
    let claim = IdempotencyKey::parse(key.as_bytes()).unwrap();
    let claim = claim.claim("POST", "/v1/admin/api-keys");
    let mut redis = stack.redis().connection();
    let kept: Vec<String> = redis
        .hgetall(stack.key(&format!("idem:{claim}")))
        .await
        .unwrap();
    assert!(kept.iter().any(|text| text.starts_with("m1.")), "{kept:?}");
    let secret = made["api_key"].as_str().unwrap();
    let parts = [
        secret,
        secret.rsplit('_').next().unwrap(),
        "api_key",
        "key_id",
    ];
    for part in parts {
        assert!(kept.iter().all(|text| !text.contains(part)), "{kept:?}");
    }
}

/// A rotation that died half-way is not made twice: the secret in use keeps its grace.
#[tokio::test]
async fn a_rotation_that_is_taken_over_keeps_the_grace() {
    let stack = shared().await;
    let keys = stack.keys();
    let text =
        crate::support::stack::mint(&keys, &stack.tenant, agenthub::governance::Role::Client).await;
    let id = text.split('_').nth(2).unwrap().parse().unwrap();
    let rotate = async || {
        keys.rotate(&stack.tenant, &id, 60, Some("request"))
            .await
            .unwrap()
    };
    let (first, _) = rotate().await;
    let (second, issued) = rotate().await;
    assert_eq!((first.version, second.version), (2, 2));
    assert_eq!(first.old_hash, second.old_hash);
    for key in [&text, &issued.text] {
        let request = stack.http.get(stack.url("/v1/runs")).bearer_auth(key);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    }
}
