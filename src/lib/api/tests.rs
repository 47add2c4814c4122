//! The router as a whole, with neither Kafka nor Redis: what is decided before either is asked, and what
//! is answered when they are away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use metrics_exporter_prometheus::PrometheusBuilder;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::observe::observe;
use super::{ApiParts, ApiState, router, serve};
use crate::config::{Settings, Source};
use crate::error::ErrorCode;
use crate::governance::{AuditTrail, Budgets, Governance, Keys, Tenants};
use crate::ids::{RunId, SessionId};
use crate::kafka::{KafkaSettings, OutboxProducer, Producer};
use crate::messages::Signer;
use crate::pricing::Prices;
use crate::privacy::mask::Masker;
use crate::privacy::{KeyCache, KeyRing};
use crate::runs::Runs;
use crate::runtime::{Health, Supervisor};
use crate::store::Redis;
use crate::stream::Streams;

/// Nothing listens there.
const NOWHERE: &str = "127.0.0.1:1";

struct Api {
    state: ApiState,
    router: Router,
    health: Health,
    key: String,
    ending: CancellationToken,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The problem's code, after checking what holds for every problem.
    fn code(&self) -> String {
        let problem = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["trace_id"], self.header("x-trace-id"));
        let code = problem["code"].as_str().unwrap().to_owned();
        assert_eq!(problem["type"], format!("/docs/errors/{code}"));
        assert_eq!(
            ErrorCode::find(&code).unwrap().status(),
            self.status.as_u16()
        );
        code
    }

    fn field(&self) -> String {
        assert_eq!(self.code(), "invalid_request");
        let problem = self.json();
        problem["details"]["field"].as_str().unwrap().to_owned()
    }
}

impl Api {
    fn new() -> Self {
        let secret = format!("k:{}", STANDARD.encode([1; 32]));
        let env = [
            ("REDIS_URL", format!("redis://{NOWHERE}/")),
            ("KAFKA_BROKERS", NOWHERE.to_owned()),
            ("AGENTHUB_SIGNING_SECRETS", secret.clone()),
            ("AGENTHUB_MASTER_KEYS", secret),
            ("AGENTHUB_MAX_BODY_BYTES", "4096".to_owned()),
            ("AGENTHUB_BODY_TIMEOUT_MS", "50".to_owned()),
        ];
        let env: BTreeMap<_, _> = env.map(|(name, value)| (name.to_owned(), value)).into();
        let settings = Settings::load(&Source::from_env(env).unwrap()).unwrap();
        let signer = Signer::parse(settings.signing_secrets.expose_secret()).unwrap();
        let redis = Redis::connect(&settings, Duration::from_millis(200)).unwrap();
        let runs = Runs::new(redis.clone(), &settings);
        let producer =
            Producer::new(&KafkaSettings::from(&settings), signer.clone(), "test").unwrap();
        let ending = CancellationToken::new();
        let supervisor = Supervisor::new(ending.clone());
        let health = Health::new(&["kafka", "redis"]);
        let text = "ah_acme_0123456789abcdef_1s00";
        let key = format!("{text}_{}", hex::encode(signer.sign_api_key(text)));
        let ring = KeyRing::parse(settings.master_keys.expose_secret()).unwrap();
        let outbox =
            OutboxProducer::start(producer.clone(), runs.clone(), &supervisor, ending.clone());
        let streams = Streams::start(&settings, runs.clone(), &supervisor, ending.clone()).unwrap();
        let recorder = PrometheusBuilder::new().build_recorder();
        let api = ApiState::new(ApiParts {
            redis: redis.clone(),
            runs: runs.clone(),
            governance: Governance::new(signer.clone(), &settings),
            trail: AuditTrail::start(producer.clone(), &settings, &supervisor, ending.clone()),
            tenants: Tenants::new(redis.clone(), producer.clone()),
            keys: Keys::new(redis, producer.clone(), signer),
            budgets: Budgets::new(runs.clone(), producer.clone()),
            prices: Arc::new(Prices::builtin().unwrap()),
            data_keys: KeyCache::new(ring, 16),
            masker: Arc::new(Masker::new(&[]).unwrap()),
            outbox,
            streams,
            health: health.clone(),
            metrics: {
                let handle = recorder.handle();
                Arc::new(move || handle.render())
            },
            supervisor,
            stopping: ending.clone(),
            settings,
        });
        Self {
            router: router(api.clone()),
            state: api,
            health,
            key,
            ending,
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        ask(&self.router, request).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path).body(Body::empty()).unwrap())
            .await
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = self
            .request("POST", path)
            .header("content-type", "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    /// A request with a key that was issued here.
    fn request(&self, method: &str, path: &str) -> axum::http::request::Builder {
        bare(method, path).header("authorization", format!("bearer {}", self.key))
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

fn bare(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
}

async fn ask(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: axum::body::to_bytes(body, 1 << 20).await.unwrap(),
    }
}

fn run_body() -> Value {
    json!({ "session_id": SessionId::generate(), "goal": "x" })
}

#[tokio::test]
async fn every_answer_is_traced_and_guarded() {
    let api = Api::new();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request =
        bare("GET", "/nowhere").header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let answer = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.code(), "route_not_found");
    assert_eq!(answer.header("x-trace-id"), trace);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    assert!(
        answer
            .header("content-security-policy")
            .contains("default-src 'none'")
    );

    let request = bare("GET", "/nowhere").header("traceparent", "00-zz-00-01");
    let answer = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.header("x-trace-id").len(), 32);
}

