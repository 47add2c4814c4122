//! What an executor does with a run: carries out the steps of its plan in the order of their
//! dependencies, independent ones at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rand::RngExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::attempt::{Attempt, Attempted};
use super::breakers::{Breakers, Guarded, Permit};
use super::dead_letters::{Ending, MODEL};
use super::lease::Signal;
use super::owned::{Owned, Standing};
use super::progress::{After, Progress};
use super::results::Results;
use super::spending::{Bounded, Unpriced};
use super::telling::tell;
use crate::config::Settings;
use crate::executor::breaker::{ASK_AGAIN, Phase};
use crate::executor::schedule::Outcome;
use crate::ids::TenantId;
use crate::messages::{Command, EventType, FailureClass, RunKind, Told};
use crate::plan::{CheckedPlan, Plan};
use crate::planner::agent::turn_of;
use crate::pricing::Prices;
use crate::privacy::DataKey;
use crate::runs::{
    Begin, CancelMode, NewEvent, Next, RunStatus, StepEntry, StepStatus, Transition,
};
use crate::tools::registry::ToolRegistry;
use crate::tools::{Effects, catalogue};

/// Those who wait for a breaker come back no closer to its time.
const ASK_APART: Duration = Duration::from_millis(20);
/// While probes are under way, a run asks again after twice the time each time, up to this power of two.
const MOST_DOUBLINGS: u32 = 3;

/// Executes plans.
#[derive(Debug)]
pub struct Execution {
    tools: Arc<ToolRegistry>,
    settings: Arc<Settings>,
    masker: Arc<crate::privacy::mask::Masker>,
    breakers: Arc<Breakers>,
    results: Arc<Results>,
}

/// What executing a run begins with.
pub(super) struct Prepared {
    /// The plan, or why it cannot be read.
    plan: Result<CheckedPlan, String>,
    /// The steps that are begun with the acquire.
    first: Vec<FirstStep>,
    /// Whether nothing of the run was executed before.
    first_turn: bool,
}

/// A step that is begun with the acquire.
struct FirstStep {
    id: String,
    tool: String,
    /// What its start tells.
    started: Told,
    /// The model call that it makes.
    call: Option<Bounded>,
}

/// What happens next in a run.
enum Happening {
    Ended(Box<Attempted>),
    Told(Signal),
    Due(String),
}

impl Execution {
    /// Executes with `tools`, held back by `breakers`, and keeps `results` of theirs.
    pub fn new(
        tools: Arc<ToolRegistry>,
        settings: Arc<Settings>,
        masker: Arc<crate::privacy::mask::Masker>,
        breakers: Arc<Breakers>,
        results: Arc<Results>,
    ) -> Self {
        Self {
            tools,
            settings,
            masker,
            breakers,
            results,
        }
    }

    /// Reads what a tenant's runs are held back by, before one is taken up.
    pub(super) async fn look_around(&self, tenant: &TenantId) {
        self.breakers.read(tenant).await;
    }

    /// What the breaker of a call stands before. Arguments that are not known have no target.
    fn guarded(&self, tenant: &TenantId, tool: &str, args: Option<&Value>) -> Guarded {
        let target = args.and_then(|args| self.tools.get(tool)?.target(args));
        self.breakers.of_tool(tenant, tool, target.as_deref())
    }

