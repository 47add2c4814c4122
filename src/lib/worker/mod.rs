//! Workers: acquire → handle → record → acknowledge. What the planner and the executor share is here;
//! `planning` and `execution` are what they do with a run.
//!
//! Invariant: from the acquire on, the run's lease and timer own it. A worker that dies loses nothing;
//! one that lost its lease changes nothing.

mod agent;
mod attempt;
mod audit;
mod breakers;
mod chat_span;
mod command;
mod context;
mod dead_letters;
mod delta;
mod execution;
mod lease;
mod llm_router;
mod model_call;
mod owned;
mod planning;
mod progress;
mod results;
mod spending;
mod sweeper;
mod telling;

pub use breakers::{Breakers, Guarded, Permit};
pub use context::WorkerContext;
pub use execution::Execution;
pub use lease::Leases;
pub use llm_router::{LlmRouter, Route, Tried, Wanted};
pub use planning::Planning;
pub use results::Results;
pub use sweeper::Sweeper;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use tracing::{Instrument, Span};

use self::command::{Received, receive};
use self::dead_letters::Ending;
use self::owned::{Owned, new_owner};
use crate::ids::TenantId;
use crate::kafka::{Ack, Handler, Incoming};
use crate::messages::{Command, CommandKind, FailureClass, OnConflict, header};
use crate::pricing::Prices;
use crate::privacy::DataKey;
use crate::runs::{Acquire, Acquired, Begin, Next, Outcome, OverBudget, RunStatus};
use crate::store::StoreError;
use crate::telemetry::{self, TraceContext};

/// From this age on a record's offset may move, since the run's lease and timer own it: no slow run
/// holds its partition's frontier.
const ACKNOWLEDGE_AFTER: Duration = Duration::from_secs(30);

/// What one kind of worker does with a run.
#[derive(Debug)]
pub enum Work {
    /// It plans.
    Plan(Planning),
    /// It executes.
    Execute(Execution),
}

impl Work {
    fn stage(&self) -> CommandKind {
        match self {
            Self::Plan(_) => CommandKind::Plan,
            Self::Execute(_) => CommandKind::Execute,
        }
    }

    /// Reads what a tenant's runs are held back by.
    async fn look_around(&self, tenant: &TenantId) {
        match self {
            Self::Plan(_) => {}
            Self::Execute(execution) => execution.look_around(tenant).await,
        }
    }

    /// Reads the command as far as that needs nothing of the ledger.
    fn prepare(&self, command: &Command, key: &DataKey, prices: &Prices) -> Prepared<'_> {
        match self {
            Self::Plan(planning) => {
                let prepared = planning.prepare(command, key, prices);
                Prepared::Plan(planning, Box::new(prepared))
            }
            Self::Execute(execution) => {
                let prepared = execution.prepare(command, key, prices);
                Prepared::Execute(execution, Box::new(prepared))
            }
        }
    }
}

/// A command as its worker reads it.
enum Prepared<'w> {
    Plan(&'w Planning, Box<planning::Prepared>),
    Execute(&'w Execution, Box<execution::Prepared>),
}

impl Prepared<'_> {
    /// What the stage begins with.
    fn begin(&self, command: &Command, now_ms: u64) -> Begin {
        match self {
            Self::Plan(planning, prepared) => planning.begin(command, prepared),
            Self::Execute(_, prepared) => Execution::begin(prepared, now_ms),
        }
    }

    async fn carry_out(self, run: Owned) {
        match self {
            Self::Plan(planning, prepared) => planning.carry_out(run, *prepared).await,
            Self::Execute(execution, prepared) => execution.carry_out(run, *prepared).await,
        }
    }
}

/// Handles commands.
#[derive(Debug)]
pub struct Worker {
    context: Arc<WorkerContext>,
    work: Work,
}

impl Worker {
    /// A worker that does `work`.
    pub fn new(context: Arc<WorkerContext>, work: Work) -> Self {
        Self { context, work }
    }