#[tokio::test]
async fn a_method_that_a_route_lacks_is_told_those_that_it_has() {
    let api = Api::new();
    let request = api.request("PATCH", "/v1/sessions").body(Body::empty());
    let answer = api.send(request.unwrap()).await;
    assert_eq!(answer.code(), "method_not_allowed");
    let mut allowed: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "HEAD", "POST"]);
    assert_eq!(api.get("/v1/sessions/").await.code(), "route_not_found");
}

#[tokio::test]
async fn without_a_valid_key_every_cause_is_answered_alike() {
    let api = Api::new();
    let mut forged = api.key.clone();
    forged.pop();
    let cases: [&[(&str, String)]; 6] = [
        &[],
        &[("authorization", "Bearer nonsense".to_owned())],
        &[("authorization", format!("Bearer {forged}"))],
        &[("authorization", format!("Basic {}", api.key))],
        &[("x-api-key", forged.clone())],
        &[
            ("authorization", format!("Bearer {}", api.key)),
            ("x-api-key", api.key.clone()),
        ],
    ];
    let mut bodies = Vec::new();
    for headers in cases {
        let mut request = bare("GET", "/v1/tools");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let answer = api.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.code(), "unauthenticated");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
        assert_eq!(answer.header("ratelimit"), "");
        let mut body = answer.json();
        body["trace_id"] = Value::Null;
        bodies.push(body);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

#[tokio::test]
async fn a_valid_key_reaches_the_ledger_and_its_absence_is_told_in_time() {
    let api = Api::new();
    api.health.set("kafka", true);
    let run = RunId::generate();
    for path in [
        "/v1/tools".to_owned(),
        "/v1/runs".to_owned(),
        format!("/v1/runs/{run}"),
        "/v1/runs/nonsense".to_owned(),
        "/v1/runs/%FF".to_owned(),
        format!("/v1/stream?run_id={run}"),
        "/v1/admin/api-keys".to_owned(),
        "/v1/admin/audit/head".to_owned(),
    ] {
        let began = Instant::now();
        let answer = api.get(&path).await;
        assert_eq!(answer.code(), "dependency_unavailable", "{path}");
        assert_eq!(answer.json()["details"]["dependency"], "redis", "{path}");
        assert_eq!(answer.header("retry-after"), "1");
        assert!(!String::from_utf8_lossy(&answer.body).contains(NOWHERE));
        assert!(began.elapsed() < Duration::from_secs(2), "{path}");
    }
    let answer = api.post("/v1/runs", run_body().to_string()).await;
    assert_eq!(answer.json()["details"]["dependency"], "redis");
    let request = api.request("GET", "/v1/tools").header("authorization", "");
    let answer = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.code(), "unauthenticated");
}

#[tokio::test]
async fn what_changes_state_is_refused_while_kafka_is_down() {
    let api = Api::new();
    let (session, run) = (SessionId::generate(), RunId::generate());
    let key = json!({ "name": "n", "role": "client" }).to_string();
    for answer in [
        api.post("/v1/runs", run_body().to_string()).await,
        api.post("/v1/plan", run_body().to_string()).await,
        api.post("/v1/sessions", "{}").await,
        api.post(&format!("/v1/runs/{run}/cancel"), "{}").await,
        api.post("/v1/admin/api-keys", key).await,
        api.post("/v1/admin/api-keys/k/revoke", "").await,
        api.send(
            api.request("DELETE", &format!("/v1/sessions/{session}"))
                .body(Body::empty())
                .unwrap(),
        )
        .await,
    ] {
        assert_eq!(answer.code(), "dependency_unavailable");
        assert_eq!(answer.json()["details"]["dependency"], "kafka");
        assert_eq!(answer.header("retry-after"), "1");
    }
}

