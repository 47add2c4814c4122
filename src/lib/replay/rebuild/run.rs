//! A run, put together from its commands, its events and its usage records. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::money::day;
use crate::ids::RunId;
use crate::messages::{
    AuditRecord, CommandKind, Data, Event, EventType, OnConflict, RunKind, RunSpec,
};
use crate::privacy::{DataKey, Sealed};
use crate::runs::{RestoredRun, RunStatus, StepEntry, StepStatus};

/// What was spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    cost_micro_usd: i64,
}

impl Usage {
    pub(super) fn add(&mut self, record: &AuditRecord) {
        self.input_tokens += record.input_tokens;
        self.output_tokens += record.output_tokens;
        self.cost_micro_usd += record.delta_micro_usd.unwrap_or(0);
    }

    pub(super) fn put(self, fields: &mut BTreeMap<String, String>) {
        for (name, amount) in [
            ("input_tokens", self.input_tokens),
            ("output_tokens", self.output_tokens),
            (
                "cost_micro_usd",
                u64::try_from(self.cost_micro_usd).unwrap_or(0),
            ),
        ] {
            if amount > 0 {
                fields.insert(name.to_owned(), amount.to_string());
            }
        }
    }
}

/// How a run ended.
#[derive(Debug)]
struct End {
    status: RunStatus,
    ms: u64,
    /// Why it failed; a stable name.
    code: Option<String>,
    /// What its last event tells, as it is kept.
    data: String,
}

/// What the topics say of a run.
#[derive(Debug, Default)]
pub(super) struct RunFold {
    /// From its first command: the specification, and its JSON text as it was admitted.
    spec: Option<(RunSpec, String)>,
    /// The plan that the last command or event of it carries.
    plan: Option<Sealed>,
    queued_ms: Option<u64>,
    planning_ms: Option<u64>,
    executing_ms: Option<u64>,
    /// Whether it was handed over to the executor.
    handed_over: bool,
    /// How often each stage's command was emitted again.
    wakes: BTreeMap<&'static str, u32>,
    end: Option<End>,
    steps: BTreeMap<String, StepEntry>,
    /// The journal's entries of model calls, by number; without the answers, which are on no topic.
    model_calls: BTreeMap<u32, Value>,
    /// How calls were settled, by name, as the ledger keeps it.
    settled: BTreeMap<String, String>,
    usage: Usage,
    cancelled: bool,
}

impl RunFold {
    pub(super) fn command(
        &mut self,
        kind: CommandKind,
        wake: u32,
        spec: RunSpec,
        text: &str,
        plan: Option<Sealed>,
    ) {
        let wakes = self.wakes.entry(kind.as_str()).or_default();
        *wakes = (*wakes).max(wake);
        self.handed_over |= kind == CommandKind::Execute;
        self.plan = plan.or_else(|| self.plan.take());
        self.spec.get_or_insert_with(|| (spec, text.to_owned()));
    }

    /// Takes the next event. They come in the order of their ids, each once.
    /// `key` opens what they tell; without it, what only they tell is missing.
    pub(super) fn event(&mut self, event: &Event, key: Option<&DataKey>) {
        let data = Data::of(&event.data).value(key);
        match event.event_type {
            EventType::RunQueued => self.queued_ms = Some(event.ts),
            EventType::PlanStarted => {
                self.planning_ms.get_or_insert(event.ts);
            }
            EventType::PlanCreated => {
                self.plan = event.state.clone().or_else(|| self.plan.take());
                // Without steps it ends by the same transition, and its end follows.
                self.handed_over |= self.kind() == Some(RunKind::PlanExecute);
            }
            EventType::RunStarted => {
                self.executing_ms.get_or_insert(event.ts);
                self.handed_over = true;
            }
            EventType::RunSucceeded => self.end(RunStatus::Succeeded, event, &data),
            EventType::RunFailed => self.end(RunStatus::Failed, event, &data),
            EventType::RunCancelled => self.end(RunStatus::Cancelled, event, &data),
            EventType::RunTimedOut => self.end(RunStatus::TimedOut, event, &data),
            EventType::StepStarted
            | EventType::StepRetrying
            | EventType::StepCompleted
            | EventType::StepFailed => self.step(event, &data),
            EventType::LlmDelta | EventType::StepProgress | EventType::BudgetWarning => {}
        }
    }

    fn end(&mut self, status: RunStatus, event: &Event, data: &Value) {
        self.end.get_or_insert_with(|| End {
            status,
            ms: event.ts,
            code: data["code"].as_str().map(str::to_owned),
            data: event.data.get().to_owned(),
        });
    }

