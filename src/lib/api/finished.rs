//! The stream of a run that has ended: what the history still holds of it, and nothing to wait for.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};

use super::caller::Caller;
use super::follow::{self, BEGINNING};
use super::sse;
use super::state::ApiState;
use crate::error::ApiError;
use crate::ids::{RunId, SessionId};
use crate::messages::EventId;
use crate::privacy::DataKey;
use crate::runs::{RunView, StoredEvent};

/// Events read from the history at once.
const PAGE: usize = 256;

/// The events of an ended run after `after`; `None` when the client has seen its end.
pub(super) async fn replay(
    state: &ApiState,
    caller: &Caller,
    session: &SessionId,
    view: &RunView,
    key: Option<DataKey>,
    after: Option<EventId>,
) -> Result<Option<BoxStream<'static, Bytes>>, ApiError> {
    let mut replay = Replay {
        state: state.clone(),
        caller: caller.clone(),
        session: session.clone(),
        run: view.id.clone(),
        key,
        cursor: after.unwrap_or(BEGINNING),
        more: true,
    };
    let mut first = Vec::new();
    while replay.more && first.is_empty() {
        first = replay.page().await?;
    }
    let gap = after.is_some() && !replay.reaches_back_to(after).await?;
    if first.is_empty() && after.is_some() && !gap {
        return Ok(None);
    }
    let told = if gap {
        vec![sse::truncated()]
    } else {
        Vec::new()
    };
    let rest = stream::unfold(Some((replay, first, told)), |step| async {
        let (mut replay, page, mut bytes) = step?;
        let gap_told = !bytes.is_empty();
        let key = replay.key.as_ref();
        bytes.extend(page.iter().map(|event| sse::event(event, key)));
        if page
            .last()
            .is_some_and(|event| event.event_type.is_terminal())
        {
            return Some((bytes, None));
        }
        if !replay.more {
            // The end is no longer in the history.
            if !gap_told {
                bytes.push(sse::truncated());
            }
            bytes.extend(replay.snapshot().await);
            return Some((bytes, None));
        }
        match replay.page().await {
            Ok(page) => Some((bytes, Some((replay, page, Vec::new())))),
            Err(error) => {
                tracing::warn!(%error, "a finished run's stream was cut");
                Some((bytes, None)) // the client reconnects and goes on
            }
        }
    });
    Ok(Some(rest.flat_map(stream::iter).boxed()))
}

struct Replay {
    state: ApiState,
    caller: Caller,
    session: SessionId,
    run: RunId,
    /// What the events are sealed with.
    key: Option<DataKey>,
    cursor: EventId,
    /// Whether the history may hold something after the cursor.
    more: bool,
}

impl Replay {
    /// The run's events in the next part of the history, up to its terminal one.
    async fn page(&mut self) -> Result<Vec<StoredEvent>, ApiError> {
        let tenant = self.caller.tenant();
        let runs = self.state.runs();
        let events = runs
            .history(tenant, &self.session, self.cursor, PAGE)
            .await?;
        self.more = events.len() == PAGE;
        if let Some(last) = events.last() {
            self.cursor = last.id;
        }
        let mut own: Vec<StoredEvent> = events
            .into_iter()
            .filter(|event| event.run_id == self.run)
            .collect();
        if let Some(end) = own.iter().position(|event| event.event_type.is_terminal()) {
            own.truncate(end + 1);
        }
        Ok(own)
    }

    /// Whether nothing after the client's cursor has left the history.
    async fn reaches_back_to(&self, after: Option<EventId>) -> Result<bool, ApiError> {
        let tenant = self.caller.tenant();
        let runs = self.state.runs();
        let oldest = runs.history(tenant, &self.session, BEGINNING, 1).await?;
        let Some(oldest) = oldest.first() else {
            return Ok(true); // it has expired, and there is nothing to say any more
        };
        let after = after.unwrap_or(BEGINNING);
        Ok(oldest.id <= after || oldest.prev == Some(after))
    }

    async fn snapshot(&self) -> Option<Bytes> {
        follow::snapshot(&self.state, &self.caller, &self.session, Some(&self.run))
            .await
            .map(|snapshot| snapshot.bytes)
    }
}
