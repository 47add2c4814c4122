//! A run, put together from its commands, its events and its usage records. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::money::day;
use crate::ids::RunId;
use crate::messages::{
    AuditRecord, CommandKind, Data, Event, EventType, OnConflict, ResolvedStep, RunKind, RunSpec,
};
use crate::privacy::{DataKey, Sealed};
use crate::runs::{RESOLVED_FAILED, RestoredRun, RunStatus, StepEntry, StepStatus};

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
    /// The journal's entries of model calls, by number, without the answers: only an agent's are on a topic.
    model_calls: BTreeMap<u32, Value>,
    /// How calls were settled, by name, as the ledger keeps it.
    settled: BTreeMap<String, String>,
    usage: Usage,
    cancelled: bool,
    /// What was said of steps whose outcome was not known.
    resolved: Vec<ResolvedStep>,
    /// An agent's answers that called something: the journal's entries, by the number of the call.
    answers: BTreeMap<u32, Value>,
    /// The last command: how many were emitted before it, its stage, and the turn it belongs to.
    last: Option<(u32, CommandKind, u32)>,
}

/// What a retry takes over.
#[derive(Debug, Default)]
pub(super) struct Done {
    steps: BTreeMap<String, StepEntry>,
    answers: BTreeMap<u32, Value>,
    /// Whether the outcome of a step is not known.
    unsure: bool,
}

impl RunFold {
    pub(super) fn command(
        &mut self,
        kind: CommandKind,
        wake: u32,
        turn: u32,
        (spec, text): (RunSpec, &str),
        plan: Option<Sealed>,
    ) {
        let wakes = self.wakes.entry(kind.as_str()).or_default();
        *wakes = (*wakes).max(wake);
        self.handed_over |= kind == CommandKind::Execute;
        if self.last.is_none_or(|(before, ..)| before <= wake) {
            self.last = Some((wake, kind, turn));
            // An agent has another plan in each turn.
            self.plan = plan.or_else(|| self.plan.take());
        }
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
            EventType::PlanCreated if self.kind() == Some(RunKind::Agent) => {
                self.answer(event, &data);
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

    /// An agent's answer that called something. One whose event was too long to say which it was is lost.
    fn answer(&mut self, event: &Event, data: &Value) {
        let number = |name: &str| data.get(name).and_then(Value::as_u64);
        let call = number("call").and_then(|call| u32::try_from(call).ok());
        let (Some(call), Some(answer)) = (call, &event.state) else {
            return;
        };
        let entry = json!({
            "model": data.get("model"), "cost_micro_usd": number("cost_micro_usd").unwrap_or(0),
            "duration_ms": 0, "answer": answer,
        });
        self.answers.insert(call, entry);
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
            self.resolved.extend(record.resolved.clone());
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

    /// Notes what was said of its steps after its end, which its events do not tell.
    pub(super) fn resolve(&mut self) {
        for said in std::mem::take(&mut self.resolved) {
            let Some(entry) = self.steps.get_mut(&said.step_id) else {
                continue;
            };
            if said.succeeded {
                entry.status = StepStatus::Succeeded;
                entry.output = said.output;
                (entry.code, entry.error) = (None, None);
            } else {
                entry.status = StepStatus::Failed;
                entry.code = Some(RESOLVED_FAILED.to_owned());
            }
        }
    }

    /// What is done, as a retry takes it over (`take_over_steps` in the scripts).
    pub(super) fn done(&self) -> Done {
        let agent = self.kind() == Some(RunKind::Agent);
        let by_its_end = |code: &str| matches!(code, "cancelled" | "budget_exceeded");
        let is_done = |entry: &StepEntry| match entry.status {
            StepStatus::Succeeded => true,
            StepStatus::Failed => agent && !entry.code.as_deref().is_some_and(by_its_end),
            _ => false,
        };
        let steps = self.steps.iter().filter(|(_, entry)| is_done(entry));
        let mut steps = steps.map(|(id, entry)| (id.clone(), entry.clone()));
        let unknown = |entry: &StepEntry| entry.status == StepStatus::OutcomeUnknown;
        Done {
            steps: steps.by_ref().collect(),
            answers: self.answers.clone(),
            unsure: self.steps.values().any(unknown),
        }
    }

    /// Takes over what the run before it had done; `None` when no topic tells that any more. Where the
    /// outcome of a step is unknown, though somebody must have said what became of it, the run ends
    /// rather than that the step is made again in silence.
    pub(super) fn take_over(&mut self, before: Option<Done>) {
        let Some(done) = before else {
            self.cancelled = true;
            return;
        };
        self.cancelled |= done.unsure;
        for (step, entry) in done.steps {
            self.steps.entry(step).or_insert(entry);
        }
        for (call, answer) in done.answers {
            self.answers.entry(call).or_insert(answer);
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
    #[allow(clippy::too_many_lines)] // field by field
    pub(super) fn restore(&self, id: &RunId, numbering: u64) -> Option<RestoredRun> {
        let (spec, text) = self.spec.as_ref()?;
        let mut fields = BTreeMap::new();
        let mut set = |name: &str, value: String| {
            fields.insert(name.to_owned(), value);
        };
        let executes = self.handed_over && self.is_handed_over(spec);
        let agent = spec.kind == RunKind::Agent;
        let stage = match self.last {
            // It goes back and forth.
            Some((_, stage, _)) if agent => stage,
            _ if executes => CommandKind::Execute,
            _ => spec.kind.first_command(),
        };
        if let Some((_, _, turn)) = self.last.filter(|(_, _, turn)| *turn > 0) {
            set("turn", turn.to_string());
        }
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
                (Some(_), _) if agent && stage == CommandKind::Plan => {
                    Some((CommandKind::Plan, RunStatus::Planning))
                }
                (_, None) if agent && stage == CommandKind::Execute => None,
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
            let wake = match self.last {
                Some((wake, ..)) if agent => wake,
                _ => self.wakes.get(stage.as_str()).copied().unwrap_or(0),
            };
            set("wake", wake.to_string());
            set("outbox_next", numbering.to_string());
            if self.cancelled {
                set("cancel", "graceful".to_owned());
            }
        }
        for (call, settled) in &self.settled {
            set(&format!("b:{call}"), settled.clone());
        }
        // An answer that did not become a plan is not on the topics: planning that had not come to its end
        // begins anew, and its calls count. Elsewhere the calls are only shown. An agent goes on from those
        // of its answers that called something.
        for (number, answer) in &self.answers {
            let mut entry = self.model_calls.get(number).cloned();
            let entry = entry.get_or_insert_with(|| answer.clone());
            entry["answer"] = answer["answer"].clone();
            set(&format!("m:{number}"), entry.to_string());
        }
        let known =
            |number: &u32| agent && (self.end.is_none() || self.answers.contains_key(number));
        if self.end.is_none() && stage == CommandKind::Plan {
            if let Some(since) = self.planning_ms {
                let (call, text) = self.call_under_way(since)?;
                set(&call, text);
            }
        } else {
            for (number, call) in self.model_calls.iter().filter(|(n, _)| !known(n)) {
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
