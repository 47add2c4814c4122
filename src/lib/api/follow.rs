//! The stream of a session, or of a run that has not ended, until there is nothing more to say.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::caller::Caller;
use super::state::ApiState;
use super::{run_view, session_view, sse};
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::{RunId, SessionId};
use crate::messages::EventId;
use crate::privacy::DataKey;
use crate::stream::{EventStream, StreamItem};

/// Between two looks at whether the key is still in force: a revoked key's streams close within five
/// seconds.
const KEY_CHECK: Duration = Duration::from_secs(4);

/// The place before the first event.
pub(super) const BEGINNING: EventId = EventId {
    generation: 0,
    seq: 0,
};

/// Counts a stream as long as it is open.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("agenthub_sse_streams").increment(1.0);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("agenthub_sse_streams").decrement(1.0);
    }
}

/// Follows for one client.
pub(super) struct Follower {
    state: ApiState,
    caller: Caller,
    session: SessionId,
    run: Option<RunId>,
    /// What the events are sealed with.
    key: Option<DataKey>,
    events: EventStream,
    key_check: Interval,
    ready: VecDeque<Bytes>,
    ended: bool,
    _open: Open,
}

impl Follower {
    pub(super) fn new(
        state: ApiState,
        caller: Caller,
        (session, key): (SessionId, Option<DataKey>),
        run: Option<RunId>,
        events: EventStream,
    ) -> Self {
        let mut key_check = interval_at(Instant::now() + KEY_CHECK, KEY_CHECK);
        key_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            state,
            caller,
            session,
            run,
            key,
            events,
            key_check,
            ready: VecDeque::new(),
            ended: false,
            _open: Open::new(),
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            if self.ended {
                return None;
            }
            let stopping = self.state.parts.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled() => self.end("the server is about to stop: reconnect"),
                _ = self.key_check.tick() => self.check_key().await,
                item = self.events.next() => match item {
                    Some(Ok(item)) => self.take(item).await,
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a stream was cut");
                        self.end("the stream was cut: reconnect");
                    }
                    None => self.end("the server is about to stop: reconnect"),
                },
            }
        }
    }

    async fn take(&mut self, item: StreamItem) {
        match item {
            StreamItem::Event(event) => {
                if self.run.as_ref().is_some_and(|run| *run != event.run_id) {
                    return;
                }
                self.ready.push_back(sse::event(&event, self.key.as_ref()));
                self.ended = self.run.is_some() && event.event_type.is_terminal();
            }
            StreamItem::Passing(event) => {
                if self.run.as_ref().is_none_or(|run| *run == event.run_id) {
                    self.ready.push_back(sse::passing(&event));
                }
            }
            StreamItem::Heartbeat => self.ready.push_back(sse::heartbeat()),
            StreamItem::Truncated => {
                self.ready.push_back(sse::truncated());
                let run = self.run.as_ref();
                match snapshot(&self.state, &self.caller, &self.session, run).await {
                    Some(snapshot) => {
                        self.ready.push_back(snapshot.bytes);
                        self.ended = snapshot.ended;
                    }
                    None => self.end("the stream was cut: reconnect"),
                }
            }
        }
    }

    /// Closes the stream when the key is no longer in force, or the session is gone. When Redis cannot
    /// say, nothing flows, and the next look decides.
    async fn check_key(&mut self) {
        let look = self.caller.look(&self.state, Permission::Runs);
        let runs = self.state.runs();
        let read = runs
            .session_key(self.caller.tenant(), look, &self.session)
            .await;
        let Some(Err(error)) = read.ok().map(|read| self.caller.found(read)) else {
            return;
        };
        if error.code == ErrorCode::NotFound {
            self.end("the session is gone");
        } else {
            self.end("the API key is no longer in force");
        }
    }

    fn end(&mut self, why: &str) {
        self.ready.push_back(sse::farewell(why));
        self.ended = true;
    }
}

/// The bytes of a follower's stream.
pub(super) fn bytes(follower: Follower) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(follower, |mut follower| async {
        let bytes = follower.next().await?;
        Some((bytes, follower))
    })
}

/// How a run or a session stands.
pub(super) struct Snapshot {
    pub(super) bytes: Bytes,
    /// Whether nothing follows it.
    pub(super) ended: bool,
}

/// How the run, or else the session, stands; `None` when it cannot be read.
pub(super) async fn snapshot(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    run: Option<&RunId>,
) -> Option<Snapshot> {
    match read_snapshot(state, caller, session, run).await {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            tracing::warn!(%error, "a snapshot could not be read");
            None
        }
    }
}

async fn read_snapshot(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    run: Option<&RunId>,
) -> Result<Snapshot, ApiError> {
    let tenant = caller.tenant();
    let unreadable = || ApiError::new(ErrorCode::Internal);
    // The cursor first: what happens between the two reads is told again, not left out.
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().session(tenant, look, session).await?;
    let view = caller.found(read).map(|(view, _)| view);
    let Some(run) = run else {
        let body = session_view::body(state, tenant, &view?, None);
        let body = serde_json::to_value(body).map_err(|_| unreadable())?;
        // Events of the session still follow, from the oldest that there is.
        let bytes = sse::snapshot(&body, None);
        return Ok(Snapshot {
            bytes,
            ended: false,
        });
    };
    // A session that has expired before its run has no events left to go on from.
    let newest = view.ok().and_then(|view| view.last_event());
    let newest = newest.unwrap_or(BEGINNING);
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().run(tenant, look, run).await?;
    let (view, _) = caller.found(read)?;
    let body = run_view::body(state, tenant, &view).ok_or_else(unreadable)?;
    let ended = body.summary.status.is_terminal();
    let body = serde_json::to_value(body).map_err(|_| unreadable())?;
    let bytes = sse::snapshot(&body, ended.then_some(newest));
    Ok(Snapshot { bytes, ended })
}
