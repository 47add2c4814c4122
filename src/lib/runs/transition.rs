//! The transitions that workers make.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{AsyncCommands, Value};
use serde::Serialize;

use super::record::parse_cancel;
use super::reply::{Reply, unexpected};
use super::{CancelMode, Fields, OutboxEntry, RunStatus, Runs, scripts};
use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::messages::{CommandKind, EventType, RunKind, Told, Topic};
use crate::privacy::Sealed;
use crate::store::StoreError;

/// A worker takes up a run.
#[derive(Debug, Serialize)]
pub struct Acquire<'a> {
    /// The run.
    pub run: &'a RunId,
    /// Its session.
    pub session: &'a SessionId,
    /// Random name of this ownership; compared by equality.
    pub owner: &'a str,
    /// Milliseconds that the run is owned without renewal.
    pub lease_ms: u64,
    /// Which worker this is.
    pub stage: CommandKind,
    /// Times that it may be taken up without progress.
    pub max_deliveries: u32,
    /// Milliseconds since the epoch after which a lost run is not recreated.
    pub not_after: u64,
    /// JSON text of the run's specification, to recreate a lost run.
    pub spec: &'a str,
    /// The run's plan, to recreate a lost run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<&'a Sealed>,
    /// What the run does.
    pub kind: RunKind,
    /// The command's [turn](crate::messages::Command::turn).
    pub turn: u32,
    /// Milliseconds since the epoch at its admission.
    pub created: u64,
    /// Milliseconds since the epoch at which it times out.
    pub deadline: u64,
    /// Whether it waits for no other run of its session.
    pub parallel: bool,
    /// Trace context of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<&'a str>,
    /// The key that submitted it.
    pub key_id: &'a KeyId,
    /// The most that it may cost, in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// The run whose finished steps it takes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<&'a RunId>,
    /// What the worker does first, when it is the first to take up this stage.
    pub begin: Begin,
}

/// What a stage begins with.
#[derive(Debug, Default, Serialize)]
pub struct Begin {
    /// Fields to set.
    pub set: BTreeMap<String, String>,
    /// Events to tell.
    pub events: Vec<NewEvent>,
    /// Model calls to be made; the run ends when a budget has no room for them.
    pub reserve: Vec<Reservation>,
}

/// An event to be told.
#[derive(Debug, Clone, Serialize)]
pub struct NewEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// What is told, masked.
    pub data: Told,
    /// The step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Which attempt of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// What a rebuild needs of what masking hides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<Sealed>,
}

/// Whether a worker has a run now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has, and the stage has begun with it.
    Acquired,
    /// It has; another worker began the stage.
    Resumed,
    /// It has, and must not carry the run out: it was taken up too often without progress.
    Poisoned,
    /// The run waits for its place; the run before it will wake it.
    Waiting,
    /// Another worker has it.
    Busy,
    /// Its time has not come.
    Parked,
    /// The run is past this stage.
    Stale,
    /// The run is terminal.
    Ended,
    /// The run is gone, and its command too old to recreate it.
    Expired,
}

/// The answer to [`Acquire`].
#[derive(Debug)]
pub struct Acquired {
    /// Whether the worker has the run.
    pub outcome: Outcome,
    /// The run.
    pub fields: Fields,
    /// The wrapped data key of its session.
    pub session_key: Option<String>,
    /// What is to be produced.
    pub outbox: Vec<OutboxEntry>,
}

impl Acquired {
    /// Of a run whose time is over.
    pub fn expired() -> Self {
        Self {
            outcome: Outcome::Expired,
            fields: Fields::default(),
            session_key: None,
            outbox: Vec::new(),
        }
    }
}

/// The owner records what it did and says what it does next.
#[derive(Debug, Serialize)]
pub struct Transition<'a> {
    /// The run.
    pub run: &'a RunId,
    /// The name under which it was acquired.
    pub owner: &'a str,
    /// Number of this transition under this owner: a repeat changes nothing.
    pub number: u64,
    /// Whether anything was done since the acquire: a run that never gets that far is given up.
    pub progress: bool,
    /// Outbox entries that Kafka has acknowledged since the last transition.
    pub acked: Vec<u64>,
    /// Fields to set.
    pub set: BTreeMap<String, String>,
    /// Fields to remove.
    pub unset: Vec<String>,
    /// Events to tell.
    pub events: Vec<NewEvent>,
    /// Records for the outbox besides the events. They are kept even where the run is not its
    /// owner's any more.
    pub records: Vec<NewRecord>,
    /// The dead letter of a run that ends so: kept only where this transition ends the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letter: Option<NewRecord>,
    /// Calls that were made.
    pub settle: Vec<Settlement>,
    /// Calls that are to be made.
    pub reserve: Vec<Reservation>,
    /// Where the run goes; it stays with its owner when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Next>,
}

