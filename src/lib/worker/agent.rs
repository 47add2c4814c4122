//! What a planner does with an agent's run: asks the model for the next turn, and hands its calls to the
//! executor, which hands the run back when they are done.
//!
//! Invariant: the conversation is made of the journal alone. An answer is recorded with what follows it, in
//! one transition, so that a worker that takes the run over asks no recorded question again.

use serde_json::json;

use super::lease::Signal;
use super::llm_router::LlmRouter;
use super::model_call::ModelCalls;
use super::owned::Owned;
use super::planning::{cancelled, fail, journal, open_answer, stop};
use super::spending::{Bounded, Cost};
use crate::config::Settings;
use crate::llm::{ChatAnswer, ChatRequest};
use crate::messages::{EventType, FailureClass};
use crate::plan::{Plan, PlanLimits, ToolRules};
use crate::planner::agent::{self, CallResult, Calls, MAX_CALLS, Said, Turn, step_id};
use crate::runs::{NewEvent, Next, RunStatus, StepEntry, StepStatus, Transition};
use crate::tools::catalogue;

/// Model calls that a run may take besides one a turn: failed ones.
const MAX_FAILED_CALLS: u32 = 10;

/// Takes an agent's turns until its calls go to the executor or it ends.
pub(super) async fn carry_out(
    run: Owned,
    llm: &LlmRouter,
    settings: &Settings,
    opening: &ChatRequest,
    first: Option<Bounded>,
) {
    let mut agent = match Agent::of(&run, settings) {
        Ok(agent) => agent,
        Err((code, message)) => {
            let letter = Some((FailureClass::Permanent, 1));
            return fail(&run, run.transition(), code, &message, letter).await;
        }
    };
    let most = u32::try_from(settings.max_turns).unwrap_or(u32::MAX);
    let most = most.saturating_add(MAX_FAILED_CALLS);
    let mut calls = ModelCalls::new(&run, llm, settings, most, first).told();
    let mut signal = run.signal();
    let mut transition = run.transition();
    let mut recorded = agent.take_unfollowed();
    loop {
        let (answer, number, cost) = if let Some((answer, number)) = recorded.take() {
            (answer, number, Cost::default())
        } else {
            if agent.turns.len() >= settings.max_turns {
                return out_of_turns(&run, settings, transition).await;
            }
            let question = agent.question(opening);
            let mut answered = match calls.ask(&question, transition, &mut signal).await {
                Ok(answered) => answered,
                Err(unanswered) => return stop(&run, unanswered, calls.made()).await,
            };
            journal(&run, &mut answered);
            transition = answered.transition;
            (answered.answer, answered.number, answered.cost)
        };
        if matches!(*signal.borrow_and_update(), Signal::Cancel(_)) {
            transition.next = Some(cancelled());
            return run.finish(transition).await;
        }
        match agent::said(&answer) {
            Said::Answer(text) => {
                transition.next = Some(Next::End {
                    status: RunStatus::Succeeded,
                    data: run.told(&json!({ "result": { "answer": text } })),
                    state: Some(run.key.seal(text.as_bytes())),
                });
                return run.finish(transition).await;
            }
            Said::Nothing(why) => {
                tracing::info!(why, "the answer was refused; asking again");
                agent.turns.push(Turn {
                    answer,
                    results: Vec::new(),
                });
            }
            // Nobody would look at what these give.
            Said::Calls if agent.is_last_turn() => {
                return out_of_turns(&run, settings, transition).await;
            }
            Said::Calls => {
                let made = agent.calls(&answer);
                tell(
                    &run,
                    &mut transition,
                    &agent,
                    (&answer, number),
                    cost,
                    &made,
                );
                if !made.steps.is_empty() {
                    let plan = Plan {
                        steps: made.steps,
                        answer: None,
                    };
                    let plan = serde_json::to_vec(&plan).unwrap_or_default();
                    transition.next = Some(Next::Execute {
                        plan: run.key.seal(&plan),
                    });
                    return run.finish(transition).await;
                }
                // Nothing to execute: the model is told why at once.
                agent.refused(answer, &made);
            }
        }
    }
}

async fn out_of_turns(run: &Owned, settings: &Settings, transition: Transition<'_>) {
    let message = format!("the model gave no answer in {} turns", settings.max_turns);
    // A limit that the operator set, and no failure.
    fail(run, transition, "max_turns_exceeded", &message, None).await;
}

/// Where an agent is.
struct Agent<'r> {
    run: &'r Owned,
    settings: &'r Settings,
    turns: Vec<Turn>,
    /// The last answer and the number of its call, when nothing that follows it is in the journal.
    unfollowed: Option<(ChatAnswer, u32)>,
    /// Calls that were made so far.
    made: usize,
}

