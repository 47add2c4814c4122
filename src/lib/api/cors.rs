//! Which pages of other origins may call the API from a browser: those that the operator lists.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::Origin;

/// How long a browser may keep the answer to its question.
const MAX_AGE: Duration = Duration::from_mins(10);

/// Answers browsers' questions for the listed origins, compared byte by byte; `None` when there is none.
/// Keys travel in headers that pages set, so that no credentials of the browser are allowed.
pub(super) fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| HeaderValue::try_from(&origin.0).ok())
        .collect();
    if origins.is_empty() {
        return None;
    }
    let names = |names: &[&'static str]| -> Vec<HeaderName> {
        names
            .iter()
            .map(|name| HeaderName::from_static(name))
            .collect()
    };
    let mut sent = names(&[
        "x-api-key",
        "idempotency-key",
        "prefer",
        "last-event-id",
        "traceparent",
    ]);
    sent.extend([AUTHORIZATION, CONTENT_TYPE]);
    let mut shown = names(&[
        "x-trace-id",
        "idempotency-replayed",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ]);
    shown.extend([LOCATION, RETRY_AFTER]);
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(sent)
        .expose_headers(shown)
        .max_age(MAX_AGE);
    Some(layer)
}