impl<'a> Transition<'a> {
    /// A transition that changes nothing yet.
    pub fn new(run: &'a RunId, owner: &'a str, number: u64) -> Self {
        Self {
            run,
            owner,
            number,
            progress: false,
            acked: Vec::new(),
            set: BTreeMap::new(),
            unset: Vec::new(),
            events: Vec::new(),
            records: Vec::new(),
            letter: None,
            settle: Vec::new(),
            reserve: Vec::new(),
            next: None,
        }
    }
}

/// A record for the outbox.
#[derive(Debug, Clone, Serialize)]
pub struct NewRecord {
    /// Where it goes.
    pub topic: Topic,
    /// Its key.
    pub key: String,
    /// Its `ce_id`.
    pub id: String,
    /// Its `ce_type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// JSON text.
    pub value: String,
}

/// The most that a model call can cost, reserved before it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reservation {
    /// Names the call within its run.
    pub call: String,
    /// Millionths of a US dollar.
    pub bound: u64,
    /// The model.
    pub model: String,
}

/// What became of a call that was reserved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settlement {
    /// Names the call within its run.
    pub call: String,
    /// Millionths of a US dollar; absent when its use is not known, so that its bound counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Tokens read.
    pub input: u64,
    /// Of those, read from the provider's cache.
    pub cached: u64,
    /// Tokens written.
    pub output: u64,
    /// Of those, spent on reasoning.
    pub reasoning: u64,
    /// JSON text of the call's audit record; the script adds how it was settled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<String>,
}

/// A reservation for which a budget had no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverBudget {
    /// The call.
    pub call: String,
    /// Whose budget: `run`, `session`, `key` or `tenant`; empty when that is not known any more.
    pub scope: String,
}

/// Where a run goes.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "to", rename_all = "snake_case")]
pub enum Next {
    /// To the executor.
    Execute {
        /// Its plan.
        plan: Sealed,
    },
    /// Back to the planner, for the next turn.
    Plan {
        /// The turn that was executed, from 1. It rises.
        turn: u32,
    },
    /// Aside, until a time.
    Park {
        /// Milliseconds since the epoch.
        wake_at: u64,
    },
    /// To its end.
    End {
        /// A terminal state.
        status: RunStatus,
        /// The terminal event's data, masked.
        data: Told,
        /// What a rebuild needs of what masking hides.
        #[serde(skip_serializing_if = "Option::is_none")]
        state: Option<Sealed>,
    },
}

/// The answer to a [`Transition`].
#[derive(Debug)]
pub enum Recorded {
    /// It was recorded.
    Done {
        /// Whether and how a client asked for the run's end.
        cancel: Option<CancelMode>,
        /// What is to be produced.
        outbox: Vec<OutboxEntry>,
        /// Calls that must not be made.
        refused: Vec<OverBudget>,
    },
    /// The run is no longer this owner's, or has ended: only what was spent was recorded.
    Discarded {
        /// What is to be produced.
        outbox: Vec<OutboxEntry>,
    },
}

/// What a worker learns when it renews a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// The run is still its own.
    Owned,
    /// It is, and a client asked for its end.
    Cancel(CancelMode),
    /// The run is no longer its own.
    Lost,
}

/// One thing that a sweep did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// `timed_out`, `cancelled`, `lease_expired`, `woken` or `reproduced`.
    pub action: String,
    /// The run.
    pub run: String,
    /// The kind of the run when it ended with this.
    pub ended: Option<RunKind>,
}

/// What a sweep did.
#[derive(Debug)]
pub struct Sweep {
    /// What is to be produced.
    pub outbox: Vec<OutboxEntry>,
    /// What was done.
    pub actions: Vec<Swept>,
    /// Age of the oldest outbox entry among `outbox`; zero when there is none.
    pub outbox_age: Duration,
}

