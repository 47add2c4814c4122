//! What a planner does with a run: asks the model for a plan, checks it, and hands it over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::Instrument;

use super::audit::Call;
use super::lease::Signal;
use super::owned::Owned;
use crate::config::Settings;
use crate::executor::retry::{FailedAttempt, RetryDecision, decide};
use crate::llm::{ChatAnswer, ChatRequest, LlmClient, LlmError, LlmErrorClass};
use crate::messages::{Command, EventType, RunKind};
use crate::plan::{CheckedPlan, PlanLimits, PlanProblem, ToolRules};
use crate::planner::repair::{self, AfterRefusal};
use crate::planner::{plan_of, prompt};
use crate::runs::{Begin, CancelMode, ModelCall, NewEvent, Next, RunStatus, Transition};
use crate::telemetry::labels;
use crate::tools::{Effects, ToolErrorClass, catalogue};

/// Model calls that planning one run may take, failed ones included.
const MAX_CALLS: u32 = 10;
/// A wait beyond this holds no worker: the run is parked.
pub(super) const PARK_BEYOND: Duration = Duration::from_secs(30);

/// Plans.
pub struct Planning {
    llm: Arc<dyn LlmClient>,
    settings: Arc<Settings>,
}

impl std::fmt::Debug for Planning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planning").finish_non_exhaustive()
    }
}

/// How a call, or the wait before it, ended without an answer.
enum NoAnswer {
    /// It failed for good.
    Failed { code: &'static str, message: String },
    /// The next attempt is far off.
    Park { after: Duration },
    /// A client asked for the run's end.
    Cancelled,
    /// The run is not this worker's any more.
    Lost,
}

impl Planning {
    /// Plans with `llm`.
    pub fn new(llm: Arc<dyn LlmClient>, settings: Arc<Settings>) -> Self {
        Self { llm, settings }
    }

    pub(super) fn begin(&self, command: &Command) -> Begin {
        let model = command.spec.model.as_ref().unwrap_or(&self.settings.model);
        let event = NewEvent {
            event_type: EventType::PlanStarted,
            data: json!({ "model": model }).to_string(),
            step: None,
            attempt: None,
            state: None,
        };
        Begin {
            set: BTreeMap::new(),
            events: vec![event],
        }
    }

    pub(super) async fn carry_out(&self, run: Owned) {
        let original = match self.first_request(&run) {
            Ok(request) => request,
            Err(message) => return fail(&run, run.transition(), "invalid_run", &message).await,
        };
        let mut request = original.clone();
        let mut calls = u32::try_from(run.fields.number("calls")).unwrap_or(MAX_CALLS);
        let mut repairs = 0;
        // Answers that an earlier owner recorded are not asked for again.
        let mut recorded = run.fields.journal().model_calls.into_values();
        let mut signal = run.signal();
        loop {
            let (answer, mut transition) = match recorded.next() {
                Some(call) => match open_answer(&run, &call) {
                    Ok(answer) => (answer, run.transition()),
                    Err(message) => {
                        return fail(&run, run.transition(), "invalid_run", &message).await;
                    }
                },
                None => match self.ask(&run, &request, &mut calls, &mut signal).await {
                    Ok((answer, took)) => {
                        let transition = Self::journal(&run, &answer, took, repairs + 1);
                        (answer, transition)
                    }
                    Err(no_answer) => return stop(&run, no_answer, calls).await,
                },
            };
            let outcome = self.plan(&run, &answer);
            if matches!(*signal.borrow_and_update(), Signal::Cancel(_)) {
                transition.next = Some(cancelled());
                return run.finish(transition).await;
            }
            match outcome {
                Ok(plan) => return Self::accept(&run, &answer, &plan, transition).await,
                Err(problems) => {
                    let left = MAX_CALLS.saturating_sub(calls);
                    if repair::after_refusal(repairs, left) == AfterRefusal::GiveUp {
                        let message = describe(&problems);
                        return fail(&run, transition, "plan_rejected", &message).await;
                    }
                    tracing::info!(problems = %describe(&problems), "the plan was refused; asking again");
                    repairs += 1;
                    request = repair::request(&original, &answer, &problems);
                    run.record(transition).await;
                }
            }
        }
    }

    fn first_request(&self, run: &Owned) -> Result<ChatRequest, String> {
        let spec = &run.command.spec;
        let open = |sealed| run.key.open(sealed).map_err(|e| e.to_string());
        let goal = spec.goal.as_ref().ok_or("the run has no goal")?;
        let goal = String::from_utf8(open(goal)?).map_err(|_| "the goal is not text")?;
        let context: Option<Value> = match &spec.context {
            Some(context) => serde_json::from_slice(&open(context)?).map_err(|e| e.to_string())?,
            None => None,
        };
        let allowed = |name: &str| {
            spec.tools_allowed
                .as_ref()
                .is_none_or(|t| t.iter().any(|t| t == name))
        };
        let tools: Vec<_> = catalogue::all()
            .iter()
            .filter(|tool| allowed(tool.name))
            .collect();
        Ok(prompt::request(&prompt::Goal {
            goal: &goal,
            context: context.as_ref(),
            tools: &tools,
            max_steps: self.max_steps(run),
            model: spec.model.as_ref().unwrap_or(&self.settings.model),
            max_output_tokens: self.settings.llm_max_output_tokens,
            traceparent: spec.traceparent.as_deref(),
        }))
    }

