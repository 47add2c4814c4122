//! The probe server of processes that serve no API: `/healthz`, `/readyz`, `/metrics`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use axum::{Router, serve};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Health;

/// Renders the metrics of the process in Prometheus' text format.
pub type Exposition = Arc<dyn Fn() -> String + Send + Sync>;

/// Serves probes.
#[derive(Clone)]
pub struct ProbeServer {
    health: Health,
    metrics: Exposition,
}

impl std::fmt::Debug for ProbeServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProbeServer")
            .field("health", &self.health)
            .finish_non_exhaustive()
    }
}

impl ProbeServer {
    /// Serves what `health` and `metrics` know.
    pub fn new(health: Health, metrics: Exposition) -> Self {
        Self { health, metrics }
    }

    /// The routes.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.clone())
    }

    /// Serves until `stop`.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let served = serve(listener, self.routes()).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "the probe server ended");
        }
    }
}

/// Listens on `addr`. The error names the address.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| format!("cannot listen on {addr}: {error}"))
}

async fn ready(State(server): State<ProbeServer>) -> Response {
    let (ready, dependencies) = server.health.report();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let state = |well: &bool| if *well { "up" } else { "down" };
    let dependencies: serde_json::Map<_, _> = dependencies
        .iter()
        .map(|(name, well)| ((*name).to_owned(), state(well).into()))
        .collect();
    (
        status,
        Json(json!({ "ready": ready, "dependencies": dependencies })),
    )
        .into_response()
}

async fn metrics(State(server): State<ProbeServer>) -> Response {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        (server.metrics)(),
    )
        .into_response()
}