    /// State of the breaker before a tool, or before the target that the arguments name.
    pub(super) fn breaker_state(
        &self,
        tenant: &TenantId,
        tool: &str,
        args: Option<&Value>,
    ) -> &'static str {
        match self.breakers.phase(&self.guarded(tenant, tool, args)) {
            Phase::Closed => "closed",
            Phase::Open => "open",
            Phase::HalfOpen => "half_open",
        }
    }

    /// Reads the plan, and finds the steps that may be begun with the acquire, so that a run of one step
    /// needs no further transition before its call; not those whose effects must be on Kafka before the
    /// call, not those that a model must be paid for whose price is not known, and not those that a
    /// circuit breaker holds back.
    pub(super) fn prepare(&self, command: &Command, key: &DataKey, prices: &Prices) -> Prepared {
        let plan = open_plan(command, key);
        let mut first = Vec::new();
        for (index, step) in plan.iter().flat_map(|plan| plan.steps().iter().enumerate()) {
            let waits = plan
                .as_ref()
                .is_ok_and(|plan| !plan.dependencies(index).is_empty());
            // What a retry takes over is known to the journal alone.
            let taken_over = command.spec.retry_of.is_some();
            if waits || taken_over || effects(&step.tool) == Effects::Unsafe {
                continue;
            }
            let limit = self.settings.max_args_bytes.0;
            let Ok(args) = crate::plan::reference::resolve(&step.args, &|_| None, limit) else {
                continue;
            };
            let Ok(call) = self.bound(prices, &step.id, 1, &step.tool, &args) else {
                continue;
            };
            let guarded = self.guarded(&command.spec.tenant, &step.tool, Some(&args));
            if !self.breakers.is_closed(&guarded) {
                continue;
            }
            first.push(FirstStep {
                id: step.id.clone(),
                tool: step.tool.clone(),
                started: tell(
                    &self.masker,
                    key,
                    &json!({ "tool": step.tool, "args": args }),
                ),
                call,
            });
        }
        Prepared {
            plan,
            first,
            first_turn: command.turn == 0,
        }
    }

    /// The stage's first events, and the steps that are begun with it.
    pub(super) fn begin(prepared: &Prepared, now_ms: u64) -> Begin {
        let Ok(plan) = &prepared.plan else {
            return Begin::default();
        };
        let mut begin = Begin::default();
        if prepared.first_turn {
            begin.events.push(NewEvent {
                event_type: EventType::RunStarted,
                data: Told::plain(&json!({ "steps": plan.steps().len() })),
                step: None,
                attempt: None,
                state: None,
            });
        }
        for step in &prepared.first {
            let entry = StepEntry::begun(&step.tool, 1, now_ms);
            begin.set.insert(
                format!("s:{}", step.id),
                serde_json::to_string(&entry).unwrap_or_default(),
            );
            begin.events.push(NewEvent {
                event_type: EventType::StepStarted,
                data: step.started.clone(),
                step: Some(step.id.clone()),
                attempt: Some(1),
                state: None,
            });
            begin
                .reserve
                .extend(step.call.iter().map(Bounded::reservation));
        }
        begin
    }

    /// The bound of the model call that an attempt of a step makes, where its tool makes one.
    pub(super) fn bound(
        &self,
        prices: &Prices,
        step: &str,
        attempt: u32,
        tool: &str,
        args: &Value,
    ) -> Result<Option<Bounded>, Unpriced> {
        let tool = self.tools.get(tool);
        let Some(wanted) = tool.and_then(|tool| tool.model_use(args)) else {
            return Ok(None);
        };
        Bounded::new(
            prices,
            format!("{step}.{attempt}"),
            &wanted.model,
            wanted.input_tokens,
            wanted.max_output_tokens,
        )
        .map(Some)
    }

    pub(super) async fn carry_out(&self, run: Owned, prepared: Prepared) {
        let plan = match prepared.plan {
            Ok(plan) => plan,
            Err(message) => {
                let data = run.failure("invalid_plan", &message);
                let mut transition = run.transition();
                transition
                    .set
                    .insert("code".to_owned(), "invalid_plan".to_owned());
                // What a client gave was checked when it was admitted; what it gave wrong is its own.
                if run.command.spec.kind != RunKind::Execute {
                    transition.letter = run.dead_letter(&Ending {
                        class: FailureClass::Permanent,
                        error: &message,
                        attempts: 1,
                        code: "invalid_plan",
                        tool: Some(MODEL),
                        step: None,
                        breaker: None,
                    });
                }
                transition.next = Some(Next::End {
                    status: RunStatus::Failed,
                    data,
                    state: None,
                });
                return run.finish(transition).await;
            }
        };
        let first = prepared.first.into_iter().filter_map(|step| step.call);
        let progress = match Progress::new(&run, &plan, self, first) {
            Ok(progress) => progress,
            Err(message) => {
                tracing::error!(message, "the run's journal does not open");
                return;
            }
        };
        let mut carrying = Carrying {
            execution: self,
            run: &run,
            progress,
            running: FuturesUnordered::new(),
            due: BTreeMap::new(),
            permits: BTreeMap::new(),
            // One that was parked before has been patient already.
            refusals: if run.fresh { 0 } else { MOST_DOUBLINGS },
        };
        carrying.go().await;
    }
}

/// One run while it is carried out.
struct Carrying<'a> {
    execution: &'a Execution,
    run: &'a Owned,
    progress: Progress<'a>,
    running: FuturesUnordered<BoxFuture<'a, Attempted>>,
    /// When the next attempt of a step is due, or its breaker is to be asked again.
    due: BTreeMap<String, Due>,
    /// Leave for the steps whose start is in the transition being made.
    permits: BTreeMap<String, Permit>,
    /// Times that a breaker had no place left for a probe.
    refusals: u32,
}

/// What a step waits for.
#[derive(Debug, Clone, Copy)]
struct Due {
    at: Instant,
    /// Its breaker, and not its own next attempt.
    held: bool,
}