    async fn take_up(&self, record: &Arc<Incoming>, command: Command, ack: Ack) {
        let spec = &command.spec;
        let (tenant, run_id) = (spec.tenant.clone(), spec.run_id.clone());
        let Some(taking) = self.acquire(&command).await else {
            return; // stopping: the record stays uncommitted
        };
        let (owner, mut acquired) = (taking.owner, taking.acquired);
        let outcome = acquired.outcome;
        metrics::counter!("agenthub_acquires_total", "stage" => command.kind.as_str(), "outcome" => name(outcome))
            .increment(1);
        telemetry::note(&Span::current(), "acquire", name(outcome));
        let outbox = std::mem::take(&mut acquired.outbox);
        match outcome {
            Outcome::Acquired | Outcome::Resumed | Outcome::Poisoned => {}
            Outcome::Waiting
            | Outcome::Busy
            | Outcome::Parked
            | Outcome::Stale
            | Outcome::Ended
            | Outcome::Expired => {
                tracing::debug!(outcome = name(outcome), "not taken up");
                if self.context.outbox.deliver(&tenant, &outbox).await.is_err() {
                    tracing::warn!("the outbox is left to the sweeper");
                }
                return ack.done();
            }
        }
        let run = Owned::new(
            self.context.clone(),
            record.clone(),
            command,
            owner,
            acquired,
        );
        let (Some(run), Some(prepared)) = (run, taking.prepared) else {
            // The session was erased between the acquire and now; so was the run.
            return ack.done();
        };
        run.produce_behind(outbox);
        if outcome == Outcome::Poisoned {
            self.give_up(&run).await;
            return ack.done();
        }
        if outcome == Outcome::Acquired {
            let waited = self
                .context
                .now_ms()
                .saturating_sub(run.command.spec.created_ms);
            metrics::histogram!("agenthub_queue_wait_ms", "stage" => run.command.kind.as_str())
                .record(to_f64(waited));
        }
        tracing::debug!(%run_id, outcome = name(outcome), "taken up");
        // Boxed: most records are not taken up, and need not carry its size.
        let mut work = Box::pin(prepared.carry_out(run));
        tokio::select! {
            () = &mut work => return ack.done(),
            () = tokio::time::sleep(ACKNOWLEDGE_AFTER) => ack.done(),
        }
        work.await;
    }

    /// Takes the run up. Waits as long as Redis is away: `None` when the process is told to stop.
    async fn acquire(&self, command: &Command) -> Option<Taking<'_>> {
        let spec = &command.spec;
        let context = &self.context;
        let owner = new_owner();
        let mut prepared = None;
        let text = serde_json::to_string(spec).ok()?;
        let mut delays = reconnect_delays();
        loop {
            let attempt = async {
                if prepared.is_none() {
                    let key = context.data_key(&spec.tenant, &spec.session_id).await?;
                    self.work.look_around(&spec.tenant).await;
                    prepared = key.map(|key| self.work.prepare(command, &key, &context.prices));
                }
                // Without a key the session is erased: the script will say so.
                let begin = prepared.as_ref().map_or_else(Begin::default, |prepared| {
                    prepared.begin(command, context.now_ms())
                });
                let acquire = Acquire {
                    run: &spec.run_id,
                    session: &spec.session_id,
                    owner: &owner,
                    lease_ms: context.settings.lease_ms.0,
                    stage: self.work.stage(),
                    max_deliveries: context.settings.max_deliveries,
                    not_after: spec.deadline_ms,
                    spec: &text,
                    plan: command.plan.as_ref(),
                    kind: spec.kind,
                    turn: command.turn,
                    created: spec.created_ms,
                    deadline: spec.deadline_ms,
                    parallel: spec.on_conflict == OnConflict::Parallel,
                    traceparent: spec.traceparent.as_deref(),
                    key_id: &spec.key_id,
                    budget: spec.max_cost_micro_usd,
                    retry_of: spec.retry_of.as_ref(),
                    begin,
                };
                context.runs.acquire(&spec.tenant, &acquire).await
            };
            match attempt.await {
                Ok(acquired) => {
                    return Some(Taking {
                        owner,
                        acquired,
                        prepared,
                    });
                }
                Err(error) => tracing::warn!(%error, "the run could not be taken up; trying again"),
            }
            if context.now_ms() > spec.deadline_ms {
                // Its timer ends the run; waiting any longer would only hold its partition.
                return Some(Taking {
                    owner,
                    acquired: Acquired::expired(),
                    prepared,
                });
            }
            tokio::select! {
                () = context.stopping.cancelled() => return None,
                () = tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)) => {}
            }
        }
    }

    /// Tells a command's span what it is about.
    fn describe(&self, span: &Span, record: &Incoming, command: &Command) {
        let id = record.header(header::CE_ID).unwrap_or_default();
        let kind = command.spec.kind.as_str();
        for (name, value) in [
            ("messaging.system", "kafka".to_owned()),
            ("messaging.operation.type", "process".to_owned()),
            ("messaging.operation.name", "process".to_owned()),
            ("messaging.destination.name", record.full_topic.to_string()),
            (
                "messaging.destination.partition.id",
                record.partition.to_string(),
            ),
            ("messaging.message.id", id.to_owned()),
            ("key_id", command.spec.key_id.to_string()),
            ("run_kind", kind.to_owned()),
            ("worker", self.context.worker.clone()),
        ] {
            telemetry::note(span, name, value);
        }
        telemetry::note(span, "messaging.kafka.offset", record.offset);
    }

    /// Ends a run whose command was taken up too often without progress, with a dead letter.
    async fn give_up(&self, run: &Owned) {
        let error = format!(
            "taken up {} times without progress",
            self.context.settings.max_deliveries
        );
        let code = FailureClass::TooManyDeliveries.as_str();
        let data = run.failure(code, &error);
        let mut transition = run.transition();
        transition.letter = run.dead_letter(&Ending {
            class: FailureClass::TooManyDeliveries,
            error: &error,
            attempts: self.context.settings.max_deliveries,
            code,
            tool: None,
            step: None,
            breaker: None,
        });
        transition.next = Some(Next::End {
            status: RunStatus::Failed,
            data,
            state: None,
        });
        run.finish(transition).await;
    }
}

