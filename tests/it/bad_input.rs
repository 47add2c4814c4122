//! What is wrong is refused by name, tells nothing, and stops nobody else.

use std::time::Duration;

use agenthub::governance::{NewKey, Role};
use agenthub::messages::{DeadLetter, FailureClass, KeyPolicy, Outgoing, Signer, Topic, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::records::Found;
use crate::support::stack::{Stack, body, mint, shared};
use crate::support::{SIGNING, eventually};

/// Sends a request that must be refused: checks what every refusal has, and returns its body.
async fn refused(request: RequestBuilder, status: u16, code: &str) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), status);
    let header = |name: &str| {
        let value = response.headers().get(name);
        value.map(|v| v.to_str().unwrap().to_owned())
    };
    assert_eq!(
        header("content-type").unwrap(),
        "application/problem+json",
        "{code}"
    );
    let trace = header("x-trace-id").unwrap();
    let (_, problem) = body(response).await;
    assert_eq!(problem["code"], code, "{problem}");
    assert_eq!(problem["status"], status, "{problem}");
    assert_eq!(problem["trace_id"], trace, "{problem}");
    assert_eq!(problem["type"], format!("/docs/errors/{code}"), "{problem}");
    for text in ["title", "detail"] {
        assert!(!problem[text].as_str().unwrap().is_empty(), "{problem}");
    }
    problem
}

/// A body without what differs from request to request.
fn timeless(mut problem: Value) -> Value {
    problem.as_object_mut().unwrap().remove("trace_id");
    problem
}

fn post(stack: &Stack, path: &str, json: &Value) -> RequestBuilder {
    stack.request(Method::POST, path).json(json)
}

fn raw(stack: &Stack, path: &str, text: impl Into<String>) -> RequestBuilder {
    let request = stack.request(Method::POST, path);
    request
        .header("Content-Type", "application/json")
        .body(text.into())
}

#[tokio::test]
async fn a_body_that_is_not_json() {
    let stack = shared().await;
    for text in ["", "{", "{\"goal\": }", "nonsense", "{} {}", "\u{feff}{}"] {
        for path in ["/v1/sessions", "/v1/runs", "/v1/plan", "/v1/execute"] {
            refused(raw(stack, path, text), 400, "invalid_json").await;
        }
    }
    let deep = format!("{{\"context\": {}1{}}}", "[".repeat(40), "]".repeat(40));
    refused(raw(stack, "/v1/sessions", deep), 400, "body_too_deep").await;
    let bottomless = "[".repeat(200_000);
    refused(raw(stack, "/v1/runs", bottomless), 400, "body_too_deep").await;
}

#[tokio::test]
async fn a_body_that_is_too_large() {
    let stack = shared().await;
    let fits = json!({ "context": "x".repeat(262_144 - 14) });
    assert_eq!(fits.to_string().len(), 262_144);
    assert_eq!(
        stack.post("/v1/sessions", &fits).await.0,
        StatusCode::CREATED
    );
    let beyond = json!({ "context": "x".repeat(262_144 - 13) });
    refused(post(stack, "/v1/sessions", &beyond), 413, "body_too_large").await;
    // In chunks, so that no length is declared.
    let chunks = (0..300).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1024]));
    let chunks = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    let request = stack
        .request(Method::POST, "/v1/sessions")
        .header("Content-Type", "application/json")
        .body(chunks);
    refused(request, 413, "body_too_large").await;
}

