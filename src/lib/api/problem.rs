//! Errors as `application/problem+json` (RFC 9457).
//!
//! A handler's error travels to the outermost layer inside the response's extensions, because only
//! that layer knows the trace id that the body must carry.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::exit::Exit;
use crate::error::{ApiError, ErrorCode};
use crate::governance::KeyError;
use crate::kafka::ProduceError;
use crate::privacy::SealError;
use crate::store::StoreError;
use crate::stream::StreamError;

/// The body of every error.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct Problem {
    /// Where the code's page is, relative to the API.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The same for every error of the code.
    pub(super) title: String,
    /// The HTTP status.
    pub(super) status: u16,
    /// What was wrong with this request.
    pub(super) detail: String,
    /// Stable name of the error, in snake case.
    pub(super) code: String,
    /// Trace id of the request; the same as in `X-Trace-Id`.
    pub(super) trace_id: String,
    /// More for programs, by code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Value>,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = status(self.code).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the error, if any, that `response` carries into its body; returns the error's code.
pub(super) fn render(response: &mut Response, trace_id: &str, exit: &Exit) -> Option<ErrorCode> {
    let error: ApiError = response.extensions_mut().remove()?;
    let problem = Problem {
        kind: error.code.page_path(),
        title: error.code.title().to_owned(),
        status: error.code.status(),
        detail: exit.text(&error.detail),
        code: error.code.as_str().to_owned(),
        trace_id: trace_id.to_owned(),
        details: error.details.as_ref().map(|details| exit.json(details)),
    };
    let body = serde_json::to_vec(&problem).unwrap_or_default();
    *response.status_mut() = status(error.code);
    *response.body_mut() = Body::from(body);
    let headers = response.headers_mut();
    let json = HeaderValue::from_static("application/problem+json");
    headers.insert(CONTENT_TYPE, json);
    if let Some(seconds) = error.retry_after_s() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    if error.code == ErrorCode::Unauthenticated {
        let challenge = HeaderValue::from_static("Bearer realm=\"agenthub\"");
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    Some(error.code)
}

fn status(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unavailable(_) => tracing::warn!(%error, "redis is not available"),
            StoreError::Failed(_) => tracing::error!(%error, "redis did not do what was asked"),
        }
        Self::unavailable("redis")
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        tracing::warn!(%error, "a stream cannot be followed");
        Self::unavailable("redis")
    }
}

impl From<ProduceError> for ApiError {
    fn from(error: ProduceError) -> Self {
        tracing::warn!(%error, "kafka did not acknowledge");
        Self::unavailable("kafka")
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Unknown => Self::new(ErrorCode::NotFound),
            KeyError::Reserved => Self::field("/tenant", "can have no keys"),
            KeyError::Kafka(error) => error.into(),
            KeyError::Redis(error) => error.into(),
            KeyError::Record(error) => internal(&error),
        }
    }
}

impl From<SealError> for ApiError {
    fn from(error: SealError) -> Self {
        internal(&error)
    }
}

/// A fault of the service: logged here, told to nobody.
pub(super) fn internal(error: &dyn std::error::Error) -> ApiError {
    tracing::error!(%error, "internal error");
    ApiError::new(ErrorCode::Internal)
}
