//! A run that this worker owns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::sync::watch;
use tracing::Instrument;

use super::lease::{Held, Signal};
use super::{WorkerContext, reconnect_delays};
use crate::kafka::{Acknowledged, Incoming};
use crate::messages::Command;
use crate::privacy::DataKey;
use crate::runs::{
    Acquired, CancelMode, Fields, Next, OutboxEntry, Outcome, OverBudget, Recorded, Transition,
};
use crate::store::StoreError;
use crate::telemetry::labels;

/// Time for a sweeper to end a run whose deadline has come, and for clocks that differ.
const DEADLINE_GRACE: Duration = Duration::from_secs(5);

/// A random name of one ownership: 128 bits, compared by equality.
pub(super) fn new_owner() -> String {
    let mut bytes = [0_u8; 16];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// What a worker learns from recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// The run is still its own.
    Owned,
    /// It is, but these calls must not be made: a budget has no room for them.
    OverBudget(Vec<OverBudget>),
    /// It is, and a client asked for its end.
    Cancel(CancelMode),
    /// It is not: nothing but what was spent was recorded.
    Lost,
}

/// A run that this worker owns.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) context: Arc<WorkerContext>,
    /// The record that it was taken up by.
    pub(super) record: Arc<Incoming>,
    pub(super) command: Command,
    /// The run as it was when it was acquired.
    pub(super) fields: Fields,
    pub(super) key: DataKey,
    /// Whether this ownership began the stage, and not one before it.
    pub(super) fresh: bool,
    owner: String,
    number: AtomicU64,
    held: Held,
    /// Outbox entries that Kafka has acknowledged, to be removed with the next transition.
    acknowledged: Arc<Mutex<Vec<u64>>>,
}

impl Owned {
    /// Holds the lease from here on. `None` when the session was erased.
    pub(super) fn new(
        context: Arc<WorkerContext>,
        record: Arc<Incoming>,
        command: Command,
        owner: String,
        acquired: Acquired,
    ) -> Option<Self> {
        let spec = &command.spec;
        let wrapped = acquired.session_key?;
        let key = match context
            .keys
            .unwrap(&wrapped, &spec.tenant, &spec.session_id)
        {
            Ok(key) => key,
            Err(error) => {
                tracing::error!(%error, session_id = %spec.session_id, "the session's data key does not open");
                return None;
            }
        };
        let held = context.leases.hold(&spec.tenant, &spec.run_id, &owner);
        Some(Self {
            context,
            record,
            command,
            fields: acquired.fields,
            key,
            fresh: acquired.outcome == Outcome::Acquired,
            owner,
            number: AtomicU64::new(1),
            held,
            acknowledged: Arc::default(),
        })
    }

    /// What the owner is told between transitions.
    pub(super) fn signal(&self) -> watch::Receiver<Signal> {
        self.held.signal.clone()
    }

    /// Milliseconds until the run times out.
    pub(super) fn remaining_ms(&self) -> u64 {
        self.command
            .spec
            .deadline_ms
            .saturating_sub(self.context.now_ms())
    }

    /// The longest that a call may take for the run's sake. It reaches a little beyond the deadline:
    /// that the run timed out is for the ledger to say, by its own clock, and not for a call that is
    /// cut off at the same moment to turn into a failure.
    pub(super) fn longest_call(&self) -> Duration {
        Duration::from_millis(self.remaining_ms()) + DEADLINE_GRACE
    }

