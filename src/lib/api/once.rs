//! `Idempotency-Key` on routes that change something and start no run: carried out once, answered byte
//! for byte the same ever after.
//!
//! The claim is made in the script that passes the gate. Its attempt has a lease; one that dies leaves
//! the claim to the next, which goes on with the id that the first had chosen.

use axum::body::{Body, to_bytes};
use axum::extract::FromRequestParts;
use axum::http::header::{CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::body::JsonBody;
use super::caller::Caller;
use super::problem::internal;
use super::request_headers::idempotency_key;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::{IdempotencyKey, Permission};
use crate::runs::{ClaimEnd, Claimed, Claiming, Fence};

/// Longer than a request of these routes takes; one that dies blocks its key so long.
const LEASE_MS: u64 = 10_000;
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// The name that a request gives itself, and what it is sent to.
#[derive(Debug)]
pub(super) struct Once {
    key: Option<IdempotencyKey>,
    /// Path and query: the scope of a claim is the route's template, and the same key with another id
    /// in the path is another request.
    target: String,
}

impl FromRequestParts<ApiState> for Once {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        Ok(Self {
            key: idempotency_key(&parts.headers)?,
            target: parts
                .uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
        })
    }
}

/// How a request goes on after the gate.
pub(super) enum Begun {
    /// It was carried out before: this is the answer.
    Replay(Response),
    /// It is to be carried out.
    Turn(Turn),
}

/// One attempt to carry a request out. It must be ended, whatever becomes of it.
#[derive(Debug)]
pub(super) struct Turn {
    /// The id of what the request makes.
    pub(super) subject: String,
    /// Whether an earlier attempt may have made it.
    pub(super) repeated: bool,
    /// What fences this attempt's writes; `None` without an `Idempotency-Key`.
    pub(super) fence: Option<Fence>,
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    body: String,
}

impl Once {
    /// Whether the request names itself.
    pub(super) fn is_named(&self) -> bool {
        self.key.is_some()
    }

    /// Passes the gate, and claims the request where it names itself. `subject` is the id of what it is
    /// to make.
    pub(super) async fn begin<T>(
        &self,
        state: &ApiState,
        caller: &Caller,
        permission: Permission,
        body: Option<&JsonBody<T>>,
        subject: String,
    ) -> Result<Begun, ApiError> {
        let Some(key) = &self.key else {
            caller.pass(state, permission).await?;
            return Ok(Begun::Turn(Turn {
                subject,
                repeated: false,
                fence: None,
            }));
        };
        let facts = caller.scope.facts();
        let claim = key.claim(facts.method, &facts.route);
        let fingerprint = match body {
            Some(body) => body.fingerprint(&self.target, true),
            None => crate::governance::fingerprint(&serde_json::Value::Null, &self.target),
        };
        let owner = Uuid::new_v4().simple().to_string();
        let claiming = Claiming {
            gate: caller.gate(state, permission),
            key: &claim,
            fingerprint: &fingerprint,
            owner: &owner,
            subject: &subject,
            lease_ms: LEASE_MS,
            ttl_ms: ttl_ms(state),
        };
        match state.runs().claim(caller.tenant(), &claiming).await? {
            Claimed::Refused(refusal) => Err(caller.refused(refusal)),
            Claimed::Replay {
                limits,
                role,
                answer,
            } => {
                caller.note_role(role);
                caller.note_limits(limits);
                replay(state, caller, &claim, &answer).map(Begun::Replay)
            }
            Claimed::Mine {
                limits,
                role,
                subject,
                repeated,
            } => {
                caller.note_role(role);
                caller.note_limits(limits);
                Ok(Begun::Turn(Turn {
                    subject,
                    repeated,
                    fence: Some(Fence { key: claim, owner }),
                }))
            }
        }
    }
}

impl Turn {
    /// Keeps the answer, or gives the key back when the request was refused; what is answered.
    pub(super) async fn end(
        self,
        state: &ApiState,
        caller: &Caller,
        outcome: Result<Response, ApiError>,
    ) -> Result<Response, ApiError> {
        let Some(fence) = self.fence else {
            return outcome;
        };
        let tenant = caller.tenant();
        let settle = async |settlement| {
            let runs = state.runs();
            runs.settle(tenant, &fence, settlement, ttl_ms(state)).await
        };
        let response = match outcome {
            Ok(response) => response,
            Err(error) => {
                let unknown = error.code.status() >= 500;
                let settlement = if unknown {
                    ClaimEnd::Unknown
                } else {
                    ClaimEnd::Refused
                };
                if let Err(error) = settle(settlement).await {
                    tracing::warn!(%error, "the claim of a request that failed is left to its lease");
                }
                return Err(error);
            }
        };
        let (mut parts, body) = response.into_parts();
        let bytes = to_bytes(body, MAX_ANSWER_BYTES)
            .await
            .map_err(|error| internal(&error))?;
        let header = |name| {
            let value = parts.headers.get(name);
            value.and_then(|v: &HeaderValue| v.to_str().ok().map(str::to_owned))
        };
        let kept = Kept {
            status: parts.status.as_u16(),
            content_type: header(CONTENT_TYPE),
            location: header(LOCATION),
            body: String::from_utf8_lossy(&bytes).into_owned(),
        };
        let kept = serde_json::to_vec(&kept).map_err(|error| internal(&error))?;
        let sealed = state
            .parts
            .data_keys
            .ring()
            .seal_for(&owner_of(caller, &fence.key), &kept);
        // An answer that cannot be kept is not given: the repeat would get another one.
        if !settle(ClaimEnd::Done(&sealed)).await? {
            return Err(in_flight());
        }
        parts.headers.remove("content-length");
        Ok(Response::from_parts(parts, Body::from(bytes)))
    }
}

/// What an answer is sealed for, so that it opens as the answer to no other request.
fn owner_of(caller: &Caller, claim: &str) -> String {
    format!("answer/{}/{claim}", caller.tenant())
}

fn ttl_ms(state: &ApiState) -> u64 {
    state.settings().idempotency_ttl_s.saturating_mul(1000)
}

/// Another attempt at the same request is under way.
pub(super) fn in_flight() -> ApiError {
    ApiError {
        retry_after_ms: Some(1000),
        ..ApiError::new(ErrorCode::RequestInFlight)
            .details(serde_json::json!({ "rule": "idempotency_key" }))
    }
}

fn replay(
    state: &ApiState,
    caller: &Caller,
    claim: &str,
    sealed: &str,
) -> Result<Response, ApiError> {
    let ring = state.parts.data_keys.ring();
    let kept = ring.open_for(&owner_of(caller, claim), sealed)?;
    let kept: Kept = serde_json::from_slice(&kept).map_err(|error| internal(&error))?;
    let status = StatusCode::from_u16(kept.status).map_err(|error| internal(&error))?;
    let mut response = (status, kept.body).into_response();
    let headers = response.headers_mut();
    headers.remove(CONTENT_TYPE);
    for (name, text) in [(CONTENT_TYPE, kept.content_type), (LOCATION, kept.location)] {
        if let Some(value) = text.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(name, value);
        }
    }
    let replayed = HeaderName::from_static("idempotency-replayed");
    headers.insert(replayed, HeaderValue::from_static("true"));
    Ok(response)
}
