//! One follower of a session.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::hub::{Heard, Subscription};
use crate::ids::{SessionId, TenantId};
use crate::messages::EventId;
use crate::runs::{Runs, StoredEvent};
use crate::store::StoreError;

/// Events read from the history at once.
const PAGE: usize = 256;
/// The place before the first event.
const BEGINNING: EventId = EventId {
    generation: 0,
    seq: 0,
};

/// What a follower receives.
#[derive(Debug, Clone)]
pub enum StreamItem {
    /// The next event.
    Event(Arc<StoredEvent>),
    /// The history does not reach back to the cursor, or its numbering began anew: what follows starts
    /// with the oldest event that there is.
    Truncated,
    /// Nothing happened for a while.
    Heartbeat,
}

pub(super) struct Source {
    pub(super) runs: Runs,
    pub(super) tenant: TenantId,
    pub(super) session: SessionId,
    pub(super) subscription: Subscription,
}

/// The events of one session, for one follower.
pub struct EventStream {
    source: Source,
    cursor: EventId,
    /// Whether the cursor came from the client and has not been checked against the history.
    unchecked: bool,
    ready: VecDeque<StreamItem>,
    /// Whether the history may hold something after the cursor that is not in `ready`.
    behind: bool,
    heartbeat: Interval,
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream")
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl EventStream {
    pub(super) fn new(source: Source, after: Option<EventId>, every: Duration) -> Self {
        let mut heartbeat = interval_at(Instant::now() + every, every);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            source,
            cursor: after.unwrap_or(BEGINNING),
            unchecked: after.is_some(),
            ready: VecDeque::new(),
            behind: true,
            heartbeat,
        }
    }

    /// The next item; `None` when the process stops. Safe to drop at any await: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<StreamItem, StoreError>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(Ok(item));
            }
            if self.behind {
                if let Err(error) = self.catch_up().await {
                    return Some(Err(error));
                }
                continue;
            }
            tokio::select! {
                heard = self.source.subscription.next() => match heard? {
                    Heard::Events(events) => self.take(&events),
                    Heard::Resync => self.behind = true,
                },
                _ = self.heartbeat.tick() => {
                    // Should a publication ever go missing, it is found here.
                    self.behind = true;
                    self.ready.push_back(StreamItem::Heartbeat);
                }
            }
        }
    }

    /// Takes published events that follow the cursor; a gap sends it to the history.
    fn take(&mut self, events: &[StoredEvent]) {
        for event in events {
            if event.id <= self.cursor {
                continue;
            }
            if event.prev.unwrap_or(BEGINNING) != self.cursor {
                self.behind = true;
                return;
            }
            self.push(event.clone());
        }
    }

    fn push(&mut self, event: StoredEvent) {
        self.cursor = event.id;
        self.ready.push_back(StreamItem::Event(Arc::new(event)));
    }

    async fn catch_up(&mut self) -> Result<(), StoreError> {
        if self.unchecked {
            self.check_cursor().await?;
            self.unchecked = false;
        }
        let events = self.read(self.cursor, PAGE).await?;
        self.behind = events.len() == PAGE;
        if let Some(first) = events.first()
            && self.cursor != BEGINNING
            && first.prev.unwrap_or(BEGINNING) != self.cursor
        {
            self.ready.push_back(StreamItem::Truncated);
        }
        for event in events {
            self.push(event);
        }
        Ok(())
    }

    /// A cursor of another numbering, or from before the oldest event, cannot be continued from.
    async fn check_cursor(&mut self) -> Result<(), StoreError> {
        let Some(oldest) = self.read(BEGINNING, 1).await?.pop() else {
            return Ok(());
        };
        let mut follows = oldest.id <= self.cursor || oldest.prev == Some(self.cursor);
        if follows && oldest.id.generation != self.cursor.generation {
            // The history was rebuilt, and its numbering began anew: is the cursor's one of its own?
            let beginning = EventId {
                generation: self.cursor.generation,
                seq: 0,
            };
            let first = self.read(beginning, 1).await?.pop();
            follows = first.is_some_and(|e| e.id.generation == self.cursor.generation);
        }
        if !follows && self.cursor != BEGINNING {
            self.cursor = BEGINNING;
            self.ready.push_back(StreamItem::Truncated);
        }
        Ok(())
    }

    async fn read(&self, after: EventId, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
        let Source {
            runs,
            tenant,
            session,
            ..
        } = &self.source;
        runs.history(tenant, session, after, limit).await
    }
}