    fn max_steps(&self, run: &Owned) -> usize {
        self.settings
            .max_steps
            .min(run.command.spec.max_steps as usize)
    }

    fn plan(&self, run: &Owned, answer: &ChatAnswer) -> Result<CheckedPlan, Vec<PlanProblem>> {
        let limits = PlanLimits {
            max_steps: self.max_steps(run),
            max_plan_depth: self.settings.max_plan_depth,
            max_args_bytes: self.settings.max_args_bytes.0,
            allow_answer: true,
        };
        let rules = ToolRules {
            allowed: run.command.spec.tools_allowed.as_deref(),
            known: &|name| catalogue::find(name).is_some(),
            validate: &|name, args| catalogue::validate_args(name, args),
        };
        plan_of(answer, &limits, &rules)
    }

    /// Asks the model, again after failures that another attempt may not repeat.
    async fn ask(
        &self,
        run: &Owned,
        request: &ChatRequest,
        calls: &mut u32,
        signal: &mut watch::Receiver<Signal>,
    ) -> Result<(ChatAnswer, Duration), NoAnswer> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            *calls += 1;
            let started = Instant::now();
            let outcome = self.call(run, request, signal).await?;
            let took = started.elapsed();
            let result = if outcome.is_ok() { "ok" } else { "error" };
            let model = labels::model(&request.model);
            metrics::counter!("agenthub_llm_calls_total", "model" => model.clone(), "outcome" => result)
                .increment(1);
            metrics::histogram!("agenthub_llm_duration_ms", "model" => model)
                .record(took.as_secs_f64() * 1000.0);
            let error = match outcome {
                Ok(answer) => return Ok((answer, took)),
                Err(error) => error,
            };
            tracing::warn!(code = error.code, attempt, "the model call failed");
            let class = match error.class {
                LlmErrorClass::Transient { retry_after } => {
                    ToolErrorClass::Transient { retry_after }
                }
                LlmErrorClass::Permanent => ToolErrorClass::Permanent,
            };
            let decision = decide(&FailedAttempt {
                class,
                effects: Effects::None,
                may_have_arrived: true,
                attempt,
                max_attempts: self
                    .settings
                    .max_attempts
                    .min(attempt + MAX_CALLS.saturating_sub(*calls)),
                remaining: Duration::from_millis(run.remaining_ms()),
                chance: rand::rng().random(),
            });
            match decision {
                RetryDecision::Retry { after } if after > PARK_BEYOND => {
                    return Err(NoAnswer::Park { after });
                }
                RetryDecision::Retry { after } => wait(after, signal).await?,
                RetryDecision::GiveUp { .. } | RetryDecision::OutcomeUnknown => {
                    return Err(NoAnswer::Failed {
                        code: error.code,
                        message: error.message,
                    });
                }
            }
        }
    }

    /// One attempt. A graceful cancellation lets it end; a forced one drops it.
    async fn call(
        &self,
        run: &Owned,
        request: &ChatRequest,
        signal: &mut watch::Receiver<Signal>,
    ) -> Result<Result<ChatAnswer, LlmError>, NoAnswer> {
        let limit = self
            .settings
            .llm_timeout_ms
            .duration()
            .min(run.longest_call());
        // Names of the OpenTelemetry semantic conventions for generative AI.
        let span = tracing::info_span!(
            "chat",
            otel.name = %format!("chat {}", request.model),
            otel.kind = "client",
            gen_ai.operation.name = "chat",
            gen_ai.request.model = %request.model,
        );
        let call = self.llm.chat(request.clone()).instrument(span);
        let call = tokio::time::timeout(limit, call);
        tokio::pin!(call);
        loop {
            tokio::select! {
                answer = &mut call => {
                    return Ok(answer.unwrap_or_else(|_| Err(LlmError {
                        class: LlmErrorClass::Transient { retry_after: None },
                        code: "llm_timeout",
                        message: "the model did not answer in time".to_owned(),
                    })));
                }
                changed = signal.changed() => {
                    changed.map_err(|_| NoAnswer::Lost)?;
                    match *signal.borrow() {
                        Signal::Lost => return Err(NoAnswer::Lost),
                        Signal::Cancel(CancelMode::Force) => return Err(NoAnswer::Cancelled),
                        Signal::Cancel(CancelMode::Graceful) | Signal::Owned => {}
                    }
                }
            }
        }
    }

    /// The transition that records an answer and what it used.
    fn journal<'r>(
        run: &'r Owned,
        answer: &ChatAnswer,
        took: Duration,
        number: u32,
    ) -> Transition<'r> {
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let usage = run.settle(&answer.model, answer.usage);
        let call = ModelCall {
            model: answer.model.clone(),
            usage: answer.usage,
            cost_micro_usd: usage.cost_micro_usd,
            duration_ms,
            answer: run
                .key
                .seal(&serde_json::to_vec(answer).unwrap_or_default()),
        };
        let mut transition = run.transition();
        transition.set.insert(
            format!("m:{number}"),
            serde_json::to_string(&call).unwrap_or_default(),
        );
        transition.usage = Some(usage);
        transition.progress = true;
        let call = Call {
            action: "model_call",
            target: &answer.model,
            usage,
            duration_ms,
            refused_by: None,
        };
        transition.records.extend(run.audit(&call));
        transition
    }

    async fn accept(
        run: &Owned,
        answer: &ChatAnswer,
        plan: &CheckedPlan,
        mut transition: Transition<'_>,
    ) {
        let plan = plan.plan();
        let usage = transition.usage.unwrap_or_default();
        let value = serde_json::to_value(plan).unwrap_or_default();
        let sealed = run.key.seal(value.to_string().as_bytes());
        transition.events.push(NewEvent {
            event_type: EventType::PlanCreated,
            data: run.told(&json!({
                "plan": value,
                "model": answer.model,
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cost_micro_usd": usage.cost_micro_usd,
            })),
            step: None,
            attempt: None,
            state: Some(sealed.clone()),
        });
        transition.next = Some(match (run.command.spec.kind, &plan.answer) {
            (RunKind::PlanExecute, answer) if plan.steps.is_empty() => {
                transition
                    .set
                    .insert("plan".to_owned(), sealed.as_str().to_owned());
                let data = run.told(&json!({ "result": { "answer": answer, "outputs": {} } }));
                Next::End {
                    status: RunStatus::Succeeded,
                    data,
                    state: None,
                }
            }
            (RunKind::PlanExecute, _) => Next::Execute { plan: sealed },
            _ => {
                transition
                    .set
                    .insert("plan".to_owned(), sealed.as_str().to_owned());
                Next::End {
                    status: RunStatus::Succeeded,
                    data: run.told(&json!({ "plan": value })),
                    state: None,
                }
            }
        });
        run.finish(transition).await;
    }
}