/// Where in its trace a command comes from: the place that its record names, where that is in the trace
/// that the signed command names, else that of the request.
fn origin(record: &Incoming, signed: Option<&str>) -> Option<TraceContext> {
    let signed: TraceContext = signed?.parse().ok()?;
    let sent = record.header(header::TRACEPARENT);
    let sent: Option<TraceContext> = sent.and_then(|sent| sent.parse().ok());
    Some(sent.filter(|sent| sent.is_with(&signed)).unwrap_or(signed))
}

/// The ledger's answer to a worker that would take a run up.
struct Taking<'w> {
    owner: String,
    acquired: Acquired,
    prepared: Option<Prepared<'w>>,
}

#[async_trait]
impl Handler for Worker {
    async fn handle(&self, record: Arc<Incoming>, ack: Ack) {
        match receive(&record, &self.context.signer, self.work.stage()) {
            Received::Command(command) => {
                let spec = &command.spec;
                let span = tracing::info_span!(
                    "process",
                    otel.name = %format!("process {}", record.topic),
                    otel.kind = "consumer",
                    tenant = %spec.tenant,
                    run_id = %spec.run_id,
                    session_id = %spec.session_id,
                    trace_id = tracing::field::Empty,
                );
                if let Some(trace) = origin(&record, spec.traceparent.as_deref()) {
                    span.record("trace_id", trace.trace_id());
                    trace.link(&span);
                    trace.enter(&span);
                }
                self.describe(&span, &record, &command);
                self.take_up(&record, *command, ack).instrument(span).await;
            }
            Received::Expired => {
                metrics::counter!(
                    "agenthub_acquires_total",
                    "stage" => self.work.stage().as_str(),
                    "outcome" => "expired"
                )
                .increment(1);
                ack.done();
            }
            Received::Unfit(class, error) => {
                dead_letters::send(&self.context, &record, class, &error).await;
                ack.done();
            }
        }
    }

    async fn poisoned(&self, record: Arc<Incoming>, error: String) {
        dead_letters::send(&self.context, &record, FailureClass::Panicked, &error).await;
    }
}

const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Delays between attempts to reach a dependency that is away, growing to [`LONGEST_DELAY`].
fn reconnect_delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Acquired => "acquired",
        Outcome::Resumed => "resumed",
        Outcome::Poisoned => "poisoned",
        Outcome::Waiting => "waiting",
        Outcome::Busy => "busy",
        Outcome::Parked => "parked",
        Outcome::Stale => "stale",
        Outcome::Ended => "ended",
        Outcome::Expired => "expired",
    }
}

/// Why a call that a budget has no room for is not made.
fn over_budget(refused: Option<&OverBudget>) -> String {
    match refused.map(|refused| refused.scope.as_str()) {
        None | Some("") => "a budget has no room for the call".to_owned(),
        Some(scope) => format!("the budget of the {scope} has no room for the call"),
    }
}

/// For metrics: their exactness ends far above any duration or count.
#[allow(clippy::cast_precision_loss)]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// What a worker cannot know of a tenant's data key.
type KeyResult = Result<Option<DataKey>, StoreError>;

impl WorkerContext {
    /// The data key of a session: from the cache, else by one read. `None` when it was erased.
    async fn data_key(&self, tenant: &TenantId, session: &crate::ids::SessionId) -> KeyResult {
        if let Some(key) = self.keys.get(tenant, session) {
            return Ok(Some(key));
        }
        let Some(wrapped) = self.runs.wrapped_key(tenant, session).await? else {
            return Ok(None);
        };
        match self.keys.unwrap(&wrapped, tenant, session) {
            Ok(key) => Ok(Some(key)),
            Err(error) => {
                // A repeat would not help: the run ends by its deadline.
                tracing::error!(%error, session_id = %session, "the session's data key does not open");
                Ok(None)
            }
        }
    }
}
