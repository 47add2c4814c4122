//! What a planner does with a run: asks the model for a plan, checks it, and hands it over. What it does
//! with an agent's run is in `agent`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::agent;
use super::dead_letters::{Ending, MODEL};
use super::lease::Signal;
use super::llm_router::LlmRouter;
use super::model_call::{self, Answered, ModelCalls, Unanswered, Why};
use super::owned::Owned;
use super::spending::{Bounded, Cost};
use crate::config::Settings;
use crate::llm::{ChatAnswer, ChatRequest};
use crate::messages::{Command, EventType, FailureClass, RunKind, Told};
use crate::plan::{CheckedPlan, PlanLimits, PlanProblem, ToolRules};
use crate::planner::repair::{self, AfterRefusal};
use crate::planner::{plan_of, prompt};
use crate::pricing::Prices;
use crate::privacy::DataKey;
use crate::runs::{Begin, ModelCall, NewEvent, Next, RunStatus, Transition};
use crate::tools::catalogue;

/// Model calls that planning one run may take, failed ones included.
const MAX_CALLS: u32 = 10;

/// Plans.
pub struct Planning {
    llm: LlmRouter,
    settings: Arc<Settings>,
}

impl std::fmt::Debug for Planning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planning").finish_non_exhaustive()
    }
}

/// What planning a run begins with.
pub(super) struct Prepared {
    /// The first request, or why there can be none.
    request: Result<ChatRequest, String>,
    /// The bound of the first call, where its model has a price.
    first: Option<Bounded>,
}

impl Planning {
    /// Plans with `llm`.
    pub fn new(llm: LlmRouter, settings: Arc<Settings>) -> Self {
        Self { llm, settings }
    }

    /// Builds the first request and bounds what it can cost.
    pub(super) fn prepare(&self, command: &Command, key: &DataKey, prices: &Prices) -> Prepared {
        let request = self.first_request(command, key);
        // A later question is made of the journal, which only the owner reads.
        let first = request.as_ref().ok().filter(|_| command.turn == 0);
        let first = first.and_then(|request| model_call::bound(prices, 1, request).ok());
        Prepared { request, first }
    }

    pub(super) fn begin(&self, command: &Command, prepared: &Prepared) -> Begin {
        let model = command.spec.model.as_ref().unwrap_or(&self.settings.model);
        let mut data = json!({ "model": model });
        if command.spec.kind == RunKind::Agent {
            data["turn"] = json!(command.turn + 1);
        }
        let event = NewEvent {
            event_type: EventType::PlanStarted,
            data: Told::plain(&data),
            step: None,
            attempt: None,
            state: None,
        };
        Begin {
            set: BTreeMap::new(),
            events: vec![event],
            reserve: prepared.first.iter().map(Bounded::reservation).collect(),
        }
    }

    pub(super) async fn carry_out(&self, run: Owned, prepared: Prepared) {
        let original = match prepared.request {
            Ok(request) => request,
            Err(message) => return invalid(&run, run.transition(), &message).await,
        };
        if run.command.spec.kind == RunKind::Agent {
            let (llm, settings) = (&self.llm, &self.settings);
            // Boxed, so that the runs of plans do not carry its size.
            let agent = agent::carry_out(run, llm, settings, &original, prepared.first);
            return Box::pin(agent).await;
        }
        let mut calls = ModelCalls::new(&run, &self.llm, &self.settings, MAX_CALLS, prepared.first);
        let mut request = None;
        let mut repairs = 0;
        // Answers that an earlier owner recorded are not asked for again.
        let mut recorded = run.fields.journal().model_calls.into_values();
        let mut signal = run.signal();
        let mut transition = run.transition();
        loop {
            let (answer, cost) = if let Some(call) = recorded.next() {
                match open_answer(&run, &call) {
                    Ok(answer) => (answer, Cost::default()),
                    Err(message) => return invalid(&run, transition, &message).await,
                }
            } else {
                let request = request.as_ref().unwrap_or(&original);
                match calls.ask(request, transition, &mut signal).await {
                    Ok(mut answered) => {
                        journal(&run, &mut answered);
                        transition = answered.transition;
                        (answered.answer, answered.cost)
                    }
                    Err(unanswered) => return stop(&run, unanswered, calls.made()).await,
                }
            };
            let outcome = self.plan(&run, &answer);
            if matches!(*signal.borrow_and_update(), Signal::Cancel(_)) {
                transition.next = Some(cancelled());
                return run.finish(transition).await;
            }
            match outcome {
                Ok(plan) => return Self::accept(&run, &answer, cost, &plan, transition).await,
                Err(problems) => {
                    if repair::after_refusal(repairs, calls.left()) == AfterRefusal::GiveUp {
                        let message = describe(&problems);
                        let letter = Some((FailureClass::Permanent, calls.made()));
                        return fail(&run, transition, "plan_rejected", &message, letter).await;
                    }
                    tracing::info!(problems = %describe(&problems), "the plan was refused; asking again");
                    repairs += 1;
                    request = Some(repair::request(&original, &answer, &problems));
                }
            }
        }
    }