#[tokio::test]
async fn the_field_that_is_wrong_is_named() {
    let stack = shared().await;
    let session = stack.session().await;
    let plan = |step: Value| json!({ "session_id": session, "plan": { "steps": [step] } });
    for (path, request, field) in [
        ("/v1/runs", json!({ "session_id": session }), "/goal"),
        ("/v1/runs", json!({ "goal": "x" }), "/session_id"),
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": 7 }),
            "/goal",
        ),
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": " " }),
            "/goal",
        ),
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": "x", "mode": "dream" }),
            "/mode",
        ),
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": "x", "max_cost_usd": -1 }),
            "/max_cost_usd",
        ),
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": "x", "timeout_s": 0 }),
            "/timeout_s",
        ),
        (
            "/v1/plan",
            json!({ "session_id": session, "goal": "x", "max_steps": 1000 }),
            "/max_steps",
        ),
        (
            "/v1/plan",
            json!({ "session_id": session, "goal": "x", "tools_allowed": ["no"] }),
            "/tools_allowed/0",
        ),
        ("/v1/sessions", json!({ "ttl_s": 0 }), "/ttl_s"),
        (
            "/v1/sessions",
            json!({ "metadata": { "a": 1 } }),
            "/metadata/a",
        ),
        ("/v1/execute", json!({ "session_id": session }), "/plan"),
        (
            "/v1/execute",
            plan(json!({ "id": "s" })),
            "/plan/steps/0/tool",
        ),
        // What is misspelt is not ignored.
        (
            "/v1/runs",
            json!({ "session_id": session, "goal": "x", "max_cots_usd": 1 }),
            "/max_cots_usd",
        ),
        ("/v1/sessions", json!({ "tll_s": 60 }), "/tll_s"),
        (
            "/v1/execute",
            plan(json!({ "id": "s", "tool": "retrieval", "arsg": {} })),
            "/plan/steps/0/arsg",
        ),
    ] {
        let problem = refused(post(stack, path, &request), 422, "invalid_request").await;
        assert_eq!(problem["details"]["field"], field, "{problem}");
    }
    let query = stack.request(Method::GET, "/v1/runs?limit=1000");
    let problem = refused(query, 422, "invalid_request").await;
    assert_eq!(problem["details"]["field"], "limit", "{problem}");
}

#[tokio::test]
async fn a_plan_that_cannot_be_executed() {
    let stack = shared().await;
    let session = stack.session().await;
    let ads = |id: &str, args: Value| json!({ "id": id, "tool": "ads_metrics_mock", "args": args });
    let advertiser = json!({ "advertiser_id": "1" });
    for (steps, field) in [
        (
            json!([{ "id": "s", "tool": "no_such_tool", "args": {} }]),
            "/plan/steps/0/tool",
        ),
        (json!([ads("s", json!({}))]), "/plan/steps/0/args"),
        (
            json!([ads("s", json!({ "advertiser_id": "${steps.t.output.x}" }))]),
            "/plan/steps/0/args/advertiser_id",
        ),
        (
            json!([ads("s", advertiser.clone()), ads("s", advertiser.clone())]),
            "/plan/steps/1/id",
        ),
    ] {
        let request = json!({ "session_id": session, "plan": { "steps": steps } });
        let problem = refused(post(stack, "/v1/execute", &request), 422, "invalid_plan").await;
        assert_eq!(problem["details"]["field"], field, "{problem}");
    }
    let mut circle = [ads("a", advertiser.clone()), ads("b", advertiser)];
    circle[0]["depends_on"] = json!(["b"]);
    circle[1]["depends_on"] = json!(["a"]);
    let request = json!({ "session_id": session, "plan": { "steps": circle } });
    refused(post(stack, "/v1/execute", &request), 422, "invalid_plan").await;
    // Nothing was started.
    let (_, runs) = stack.get(&format!("/v1/runs?session_id={session}")).await;
    assert_eq!(runs["data"], json!([]));
}

