//! A session's events as they happen: the history in Redis, then what is published, without a gap and
//! without a repeat.
//!
//! One fred subscriber serves the whole process; redis-rs runs scripts and reads the history. Why both
//! are here: `docs/decisions/0003-two-redis-clients.md`.
//!
//! Invariant: a follower sees every event of its session after its cursor exactly once, in order, or
//! is told that the history no longer reaches back to its cursor. What is told in passing moves no cursor.

mod address;
mod follow;
mod hub;

pub use follow::{EventStream, StreamItem};

use std::sync::Arc;
use std::time::Duration;

use fred::error::Error as FredError;
use tokio_util::sync::CancellationToken;

use self::hub::Hub;
use crate::config::Settings;
use crate::ids::{SessionId, TenantId};
use crate::messages::EventId;
use crate::runs::Runs;
use crate::runtime::Supervisor;
use crate::store::StoreError;

/// Why a stream cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The subscriber cannot be set up.
    #[error("redis subscriber: {0}")]
    Subscriber(#[from] FredError),
    /// The settings do not say where Redis is, or how TLS is spoken with it.
    #[error("redis subscriber: {0}")]
    Address(String),
    /// The subscription was not confirmed in time.
    #[error("the subscription was not confirmed")]
    NotConfirmed,
    /// The history cannot be read.
    #[error(transparent)]
    History(#[from] StoreError),
}

/// Follows sessions for the clients of this process.
#[derive(Debug, Clone)]
pub struct Streams {
    hub: Arc<Hub>,
    runs: Runs,
    heartbeat: Duration,
}

impl Streams {
    /// Connects the process' subscriber; its tasks run until `stop`.
    pub fn start(
        settings: &Settings,
        runs: Runs,
        supervisor: &Supervisor,
        stop: CancellationToken,
    ) -> Result<Self, StreamError> {
        let hub = Hub::start(settings, supervisor, stop)?;
        Ok(Self {
            hub,
            runs,
            heartbeat: settings.sse_heartbeat_ms.duration(),
        })
    }

    /// The events of a session after `after`; all that the history holds when `after` is absent.
    pub async fn follow(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        after: Option<EventId>,
    ) -> Result<EventStream, StreamError> {
        // Subscribed first, so that what happens while the history is read is not missed.
        let subscription = self
            .hub
            .subscribe(self.runs.channel(tenant, session))
            .await?;
        let source = follow::Source {
            runs: self.runs.clone(),
            tenant: tenant.clone(),
            session: session.clone(),
            subscription,
        };
        Ok(EventStream::new(source, after, self.heartbeat))
    }
}