    fn first_request(&self, command: &Command, key: &DataKey) -> Result<ChatRequest, String> {
        let spec = &command.spec;
        let open = |sealed| key.open(sealed).map_err(|e| e.to_string());
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
        let goal = prompt::Goal {
            goal: &goal,
            context: context.as_ref(),
            tools: &tools,
            max_steps: self.max_steps(command),
            model: spec.model.as_ref().unwrap_or(&self.settings.model),
            max_output_tokens: self.settings.llm_max_output_tokens,
            traceparent: spec.traceparent.as_deref(),
        };
        Ok(match spec.kind {
            RunKind::Agent => crate::planner::agent::opening(&goal),
            _ => prompt::request(&goal),
        })
    }

    fn max_steps(&self, command: &Command) -> usize {
        self.settings.max_steps.min(command.spec.max_steps as usize)
    }

    fn plan(&self, run: &Owned, answer: &ChatAnswer) -> Result<CheckedPlan, Vec<PlanProblem>> {
        let limits = PlanLimits {
            max_steps: self.max_steps(&run.command),
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

    async fn accept(
        run: &Owned,
        answer: &ChatAnswer,
        cost: Cost,
        plan: &CheckedPlan,
        mut transition: Transition<'_>,
    ) {
        let plan = plan.plan();
        let value = serde_json::to_value(plan).unwrap_or_default();
        let sealed = run.key.seal(value.to_string().as_bytes());
        transition.events.push(NewEvent {
            event_type: EventType::PlanCreated,
            data: run.told(&json!({
                "plan": value,
                "model": answer.model,
                "input_tokens": cost.input_tokens,
                "output_tokens": cost.output_tokens,
                "cost_micro_usd": cost.micro_usd,
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

/// Puts an answer into the journal.
pub(super) fn journal(run: &Owned, answered: &mut Answered<'_>) {
    let call = ModelCall {
        model: answered.answer.model.clone(),
        usage: answered.answer.usage,
        cost_micro_usd: answered.cost.micro_usd,
        duration_ms: u64::try_from(answered.took.as_millis()).unwrap_or(u64::MAX),
        answer: run
            .key
            .seal(&serde_json::to_vec(&answered.answer).unwrap_or_default()),
    };
    answered.transition.set.insert(
        format!("m:{}", answered.number),
        serde_json::to_string(&call).unwrap_or_default(),
    );
}

pub(super) async fn stop(run: &Owned, unanswered: Unanswered<'_>, calls: u32) {
    let mut transition = unanswered.transition;
    match unanswered.why {
        Why::Failed {
            code,
            message,
            letter,
        } => {
            let letter = letter.map(|class| (class, calls));
            fail(run, transition, code, &message, letter).await;
        }
        Why::Park { after } => {
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let wake_at = run.context.now_ms().saturating_add(after);
            transition.next = Some(Next::Park { wake_at });
            run.finish(transition).await;
        }
        Why::Cancelled => {
            transition.next = Some(cancelled());
            run.finish(transition).await;
        }
        Why::Lost => {
            tracing::info!("the run is not this worker's any more");
            run.record_spending(transition).await;
        }
    }
}

pub(super) fn cancelled() -> Next {
    Next::End {
        status: RunStatus::Cancelled,
        data: Told::nothing(),
        state: None,
    }
}

/// What was stored of the run cannot be read: another attempt would not read it either.
pub(super) async fn invalid(run: &Owned, transition: Transition<'_>, message: &str) {
    let letter = Some((FailureClass::Permanent, 1));
    fail(run, transition, "invalid_run", message, letter).await;
}

/// Ends the run. `letter` is the class of its dead letter and the attempts that were made.
pub(super) async fn fail(
    run: &Owned,
    mut transition: Transition<'_>,
    code: &str,
    message: &str,
    letter: Option<(FailureClass, u32)>,
) {
    transition.letter = letter.and_then(|(class, attempts)| {
        run.dead_letter(&Ending {
            class,
            error: message,
            attempts,
            code,
            tool: Some(MODEL),
            step: None,
            breaker: None,
        })
    });
    let data = run.failure(code, message);
    transition.set.insert("code".to_owned(), code.to_owned());
    transition.next = Some(Next::End {
        status: RunStatus::Failed,
        data,
        state: None,
    });
    run.finish(transition).await;
}

pub(super) fn open_answer(run: &Owned, call: &ModelCall) -> Result<ChatAnswer, String> {
    let bytes = run.key.open(&call.answer).map_err(|e| e.to_string())?;
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

fn describe(problems: &[PlanProblem]) -> String {
    let one = |p: &PlanProblem| format!("{} at {}: {}", p.code, p.path, p.message);
    problems.iter().map(one).collect::<Vec<_>>().join("; ")
}