#[tokio::test]
async fn what_is_unknown_and_what_is_anothers_look_alike() {
    let stack = shared().await;
    let session = stack.session().await;
    let run = stack
        .submit(&session, "Get ROAS for advertiser 1 over 7 days")
        .await;
    let other = mint(&stack.keys(), &"rival".parse().unwrap(), Role::Admin).await;
    let (unknown_session, unknown_run) = (
        agenthub::ids::SessionId::generate(),
        agenthub::ids::RunId::generate(),
    );
    let goal = |session: &str| json!({ "session_id": session, "goal": "x" });
    let requests = |session: &str, run: &str| {
        let plain = |method: Method, path: String| (method, path, None);
        vec![
            plain(Method::GET, format!("/v1/sessions/{session}")),
            plain(Method::DELETE, format!("/v1/sessions/{session}")),
            plain(Method::GET, format!("/v1/stream?session_id={session}")),
            plain(Method::GET, format!("/v1/runs/{run}")),
            plain(Method::GET, format!("/v1/stream?run_id={run}")),
            plain(Method::POST, format!("/v1/runs/{run}/cancel")),
            (Method::POST, "/v1/runs".to_owned(), Some(goal(session))),
            (Method::POST, "/v1/plan".to_owned(), Some(goal(session))),
        ]
    };
    let answers = async |session: &str, run: &str, key: &str| {
        let mut answers = Vec::new();
        for (method, path, json) in requests(session, run) {
            let mut request = stack
                .http
                .request(method, stack.url(&path))
                .bearer_auth(key);
            if let Some(json) = json {
                request = request.json(&json);
            }
            answers.push(timeless(refused(request, 404, "not_found").await));
        }
        answers
    };
    let foreign = answers(&session, &run, &other).await;
    let unknown = answers(unknown_session.as_str(), unknown_run.as_str(), &other).await;
    let impossible = answers("ses_x", "run_x", &other).await;
    assert_eq!(foreign, unknown);
    assert_eq!(foreign, impossible);
    // The rival touched nothing.
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
}