impl Due {
    fn retry(after: Duration) -> Self {
        let at = Instant::now() + after;
        Self { at, held: false }
    }
}

impl Carrying<'_> {
    async fn go(&mut self) {
        // What the acquire began is called at once; what an earlier owner left is looked at first.
        let mut transition = self.run.transition();
        if self.run.fresh {
            for step in self.progress.begun() {
                let permit = self.admit(&step).await;
                self.start(&step, permit);
            }
        } else {
            let settings = &self.execution.settings;
            self.progress
                .take_over(&mut transition, settings.max_attempts);
        }
        for (step, wait) in self.progress.retrying() {
            if wait.is_zero() {
                self.try_begin(&mut transition, &step).await;
            } else {
                self.due.insert(step, Due::retry(wait));
            }
        }
        self.begin_ready(&mut transition).await;
        let mut goes_on = self.move_on(transition).await;
        while goes_on {
            goes_on = match self.next().await {
                Happening::Ended(attempted) => self.take_in(*attempted).await,
                Happening::Due(step) => {
                    self.due.remove(&step);
                    let mut transition = self.run.transition();
                    self.try_begin(&mut transition, &step).await;
                    self.move_on(transition).await
                }
                Happening::Told(Signal::Owned) => true,
                Happening::Told(Signal::Lost) => {
                    tracing::info!("the run is not this worker's any more");
                    false
                }
                Happening::Told(Signal::Cancel(mode)) => {
                    self.cancel(mode, self.run.transition()).await;
                    false
                }
            }
        }
    }

    /// Takes in the end of an attempt; whether the run goes on here.
    async fn take_in(&mut self, attempted: Attempted) -> bool {
        let mut transition = self.run.transition();
        transition.progress = true;
        let max_attempts = self.execution.settings.max_attempts;
        let after = self
            .progress
            .ended(&mut transition, attempted, max_attempts);
        if let After::Wait { step, after } = after {
            self.due.insert(step, Due::retry(after));
        }
        if !self.progress.may_start() {
            self.due.clear();
        }
        self.begin_ready(&mut transition).await;
        self.move_on(transition).await
    }

    /// Ends the run with the transition, parks it, or records the transition and calls what it begins;
    /// whether the run goes on here.
    async fn move_on(&mut self, transition: Transition<'_>) -> bool {
        if self.running.is_empty() && self.due.is_empty() && self.progress.is_done() {
            self.end(transition).await;
            return false;
        }
        if let Some(after) = self.idle_for() {
            self.park(transition, after).await;
            return false;
        }
        if transition.set.is_empty() {
            self.run.not_recorded(transition);
            return true;
        }
        self.record(transition).await
    }

    /// How long the run has nothing to do, when that is long enough to give its place to another.
    fn idle_for(&self) -> Option<Duration> {
        if !self.running.is_empty() || self.progress.has_begun() {
            return None;
        }
        let earliest = self.due.values().min_by_key(|due| due.at)?;
        let idle = earliest.at.saturating_duration_since(Instant::now());
        let longest = if earliest.held {
            super::model_call::PARK_HELD_BEYOND
        } else {
            super::model_call::PARK_BEYOND
        };
        (idle > longest).then_some(idle)
    }

    /// Leave to make a step's next call, or the time to wait before asking again.
    async fn admit(&mut self, step_id: &str) -> Result<Permit, Duration> {
        let Some(step) = self.progress.step(step_id) else {
            return Err(Duration::ZERO);
        };
        let settings = &self.execution.settings;
        let args = self.progress.resolve(step, settings.max_args_bytes.0).ok();
        let tenant = &self.run.command.spec.tenant;
        let guarded = self.execution.guarded(tenant, &step.tool, args.as_ref());
        self.execution.breakers.admit(&guarded).await
    }

    /// Puts the start of a step into the transition, or has it wait for its breaker.
    async fn try_begin(&mut self, transition: &mut Transition<'_>, step_id: &str) {
        match self.admit(step_id).await {
            Ok(permit) => {
                self.permits.insert(step_id.to_owned(), permit);
                self.progress.begin(transition, step_id);
            }
            Err(mut wait) => {
                if wait <= ASK_AGAIN {
                    wait = ASK_AGAIN * (1 << self.refusals.min(MOST_DOUBLINGS));
                    self.refusals += 1;
                }
                // Apart from each other, or all who were held back would come back at once.
                let apart = wait.mul_f64(rand::rng().random_range(0.0..0.1)) + ASK_APART;
                tracing::info!(
                    step_id,
                    wait_ms = wait.as_millis(),
                    "the step waits for its circuit breaker"
                );
                let at = Instant::now() + wait + apart;
                let due = Due { at, held: true };
                self.due.insert(step_id.to_owned(), due);
            }
        }
    }

    /// What happens next. A pending attempt, a due one, or a signal.
    async fn next(&mut self) -> Happening {
        let mut signal = self.run.signal();
        let told = *signal.borrow_and_update();
        if told != Signal::Owned {
            return Happening::Told(told);
        }
        let due = self
            .due
            .iter()
            .min_by_key(|(_, due)| due.at)
            .map(|(step, due)| (step.clone(), due.at));
        let due = async {
            match due {
                Some((step, at)) => {
                    tokio::time::sleep_until(at).await;
                    step
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(attempted) = self.running.next(), if !self.running.is_empty() => Happening::Ended(Box::new(attempted)),
            changed = signal.changed() => {
                Happening::Told(if changed.is_ok() { *signal.borrow() } else { Signal::Lost })
            }
            step = due => Happening::Due(step),
        }
    }

    /// Puts the start of every step that may start into the transition.
    async fn begin_ready(&mut self, transition: &mut Transition<'_>) {
        for step in self.progress.ready() {
            if !self.due.contains_key(&step) {
                self.try_begin(transition, &step).await;
            }
        }
    }

    /// Records a transition and calls the steps that it began; whether the run is still to go on.
    async fn record(&mut self, transition: Transition<'_>) -> bool {
        let begun = self.progress.take_begun();
        let durably = begun
            .iter()
            .any(|step| self.progress.effects(step) == Effects::Unsafe);
        let standing = if durably {
            self.run.record_durably(transition).await
        } else {
            self.run.record(transition).await
        };
        match standing {
            Standing::Owned => {
                for step in &begun {
                    let permit = self.permits.remove(step).ok_or(Duration::ZERO);
                    self.start(step, permit);
                }
                true
            }
            Standing::OverBudget(refused) => {
                self.progress.refuse(&refused);
                for step in &begun {
                    let permit = self.permits.remove(step).ok_or(Duration::ZERO);
                    self.start(step, permit);
                }
                true
            }
            Standing::Cancel(mode) => {
                let mut transition = self.run.transition();
                // Declared and not called: it is as if they had not begun.
                self.progress.unbegin(&mut transition, &begun);
                self.cancel(mode, transition).await;
                false
            }
            Standing::Lost => {
                tracing::info!("the run is not this worker's any more");
                false
            }
        }
    }

    fn start(&mut self, step_id: &str, permit: Result<Permit, Duration>) {
        let Some(attempt) = self.attempt(step_id, permit) else {
            return;
        };
        self.running.push(Box::pin(attempt.carry_out()));
    }

    fn attempt(&mut self, step_id: &str, permit: Result<Permit, Duration>) -> Option<Attempt> {
        let step = self.progress.step(step_id)?;
        let settings = &self.execution.settings;
        let tool = self.execution.tools.get(&step.tool).cloned();
        let args = self.progress.args(step, settings.max_args_bytes.0);
        let kept = match (&tool, &args) {
            (Some(tool), Ok(args)) => {
                let results = &self.execution.results;
                let entry = results.entry(&self.run.command.spec.tenant, tool.as_ref(), args);
                entry.map(|entry| (results.clone(), entry))
            }
            _ => None,
        };
        let limit = step.timeout_s.map_or_else(
            || {
                catalogue::find(&step.tool)
                    .map_or(Duration::from_secs(settings.step_timeout_s), |spec| {
                        spec.timeout
                    })
            },
            |seconds| Duration::from_secs(u64::from(seconds)),
        );
        Some(Attempt {
            tool,
            step_id: step_id.to_owned(),
            tool_name: step.tool.clone(),
            number: self.progress.attempts(step_id),
            args,
            limit: limit.min(self.run.longest_call()),
            max_output_bytes: settings.max_output_bytes.0,
            tenant: self.run.command.spec.tenant.clone(),
            key_id: self.run.command.spec.key_id.clone(),
            session_id: self.run.command.spec.session_id.clone(),
            run_id: self.run.command.spec.run_id.clone(),
            permit,
            kept,
        })
    }

    async fn park(&mut self, mut transition: Transition<'_>, after: Duration) {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        transition.next = Some(Next::Park {
            wake_at: self.run.context.now_ms().saturating_add(after),
        });
        self.run.finish(transition).await;
    }

    /// Ends the run as its client wants: calls under way may end, or are dropped. What they gave is
    /// recorded; nothing new begins.
    async fn cancel(&mut self, mode: CancelMode, mut transition: Transition<'_>) {
        let mut signal = self.run.signal();
        let mut mode = mode;
        while mode == CancelMode::Graceful && !self.running.is_empty() {
            tokio::select! {
                Some(attempted) = self.running.next() => {
                    self.progress.ended(&mut transition, attempted, 1);
                }
                changed = signal.changed() => match (changed, *signal.borrow()) {
                    (Err(_), _) | (_, Signal::Lost) => return,
                    (_, Signal::Cancel(now)) => mode = now,
                    (_, Signal::Owned) => {}
                }
            }
        }
        self.progress.forget_open(&mut transition);
        transition.next = Some(Next::End {
            status: RunStatus::Cancelled,
            data: Told::nothing(),
            state: None,
        });
        self.run.finish(transition).await;
    }

    /// Back to the planner. The steps of an agent's turn are named by it.
    fn next_turn(&self) -> Next {
        let before = self.run.command.turn;
        let turn = self.progress.first_step().and_then(turn_of);
        Next::Plan {
            turn: turn.unwrap_or(before).max(before + 1),
        }
    }

    async fn end(&mut self, mut transition: Transition<'_>) {
        let next = if let Some(Outcome::Failed { step_id, code }) = self.progress.outcome() {
            let message = self
                .progress
                .error(&step_id)
                .unwrap_or_else(|| "the step failed".to_owned());
            transition.set.insert("code".to_owned(), code.clone());
            transition.letter = self.progress.dead_letter(&step_id);
            let data = self
                .run
                .told_whole(&json!({ "code": code, "message": message, "step_id": step_id }));
            Next::End {
                status: RunStatus::Failed,
                data,
                state: None,
            }
        } else if self.run.command.spec.kind == RunKind::Agent {
            self.next_turn() // the model is told what its calls gave
        } else {
            let data = self.run.told(&json!({ "result": self.progress.result() }));
            Next::End {
                status: RunStatus::Succeeded,
                data,
                state: None,
            }
        };
        transition.next = Some(next);
        self.run.finish(transition).await;
    }
}