#[tokio::test]
async fn bodies_are_checked_before_anything_else() {
    let api = Api::new();
    let post = |body: &str| api.post("/v1/runs", body.to_owned());
    assert_eq!(post("{").await.code(), "invalid_json");
    assert_eq!(post("").await.code(), "invalid_json");
    assert_eq!(post(&"[".repeat(40)).await.code(), "body_too_deep");
    assert_eq!(post(r#"{"goal":"x"}"#).await.field(), "/session_id");
    assert_eq!(
        post(r#"{"session_id":"s","goal":"x","max_stpes":1}"#)
            .await
            .field(),
        "/max_stpes"
    );
    assert_eq!(
        post(r#"{"session_id":"s","goal":"x","mode":"agent"}"#)
            .await
            .field(),
        "/mode"
    );
    assert_eq!(
        post(r#"{"session_id":"s","goal":" "}"#).await.field(),
        "/goal"
    );
    assert_eq!(
        post(r#"{"session_id":"s","goal":"x","timeout_s":0}"#)
            .await
            .field(),
        "/timeout_s"
    );
    assert_eq!(
        post(r#"{"session_id":"s","goal":"x","max_cost_usd":-1}"#)
            .await
            .field(),
        "/max_cost_usd"
    );
    assert_eq!(
        post(r#"{"session_id":"s","goal":"x","tools_allowed":["rm"]}"#)
            .await
            .field(),
        "/tools_allowed/0"
    );
    assert_eq!(
        post(&json!({ "session_id": "s", "goal": "x".repeat(5000) }).to_string())
            .await
            .code(),
        "body_too_large"
    );

    let request = api
        .request("POST", "/v1/runs")
        .header("content-type", "text/plain");
    let answer = api.send(request.body("{}".into()).unwrap()).await;
    assert_eq!(answer.code(), "unsupported_media_type");
}

#[tokio::test]
async fn a_body_without_a_length_is_cut_while_it_arrives_and_a_slow_one_is_dropped() {
    let api = Api::new();
    let endless =
        stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 1024])));
    let answer = api.post("/v1/runs", Body::from_stream(endless)).await;
    assert_eq!(answer.code(), "body_too_large");
    let stalled =
        stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]).chain(stream::pending());
    let answer = api.post("/v1/runs", Body::from_stream(stalled)).await;
    assert_eq!(answer.code(), "body_timeout");
}

#[tokio::test]
async fn a_plan_that_cannot_run_is_refused_with_every_problem() {
    let api = Api::new();
    let plan = json!({ "steps": [
        { "id": "s1", "tool": "rm", "args": {} },
        { "id": "s2", "tool": "retrieval", "args": { "query": 7 } },
    ] });
    let body = json!({ "session_id": "s", "plan": plan });
    let answer = api.post("/v1/execute", body.to_string()).await;
    assert_eq!(answer.code(), "invalid_plan");
    let problem = answer.json();
    let paths: Vec<&str> = problem["details"]["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/steps/0/tool", "/steps/1/args/query"]);
    assert_eq!(problem["details"]["field"], "/plan/steps/0/tool");

    let neither = api.post("/v1/execute", r#"{"session_id":"s"}"#).await;
    assert_eq!(neither.field(), "/plan");
    let wrong = json!({ "session_id": "s", "plan": { "steps": [{ "tool": "retrieval" }] } });
    let answer = api.post("/v1/execute", wrong.to_string()).await;
    assert_eq!(answer.field(), "/plan/steps/0/id");
}

#[tokio::test]
async fn headers_and_queries_are_checked() {
    let api = Api::new();
    let request = api
        .request("POST", "/v1/runs")
        .header("content-type", "application/json");
    let request = request.header("idempotency-key", "two words");
    let answer = api
        .send(request.body(run_body().to_string().into()).unwrap())
        .await;
    assert_eq!(answer.code(), "invalid_header");
    assert_eq!(answer.json()["details"]["header"], "Idempotency-Key");
    assert_eq!(api.get("/v1/runs?limt=1").await.field(), "limt");
    assert_eq!(api.get("/v1/runs?limit=1000").await.field(), "limit");
    assert_eq!(api.get("/v1/runs?status=asleep").await.field(), "status");
    assert_eq!(api.get("/v1/stream").await.field(), "session_id");
    assert_eq!(
        api.get("/v1/stream?session_id=s&run_id=r").await.field(),
        "run_id"
    );
    assert_eq!(
        api.get("/v1/stream?run_id=r&after=x").await.field(),
        "after"
    );
    let long = format!("/v1/runs?cursor={}", "x".repeat(9000));
    assert_eq!(api.get(&long).await.code(), "uri_too_long");

    let mut many = api.request("GET", "/v1/tools");
    for number in 0..70 {
        many = many.header(format!("x-{number}"), "1");
    }
    let answer = api.send(many.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.code(), "headers_too_large");
    let hostless = Request::get("/healthz").body(Body::empty()).unwrap();
    assert_eq!(api.send(hostless).await.code(), "invalid_header");
    let two = bare("GET", "/healthz")
        .header("host", "b")
        .body(Body::empty());
    assert_eq!(api.send(two.unwrap()).await.code(), "invalid_header");
}

#[tokio::test]
async fn errors_are_masked() {
    let api = Api::new();
    let answer = api
        .post("/v1/sessions", r#"{"someone@example.org":1}"#)
        .await;
    assert_eq!(answer.code(), "invalid_request");
    assert!(!String::from_utf8_lossy(&answer.body).contains("someone@"));
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_tells_nothing() {
    let api = Api::new();
    let broken = Router::new()
        .route(
            "/boom",
            get(async || -> &'static str { panic!("the secret reason") }),
        )
        .layer(from_fn_with_state(api.state.clone(), observe));
    let answer = ask(&broken, bare("GET", "/boom").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.code(), "internal");
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
}

#[tokio::test]
async fn a_busy_process_refuses_requests_and_answers_probes() {
    let api = Api::new();
    let permits = api.state.requests.available_permits();
    let all = api.state.requests.clone();
    let taken = all
        .acquire_many_owned(u32::try_from(permits).unwrap())
        .await
        .unwrap();
    let answer = api.get("/v1/tools").await;
    assert_eq!(answer.code(), "overloaded");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(api.get("/healthz").await.status, StatusCode::OK);
    drop(taken);
    assert_ne!(api.get("/v1/tools").await.code(), "overloaded");
    assert_eq!(api.state.requests.available_permits(), permits);
}

#[tokio::test]
async fn probes_say_how_the_process_is() {
    let api = Api::new();
    assert_eq!(api.get("/healthz").await.body, "ok\n");
    api.health.set("redis", true);
    let answer = api.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        answer.json(),
        json!({ "ready": false, "dependencies": { "kafka": "down", "redis": "up" } })
    );
    api.health.set("kafka", true);
    assert_eq!(api.get("/readyz").await.status, StatusCode::OK);
    assert_eq!(api.get("/metrics").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_reference_is_served() {
    let api = Api::new();
    let document = api.get("/openapi.json").await;
    assert_eq!(document.json()["openapi"], "3.1.0");
    for path in [
        "/docs",
        "/docs/errors/rate_limited",
        "/docs/assets/reference.js",
        "/docs/assets/style.css",
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(
            answer
                .header("content-security-policy")
                .contains("script-src 'self'"),
            "{path}"
        );
    }
    let root = api.get("/").await;
    assert_eq!(
        (root.status, root.header("location")),
        (StatusCode::SEE_OTHER, "/docs")
    );
    assert_eq!(api.get("/docs/errors/nonsense").await.code(), "not_found");
    assert_eq!(
        api.get("/docs/errors/..%2f..%2fCargo.toml").await.code(),
        "not_found"
    );
}

#[tokio::test]
async fn the_server_keeps_connections_and_ends_when_told() {
    let api = Api::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let served = serve(listener, api.state.clone(), None, shutdown.clone());
    let client = async {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        for _ in 0..2 {
            connection
                .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"ok\n") {
                assert_ne!(connection.read_buf(&mut answer).await.unwrap(), 0);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        }
        shutdown.cancel();
        let mut rest = Vec::new();
        assert_eq!(connection.read_to_end(&mut rest).await.unwrap(), 0);
    };
    let both = async { tokio::join!(served, client) };
    tokio::time::timeout(Duration::from_secs(10), both)
        .await
        .unwrap();
}