    /// The next transition, empty.
    pub(super) fn transition(&self) -> Transition<'_> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let mut transition = Transition::new(&self.command.spec.run_id, &self.owner, number);
        transition.acked = std::mem::take(&mut *self.acknowledged());
        transition
    }

    /// Tells a piece of what the model writes; `data` is masked JSON text. Returns how many processes
    /// listened.
    pub(super) async fn tell_delta(&self, data: &str) -> Result<u64, StoreError> {
        let spec = &self.command.spec;
        let runs = &self.context.runs;
        runs.tell_delta(&spec.tenant, &spec.run_id, &self.owner, data)
            .await
    }

    /// Takes back a transition that has nothing to record.
    pub(super) fn not_recorded(&self, transition: Transition<'_>) {
        self.acknowledged().extend(transition.acked);
    }

    /// Records a transition; what it put into the outbox is produced while the work goes on. Waits as
    /// long as Redis is away.
    pub(super) async fn record(&self, transition: Transition<'_>) -> Standing {
        match self.write(&transition).await {
            Recorded::Done {
                cancel,
                outbox,
                refused,
            } => {
                self.produce_behind(outbox);
                standing(cancel, refused)
            }
            Recorded::Discarded { outbox } => {
                self.produce_behind(outbox);
                Standing::Lost
            }
        }
    }

    /// Records what was spent on a run that is not this worker's any more.
    pub(super) async fn record_spending(&self, transition: Transition<'_>) {
        if transition.settle.is_empty() {
            self.not_recorded(transition);
        } else {
            self.record(transition).await;
        }
    }

    /// As [`Owned::record`], but what was put into the outbox is on Kafka when this returns.
    pub(super) async fn record_durably(&self, transition: Transition<'_>) -> Standing {
        let (outbox, standing) = match self.write(&transition).await {
            Recorded::Done {
                cancel,
                outbox,
                refused,
            } => (outbox, standing(cancel, refused)),
            Recorded::Discarded { outbox } => (outbox, Standing::Lost),
        };
        let mut delays = reconnect_delays();
        loop {
            let (acknowledged, outcome) = self.context.outbox.produce(&outbox).await;
            if outcome.is_ok() {
                self.acknowledged()
                    .extend(acknowledged.into_iter().map(|a| a.number));
                // Much may have happened while Kafka was away.
                let told = *self.held.signal.borrow();
                return match told {
                    _ if self.remaining_ms() == 0 => Standing::Lost,
                    Signal::Owned => standing,
                    Signal::Cancel(mode) => Standing::Cancel(mode),
                    Signal::Lost => Standing::Lost,
                };
            }
            tokio::time::sleep(delays.next().unwrap_or(super::LONGEST_DELAY)).await;
        }
    }

    /// Records the transition with which this ownership ends, and returns when Kafka has its records:
    /// only then may the command's offset move. When Kafka does not take them, the sweepers will see to
    /// it: the run's timer is set.
    pub(super) async fn finish(&self, transition: Transition<'_>) {
        let recorded = self.write(&transition).await;
        if let (Recorded::Done { .. }, Some(Next::End { status, .. })) =
            (&recorded, &transition.next)
        {
            self.tell_end(status.as_str());
        }
        let (Recorded::Done { outbox, .. } | Recorded::Discarded { outbox }) = recorded;
        let (acknowledged, outcome) = self.context.outbox.produce(&outbox).await;
        if let Err(error) = outcome {
            tracing::warn!(%error, "the outbox is left to the sweeper");
        }
        let left = std::mem::take(&mut *self.acknowledged());
        let run = &self.command.spec.run_id;
        let left = left.into_iter().map(|number| Acknowledged {
            run: run.clone(),
            number,
        });
        self.context.outbox.forget(
            &self.command.spec.tenant,
            left.chain(acknowledged).collect(),
        );
    }

    /// The one line of a run's end in the log, and its metrics.
    fn tell_end(&self, outcome: &'static str) {
        let spec = &self.command.spec;
        let duration_ms = self.context.now_ms().saturating_sub(spec.created_ms);
        let kind = spec.kind.as_str();
        metrics::counter!("agenthub_runs_total",
            "tenant" => labels::tenant(spec.tenant.as_str()), "kind" => kind, "outcome" => outcome)
        .increment(1);
        metrics::histogram!("agenthub_run_duration_ms", "kind" => kind, "outcome" => outcome)
            .record(super::to_f64(duration_ms));
        tracing::info!(
            tenant = %spec.tenant,
            run_id = %spec.run_id,
            session_id = %spec.session_id,
            kind,
            outcome,
            duration_ms,
            deliveries = self.fields.number("deliveries"),
            "run ended"
        );
    }

    /// Produces entries while the work goes on.
    pub(super) fn produce_behind(&self, entries: Vec<OutboxEntry>) {
        if entries.is_empty() {
            return;
        }
        let outbox = self.context.outbox.clone();
        let (tenant, own) = (
            self.command.spec.tenant.clone(),
            self.command.spec.run_id.clone(),
        );
        let numbers = Arc::downgrade(&self.acknowledged);
        let produce = async move {
            let (acknowledged, outcome) = outbox.produce(&entries).await;
            if let Err(error) = outcome {
                tracing::warn!(%error, "the outbox is left to the sweeper");
            }
            let (mine, others): (Vec<_>, Vec<_>) =
                acknowledged.into_iter().partition(|a| a.run == own);
            outbox.forget(&tenant, others);
            // Removed with the next transition where there is one.
            match numbers.upgrade() {
                Some(numbers) => lock(&numbers).extend(mine.into_iter().map(|a| a.number)),
                None => outbox.forget(&tenant, mine),
            }
        };
        let supervisor = &self.context.supervisor;
        supervisor.run_once("outbox", produce.in_current_span());
    }

    async fn write(&self, transition: &Transition<'_>) -> Recorded {
        let mut delays = reconnect_delays();
        loop {
            match self
                .context
                .runs
                .record(&self.command.spec.tenant, transition)
                .await
            {
                Ok(recorded) => return recorded,
                Err(error) => {
                    tracing::warn!(%error, "the transition was not recorded; trying again");
                }
            }
            tokio::time::sleep(delays.next().unwrap_or(super::LONGEST_DELAY)).await;
        }
    }

    fn acknowledged(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        lock(&self.acknowledged)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.acknowledged());
        let run = self.command.spec.run_id.clone();
        let left = left.into_iter().map(|number| Acknowledged {
            run: run.clone(),
            number,
        });
        self.context
            .outbox
            .forget(&self.command.spec.tenant, left.collect());
    }
}

fn standing(cancel: Option<CancelMode>, refused: Vec<OverBudget>) -> Standing {
    match cancel {
        Some(mode) => Standing::Cancel(mode),
        None if refused.is_empty() => Standing::Owned,
        None => Standing::OverBudget(refused),
    }
}

fn lock(numbers: &Mutex<Vec<u64>>) -> std::sync::MutexGuard<'_, Vec<u64>> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}