fn effects(tool: &str) -> Effects {
    catalogue::find(tool).map_or(Effects::Unsafe, |spec| spec.effects)
}

fn open_plan(command: &Command, key: &DataKey) -> Result<CheckedPlan, String> {
    let sealed = command
        .plan
        .as_ref()
        .or(command.spec.plan.as_ref())
        .ok_or("the run has no plan")?;
    let bytes = key.open(sealed).map_err(|e| e.to_string())?;
    let _: Plan = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let plan: CheckedPlan = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    // Whoever made the plan, and whatever was allowed then.
    if let Some(allowed) = &command.spec.tools_allowed {
        let refused = plan.steps().iter().find(|s| !allowed.contains(&s.tool));
        if let Some(step) = refused {
            return Err(format!("the tool {} is not allowed", step.tool));
        }
    }
    Ok(plan)
}

impl StepEntry {
    /// A step whose attempt begins.
    pub(super) fn begun(tool: &str, attempts: u32, now_ms: u64) -> Self {
        Self {
            status: StepStatus::Running,
            tool: tool.to_owned(),
            attempts,
            started_ms: now_ms,
            ended_ms: None,
            due_ms: None,
            output: None,
            code: None,
            error: None,
            letter: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{RunId, SessionId, TenantId};
    use crate::privacy::KeyRing;

    #[test]
    fn a_plan_with_a_tool_that_the_run_may_not_use_is_not_opened() {
        let (tenant, session): (TenantId, _) = ("acme".parse().unwrap(), SessionId::generate());
        let ring = KeyRing::parse("m:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=").unwrap();
        let (key, _) = ring.generate(&tenant, &session);
        let plan =
            json!({ "steps": [{ "id": "a", "tool": "retrieval", "args": { "query": "x" } }] });
        let mut command: Command = serde_json::from_value(json!({
            "v": 1, "kind": "execute", "wake": 0, "plan": key.seal(plan.to_string().as_bytes()),
            "spec": { "tenant": tenant, "run_id": RunId::generate(), "session_id": session, "key_id": "k",
                "kind": "execute", "created_ms": 0, "deadline_ms": 0, "max_steps": 1 },
        }))
        .unwrap();
        assert!(open_plan(&command, &key).is_ok());
        command.spec.tools_allowed = Some(vec!["retrieval".to_owned()]);
        assert!(open_plan(&command, &key).is_ok());
        command.spec.tools_allowed = Some(vec!["ads_metrics_mock".to_owned()]);
        let refused = open_plan(&command, &key).unwrap_err();
        assert_eq!(refused, "the tool retrieval is not allowed");
    }
}
