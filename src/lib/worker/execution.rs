//! What an executor does with a run: carries out the steps of its plan in the order of their
//! dependencies, independent ones at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::attempt::{Attempt, Attempted};
use super::dead_letters::{Ending, MODEL};
use super::lease::Signal;
use super::owned::{Owned, Standing};
use super::progress::{After, Progress};
use super::spending::{Bounded, Unpriced};
use crate::config::Settings;
use crate::executor::schedule::Outcome;
use crate::messages::{Command, EventType, FailureClass, RunKind};
use crate::plan::{CheckedPlan, Plan};
use crate::pricing::Prices;
use crate::privacy::DataKey;
use crate::runs::{
    Begin, CancelMode, NewEvent, Next, RunStatus, StepEntry, StepStatus, Transition,
};
use crate::tools::registry::ToolRegistry;
use crate::tools::{Effects, catalogue};

/// Executes plans.
#[derive(Debug)]
pub struct Execution {
    tools: Arc<ToolRegistry>,
    settings: Arc<Settings>,
    masker: Arc<crate::privacy::mask::Masker>,
}

/// What executing a run begins with.
pub(super) struct Prepared {
    /// The plan, or why it cannot be read.
    plan: Result<CheckedPlan, String>,
    /// The steps that are begun with the acquire.
    first: Vec<FirstStep>,
}

/// A step that is begun with the acquire.
struct FirstStep {
    id: String,
    tool: String,
    args: Value,
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
    /// Executes with `tools`.
    pub fn new(
        tools: Arc<ToolRegistry>,
        settings: Arc<Settings>,
        masker: Arc<crate::privacy::mask::Masker>,
    ) -> Self {
        Self {
            tools,
            settings,
            masker,
        }
    }

    /// Reads the plan, and finds the steps that may be begun with the acquire, so that a run of one step
    /// needs no further transition before its call; not those whose effects must be on Kafka before the
    /// call, and not those that a model must be paid for whose price is not known.
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
            first.push(FirstStep {
                id: step.id.clone(),
                tool: step.tool.clone(),
                args,
                call,
            });
        }
        Prepared { plan, first }
    }

    /// The stage's first events, and the steps that are begun with it.
    pub(super) fn begin(&self, prepared: &Prepared, now_ms: u64) -> Begin {
        let Ok(plan) = &prepared.plan else {
            return Begin::default();
        };
        let mut begin = Begin {
            set: BTreeMap::new(),
            events: vec![NewEvent {
                event_type: EventType::RunStarted,
                data: json!({ "steps": plan.steps().len() }).to_string(),
                step: None,
                attempt: None,
                state: None,
            }],
            reserve: Vec::new(),
        };
        for step in &prepared.first {
            let entry = StepEntry::begun(&step.tool, 1, now_ms);
            begin.set.insert(
                format!("s:{}", step.id),
                serde_json::to_string(&entry).unwrap_or_default(),
            );
            let args = self.masker.json(&step.args);
            begin.events.push(NewEvent {
                event_type: EventType::StepStarted,
                data: json!({ "tool": step.tool, "args": &*args }).to_string(),
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
                let data = run.context.failure("invalid_plan", &message);
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
    /// When the next attempt of a step is due.
    due: BTreeMap<String, Instant>,
}

impl Carrying<'_> {
    async fn go(&mut self) {
        // What the acquire began is called at once; what an earlier owner left is looked at first.
        let mut transition = self.run.transition();
        let begun = if self.run.fresh {
            self.progress.begun()
        } else {
            Vec::new()
        };
        for step in &begun {
            self.start(step);
        }
        if !self.run.fresh {
            let settings = &self.execution.settings;
            self.progress
                .take_over(&mut transition, settings.max_attempts);
        }
        self.begin_ready(&mut transition, true);
        if transition.set.is_empty() {
            self.run.not_recorded(transition);
        } else if !self.record(transition).await {
            return;
        }
        loop {
            if self.running.is_empty() && self.due.is_empty() && self.progress.is_done() {
                return self.end(self.run.transition()).await;
            }
            match self.next().await {
                Happening::Ended(attempted) => {
                    let mut transition = self.run.transition();
                    transition.progress = true;
                    let settings = &self.execution.settings;
                    match self
                        .progress
                        .ended(&mut transition, *attempted, settings.max_attempts)
                    {
                        After::Wait { step, after } => {
                            if after > super::model_call::PARK_BEYOND
                                && self.running.is_empty()
                                && self.due.is_empty()
                            {
                                return self.park(transition, after).await;
                            }
                            self.due.insert(step, Instant::now() + after);
                        }
                        After::Nothing => {}
                    }
                    if !self.progress.may_start() {
                        self.due.clear();
                    }
                    self.begin_ready(&mut transition, false);
                    if self.running.is_empty() && self.due.is_empty() && self.progress.is_done() {
                        return self.end(transition).await;
                    }
                    if !self.record(transition).await {
                        return;
                    }
                }
                Happening::Due(step) => {
                    self.due.remove(&step);
                    let mut transition = self.run.transition();
                    self.progress.begin(&mut transition, &step);
                    if !self.record(transition).await {
                        return;
                    }
                }
                Happening::Told(Signal::Owned) => {}
                Happening::Told(Signal::Lost) => {
                    tracing::info!("the run is not this worker's any more");
                    return;
                }
                Happening::Told(Signal::Cancel(mode)) => {
                    return self.cancel(mode, self.run.transition()).await;
                }
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
            .min_by_key(|(_, at)| **at)
            .map(|(step, at)| (step.clone(), *at));
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
    fn begin_ready(&mut self, transition: &mut Transition<'_>, first: bool) {
        for step in self.progress.ready() {
            self.progress.begin(transition, &step);
        }
        if first {
            for step in self.progress.retrying() {
                self.progress.begin(transition, &step);
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
                    self.start(step);
                }
                true
            }
            Standing::OverBudget(refused) => {
                self.progress.refuse(&refused);
                for step in &begun {
                    self.start(step);
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

    fn start(&mut self, step_id: &str) {
        let Some(attempt) = self.attempt(step_id) else {
            return;
        };
        self.running.push(Box::pin(attempt.carry_out()));
    }

    fn attempt(&mut self, step_id: &str) -> Option<Attempt> {
        let step = self.progress.step(step_id)?;
        let settings = &self.execution.settings;
        let tool = self.execution.tools.get(&step.tool).cloned();
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
            args: self.progress.args(step, settings.max_args_bytes.0),
            limit: limit.min(self.run.longest_call()),
            max_output_bytes: settings.max_output_bytes.0,
            tenant: self.run.command.spec.tenant.clone(),
            session_id: self.run.command.spec.session_id.clone(),
            run_id: self.run.command.spec.run_id.clone(),
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
            data: "{}".to_owned(),
            state: None,
        });
        self.run.finish(transition).await;
    }

    async fn end(&mut self, mut transition: Transition<'_>) {
        let next = if let Some(Outcome::Failed { step_id, code }) = self.progress.outcome() {
            let message = self
                .progress
                .error(&step_id)
                .unwrap_or_else(|| "the step failed".to_owned());
            transition.set.insert("code".to_owned(), code.clone());
            transition.set.insert("error".to_owned(), message.clone());
            transition.letter = self.progress.dead_letter(&step_id);
            let data = self
                .run
                .told(&json!({ "code": code, "message": message, "step_id": step_id }));
            Next::End {
                status: RunStatus::Failed,
                data,
                state: None,
            }
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
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
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
            output: None,
            code: None,
            error: None,
            letter: None,
        }
    }
}
