//! How far a plan is: the journal of its steps, and the transitions that move it on.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use serde_json::{Value, json};

use super::Execution;
use super::attempt::Attempted;
use super::audit::Call;
use super::dead_letters::{Ending, class_of};
use super::owned::Owned;
use super::results::Origin;
use super::spending::{Bounded, Cost};
use crate::executor::retry::{FailedAttempt, RetryDecision, decide};
use crate::executor::schedule::{OUTCOME_UNKNOWN, Outcome, Schedule, StepState};
use crate::messages::{EventType, FailureClass, RunKind};
use crate::plan::{CheckedPlan, Step, reference};
use crate::runs::{NewEvent, NewRecord, OverBudget, StepEntry, StepStatus, Transition};
use crate::tools::{Effects, ToolError, ToolErrorClass, ToolOutput, catalogue};

/// Codes of steps whose arguments are wrong.
const ARGUMENT_CODES: [&str; 3] = ["invalid_arguments", "invalid_args", "unresolved_reference"];
/// The run's field that counts further attempts of all its steps: a takeover goes on with it.
const RETRIES: &str = "retries";

/// What follows the end of an attempt.
pub(super) enum After {
    /// Another attempt, later.
    Wait {
        /// The step.
        step: String,
        /// How much later.
        after: Duration,
    },
    /// Nothing of this step.
    Nothing,
}

/// How far a plan is.
pub(super) struct Progress<'a> {
    run: &'a Owned,
    plan: &'a CheckedPlan,
    schedule: Schedule<'a>,
    entries: BTreeMap<String, StepEntry>,
    outputs: BTreeMap<String, Value>,
    /// Steps whose start is in the transition being made.
    begun: Vec<String>,
    /// Failures so far, to tell which came first.
    failures: u64,
    /// Further attempts that the run's steps have had together.
    retries: u32,
    execution: &'a Execution,
    /// The model calls that the running attempts make, by step.
    calls: BTreeMap<String, Bounded>,
    /// Steps that were begun and whose call must not be made.
    refused: BTreeMap<String, ToolError>,
}

impl<'a> Progress<'a> {
    /// From the run's journal. An error means that a recorded output does not open.
    /// `first` are the model calls of the steps that the acquire was to begin.
    pub(super) fn new(
        run: &'a Owned,
        plan: &'a CheckedPlan,
        execution: &'a Execution,
        first: impl Iterator<Item = Bounded>,
    ) -> Result<Self, String> {
        let mut entries = run.fields.journal().steps;
        // Of an agent's earlier turns, nothing is needed.
        entries.retain(|id, _| plan.index_of(id).is_some());
        let mut outputs = BTreeMap::new();
        for (id, entry) in &entries {
            if let Some(sealed) = &entry.output {
                let bytes = run.key.open(sealed).map_err(|e| e.to_string())?;
                outputs.insert(
                    id.clone(),
                    serde_json::from_slice(&bytes).map_err(|e| e.to_string())?,
                );
            }
        }
        let state = |id: &str| match entries.get(id) {
            None => StepState::Pending,
            Some(entry) => match entry.status {
                StepStatus::Running => StepState::Running,
                StepStatus::Retrying => StepState::Waiting,
                StepStatus::Succeeded => StepState::Succeeded,
                StepStatus::Failed | StepStatus::OutcomeUnknown => StepState::Failed {
                    code: entry.code.clone().unwrap_or_default(),
                    seq: entry.ended_ms.unwrap_or(0),
                },
            },
        };
        let agent = run.command.spec.kind == RunKind::Agent;
        let schedule = Schedule::new(plan, state).each_on_its_own(agent);
        Ok(Self {
            run,
            plan,
            schedule,
            entries,
            outputs,
            begun: Vec::new(),
            failures: run.context.now_ms(),
            retries: u32::try_from(run.fields.number(RETRIES)).unwrap_or(u32::MAX),
            execution,
            calls: first
                .filter(|call| run.fresh && run.fields.is_open(&call.call))
                .filter_map(|call| Some((call.call.rsplit_once('.')?.0.to_owned(), call)))
                .collect(),
            refused: BTreeMap::new(),
        })
    }