async fn wait(time: Duration, signal: &mut watch::Receiver<Signal>) -> Result<(), NoAnswer> {
    let end = tokio::time::Instant::now() + time;
    loop {
        match *signal.borrow_and_update() {
            Signal::Owned => {}
            Signal::Cancel(_) => return Err(NoAnswer::Cancelled),
            Signal::Lost => return Err(NoAnswer::Lost),
        }
        tokio::select! {
            () = tokio::time::sleep_until(end) => return Ok(()),
            changed = signal.changed() => changed.map_err(|_| NoAnswer::Lost)?,
        }
    }
}

async fn stop(run: &Owned, no_answer: NoAnswer, calls: u32) {
    let mut transition = run.transition();
    match no_answer {
        NoAnswer::Failed { code, message } => fail(run, transition, code, &message).await,
        NoAnswer::Park { after } => {
            let wake_at = run
                .context
                .now_ms()
                .saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
            transition.set.insert("calls".to_owned(), calls.to_string());
            transition.next = Some(Next::Park { wake_at });
            run.finish(transition).await;
        }
        NoAnswer::Cancelled => {
            transition.next = Some(cancelled());
            run.finish(transition).await;
        }
        NoAnswer::Lost => tracing::info!("the run is not this worker's any more"),
    }
}

fn cancelled() -> Next {
    Next::End {
        status: RunStatus::Cancelled,
        data: "{}".to_owned(),
        state: None,
    }
}

async fn fail(run: &Owned, mut transition: Transition<'_>, code: &str, message: &str) {
    let data = run.context.failure(code, message);
    transition.set.insert("code".to_owned(), code.to_owned());
    transition.set.insert(
        "error".to_owned(),
        run.context.masker.text(message).to_string(),
    );
    transition.next = Some(Next::End {
        status: RunStatus::Failed,
        data,
        state: None,
    });
    run.finish(transition).await;
}

fn open_answer(run: &Owned, call: &ModelCall) -> Result<ChatAnswer, String> {
    let bytes = run.key.open(&call.answer).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

fn describe(problems: &[PlanProblem]) -> String {
    let one = |p: &PlanProblem| format!("{} at {}: {}", p.code, p.path, p.message);
    problems.iter().map(one).collect::<Vec<_>>().join("; ")
}