impl<'r> Agent<'r> {
    /// From the run's journal. An error means that something recorded does not open, or is not there: a
    /// rebuild knows no answers, and going on without them would repeat their calls.
    fn of(run: &'r Owned, settings: &'r Settings) -> Result<Self, (&'static str, String)> {
        let invalid = |message| ("invalid_run", message);
        let journal = run.fields.journal();
        let mut turns = Vec::new();
        for call in journal.model_calls.values() {
            let answer = open_answer(run, call).map_err(invalid)?;
            let number = turns.len() + 1;
            let calls = answer.tool_calls.len().min(MAX_CALLS);
            let results = (0..calls)
                .map(|index| result(run, journal.steps.get(&step_id(number, index))))
                .collect::<Result<_, String>>()
                .map_err(invalid)?;
            turns.push(Turn { answer, results });
        }
        let answered = turns.len();
        let turn_of = |id: &String| agent::turn_of(id).map_or(0, |turn| turn as usize);
        let is_beyond = |id: &String| turn_of(id) > answered;
        if journal.steps.keys().any(is_beyond) {
            return Err((
                "journal_lost",
                "an answer whose calls were made is lost".to_owned(),
            ));
        }
        let made = journal.steps.values().filter(|step| step.attempts > 0);
        let made = made.count();
        let followed = journal.steps.keys().any(|id| turn_of(id) == answered);
        let last = journal.model_calls.keys().next_back().copied();
        let mut unfollowed = None;
        if let (Some(turn), Some(number), false) = (turns.last(), last, followed)
            && !matches!(agent::said(&turn.answer), Said::Nothing(_))
        {
            unfollowed = turns.pop().map(|turn| (turn.answer, number));
        }
        Ok(Self {
            run,
            settings,
            turns,
            unfollowed,
            made,
        })
    }

    /// The last answer, when it was recorded and nothing followed: a retry goes on after a run that ended with
    /// it, and a rebuild knows an answer whose handover is lost.
    fn take_unfollowed(&mut self) -> Option<(ChatAnswer, u32)> {
        self.unfollowed.take()
    }

    fn max_steps(&self) -> usize {
        let asked = self.run.command.spec.max_steps as usize;
        self.settings.max_steps.min(asked)
    }

    fn is_last_turn(&self) -> bool {
        self.turns.len() + 1 >= self.settings.max_turns
    }

    /// The next question. The last one, and one after which no call can be made, wants an answer in text.
    fn question(&self, opening: &ChatRequest) -> ChatRequest {
        let max = self.settings.max_shown_bytes.0;
        let mut question = agent::question(opening, &self.turns, max);
        question.text_only = self.is_last_turn() || self.made >= self.max_steps();
        question
    }

    /// The calls of an answer, which is not yet one of the turns.
    fn calls(&self, answer: &ChatAnswer) -> Calls {
        let limits = PlanLimits {
            max_steps: self.max_steps().saturating_sub(self.made),
            max_plan_depth: self.settings.max_plan_depth,
            max_args_bytes: self.settings.max_args_bytes.0,
            allow_answer: false,
        };
        let rules = ToolRules {
            allowed: self.run.command.spec.tools_allowed.as_deref(),
            known: &|name| catalogue::find(name).is_some(),
            validate: &|name, args| catalogue::validate_args(name, args),
        };
        agent::calls(answer, self.turns.len() + 1, &limits, &rules)
    }

    /// Adds a turn of which no call was made.
    fn refused(&mut self, answer: ChatAnswer, calls: &Calls) {
        let masker = &self.run.context.masker;
        let results = calls.refused.iter().map(|call| CallResult::Failed {
            code: call.code.to_owned(),
            message: masker.text(&call.message).to_string(),
        });
        let results = results.collect();
        self.turns.push(Turn { answer, results });
    }
}

/// What a step gave, for the model.
fn result(run: &Owned, entry: Option<&StepEntry>) -> Result<CallResult, String> {
    let Some(entry) = entry else {
        return Ok(CallResult::Failed {
            code: "not_run".to_owned(),
            message: "the call was not made".to_owned(),
        });
    };
    if let Some(output) = &entry.output {
        let bytes = run.key.open(output).map_err(|e| e.to_string())?;
        let value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        return Ok(CallResult::Output(value));
    }
    let message = match &entry.error {
        Some(error) => run.key.open(error).map_err(|e| e.to_string())?,
        None => Vec::new(),
    };
    Ok(CallResult::Failed {
        code: entry.code.clone().unwrap_or_default(),
        message: String::from_utf8_lossy(&message).into_owned(),
    })
}

/// Tells a turn's calls, and journals those that are refused as steps that failed.
fn tell(
    run: &Owned,
    transition: &mut Transition<'_>,
    agent: &Agent<'_>,
    (answer, number): (&ChatAnswer, u32),
    cost: Cost,
    calls: &Calls,
) {
    let text = answer.content.as_deref().map(str::trim);
    transition.events.push(NewEvent {
        event_type: EventType::PlanCreated,
        data: run.told(&json!({
            "turn": agent.turns.len() + 1,
            "call": number,
            "plan": { "steps": calls.steps, "answer": text.filter(|text| !text.is_empty()) },
            "refused": agent::refused(&calls.refused),
            "model": answer.model,
            "input_tokens": cost.input_tokens,
            "output_tokens": cost.output_tokens,
            "cost_micro_usd": cost.micro_usd,
        })),
        step: None,
        attempt: None,
        state: Some(
            run.key
                .seal(&serde_json::to_vec(answer).unwrap_or_default()),
        ),
    });
    let now = run.context.now_ms();
    for call in &calls.refused {
        let masked = |text: &str| run.context.masker.text(text).to_string();
        let entry = StepEntry {
            status: StepStatus::Failed,
            ended_ms: Some(now),
            code: Some(call.code.to_owned()),
            error: Some(run.key.seal(masked(&call.message).as_bytes())),
            ..StepEntry::begun(&masked(&call.tool), 0, now)
        };
        transition.events.push(NewEvent {
            event_type: EventType::StepFailed,
            data: run
                .told(&json!({ "tool": call.tool, "code": call.code, "message": call.message })),
            step: Some(call.id.clone()),
            attempt: None,
            state: entry.error.clone(),
        });
        let entry = serde_json::to_string(&entry).unwrap_or_default();
        transition.set.insert(format!("s:{}", call.id), entry);
    }
}
