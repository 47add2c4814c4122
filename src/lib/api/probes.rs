//! `/healthz`, `/readyz`, `/metrics`: for those who run the process.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;

use super::state::ApiState;

/// Whether the process can serve.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether it takes requests and everything it needs is up.
    ready: bool,
    /// `up` or `down`, by dependency, as last seen.
    #[schema(value_type = BTreeMap<String, String>)]
    dependencies: BTreeMap<&'static str, &'static str>,
}

/// Whether the process lives. Needs nothing.
#[utoipa::path(get, path = "/healthz", tag = "operations", security(()),
    responses((status = 200, description = "It lives.", content_type = "text/plain", body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether the process can serve, and which of its dependencies are up.
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()),
    responses((status = 200, description = "It can.", body = Readiness),
        (status = 503, description = "It cannot.", body = Readiness)))]
pub(super) async fn readyz(State(state): State<ApiState>) -> Response {
    let (ready, dependencies) = state.parts.health.report();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let dependencies = dependencies
        .into_iter()
        .map(|(name, well)| (name, if well { "up" } else { "down" }))
        .collect();
    let body = Readiness {
        ready,
        dependencies,
    };
    (status, Json(body)).into_response()
}

/// The process' metrics, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", security(()),
    responses((status = 200, description = "The metrics.", content_type = "text/plain", body = String)))]
pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    let content_type = [(CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, (state.parts.metrics)()).into_response()
}
