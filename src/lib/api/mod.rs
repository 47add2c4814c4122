//! The HTTP API: routes, extractors, errors as problem documents, server-sent events, and the
//! `OpenAPI` document.
//!
//! A request is governed inside the script that acts on it: handlers check what needs no I/O, then make
//! one call of the ledger, which holds the gate.
//!
//! Invariant: nothing leaves but through `exit` or as an error written in [`crate::error`]; every
//! answer carries its trace id.

mod admin_budget;
mod admin_cache;
mod admin_dlq;
mod admin_keys;
mod admin_tenants;
mod agent_view;
mod audit;
mod audit_head;
mod auth_failures;
mod body;
mod caller;
mod client_ip;
mod connection;
mod cors;
mod docs;
mod edges;
mod exit;
mod finished;
mod follow;
mod governed;
mod limits;
mod malformed;
mod observe;
mod once;
mod openapi;
mod params;
mod policy_body;
mod probes;
mod problem;
mod request_headers;
mod retry;
mod router;
mod run_body;
mod run_view;
mod runs;
mod scope;
mod server;
mod session_view;
mod sessions;
mod sse;
mod state;
mod stream;
mod submission;
mod submit;
#[cfg(test)]
mod tests;
mod time;
mod tls;
mod tools;
mod validate;
mod wait;

pub use client_ip::ClientIp;
pub use router::{RouteAccess, access, router};
pub use server::serve;
pub use state::{ApiParts, ApiState};
pub use tls::{Tls, TlsError};

/// The `OpenAPI` document of the API, JSON text.
pub fn openapi() -> &'static str {
    openapi::text()
}
