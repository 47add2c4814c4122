//! The life of a run. Redis decides: each transition is one script, which checks the owner and the
//! state, numbers and publishes the events, fills the run's outbox and sets its one timer. The caller
//! then produces the outbox, and the entries are removed once Kafka has acknowledged them.
//!
//! Invariant: every run that is not terminal has exactly one timer, and every terminal run has told
//! exactly one terminal event.

mod claims;
mod client;
mod gate;
mod history;
mod money;
mod outbox;
mod passing;
mod rebuild;
mod record;
mod reply;
mod scripts;
mod status;
mod transition;
mod view;

pub use claims::{ClaimEnd, Claimed, Claiming, Fence};
pub use client::{
    Admission, Admit, Admitting, Cancel, Claim, Listing, Read, Redrive, Resolve, Resolved,
    SessionCreation,
};
pub use gate::Gate;
pub use history::StoredEvent;
pub use money::{Spending, Use, User};
pub use outbox::{Admitted, OutboxEntry};
pub use passing::PassingEvent;
pub use rebuild::{RestoredRun, RestoredSession};
pub use record::{Fields, Journal, ModelCall, RESOLVED_FAILED, StepEntry, StepStatus};
pub use reply::{LimitRow, Refusal};
pub use status::{CancelMode, RunStatus};
pub use transition::{
    Acquire, Acquired, Begin, NewEvent, NewRecord, Next, Outcome, OverBudget, Recorded, Renewal,
    Reservation, Settlement, Sweep, Swept, Transition,
};
pub use view::{RunView, SessionView};

use std::sync::Arc;

use serde::Serialize;

use crate::config::Settings;
use crate::store::Redis;

/// The ledger of runs.
#[derive(Debug, Clone)]
pub struct Runs {
    redis: Redis,
    /// JSON text of [`ScriptSettings`].
    settings: Arc<str>,
}

/// What the scripts need to know of the installation.
#[derive(Serialize)]
struct ScriptSettings {
    history: u32,
    outbox_retry_ms: u64,
    run_retention_ms: u64,
    max_live_runs: u32,
}

impl Runs {
    /// The ledger on `redis`.
    pub fn new(redis: Redis, settings: &Settings) -> Self {
        let settings = ScriptSettings {
            history: settings.history_events,
            outbox_retry_ms: settings.outbox_retry_ms.0,
            run_retention_ms: settings.run_retention_s.saturating_mul(1000),
            max_live_runs: settings.max_live_runs,
        };
        let settings = serde_json::to_string(&settings).unwrap_or_default();
        Self {
            redis,
            settings: settings.into(),
        }
    }

    /// The Redis that it is on.
    pub fn redis(&self) -> &Redis {
        &self.redis
    }
}
