//! Sessions: created, listed, read, erased.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::body::JsonBody;
use super::caller::Caller;
use super::once::{self, Begun, Once, Turn};
use super::params::{Params, PathId};
use super::problem::internal;
use super::session_view::{self, SessionBody};
use super::state::ApiState;
use super::time::rfc3339;
use super::validate::{self, Labels};
use crate::error::{ApiError, ErrorCode};
use crate::governance::{Permission, erased_record};
use crate::ids::{SessionId, TenantId};
use crate::messages::{
    Outgoing, SCHEMA_VERSION, SessionRecord, State as Recorded, StateRecord, Topic,
    session_record_key,
};
use crate::runs::{Listing, SessionCreation};
use crate::runtime::clock;

const MAX_TTL_S: u64 = 30 * 24 * 3600;
const MAX_SUBJECT: usize = 256;
/// Generation of the event numbers of a session that was never rebuilt.
const FIRST_GENERATION: u64 = 1;

/// A session to be created.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSession {
    /// What every run of the session is told besides its goal. Any JSON.
    #[serde(default)]
    context: Option<Value>,
    /// Seconds that it lives after its last use: 1 to 2592000; the installation's default when absent.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_s: Option<u64>,
    /// Whom it is about, at most 256 characters.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 256)]
    subject: Option<String>,
    /// The most that its runs may cost together, in US dollars; counted in millionths.
    #[serde(default)]
    #[schema(minimum = 0)]
    max_cost_usd: Option<f64>,
    /// The client's own labels: at most 16, names of at most 64 and values of at most 256 characters.
    #[serde(default)]
    metadata: Labels,
}

/// A session that was created.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionCreated {
    /// The session.
    #[schema(value_type = String)]
    session_id: SessionId,
    /// When it was created.
    created_at: String,
    /// When it expires if nothing touches it.
    expires_at: String,
}