    fn step(&mut self, event: &Event, data: &Value) {
        let Some(id) = &event.step_id else { return };
        let text = |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned);
        let entry = self.steps.entry(id.clone()).or_insert_with(|| StepEntry {
            status: StepStatus::Running,
            tool: String::new(),
            attempts: 0,
            started_ms: event.ts,
            ended_ms: None,
            output: None,
            code: None,
            error: None,
            due_ms: None,
            letter: None,
        });
        if let Some(tool) = text("tool") {
            entry.tool = tool;
        }
        entry.attempts = event.attempt.unwrap_or(entry.attempts);
        match event.event_type {
            EventType::StepStarted => entry.status = StepStatus::Running,
            EventType::StepRetrying => {
                entry.status = StepStatus::Retrying;
                (entry.code, entry.error) = (text("code"), event.state.clone());
            }
            EventType::StepCompleted => {
                entry.status = StepStatus::Succeeded;
                entry.ended_ms = Some(event.ts);
                entry.output.clone_from(&event.state);
                (entry.code, entry.error) = (None, None);
            }
            _ => {
                (entry.code, entry.error) = (text("code"), event.state.clone());
                let unknown = entry.code.as_deref() == Some("outcome_unknown");
                entry.status = if unknown {
                    StepStatus::OutcomeUnknown
                } else {
                    StepStatus::Failed
                };
                entry.ended_ms = Some(event.ts);
            }
        }
    }

    /// Takes a settlement, or the record of a request to cancel. Each comes once.
    pub(super) fn audit(&mut self, record: &AuditRecord) {
        if record.action == "request" {
            let cancels = record.route.as_deref() == Some("/v1/runs/{run_id}/cancel");
            self.cancelled |= cancels;
            return;
        }
        let (Some(call), Some(settlement)) = (&record.call, &record.settlement) else {
            return;
        };
        self.usage.add(record);
        let model = record.target.as_deref().unwrap_or("-");
        let month = record.month.as_deref().unwrap_or_default();
        let day = day(record.ts).unwrap_or_default();
        let day = day.get(6..).unwrap_or("01");
        let is_final = |text: &String| text.starts_with("actual");
        if !self.settled.get(call).is_some_and(is_final) {
            let amount = record.cost_micro_usd;
            let text = format!("{settlement} {amount} {month} {day} {model}");
            self.settled.insert(call.clone(), text);
        }
        // A call that failed used nothing, or nobody knows what; it is not in the journal.
        let used = record.input_tokens + record.output_tokens > 0;
        if let (true, "model_call", Ok(number)) = (used, record.action.as_str(), call.parse()) {
            let entry = json!({
                "model": record.target, "cost_micro_usd": record.cost_micro_usd,
                "duration_ms": record.duration_ms, "answer": "",
                "usage": {
                    "input_tokens": record.input_tokens, "cached_tokens": 0,
                    "output_tokens": record.output_tokens, "reasoning_tokens": 0,
                },
            });
            self.model_calls.insert(number, entry);
        }
    }

    /// The run after which it goes on.
    pub(super) fn retry_of(&self) -> Option<RunId> {
        self.spec.as_ref()?.0.retry_of.clone()
    }

    /// Steps that are done, as a retry takes them over, and whether the outcome of one is unknown.
    pub(super) fn done(&self) -> (BTreeMap<String, StepEntry>, bool) {
        let done = self.steps.iter();
        let done = done.filter(|(_, entry)| entry.status == StepStatus::Succeeded);
        let unknown = |entry: &StepEntry| entry.status == StepStatus::OutcomeUnknown;
        let done = done.map(|(id, entry)| (id.clone(), entry.clone()));
        (done.collect(), self.steps.values().any(unknown))
    }

    /// Takes over what the run before it had done; `None` when no topic tells that any more. Where the
    /// outcome of a step was unknown, somebody has said what became of it, which is on no topic: rather
    /// than that the step is made again in silence, the run ends.
    pub(super) fn take_over(&mut self, before: Option<(BTreeMap<String, StepEntry>, bool)>) {
        let Some((done, unsure)) = before else {
            self.cancelled = true;
            return;
        };
        self.cancelled |= unsure;
        for (step, entry) in done {
            self.steps.entry(step).or_insert(entry);
        }
    }

    fn kind(&self) -> Option<RunKind> {
        self.spec.as_ref().map(|(spec, _)| spec.kind)
    }

    /// Whether a step's tool is not known from its events, whose data was too long.
    pub(super) fn lacks_a_tool(&self) -> bool {
        self.steps.values().any(|entry| entry.tool.is_empty())
    }

    /// The plan, sealed.
    pub(super) fn plan(&self) -> Option<&Sealed> {
        self.plan.as_ref()
    }

    /// Tells the tools of steps by the plan's JSON.
    pub(super) fn name_tools(&mut self, plan: &Value) {
        let steps = plan.get("steps").and_then(Value::as_array);
        for step in steps.into_iter().flatten() {
            let text = |name: &str| step.get(name).and_then(Value::as_str);
            let (Some(id), Some(tool)) = (text("id"), text("tool")) else {
                continue;
            };
            if let Some(entry) = self.steps.get_mut(id).filter(|e| e.tool.is_empty()) {
                tool.clone_into(&mut entry.tool);
            }
        }
    }

    /// When it was admitted, in milliseconds since the epoch.
    pub(super) fn created_ms(&self) -> Option<u64> {
        let spec = self.spec.as_ref().map(|(spec, _)| spec.created_ms);
        self.queued_ms.or(spec)
    }

    /// When it ended and when its time would have been over; `None` for a run that has not ended.
    pub(super) fn ended_ms(&self) -> Option<(u64, u64)> {
        let end = self.end.as_ref()?;
        let deadline = self.spec.as_ref().map_or(0, |(spec, _)| spec.deadline_ms);
        Some((end.ms, deadline))
    }

    /// The run as the ledger keeps it; `None` when none of its commands is on the topics.
    ///
    /// `numbering` is where the numbers of its outbox go on: a process that outlived the old Redis may
    /// still acknowledge entries of before, and must not remove new ones.
    pub(super) fn restore(&self, id: &RunId, numbering: u64) -> Option<RestoredRun> {
        let (spec, text) = self.spec.as_ref()?;
        let mut fields = BTreeMap::new();
        let mut set = |name: &str, value: String| {
            fields.insert(name.to_owned(), value);
        };
        let executes = self.handed_over && self.is_handed_over(spec);
        let stage = if executes {
            CommandKind::Execute
        } else {
            spec.kind.first_command()
        };
        set("session", spec.session_id.to_string());
        set("stage", stage.as_str().to_owned());
        set("kind", spec.kind.as_str().to_owned());
        set("spec", text.clone());
        set(
            "created",
            self.created_ms().unwrap_or(spec.created_ms).to_string(),
        );
        set("deadline", spec.deadline_ms.to_string());
        set("key_id", spec.key_id.to_string());
        if let Some(budget) = spec.max_cost_micro_usd {
            set("budget", budget.to_string());
        }
        if spec.on_conflict == OnConflict::Parallel {
            set("parallel", "1".to_owned());
        }
        if let Some(plan) = &self.plan {
            set("plan", plan.as_str().to_owned());
        }
        if let Some(traceparent) = &spec.traceparent {
            set("traceparent", traceparent.clone());
        }
        let started = [self.planning_ms, self.executing_ms];
        if let Some(started) = started.into_iter().flatten().min() {
            set("started", started.to_string());
        }
        for (step, entry) in &self.steps {
            set(&format!("s:{step}"), serde_json::to_string(entry).ok()?);
        }
        if let Some(end) = &self.end {
            set("status", end.status.as_str().to_owned());
            set("ended", end.ms.to_string());
            set("end", end.data.clone());
            if let (RunStatus::Failed, Some(code)) = (end.status, &end.code) {
                set("code", code.clone());
            }
        } else {
            let begun = match (self.planning_ms, self.executing_ms) {
                (_, Some(_)) => Some((CommandKind::Execute, RunStatus::Executing)),
                (Some(_), None) => Some((CommandKind::Plan, RunStatus::Planning)),
                (None, None) => None,
            };
            set(
                "status",
                begun
                    .map_or(RunStatus::Queued, |(_, s)| s)
                    .as_str()
                    .to_owned(),
            );
            if let Some((stage, _)) = begun {
                set("begun", stage.as_str().to_owned());
                set("begun_by", "rebuild".to_owned());
            }
            let wake = self.wakes.get(stage.as_str()).copied().unwrap_or(0);
            set("wake", wake.to_string());
            set("outbox_next", numbering.to_string());
            if self.cancelled {
                set("cancel", "graceful".to_owned());
            }
        }
        for (call, settled) in &self.settled {
            set(&format!("b:{call}"), settled.clone());
        }
        // An answer is not on the topics: planning that had not come to its end begins anew, and its
        // calls count. Elsewhere the calls are only shown.
        if self.end.is_none() && stage == CommandKind::Plan {
            if let Some(since) = self.planning_ms {
                let (call, text) = self.call_under_way(since)?;
                set(&call, text);
            }
        } else {
            for (number, call) in &self.model_calls {
                set(&format!("m:{number}"), call.to_string());
            }
        }
        self.usage.put(&mut fields);
        Some(RestoredRun {
            id: id.clone(),
            fields,
        })
    }

    /// A call may have been under way, of which no topic tells. Its number is taken, so that a worker
    /// that outlived the old Redis settles that call and no other.
    fn call_under_way(&self, since_ms: u64) -> Option<(String, String)> {
        let numbers = self
            .settled
            .keys()
            .filter_map(|call| call.parse::<u32>().ok());
        let number = numbers.max().unwrap_or(0) + 1;
        let day = day(since_ms)?;
        let (month, day) = day.split_at_checked(6)?;
        Some((format!("b:{number}"), format!("bounded 0 {month} {day} -")))
    }

    /// A plan that was made is carried out by runs that do so, unless they ended with it.
    fn is_handed_over(&self, spec: &RunSpec) -> bool {
        let began = self.executing_ms.is_some() || self.wakes.contains_key("execute");
        spec.kind == RunKind::PlanExecute && (began || self.end.is_none())
            || spec.kind == RunKind::Execute
    }
}