    pub(super) fn step(&self, id: &str) -> Option<&'a Step> {
        self.plan.steps().get(self.plan.index_of(id)?)
    }

    pub(super) fn first_step(&self) -> Option<&'a str> {
        self.plan.steps().first().map(|step| step.id.as_str())
    }

    pub(super) fn attempts(&self, id: &str) -> u32 {
        self.entries.get(id).map_or(1, |entry| entry.attempts)
    }

    pub(super) fn effects(&self, id: &str) -> Effects {
        let spec = self.step(id).and_then(|step| catalogue::find(&step.tool));
        spec.map_or(Effects::Unsafe, |spec| spec.effects)
    }

    pub(super) fn error(&self, id: &str) -> Option<String> {
        self.opened(self.entries.get(id)?)
    }

    /// Why a step failed, for people; masked.
    fn opened(&self, entry: &StepEntry) -> Option<String> {
        let bytes = self.run.key.open(entry.error.as_ref()?).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// The dead letter of a run that failed by this step. A step whose outcome is unknown makes one
    /// whatever else failed first: someone has to say what became of it.
    pub(super) fn dead_letter(&self, id: &str) -> Option<NewRecord> {
        let failed = self.entries.get_key_value(id);
        let failed =
            failed.filter(|(_, entry)| entry.letter.is_some() && !self.is_plans_fault(entry));
        let unknown =
            |(_, entry): &(&String, &StepEntry)| entry.status == StepStatus::OutcomeUnknown;
        let (step, entry) = failed.or_else(|| self.entries.iter().find(unknown))?;
        let most = self.run.context.settings.max_args_bytes.0;
        let args = self
            .step(step)
            .and_then(|step| self.resolve(step, most).ok());
        let tenant = &self.run.command.spec.tenant;
        let error = self.opened(entry);
        self.run.dead_letter(&Ending {
            class: entry.letter.unwrap_or(FailureClass::OutcomeUnknown),
            error: error.as_deref().unwrap_or("the step failed"),
            attempts: entry.attempts,
            code: entry.code.as_deref().unwrap_or_default(),
            tool: Some(&entry.tool),
            step: Some(step),
            breaker: Some(
                self.execution
                    .breaker_state(tenant, &entry.tool, args.as_ref()),
            ),
        })
    }

    /// Whether a step failed by what the client wrote into its plan.
    fn is_plans_fault(&self, entry: &StepEntry) -> bool {
        let code = entry.code.as_deref().unwrap_or_default();
        self.run.command.spec.kind == RunKind::Execute && ARGUMENT_CODES.contains(&code)
    }

    pub(super) fn ready(&self) -> Vec<String> {
        self.schedule
            .ready()
            .iter()
            .map(|step| step.id.clone())
            .collect()
    }

    pub(super) fn may_start(&self) -> bool {
        self.schedule.may_start()
    }

    pub(super) fn is_done(&self) -> bool {
        self.schedule.is_done()
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.schedule.outcome()
    }

    /// Steps that the acquire began.
    pub(super) fn begun(&self) -> Vec<String> {
        self.with_status(StepStatus::Running)
    }

    /// Steps that wait for another attempt, and how long each still has to.
    pub(super) fn retrying(&self) -> Vec<(String, Duration)> {
        if !self.may_start() {
            return Vec::new();
        }
        let now = self.run.context.now_ms();
        let steps = self.with_status(StepStatus::Retrying).into_iter();
        steps
            .map(|id| {
                let due_ms = self.entries.get(&id).and_then(|entry| entry.due_ms);
                let wait = due_ms.unwrap_or(now).saturating_sub(now);
                (id, Duration::from_millis(wait))
            })
            .collect()
    }

    fn with_status(&self, status: StepStatus) -> Vec<String> {
        let matching = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.status == status);
        matching.map(|(id, _)| id.clone()).collect()
    }

    /// Whether the transition being made declares the start of a step.
    pub(super) fn has_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// The steps whose start the transition declares.
    pub(super) fn take_begun(&mut self) -> Vec<String> {
        std::mem::take(&mut self.begun)
    }

    /// Declared and not called: no attempt was made.
    pub(super) fn unbegin(&mut self, transition: &mut Transition<'_>, steps: &[String]) {
        for id in steps {
            let Some(mut entry) = self.entries.remove(id) else {
                continue;
            };
            entry.attempts -= 1;
            if entry.attempts == 0 {
                transition.unset.push(format!("s:{id}"));
            } else {
                entry.status = StepStatus::Retrying;
                self.put(transition, id, entry);
            }
        }
    }

    /// The arguments of a step's attempt, or why it must not be made.
    pub(super) fn args(&mut self, step: &Step, max_bytes: usize) -> Result<Value, ToolError> {
        match self.refused.remove(&step.id) {
            Some(error) => Err(error),
            None => self.resolve(step, max_bytes),
        }
    }

    /// Budgets had no room for these calls of steps that were begun.
    pub(super) fn refuse(&mut self, calls: &[OverBudget]) {
        for over in calls {
            let Some((step, _)) = over.call.rsplit_once('.') else {
                continue;
            };
            self.calls.remove(step);
            let message = super::over_budget(Some(over));
            let error = ToolError::refused("budget_exceeded", message);
            self.refused.insert(step.to_owned(), error);
        }
    }

    /// A step's arguments, references replaced by what earlier steps gave.
    pub(super) fn resolve(&self, step: &Step, max_bytes: usize) -> Result<Value, ToolError> {
        reference::resolve(&step.args, &|id| self.outputs.get(id), max_bytes)
            .map_err(|error| ToolError::permanent("unresolved_reference", error.to_string()))
    }

    /// What the run gives: the outputs of the steps that no other step builds on.
    pub(super) fn result(&self) -> Value {
        let used: Vec<usize> = (0..self.plan.steps().len())
            .flat_map(|i| self.plan.dependencies(i).iter().copied())
            .collect();
        let last = self
            .plan
            .steps()
            .iter()
            .enumerate()
            .filter(|(i, _)| !used.contains(i));
        let outputs: serde_json::Map<String, Value> = last
            .filter_map(|(_, step)| Some((step.id.clone(), self.outputs.get(&step.id)?.clone())))
            .collect();
        json!({ "answer": self.plan.plan().answer, "outputs": outputs })
    }

    /// Puts the start of a step's next attempt into the transition.
    pub(super) fn begin(&mut self, transition: &mut Transition<'_>, id: &str) {
        let Some(step) = self.step(id) else { return };
        let now = self.run.context.now_ms();
        let entry = match self.entries.remove(id) {
            Some(mut entry) => {
                entry.status = StepStatus::Running;
                entry.attempts += 1;
                entry.due_ms = None;
                entry
            }
            None => StepEntry::begun(&step.tool, 1, now),
        };
        let args = self
            .resolve(step, self.run.context.settings.max_args_bytes.0)
            .unwrap_or(Value::Null);
        let prices = &self.run.context.prices;
        let call = self
            .execution
            .bound(prices, id, entry.attempts, &step.tool, &args);
        match call {
            Ok(None) => {}
            Ok(Some(call)) => {
                transition.reserve.push(call.reservation());
                self.calls.insert(id.to_owned(), call);
            }
            Err(unpriced) => {
                let error = ToolError::refused("model_unpriced", unpriced.to_string());
                self.refused.insert(id.to_owned(), error);
            }
        }
        transition.events.push(NewEvent {
            event_type: EventType::StepStarted,
            data: self.run.told(&json!({ "tool": step.tool, "args": args })),
            step: Some(id.to_owned()),
            attempt: Some(entry.attempts),
            state: None,
        });
        self.schedule.set(id, StepState::Running);
        self.put(transition, id, entry);
        self.begun.push(id.to_owned());
    }

    /// What an earlier owner left running had its result lost: another attempt where that is safe, due
    /// at once.
    pub(super) fn take_over(&mut self, transition: &mut Transition<'_>, max_attempts: u32) {
        for id in self.with_status(StepStatus::Running) {
            let attempted = Attempted {
                step_id: id,
                outcome: Err(ToolError::transient(
                    "worker_lost",
                    "the worker was lost before it had the result",
                )),
                duration: Duration::ZERO,
                called: true,
                origin: Origin::Call,
                lost: true,
            };
            if let After::Wait { step, .. } = self.ended(transition, attempted, max_attempts)
                && let Some(mut entry) = self.entries.remove(&step)
            {
                entry.due_ms = None;
                self.put(transition, &step, entry);
            }
        }
    }

    /// Puts the end of an attempt into the transition.
    pub(super) fn ended(
        &mut self,
        transition: &mut Transition<'_>,
        attempted: Attempted,
        max_attempts: u32,
    ) -> After {
        let id = attempted.step_id.clone();
        let Some(entry) = self.entries.remove(&id) else {
            return After::Nothing;
        };
        self.count(transition, &entry, &attempted);
        match attempted.outcome {
            Ok(output) => {
                let cached = attempted.origin != Origin::Call;
                self.succeeded(transition, &id, entry, output, attempted.duration, cached);
                After::Nothing
            }
            Err(error) => {
                let failed = FailedAttempt {
                    class: error.class,
                    effects: self.effects(&id),
                    may_have_arrived: attempted.called && error.may_have_arrived(),
                    attempt: entry.attempts,
                    max_attempts,
                    retries_left: self
                        .run
                        .context
                        .settings
                        .max_run_retries
                        .saturating_sub(self.retries),
                    remaining: Duration::from_millis(self.run.remaining_ms()),
                    chance: rand::rng().random(),
                };
                if attempted.lost {
                    // A lost worker is not the tool's failure: it uses up no attempt.
                    let unlimited = FailedAttempt {
                        max_attempts: u32::MAX,
                        retries_left: u32::MAX,
                        ..failed
                    };
                    return self.failed(transition, &id, entry, &error, decide(&unlimited));
                }
                let decision = decide(&failed);
                if matches!(decision, RetryDecision::Retry { .. }) && self.may_start() {
                    self.retries = self.retries.saturating_add(1);
                    let retries = self.retries.to_string();
                    transition.set.insert(RETRIES.to_owned(), retries);
                }
                self.failed(transition, &id, entry, &error, decision)
            }
        }
    }

    fn succeeded(
        &mut self,
        transition: &mut Transition<'_>,
        id: &str,
        mut entry: StepEntry,
        output: ToolOutput,
        duration: Duration,
        cached: bool,
    ) {
        let sealed = self.run.key.seal(output.value.to_string().as_bytes());
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let mut data =
            json!({ "tool": entry.tool, "output": output.value, "duration_ms": duration_ms });
        if cached {
            data["cached"] = json!(true);
        }
        transition.events.push(NewEvent {
            event_type: EventType::StepCompleted,
            data: self.run.told(&data),
            step: Some(id.to_owned()),
            attempt: Some(entry.attempts),
            state: Some(sealed.clone()),
        });
        entry.status = StepStatus::Succeeded;
        entry.ended_ms = Some(self.run.context.now_ms());
        entry.output = Some(sealed);
        (entry.code, entry.error, entry.letter) = (None, None, None);
        self.schedule.set(id, StepState::Succeeded);
        self.outputs.insert(id.to_owned(), output.value);
        self.put(transition, id, entry);
    }

    fn failed(
        &mut self,
        transition: &mut Transition<'_>,
        id: &str,
        mut entry: StepEntry,
        error: &ToolError,
        decision: RetryDecision,
    ) -> After {
        let message = self.run.context.masker.text(&error.message);
        let mut data = json!({ "tool": entry.tool, "code": error.code, "message": &*message });
        entry.code = Some(error.code.to_owned());
        entry.error = Some(self.run.key.seal(message.as_bytes()));
        entry.letter = class_of(decision);
        let attempt = Some(entry.attempts);
        let (event_type, after) = match decision {
            RetryDecision::Retry { after } if self.schedule.may_start() => {
                entry.status = StepStatus::Retrying;
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                data["retry_in_ms"] = json!(after_ms);
                entry.due_ms = Some(self.run.context.now_ms().saturating_add(after_ms));
                self.schedule.set(id, StepState::Waiting);
                (
                    EventType::StepRetrying,
                    After::Wait {
                        step: id.to_owned(),
                        after,
                    },
                )
            }
            RetryDecision::OutcomeUnknown => {
                entry.status = StepStatus::OutcomeUnknown;
                entry.code = Some(OUTCOME_UNKNOWN.to_owned());
                data["code"] = json!(OUTCOME_UNKNOWN);
                (EventType::StepFailed, After::Nothing)
            }
            RetryDecision::GiveUp { reason } => {
                entry.status = StepStatus::Failed;
                data["gave_up"] = json!(reason.as_str());
                (EventType::StepFailed, After::Nothing)
            }
            RetryDecision::Retry { .. } => {
                entry.status = StepStatus::Failed;
                (EventType::StepFailed, After::Nothing)
            }
        };
        if event_type == EventType::StepFailed {
            self.failures += 1;
            entry.ended_ms = Some(self.run.context.now_ms());
            let code = entry.code.clone().unwrap_or_default();
            self.schedule.set(
                id,
                StepState::Failed {
                    code,
                    seq: self.failures,
                },
            );
        }
        transition.events.push(NewEvent {
            event_type,
            data: self.run.told_whole(&data),
            step: Some(id.to_owned()),
            attempt,
            state: entry.error.clone(),
        });
        self.put(transition, id, entry);
        after
    }

    /// Steps that were dropped in the middle of a call or wait for another attempt are not told as
    /// if they went on.
    pub(super) fn forget_open(&mut self, transition: &mut Transition<'_>) {
        for id in self.with_status(StepStatus::Running) {
            let Some(mut entry) = self.entries.remove(&id) else {
                continue;
            };
            entry.status = if self.effects(&id) == Effects::None {
                StepStatus::Failed
            } else {
                StepStatus::OutcomeUnknown
            };
            entry.code = Some("cancelled".to_owned());
            entry.ended_ms = Some(self.run.context.now_ms());
            self.put(transition, &id, entry);
        }
        for id in self.with_status(StepStatus::Retrying) {
            let Some(mut entry) = self.entries.remove(&id) else {
                continue;
            };
            entry.status = StepStatus::Failed;
            entry.ended_ms = Some(self.run.context.now_ms());
            self.put(transition, &id, entry);
        }
    }

    fn put(&mut self, transition: &mut Transition<'_>, id: &str, entry: StepEntry) {
        transition.set.insert(
            format!("s:{id}"),
            serde_json::to_string(&entry).unwrap_or_default(),
        );
        self.entries.insert(id.to_owned(), entry);
    }

    /// Settles the model call that the attempt made, and tells the audit of the call, or of the kept
    /// result that was used instead.
    fn count(&mut self, transition: &mut Transition<'_>, entry: &StepEntry, attempted: &Attempted) {
        let cached = attempted.origin != Origin::Call;
        let refused_by = match &attempted.outcome {
            Err(error) if error.class == ToolErrorClass::Refused => Some(error.code),
            _ => None,
        };
        let call = Call {
            action: if cached { "tool_cached" } else { "tool_call" },
            target: &entry.tool,
            cost: Cost::default(),
            duration_ms: u64::try_from(attempted.duration.as_millis()).unwrap_or(u64::MAX),
            refused_by,
        };
        if let Some(bounded) = self.calls.remove(&attempted.step_id) {
            let (settlement, _) = self.run.settle(&bounded, attempted.spent(), call);
            transition.settle.push(settlement);
        } else if attempted.called || cached {
            transition.records.extend(self.run.audit(&call));
        }
    }
}