#[tokio::test]
async fn types_methods_and_routes() {
    let stack = shared().await;
    let request = stack.request(Method::POST, "/v1/sessions").body("{}");
    refused(request, 415, "unsupported_media_type").await;
    for (name, value) in [
        ("Content-Type", "text/plain"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Encoding", "gzip"),
    ] {
        let request = stack.request(Method::POST, "/v1/sessions").body("{}");
        let request = match name {
            "Content-Type" => request.header(name, value),
            _ => request
                .header(name, value)
                .header("Content-Type", "application/json"),
        };
        refused(request, 415, "unsupported_media_type").await;
    }
    let response = stack.request(Method::PUT, "/v1/runs").send().await.unwrap();
    let allow = response.headers()["allow"].to_str().unwrap().to_owned();
    let mut allow: Vec<&str> = allow.split(',').map(str::trim).collect();
    allow.sort_unstable();
    assert_eq!(allow, ["GET", "HEAD", "POST"]);
    let request = stack.request(Method::PUT, "/v1/runs");
    refused(request, 405, "method_not_allowed").await;
    for path in ["/v1/nothing", "/v1/runs/", "/V1/runs"] {
        let request = stack.request(Method::GET, path);
        refused(request, 404, "route_not_found").await;
    }
}

#[tokio::test]
async fn every_wrong_key_gets_the_same_answer() {
    let stack = shared().await;
    let keys = stack.keys();
    let new = |expires_in_s| NewKey {
        tenant: stack.tenant.clone(),
        name: "gone".into(),
        role: Role::Client,
        expires_in_s,
        policy: KeyPolicy::default(),
    };
    let (record, revoked) = keys.create(new(None)).await.unwrap();
    let with = |key: &str| {
        let request = stack.http.get(stack.url("/v1/runs"));
        request.header("Authorization", format!("Bearer {key}"))
    };
    assert_eq!(with(&revoked.text).send().await.unwrap().status(), 200);
    keys.revoke(&stack.tenant, &record.key_id).await.unwrap();
    let (_, expired) = keys.create(new(Some(0))).await.unwrap();

    let good = &stack.api_key;
    let bare = || stack.http.get(stack.url("/v1/runs"));
    let mut forged = good.clone();
    let last = forged.pop().unwrap();
    forged.push(if last == '0' { '1' } else { '0' });
    let elsewhere = good.replacen("ah_acme", "ah_rival", 1);
    let mut answers = Vec::new();
    for request in [
        bare(),
        bare().header("Authorization", good),
        bare().header("Authorization", "Bearer"),
        bare().basic_auth("acme", Some(good)),
        bare().bearer_auth(good).bearer_auth(good),
        bare().bearer_auth(good).header("X-API-Key", good),
        with("nonsense"),
        with(&forged),
        with(&elsewhere),
        with(&revoked.text),
        with(&expired.text),
    ] {
        let copy = request.try_clone().unwrap().send().await.unwrap();
        assert!(copy.headers().contains_key("www-authenticate"));
        assert!(!copy.headers().contains_key("ratelimit"));
        answers.push(timeless(refused(request, 401, "unauthenticated").await));
    }
    for answer in &answers {
        assert_eq!(answer, &answers[0]);
    }
}

#[tokio::test]
async fn a_client_does_not_govern() {
    let stack = shared().await;
    let new = json!({ "name": "mine", "role": "admin" });
    for request in [
        stack.request(Method::GET, "/v1/admin/api-keys"),
        stack.request(Method::GET, "/v1/admin/audit/head"),
        post(stack, "/v1/admin/api-keys", &new),
    ] {
        let problem = refused(request, 403, "forbidden").await;
        assert_eq!(problem["details"]["rule"], "role", "{problem}");
    }
    let admin = stack.http.get(stack.url("/v1/admin/api-keys"));
    let admin = admin.bearer_auth(&stack.admin_key).send().await.unwrap();
    assert_eq!(admin.status(), 200);
}

#[tokio::test]
async fn an_idempotency_key_that_is_misused() {
    let stack = shared().await;
    let session = stack.session().await;
    let key = uuid::Uuid::new_v4().to_string();
    let goal = |goal: &str| json!({ "session_id": session, "goal": goal });
    let send = |path: &str, request: &Value| {
        post(stack, path, request).header("Idempotency-Key", key.as_str())
    };
    // What is refused uses no key up.
    refused(send("/v1/runs", &json!({})), 422, "invalid_request").await;
    let first = send("/v1/runs", &goal("Get ROAS for advertiser 1"))
        .send()
        .await;
    assert_eq!(first.unwrap().status(), 202);
    let other = goal("Get ROAS for advertiser 2");
    refused(send("/v1/runs", &other), 422, "idempotency_mismatch").await;
    // Another route has keys of its own.
    assert_eq!(send("/v1/plan", &other).send().await.unwrap().status(), 202);
    for wrong in ["", " ", "a b", "\u{e9}", &"k".repeat(256)] {
        let request = post(stack, "/v1/runs", &other);
        let request = request.header("Idempotency-Key", wrong.as_bytes());
        let problem = refused(request, 400, "invalid_header").await;
        assert_eq!(problem["details"]["header"], "Idempotency-Key");
    }
    let twice = send("/v1/runs", &other).header("Idempotency-Key", "b");
    refused(twice, 400, "invalid_header").await;
}

/// A record that no worker may act on.
struct Bad {
    topic: Topic,
    class: FailureClass,
    key: String,
    headers: Vec<(String, String)>,
    value: Vec<u8>,
}

/// Records like `good`, which was made for `plan.commands`, each wrong in one way.
fn bad_records(stack: &Stack, good: &Found) -> Vec<Bad> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let headers = good.headers.iter();
    let headers: Vec<_> = headers.map(|(name, v)| (name.clone(), text(v))).collect();
    let copy = |topic| Bad {
        topic,
        class: FailureClass::Unsigned,
        key: text(&good.key),
        headers: headers.clone(),
        value: good.value.clone(),
    };
    let garbage = Bad {
        headers: Vec::new(),
        value: b"\xff\x00 not JSON".to_vec(),
        ..copy(Topic::PlanCommands)
    };
    let mut without_signature = copy(Topic::PlanCommands);
    without_signature
        .headers
        .retain(|(name, _)| name != header::SIGNATURE);
    let mut altered = copy(Topic::PlanCommands);
    altered.value = text(&good.value)
        .replace("\"max_steps\":32", "\"max_steps\":31")
        .into_bytes();
    assert_ne!(altered.value, good.value);
    let for_another_topic = copy(Topic::ExecuteCommands);
    // Signed by us, and no command.
    let record = Outgoing {
        topic: Topic::PlanCommands,
        key: "nonsense".into(),
        ce_id: "nonsense".into(),
        ce_type: "agenthub.command.plan".into(),
        tenant: stack.tenant.clone(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: "{\"v\": 1, \"kind\": ".into(),
    };
    let signer = Signer::parse(SIGNING).unwrap();
    let topic = stack.kafka().topic(Topic::PlanCommands);
    let own = signer.headers(&topic, &record, "test", "2026-01-01T00:00:00Z");
    let undecodable = Bad {
        class: FailureClass::Undecodable,
        key: record.key,
        headers: own.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        value: record.value.to_vec(),
        ..copy(Topic::PlanCommands)
    };
    vec![
        garbage,
        without_signature,
        altered,
        for_another_topic,
        undecodable,
    ]
}

/// Produces without our producer, which could not send what is wrong. The place of the record.
async fn produce(stack: &Stack, bad: &Bad) -> (String, i32, i64) {
    let kafka = stack.kafka();
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .create()
        .unwrap();
    let headers = bad.headers.iter().map(|(key, value)| Header {
        key,
        value: Some(value),
    });
    let headers = headers.fold(OwnedHeaders::new(), OwnedHeaders::insert);
    let topic = kafka.topic(bad.topic);
    let record = FutureRecord::to(&topic)
        .key(&bad.key)
        .payload(&bad.value)
        .headers(headers);
    let delivery = producer.send(record, Duration::from_secs(10)).await;
    let delivery = delivery.unwrap();
    (topic, delivery.partition, delivery.offset)
}

#[tokio::test]
async fn records_that_nobody_vouches_for_become_dead_letters() {
    const GOAL: &str = "Get ROAS for advertiser 1 over 7 days";
    let stack = shared().await;
    let run = stack.submit(&stack.session().await, GOAL).await;
    stack.ended(&run).await;
    let records = stack.records(Topic::PlanCommands).await;
    let good = records.iter().find(|r| r.key == run.as_bytes()).unwrap();

    for bad in bad_records(stack, good) {
        let place = produce(stack, &bad).await;
        let letter = eventually("the record is a dead letter", async || {
            let records = stack.records(Topic::DeadLetter).await;
            let mut letters = records
                .iter()
                .map(|r| serde_json::from_slice::<DeadLetter>(&r.value).unwrap());
            letters.find(|l| (l.topic.clone(), l.partition, l.offset) == place)
        })
        .await;
        assert_eq!(letter.class, bad.class, "{letter:?}");
        assert_eq!(letter.key, Some(STANDARD.encode(&bad.key)), "{letter:?}");
        let value = STANDARD.encode(&bad.value);
        assert_eq!(letter.value, Some(value), "{letter:?}");
        let encoded = |(name, value): &(String, String)| (name.clone(), STANDARD.encode(value));
        let mut expected: Vec<_> = bad.headers.iter().map(encoded).collect();
        let mut found = letter.headers.clone();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        // Nothing of what it says is believed.
        assert_eq!((letter.tenant, letter.run_id), (None, None));
    }
    // The run whose record was copied is as it was, and every partition goes on.
    stack.assert_settled(&run).await;
    for _ in 0..6 {
        let next = stack.submit(&stack.session().await, GOAL).await;
        assert_eq!(stack.ended(&next).await["status"], "succeeded");
    }
}
