//! The HTTP side of the simulator.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, SERVER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::connection::{DropSwitch, Listener};
use super::script::{Drop, Script, ScriptError, Scripts};
use super::wire::{self, Answer, CREATED, MODELS, Request, Usage};
use super::{respond, stream as chunks};

const SCRIPT_HEADER: &str = "x-sim-script";
const MAX_BODY_BYTES: usize = 32 * 1024 * 1024;
/// How long answers under way may take after the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// What a simulator needs for its answers.
#[derive(Debug)]
pub struct Simulator {
    latency: Duration,
    jitter_ms: u64,
    scripts: Scripts,
}

impl Simulator {
    /// The simulator that the options describe.
    pub fn new(options: &Options) -> Result<Self, ScriptError> {
        Ok(Self {
            latency: Duration::from_millis(options.latency_ms),
            jitter_ms: options.jitter_ms,
            scripts: Scripts::load(options.script.as_deref())?,
        })
    }
}

/// Serves until `stop` is ready; then takes no more requests and gives those under way 5 s to end.
pub async fn serve(
    listener: TcpListener,
    simulator: Simulator,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let addr = listener.local_addr()?;
    tracing::info!(%addr, models = ?MODELS, "simulator listening: answers come from rules, not from a language model");
    let router = Router::new()
        .route("/v1/chat/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is no such path") })
        .method_not_allowed_fallback(|| async {
            refuse(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has another method",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(simulator));
    let service = router.into_make_service_with_connect_info::<DropSwitch>();
    let stopping = CancellationToken::new();
    let stopped = stopping.clone();
    let server = axum::serve(Listener(listener), service).with_graceful_shutdown(async move {
        stop.await;
        stopping.cancel();
    });
    tokio::select! {
        ended = server => ended,
        () = async { stopped.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

async fn models() -> Response {
    let model = |id: &&str| json!({"id": id, "object": "model", "created": CREATED, "owned_by": "agenthub-llm-sim"});
    let data: Vec<_> = MODELS.iter().map(model).collect();
    answer(
        StatusCode::OK,
        JSON,
        json!({"object": "list", "data": data}).to_string(),
    )
}

async fn completions(
    State(simulator): State<Arc<Simulator>>,
    ConnectInfo(connection): ConnectInfo<DropSwitch>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return refuse(rejection.status(), &rejection.body_text()),
    };
    let request: Request<'_> = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    if request.model.is_empty() || request.messages.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "a model and messages are required");
    }
    let header = headers.get(SCRIPT_HEADER).map(HeaderValue::to_str);
    let Ok(header) = header.transpose() else {
        return refuse(StatusCode::BAD_REQUEST, "x-sim-script: not ASCII");
    };
    let goal = respond::goal(&request)
        .map(wire::Message::text)
        .unwrap_or_default();
    let goal_is_data = respond::wants_summary(&request);
    let picked = simulator
        .scripts
        .pick(header, &goal, goal_is_data, &request.model);
    let script = match picked {
        Ok(script) => script,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let digest = hasher.finish();

    let jitter = Duration::from_millis(digest % simulator.jitter_ms.saturating_add(1));
    let latency = script.latency().unwrap_or(simulator.latency + jitter);
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    if script.drop == Some(Drop::Connection) {
        connection.drop_connection();
    }
    let mut response = scripted(&script).unwrap_or_else(|| complete(&request, &script, digest));
    if let Some(value) = script.retry_after()
        && let Ok(value) = HeaderValue::try_from(value)
    {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

/// The answer that is no completion, where the script wants one.
fn scripted(script: &Script) -> Option<Response> {
    let status = script.status().and_then(|s| StatusCode::from_u16(s).ok());
    if let Some(body) = &script.body {
        return Some(send(
            script,
            status.unwrap_or(StatusCode::OK),
            JSON,
            vec![body.clone().into()],
        ));
    }
    let status = status.filter(|s| s.as_u16() >= 400)?;
    let body = error_body(status, script.error.as_ref());
    Some(send(script, status, JSON, vec![body.into()]))
}

/// A completion: what the script gives, else by rules.
fn complete(request: &Request<'_>, script: &Script, digest: u64) -> Response {
    let (content, calls) = (script.content(), script.calls());
    let (mut reply, limit) = if content.is_none() && calls.is_none() {
        let limit = request.max_completion_tokens.or(request.max_tokens);
        (respond::answer(request), limit)
    } else {
        let calls = calls.unwrap_or_default();
        (Answer { content, calls }, None)
    };
    let (written, finish) = wire::limit(&mut reply, limit);
    let counted = Usage::new(wire::prompt_tokens(request), 0, written, 0);
    let usage = script.usage(counted);
    let id = format!("chatcmpl-sim-{digest:016x}");
    if request.stream == Some(true) {
        let asked = request
            .stream_options
            .as_ref()
            .and_then(|o| o.include_usage);
        let asked = asked == Some(true);
        let events = chunks::events(&id, &request.model, &reply, finish, usage, asked);
        return send(script, StatusCode::OK, EVENTS, events);
    }
    match wire::completion(&id, &request.model, &reply, finish, usage) {
        Ok(body) => send(script, StatusCode::OK, JSON, vec![body.into()]),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Sends the pieces of a body, as fast and as far as the script wants.
fn send(script: &Script, status: StatusCode, kind: HeaderValue, pieces: Vec<Bytes>) -> Response {
    let delay = script.chunk_delay();
    let dropped = script.drop == Some(Drop::Body);
    if !dropped && delay.is_none() && pieces.len() == 1 {
        return answer(
            status,
            kind,
            Body::from(pieces.into_iter().next().unwrap_or_default()),
        );
    }
    let mut pieces: Vec<io::Result<Bytes>> = pieces.into_iter().map(Ok).collect();
    if dropped {
        pieces.truncate(pieces.len().div_ceil(2));
        if let Some(Ok(last)) = pieces.last_mut() {
            last.truncate(last.len() / 2);
        }
        pieces.push(Err(io::ErrorKind::ConnectionAborted.into()));
    }
    let pieces = stream::iter(pieces.into_iter().enumerate()).then(move |(at, piece)| async move {
        if let Some(delay) = delay.filter(|_| at > 0) {
            tokio::time::sleep(delay).await;
        }
        piece
    });
    answer(status, kind, Body::from_stream(pieces))
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let error = Value::from(message);
    answer(status, JSON, error_body(status, Some(&error)))
}

fn answer(status: StatusCode, kind: HeaderValue, body: impl Into<Body>) -> Response {
    let server = HeaderValue::from_static("agenthub-llm-sim");
    (
        status,
        [(CONTENT_TYPE, kind), (SERVER, server)],
        body.into(),
    )
        .into_response()
}

/// OpenAI's form of an error; `error` is its message or its fields.
fn error_body(status: StatusCode, error: Option<&Value>) -> String {
    let (kind, code) = match status.as_u16() {
        429 => ("requests", json!("rate_limit_exceeded")),
        500.. => ("server_error", Value::Null),
        _ => ("invalid_request_error", Value::Null),
    };
    let mut body = json!({"error": {
        "message": "scripted by the simulator", "type": kind, "param": null, "code": code,
    }});
    match error {
        Some(Value::Object(fields)) => {
            for (name, value) in fields {
                body["error"][name] = value.clone();
            }
        }
        Some(Value::String(message)) => body["error"]["message"] = json!(message),
        _ => {}
    }
    body.to_string()
}
