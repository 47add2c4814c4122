//! `Prefer: wait`: holding a request until its run has ended.

use std::time::Duration;

use super::caller::Caller;
use super::run_body::RunBody;
use super::run_view;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::{RunId, SessionId};
use crate::stream::StreamItem;

/// The run, once it has ended; `None` when it has not within `time`, when the process stops, or when
/// too many requests wait already. The run goes on in each case.
pub(super) async fn for_end(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    run: &RunId,
    time: Duration,
) -> Option<RunBody> {
    let _waiting = state.waits.try_acquire().ok()?;
    caller.scope.only_waits();
    let ended = tokio::select! {
        ended = tokio::time::timeout(time, until_ended(state, caller, session, run)) => ended.ok()?,
        () = state.parts.stopping.cancelled() => return None,
    };
    match ended {
        Ok(ended) => ended,
        Err(error) => {
            tracing::warn!(%error, "a request stopped waiting for its run");
            None
        }
    }
}

async fn until_ended(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    run: &RunId,
) -> Result<Option<RunBody>, ApiError> {
    let tenant = caller.tenant();
    // The history before this point is not looked at: the run itself says whether it ended by then.
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().session(tenant, look, session).await?;
    let (view, _) = caller.found(read)?;
    let mut events = state
        .parts
        .streams
        .follow(tenant, session, view.last_event())
        .await?;
    let body = read_run(state, caller, run).await?;
    if body.summary.status.is_terminal() {
        return Ok(Some(body));
    }
    while let Some(item) = events.next().await {
        let ended = match item? {
            StreamItem::Event(event) => event.run_id == *run && event.event_type.is_terminal(),
            StreamItem::Truncated => true,
            StreamItem::Heartbeat | StreamItem::Passing(_) => false,
        };
        if ended {
            let body = read_run(state, caller, run).await?;
            if body.summary.status.is_terminal() {
                return Ok(Some(body));
            }
        }
    }
    Ok(None)
}

async fn read_run(state: &ApiState, caller: &Caller, run: &RunId) -> Result<RunBody, ApiError> {
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().run(caller.tenant(), look, run).await?;
    let (view, _) = caller.found(read)?;
    run_view::body(state, caller.tenant(), &view).ok_or_else(|| ApiError::new(ErrorCode::Internal))
}