impl Runs {
    /// Takes up a run for a worker.
    pub async fn acquire(
        &self,
        tenant: &TenantId,
        acquire: &Acquire<'_>,
    ) -> Result<Acquired, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::ACQUIRE, tenant, acquire, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        let outcome = match outcome.as_str() {
            "acquired" => Outcome::Acquired,
            "resumed" => Outcome::Resumed,
            "poisoned" => Outcome::Poisoned,
            "waiting" => Outcome::Waiting,
            "busy" => Outcome::Busy,
            "parked" => Outcome::Parked,
            "stale" => Outcome::Stale,
            "ended" => Outcome::Ended,
            "expired" => Outcome::Expired,
            other => return Err(unexpected("acquire", other)),
        };
        let fields = Fields::from_flat(reply.next()?);
        let session_key: String = reply.next()?;
        Ok(Acquired {
            outcome,
            fields,
            session_key: (!session_key.is_empty()).then_some(session_key),
            outbox: reply.outbox(tenant)?,
        })
    }

    /// Records what the owner did.
    pub async fn record(
        &self,
        tenant: &TenantId,
        transition: &Transition<'_>,
    ) -> Result<Recorded, StoreError> {
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::RECORD, tenant, transition, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outcome: String = reply.next()?;
        let cancel: String = reply.next()?;
        let outbox = reply.outbox(tenant)?;
        match outcome.as_str() {
            "recorded" => {
                let flat: Vec<String> = reply.next()?;
                let refused = flat.chunks_exact(2).map(|pair| OverBudget {
                    call: pair[0].clone(),
                    scope: pair[1].clone(),
                });
                Ok(Recorded::Done {
                    cancel: parse_cancel(&cancel),
                    outbox,
                    refused: refused.collect(),
                })
            }
            "lost" | "ended" => Ok(Recorded::Discarded { outbox }),
            other => Err(unexpected("record", other)),
        }
    }

    /// Renews the leases of one tenant's runs; the answers are in the order of `runs`, each
    /// `(run, owner)`.
    pub async fn renew(
        &self,
        tenant: &TenantId,
        runs: &[(RunId, String)],
        lease_ms: u64,
    ) -> Result<Vec<Renewal>, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            lease_ms: u64,
            runs: &'a [(RunId, String)],
        }
        let args = Args { lease_ms, runs };
        let answers: Vec<String> = self
            .redis
            .invoke(&scripts::RENEW, tenant, &args, &self.settings)
            .await?;
        let renewal = |text: &String| match text.as_str() {
            "owned" => Renewal::Owned,
            other => parse_cancel(other).map_or(Renewal::Lost, Renewal::Cancel),
        };
        Ok(answers.iter().map(renewal).collect())
    }

    /// Removes outbox entries that Kafka has acknowledged.
    pub async fn flushed(
        &self,
        tenant: &TenantId,
        runs: &[(RunId, Vec<u64>)],
    ) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            runs: &'a [(RunId, Vec<u64>)],
        }
        self.redis
            .invoke(&scripts::FLUSHED, tenant, &Args { runs }, &self.settings)
            .await
    }

    /// Does what is due for a tenant, at most `limit` runs at once.
    pub async fn sweep(&self, tenant: &TenantId, limit: u32) -> Result<Sweep, StoreError> {
        #[derive(Serialize)]
        struct Args {
            limit: u32,
        }
        let values: Vec<Value> = self
            .redis
            .invoke(&scripts::SWEEP, tenant, &Args { limit }, &self.settings)
            .await?;
        let mut reply = Reply::new(values);
        let outbox = reply.outbox(tenant)?;
        let flat: Vec<String> = reply.next()?;
        let actions = flat
            .chunks_exact(3)
            .map(|parts| Swept {
                action: parts[0].clone(),
                run: parts[1].clone(),
                ended: RunKind::from_name(&parts[2]),
            })
            .collect();
        let age_ms: u64 = reply.next()?;
        Ok(Sweep {
            outbox,
            actions,
            outbox_age: Duration::from_millis(age_ms),
        })
    }

    /// The wrapped data key of a session; `None` when there is no such session.
    pub async fn wrapped_key(
        &self,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<Option<String>, StoreError> {
        let key = format!("{}:ses:{session}", self.redis.base(tenant));
        let mut connection = self.redis.connection();
        self.redis.within(connection.hget(key, "key")).await
    }

    /// The tenants that have a timer whose time has come, and for how long the oldest of each has been
    /// due: in one pipeline, or on a cluster one command after the other, since their keys are of
    /// different slots.
    pub async fn tenants_with_due_timers(&self) -> Result<Vec<(TenantId, Duration)>, StoreError> {
        let tenants = self.redis.tenants().await?;
        let now = crate::runtime::clock::now_ms();
        let mut due = Vec::new();
        let chunk = if self.redis.connection().is_cluster() {
            1
        } else {
            1000
        };
        for tenants in tenants.chunks(chunk) {
            let mut pipe = redis::pipe();
            for tenant in tenants {
                pipe.zrangebyscore_limit_withscores(
                    format!("{}:timers", self.redis.base(tenant)),
                    "-inf",
                    now,
                    0,
                    1,
                );
            }
            let answers: Vec<Vec<(String, f64)>> =
                pipe.query_async(&mut self.redis.connection()).await?;
            due.extend(tenants.iter().zip(answers).filter_map(|(tenant, oldest)| {
                let (_, since_ms) = oldest.first()?;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a time
                let since_ms = *since_ms as u64;
                let waited = Duration::from_millis(now.saturating_sub(since_ms));
                Some((tenant.clone(), waited))
            }));
        }
        Ok(due)
    }
}
