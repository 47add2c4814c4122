//! `GET /v1/stream`: the events of a session or of one run, as they happen.

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tracing::Span;

use super::caller::Caller;
use super::finished;
use super::follow::Follower;
use super::params::Params;
use super::request_headers::last_event_id;
use super::state::ApiState;
use super::{follow, sse};
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::{RunId, SessionId};
use crate::messages::EventId;
use crate::privacy::DataKey;
use crate::runs::{RunStatus, RunView};
use crate::telemetry::{self, TraceContext};

/// Follow a session or a run. The events are server-sent events: `event` is the kind, `id` the event's
/// id, `data` its JSON. The stream of a run ends after the run's terminal event; a client that
/// reconnects at or past it gets 204. `stream.truncated` and `stream.snapshot` come in place of events
/// that the history no longer holds. `llm.delta`, a piece of what an agent's model writes, has no id: it
/// is told to who listens and not again.
#[utoipa::path(get, path = "/v1/stream", tag = "streams",
    params(("session_id" = Option<String>, Query, description = "The session; either this or `run_id`."),
        ("run_id" = Option<String>, Query, description = "The run; either this or `session_id`."),
        ("after" = Option<String>, Query, description = "The event after which to go on, exclusive."),
        ("Last-Event-ID" = Option<String>, Header, description = "As `after`, which it overrides: what a browser sends when it reconnects.")),
    responses((status = 200, description = "The events.", content_type = "text/event-stream", body = String),
        (status = 204, description = "The run has ended, and the client has seen its end.")))]
pub(super) async fn follow(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let params = Params::read(&uri, &["session_id", "run_id", "after"])?;
    let after = params.parsed::<EventId>("after", "an event id such as 1-42")?;
    let after = last_event_id(&headers)?.or(after);
    match (params.text("session_id"), params.text("run_id")) {
        (Some(session), None) => of_session(state, caller, session, after).await,
        (None, Some(run)) => of_run(state, caller, run, after).await,
        (None, None) => Err(ApiError::field("session_id", "this or run_id is required")),
        (Some(_), Some(_)) => Err(ApiError::field("run_id", "not together with session_id")),
    }
}

async fn of_session(
    state: ApiState,
    caller: Caller,
    session: &str,
    after: Option<EventId>,
) -> Result<Response, ApiError> {
    let Ok(session) = session.parse::<SessionId>() else {
        return Err(caller.not_found(&state, Permission::Runs).await);
    };
    let gate = caller.gate(&state, Permission::Runs);
    let read = state
        .runs()
        .session(caller.tenant(), gate, &session)
        .await?;
    let (view, _) = caller.found(read)?;
    let key = data_key(&state, &caller, &session, view.fields.text("key"));
    let told = Told::new(&caller, &session, None);
    live(state, caller, (session, key), None, told, after).await
}

async fn of_run(
    state: ApiState,
    caller: Caller,
    run: &str,
    after: Option<EventId>,
) -> Result<Response, ApiError> {
    let Ok(run) = run.parse::<RunId>() else {
        return Err(caller.not_found(&state, Permission::Runs).await);
    };
    let gate = caller.gate(&state, Permission::Runs);
    let read = state.runs().run(caller.tenant(), gate, &run).await?;
    let (view, _) = caller.found(read)?;
    let session = view.fields.text("session").and_then(|id| id.parse().ok());
    let session: SessionId = session.ok_or_else(|| ApiError::new(ErrorCode::Internal))?;
    let key = data_key(&state, &caller, &session, view.session_key.as_deref());
    if view.fields.status().is_some_and(RunStatus::is_terminal) {
        let replay = finished::replay(&state, &caller, &session, &view, key, after);
        return match replay.await? {
            Some(bytes) => {
                let told = Told::new(&caller, &session, Some((&run, &view)));
                Ok(respond(&caller, &session, Some(&run), told, bytes))
            }
            None => Ok(StatusCode::NO_CONTENT.into_response()),
        };
    }
    let told = Told::new(&caller, &session, Some((&run, &view)));
    live(state, caller, (session, key), Some(run), told, after).await
}

/// What the session's events are sealed with; none when the session is gone or its key does not unwrap.
fn data_key(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    wrapped: Option<&str>,
) -> Option<DataKey> {
    let keys = &state.parts.data_keys;
    keys.unwrap(wrapped?, caller.tenant(), session)
        .inspect_err(
            |error| tracing::error!(%error, session_id = %session, "a data key does not unwrap"),
        )
        .ok()
}

/// The span of a stream, from its first byte until it ends or its client has gone. It belongs to the
/// trace of the run that it tells of and is linked to the request; a session's belongs to its request.
struct Told {
    span: Span,
    frames: i64,
}

impl Told {
    fn new(caller: &Caller, session: &SessionId, run: Option<(&RunId, &RunView)>) -> Self {
        let span = tracing::info_span!(
            target: telemetry::SPANS,
            parent: None,
            "stream",
            otel.name = if run.is_some() { "stream run" } else { "stream session" },
            otel.kind = "internal",
            tenant = %caller.tenant(),
            session_id = %session,
            run_id = run.map(|(run, _)| tracing::field::display(run)),
        );
        let request = caller.scope.facts().trace;
        let of_run = run.and_then(|(_, view)| view.fields.text("traceparent")?.parse().ok());
        let of_run: Option<TraceContext> = of_run;
        if of_run.is_some() {
            request.link(&span);
        }
        of_run.unwrap_or(request).enter(&span);
        Self { span, frames: 0 }
    }

    fn frame(&mut self) {
        self.frames += 1;
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        telemetry::note(&self.span, "frames", self.frames);
    }
}

async fn live(
    state: ApiState,
    caller: Caller,
    (session, key): (SessionId, Option<DataKey>),
    run: Option<RunId>,
    told: Told,
    after: Option<EventId>,
) -> Result<Response, ApiError> {
    let events = state
        .parts
        .streams
        .follow(caller.tenant(), &session, after)
        .await?;
    let follower = Follower::new(
        state,
        caller.clone(),
        (session.clone(), key),
        run.clone(),
        events,
    );
    Ok(respond(
        &caller,
        &session,
        run.as_ref(),
        told,
        follow::bytes(follower),
    ))
}

fn respond(
    caller: &Caller,
    session: &SessionId,
    run: Option<&RunId>,
    mut told: Told,
    events: impl Stream<Item = Bytes> + Send + 'static,
) -> Response {
    {
        let mut notes = caller.scope.notes();
        notes.session = Some(session.clone());
        notes.run = run.cloned();
    }
    let opening = stream::once(async { sse::opening() });
    let bytes = opening.chain(events).map(move |bytes| {
        told.frame();
        Ok::<_, std::convert::Infallible>(bytes)
    });
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-store"),
        // Proxies that buffer answers would hold events back.
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::from_stream(bytes)).into_response()
}