/// A page of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionPage {
    /// The newest first.
    data: Vec<SessionBody>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Create a session.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = NewSession,
    params(("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat makes nothing twice.")),
    responses((status = 201, description = "Created.", body = SessionCreated,
        headers(("Location" = String, description = "The session."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    _: Params,
    once: Once,
    body: JsonBody<NewSession>,
) -> Result<Response, ApiError> {
    let new = &body.value;
    let ttl_s = new.ttl_s.unwrap_or(state.settings().session_ttl_s);
    if !(1..=MAX_TTL_S).contains(&ttl_s) {
        let problem = format!("expected 1 to {MAX_TTL_S} seconds");
        return Err(ApiError::field("/ttl_s", problem));
    }
    validate::text("/subject", new.subject.as_deref(), MAX_SUBJECT)?;
    validate::labels(&new.metadata)?;
    let budget = validate::micro_usd("/max_cost_usd", new.max_cost_usd)?;
    state.require_kafka()?;
    let subject = SessionId::generate().to_string();
    let begun = once.begin(&state, &caller, Permission::Sessions, Some(&body), subject);
    match begun.await? {
        Begun::Replay(response) => Ok(response),
        Begun::Turn(turn) => {
            let outcome = make(&state, &caller, body.value, (ttl_s, budget), &turn).await;
            turn.end(&state, &caller, outcome).await
        }
    }
}

async fn make(
    state: &ApiState,
    caller: &Caller,
    new: NewSession,
    (ttl_s, budget): (u64, Option<u64>),
    turn: &Turn,
) -> Result<Response, ApiError> {
    let tenant = caller.tenant();
    let session: SessionId = turn.subject.parse().map_err(|error| internal(&error))?;
    caller.scope.notes().session = Some(session.clone());
    if turn.repeated
        && let Some(made) = made_before(state, caller, &session).await?
    {
        return Ok(made);
    }
    let (key, wrapped) = state.parts.data_keys.generate(tenant, &session);
    let labels = serde_json::to_vec(&new.metadata).map_err(|e| internal(&e))?;
    let record = SessionRecord {
        tenant: tenant.clone(),
        session_id: session.clone(),
        wrapped_key: wrapped,
        context: new.context.map(|v| key.seal(v.to_string().as_bytes())),
        subject: new.subject.map(|text| key.seal(text.as_bytes())),
        metadata: (!new.metadata.is_empty()).then(|| key.seal(&labels)),
        max_cost_micro_usd: budget,
        ttl_ms: ttl_s * 1000,
        key_id: caller.key.key_id.clone(),
        created_ms: clock::now_ms(),
    };
    let creation = SessionCreation {
        session: &session,
        key: &record.wrapped_key,
        context: record.context.clone(),
        subject: record.subject.clone(),
        metadata: record.metadata.clone(),
        budget,
        ttl_ms: record.ttl_ms,
        key_id: &caller.key.key_id,
        generation: FIRST_GENERATION,
        claim: turn.fence.clone(),
    };
    let value = StateRecord {
        v: SCHEMA_VERSION,
        state: Recorded::Session(record.clone()),
    };
    let value = serde_json::to_vec(&value).map_err(|e| internal(&e))?;
    record_state(state, caller, &session, "created", value.into()).await?;
    let created = state.runs().create_session(tenant, &creation).await?;
    let (created, expires) = created.ok_or_else(once::in_flight)?;
    Ok(created_answer(session, created, expires))
}

/// The answer of an earlier attempt that got as far as the session and no further.
async fn made_before(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
) -> Result<Option<Response>, ApiError> {
    let look = caller.look(state, Permission::Sessions);
    let read = state.runs().session(caller.tenant(), look, session).await?;
    match caller.found(read) {
        Ok((view, _)) => {
            let number = |name| view.fields.number(name);
            let (created, ttl) = (number("created"), number("ttl_ms"));
            let answer = created_answer(session.clone(), created, created.saturating_add(ttl));
            Ok(Some(answer))
        }
        Err(error) if error.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn created_answer(session: SessionId, created: u64, expires: u64) -> Response {
    let location = format!("/v1/sessions/{session}");
    let body = SessionCreated {
        session_id: session,
        created_at: rfc3339(created),
        expires_at: rfc3339(expires),
    };
    (StatusCode::CREATED, [(LOCATION, location)], Json(body)).into_response()
}

/// List sessions, the newest first.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions",
    params(("limit" = Option<u32>, Query, description = "1 to 100; 20 when absent.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses((status = 200, description = "A page of sessions.", body = SessionPage)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<SessionPage>, ApiError> {
    let params = Params::read(&uri, &["limit", "cursor"])?;
    let limit = params.limit()?;
    let before = params.parsed::<SessionId>("cursor", "the next_cursor of a page")?;
    let listing = Listing {
        session: None,
        before: before.map(String::from),
        limit,
    };
    let gate = caller.gate(&state, Permission::Sessions);
    let read = state
        .runs()
        .sessions(caller.tenant(), gate, &listing)
        .await?;
    let (views, _) = caller.found(read)?;
    let full = views.len() == limit as usize;
    let next_cursor = views.last().filter(|_| full).map(|v| v.id.to_string());
    let data = views
        .iter()
        .map(|view| session_view::body(&state, caller.tenant(), view, None))
        .collect();
    Ok(Json(SessionPage { data, next_cursor }))
}

/// Read a session. Its time to live begins anew.
#[utoipa::path(get, path = "/v1/sessions/{session_id}", tag = "sessions",
    params(("session_id" = String, Path, description = "The session.")),
    responses((status = 200, description = "The session.", body = SessionBody)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<SessionId>,
    _: Params,
) -> Result<Json<SessionBody>, ApiError> {
    let session = known(&state, &caller, id).await?;
    let gate = caller.gate(&state, Permission::Sessions);
    let read = state
        .runs()
        .session(caller.tenant(), gate, &session)
        .await?;
    let (view, now_ms) = caller.found(read)?;
    Ok(Json(session_view::body(
        &state,
        caller.tenant(),
        &view,
        Some(now_ms),
    )))
}

/// Cancel a session's runs and erase it, its data key included.
#[utoipa::path(delete, path = "/v1/sessions/{session_id}", tag = "sessions",
    params(("session_id" = String, Path, description = "The session.")),
    responses((status = 204, description = "Erased.")))]
pub(super) async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<SessionId>,
    _: Params,
) -> Result<StatusCode, ApiError> {
    let session = known(&state, &caller, id).await?;
    state.require_kafka()?;
    let tenant = caller.tenant();
    let gate = caller.gate(&state, Permission::Sessions);
    let read = state.runs().session(tenant, gate, &session).await?;
    caller.found(read)?;

    let trace = caller.scope.facts().trace.to_string();
    let erased = erased_record(tenant, &session, Some(trace));
    state.parts.outbox.producer().publish(&erased).await?;
    let (_, outbox) = state.runs().delete_session(tenant, &session).await?;
    state.parts.data_keys.forget(&session);
    if let Err(error) = state.deliver(tenant, &outbox).await {
        // The session is erased all the same; its runs' outboxes are left to the sweeper.
        tracing::warn!(%error, session_id = %session, "the ends of an erased session's runs are left to the sweeper");
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn known(
    state: &ApiState,
    caller: &Caller,
    id: PathId<SessionId>,
) -> Result<SessionId, ApiError> {
    match id.0 {
        Some(session) => {
            caller.scope.notes().session = Some(session.clone());
            Ok(session)
        }
        None => Err(caller.not_found(state, Permission::Sessions).await),
    }
}

async fn record_state(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    change: &str,
    value: Bytes,
) -> Result<(), ApiError> {
    let key = session_record_key(caller.tenant(), session);
    let record = Outgoing {
        topic: Topic::AgentState,
        ce_id: format!("{key}/{change}"),
        key,
        ce_type: "agenthub.state.session".to_owned(),
        tenant: caller.tenant().clone(),
        run_id: None,
        not_after_ms: None,
        traceparent: Some(caller.scope.facts().trace.to_string()),
        value,
    };
    state.parts.outbox.producer().publish(&record).await?;
    Ok(())
}

/// The data key of a session that a request names, from memory or, on this process' first touch of the
/// session, from the ledger.
pub(super) async fn data_key(
    state: &ApiState,
    caller: &Caller,
    permission: Permission,
    session: &SessionId,
) -> Result<crate::privacy::DataKey, ApiError> {
    let tenant: &TenantId = caller.tenant();
    let keys = &state.parts.data_keys;
    if let Some(key) = keys.get(tenant, session) {
        return Ok(key);
    }
    let look = caller.look(state, permission);
    let read = state.runs().session_key(tenant, look, session).await?;
    match caller.found(read) {
        Ok((wrapped, _)) => Ok(keys.unwrap(&wrapped, tenant, session)?),
        // A look is not counted; guessing at sessions is.
        Err(error) if error.code == ErrorCode::NotFound => {
            Err(caller.not_found(state, permission).await)
        }
        Err(error) => Err(error),
    }
}
