//! The outermost layer: trace id, caps, panics, log line, metrics, and the headers of every answer.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;

use super::scope::{Facts, Peer, Scope};
use super::state::ApiState;
use super::{limits, problem};
use crate::error::{ApiError, ErrorCode};
use crate::runtime::clock;
use crate::telemetry::TraceContext;

const MAX_URI_BYTES: usize = 8192;
const MAX_HEADERS: usize = 64;

/// Wraps every request.
pub(super) async fn observe(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let facts = facts(&request);
    let span = tracing::info_span!(
        "request",
        otel.kind = "server",
        http.request.method = facts.method,
        http.route = facts.route,
        trace_id = facts.trace.trace_id(),
    );
    let trace = facts.trace.enter(&span);
    let facts = Facts { trace, ..facts };
    let (permit, overloaded) = if is_probe(&facts.route) {
        (None, false)
    } else {
        let permit = state.requests.clone().try_acquire_owned().ok();
        let overloaded = permit.is_none();
        (permit, overloaded)
    };
    let scope = Scope::new(facts, permit);

    let handled = async {
        if overloaded {
            return overload().into_response();
        }
        if let Err(error) = check_edges(&request) {
            return error.into_response();
        }
        request.extensions_mut().insert(scope.clone());
        let handled = AssertUnwindSafe(next.run(request)).catch_unwind().await;
        handled.unwrap_or_else(|_| {
            tracing::error!("a handler panicked");
            ApiError::new(ErrorCode::Internal).into_response()
        })
    };
    let response = handled.instrument(span.clone()).await;
    let _entered = span.enter();
    finish(&state, response, &scope)
}

fn facts(request: &Request) -> Facts {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    Facts {
        trace: trace(request.headers()),
        method: method_name(request.method()),
        route,
        query: request.uri().query().unwrap_or_default().to_owned(),
        peer: request.extensions().get::<Peer>().map(|peer| peer.0),
        began: Instant::now(),
        began_ms: clock::now_ms(),
    }
}

/// The client's place in its trace, or the beginning of a new one when it names none that is valid.
fn trace(headers: &HeaderMap) -> TraceContext {
    let mut given = headers.get_all("traceparent").iter();
    let parsed = given
        .next()
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match (parsed, given.next()) {
        (Some(trace), None) => trace,
        _ => TraceContext::generate(),
    }
}

/// A name from a closed set, so that clients cannot make up metric labels.
fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

/// Probes are answered however busy the process is.
fn is_probe(route: &str) -> bool {
    matches!(route, "/healthz" | "/readyz" | "/metrics")
}

fn overload() -> ApiError {
    ApiError {
        retry_after_ms: Some(1000),
        ..ApiError::new(ErrorCode::Overloaded)
    }
}

fn check_edges(request: &Request) -> Result<(), ApiError> {
    let uri = request.uri();
    let length = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    if length > MAX_URI_BYTES {
        return Err(ApiError::new(ErrorCode::UriTooLong));
    }
    if request.headers().len() > MAX_HEADERS {
        return Err(ApiError::new(ErrorCode::HeadersTooLarge));
    }
    // RFC 9112, section 3.2: exactly one, but for HTTP/1.0, which has none.
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(ApiError::header("Host", "exactly one is required"));
    }
    Ok(())
}

fn finish(state: &ApiState, mut response: Response, scope: &Scope) -> Response {
    let facts = scope.facts();
    let trace_id = facts.trace.trace_id();
    let code = problem::render(&mut response, &trace_id, &state.exit);
    let notes = scope.notes();
    let headers = response.headers_mut();
    limits::write(&notes.limits, headers);
    let default = |headers: &mut HeaderMap, name: HeaderName, text: &'static str| {
        headers
            .entry(name)
            .or_insert(HeaderValue::from_static(text));
    };
    default(headers, CACHE_CONTROL, "no-store");
    default(headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
    default(headers, REFERRER_POLICY, "no-referrer");
    default(headers, X_FRAME_OPTIONS, "DENY");
    default(
        headers,
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    );
    if let Ok(value) = HeaderValue::try_from(&trace_id) {
        headers.insert("x-trace-id", value);
    }

    let status = response.status().as_u16();
    let elapsed = facts.began.elapsed();
    let labels = [
        ("route", facts.route.clone()),
        ("method", facts.method.to_owned()),
        ("status", status.to_string()),
    ];
    metrics::counter!("agenthub_requests_total", &labels).increment(1);
    // How long a request waited for its run, as it asked for, says nothing of this process.
    let waited = if notes.waited { "true" } else { "false" };
    metrics::histogram!("agenthub_latency_ms", "route" => facts.route.clone(), "waited" => waited)
        .record(elapsed.as_secs_f64() * 1000.0);
    if !is_probe(&facts.route) {
        tracing::info!(
            target: "agenthub::request",
            method = facts.method,
            route = facts.route,
            status,
            duration_ms = scope.elapsed_ms(),
            tenant = notes.tenant.as_ref().map(ToString::to_string),
            key_id = notes.key_id.as_ref().map(ToString::to_string),
            session_id = notes.session.as_ref().map(ToString::to_string),
            run_id = notes.run.as_ref().map(ToString::to_string),
            code = code.map(ErrorCode::as_str),
            rule = notes.rule,
            trace_id,
            "request"
        );
    }
    drop(notes);
    response
}
