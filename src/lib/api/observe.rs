//! The outermost layer: trace id, caps, panics, log line, metrics, and the headers of every answer.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use serde_json::json;
use tracing::{Instrument, Span};

use super::audit::{self, Unanswered};
use super::client_ip::ClientIp;
use super::scope::{Facts, Peer, Scope};
use super::state::ApiState;
use super::{edges, limits, problem};
use crate::config::Settings;
use crate::error::{ApiError, ErrorCode};
use crate::runtime::clock;
use crate::telemetry::{self, TraceContext};

/// The rule that limits requests without a valid key.
const UNAUTHENTICATED: &str = "unauthenticated_address";

/// Wraps every request.
pub(super) async fn observe(
    State(state): State<ApiState>,
    mut request: Request,
    next: Next,
) -> Response {
    let given = given_trace(request.headers());
    let facts = facts(&request, state.settings());
    if let Some(client_ip) = facts.client_ip {
        request.extensions_mut().insert(client_ip);
    }
    let span = if is_probe(&facts.route) {
        Span::none()
    } else {
        tracing::info_span!(
            "request",
            otel.name = %format!("{} {}", facts.method, facts.route),
            otel.kind = "server",
            http.request.method = facts.method,
            http.route = facts.route,
            trace_id = tracing::field::Empty,
        )
    };
    let trace = match given {
        Some(given) => given.enter(&span),
        // The beginning of a trace has no parent.
        None => TraceContext::of(&span).unwrap_or(facts.trace),
    };
    span.record("trace_id", trace.trace_id());
    let facts = Facts { trace, ..facts };
    let (permit, overloaded) = if is_probe(&facts.route) {
        (None, false)
    } else {
        let permit = state.requests.clone().try_acquire_owned().ok();
        let overloaded = permit.is_none();
        (permit, overloaded)
    };
    let scope = Scope::new(facts, permit);
    let unanswered = Unanswered {
        state: state.clone(),
        scope: scope.clone(),
    };

    let handled = async {
        if overloaded {
            return overload().into_response();
        }
        if let Err(error) = audit::reserve(&state, &scope) {
            return error.into_response();
        }
        if let Err(error) = edges::check(&request, state.settings()) {
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
    let response = finish(&state, response, &scope);
    describe(&span, &response, &scope);
    drop(unanswered);
    response
}

fn facts(request: &Request, settings: &Settings) -> Facts {
    let peer = request.extensions().get::<Peer>();
    let client_ip = peer.map(|peer| {
        let (trusted, header) = (&settings.trusted_proxies, settings.forwarded_header);
        ClientIp::of(peer.0, request.headers(), trusted, header)
    });
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    Facts {
        trace: TraceContext::generate(),
        method: method_name(request.method()),
        route,
        query: request.uri().query().unwrap_or_default().to_owned(),
        client_ip,
        began: Instant::now(),
        began_ms: clock::now_ms(),
    }
}

/// Tells the request's span what came of it.
fn describe(span: &Span, response: &Response, scope: &Scope) {
    let status = response.status();
    telemetry::note(
        span,
        "http.response.status_code",
        i64::from(status.as_u16()),
    );
    let notes = scope.notes();
    for (name, value) in [
        ("tenant", notes.tenant.as_ref().map(ToString::to_string)),
        ("key_id", notes.key_id.as_ref().map(ToString::to_string)),
        (
            "session_id",
            notes.session.as_ref().map(ToString::to_string),
        ),
        ("run_id", notes.run.as_ref().map(ToString::to_string)),
        ("rule", notes.rule.clone()),
    ] {
        if let Some(value) = value {
            telemetry::note(span, name, value);
        }
    }
    if status.is_server_error() {
        telemetry::failed(span, status.as_str());
    }
}

/// The client's place in its trace; `None` when it names none that is valid.
fn given_trace(headers: &HeaderMap) -> Option<TraceContext> {
    let mut given = headers.get_all("traceparent").iter();
    let parsed = given
        .next()
        .and_then(|value| value.to_str().ok()?.parse().ok());
    match (parsed, given.next()) {
        (Some(trace), None) => Some(trace),
        _ => None,
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

/// Completes an answer: its error, its headers, its log line and its metrics.
pub(super) fn finish(state: &ApiState, mut response: Response, scope: &Scope) -> Response {
    let facts = scope.facts();
    let trace_id = facts.trace.trace_id();
    limit_failures(state, &mut response, scope);
    let code = problem::render(&mut response, &trace_id, &state.exit);
    audit::answered(state, scope, response.status().as_u16(), code);
    let mut notes = scope.notes();
    notes.answered = true;
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
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    default(headers, policy, "same-origin");
    default(
        headers,
        CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    );
    if state.settings().tls_cert.is_some() {
        default(headers, STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
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

/// Tells an address that has sent too much without a valid key to wait.
fn limit_failures(state: &ApiState, response: &mut Response, scope: &Scope) {
    let error = response.extensions().get::<ApiError>();
    let failed = error.is_some_and(|error| error.code == ErrorCode::Unauthenticated);
    let (true, Some(client)) = (failed, scope.facts().client_ip) else {
        return;
    };
    if let Err(wait) = state.auth_failures.count(client, Instant::now()) {
        metrics::counter!("agenthub_rate_limited_total", "rule" => UNAUTHENTICATED).increment(1);
        scope.notes().rule = Some(UNAUTHENTICATED.to_owned());
        let wait = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        response.extensions_mut().insert(ApiError {
            retry_after_ms: Some(wait),
            ..ApiError::new(ErrorCode::RateLimited)
                .detail("too many requests without a valid key came from this address")
                .details(json!({ "rule": UNAUTHENTICATED, "retry_after_ms": wait }))
        });
    }
}
