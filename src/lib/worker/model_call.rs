//! Calls of the model: bounded, reserved, made, settled. Each attempt is a call of its own.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::watch;
use tracing::{Instrument, Span};

use super::audit::Call;
use super::chat_span;
use super::dead_letters::class_of;
use super::delta::Deltas;
use super::lease::Signal;
use super::llm_router::{LlmRouter, Route, Tried, Wanted};
use super::owned::{Owned, Standing};
use super::spending::{Bounded, Cost, Spent};
use crate::config::Settings;
use crate::executor::breaker::ASK_AGAIN;
use crate::executor::retry::{FailedAttempt, RetryDecision, decide};
use crate::llm::fallback::Choice;
use crate::llm::{
    ChatAnswer, ChatRequest, LlmError, LlmErrorClass, input_bound_tokens, is_unbilled,
};
use crate::messages::FailureClass;
use crate::pricing::Prices;
use crate::runs::{CancelMode, Fields, Transition};
use crate::telemetry::{self, TraceContext, labels};
use crate::tools::{Effects, ToolErrorClass};

/// A wait beyond this holds no worker: the run is parked.
pub(super) const PARK_BEYOND: Duration = Duration::from_secs(30);

/// As [`PARK_BEYOND`], for a circuit breaker: what fails makes many wait at once, and their places in
/// this worker are other tenants' too.
pub(super) const PARK_HELD_BEYOND: Duration = Duration::from_secs(5);

/// The model did not answer in time.
const TIMEOUT: &str = "llm_timeout";

/// Bounds the call `number` of a run.
pub(super) fn bound(
    prices: &Prices,
    number: u32,
    request: &ChatRequest,
) -> Result<Bounded, super::spending::Unpriced> {
    Bounded::new(
        prices,
        number.to_string(),
        &request.model,
        input_bound_tokens(request),
        request.max_output_tokens,
    )
}

/// An answer, and what it took.
pub(super) struct Answered<'r> {
    pub(super) answer: ChatAnswer,
    /// The number of the call that gave it.
    pub(super) number: u32,
    pub(super) cost: Cost,
    pub(super) took: Duration,
    /// The transition that settles the call; it is still to be recorded.
    pub(super) transition: Transition<'r>,
}

/// Why there is no answer, and the transition that settles what was called.
pub(super) struct Unanswered<'r> {
    pub(super) why: Why,
    pub(super) transition: Transition<'r>,
}

/// How a call, or the wait before it, ended without an answer.
pub(super) enum Why {
    /// It failed for good.
    Failed {
        code: &'static str,
        message: String,
        /// The dead letter that it makes of the run; none where a rule forbade the call.
        letter: Option<FailureClass>,
    },
    /// The next attempt is far off.
    Park { after: Duration },
    /// A client asked for the run's end.
    Cancelled,
    /// The run is not this worker's any more.
    Lost,
}

impl Why {
    /// No model that can be asked is allowed to the run's key.
    fn not_allowed() -> Self {
        Self::Failed {
            code: "model_not_allowed",
            message: "the run's key allows no model that can be asked".to_owned(),
            letter: None,
        }
    }

    /// There is no further attempt.
    fn given_up(error: LlmError, decision: RetryDecision) -> Self {
        Self::Failed {
            code: error.code,
            message: error.message,
            letter: class_of(decision),
        }
    }
}

/// The model calls of one run under one owner.
pub(super) struct ModelCalls<'r> {
    run: &'r Owned,
    llm: &'r LlmRouter,
    settings: &'r Settings,
    /// Calls that the run may make, failed ones included.
    max: u32,
    /// Calls that were reserved so far.
    made: u32,
    /// The call that the acquire reserved.
    reserved: Option<Bounded>,
    /// Whether answers are told while they are written.
    told: bool,
}

impl<'r> ModelCalls<'r> {
    /// Goes on where the run is. `first` is the call that the acquire was to reserve.
    pub(super) fn new(
        run: &'r Owned,
        llm: &'r LlmRouter,
        settings: &'r Settings,
        max: u32,
        first: Option<Bounded>,
    ) -> Self {
        let reserved = first.filter(|call| run.fresh && run.fields.is_open(&call.call));
        Self {
            run,
            llm,
            settings,
            max,
            made: last_call(&run.fields),
            reserved,
            told: false,
        }
    }

    /// Tells answers while they are written, unless the settings say otherwise.
    pub(super) fn told(mut self) -> Self {
        self.told = self.settings.llm_stream;
        self
    }

    /// Calls that were made so far, those of earlier owners included.
    pub(super) fn made(&self) -> u32 {
        self.made
    }

    /// Calls that may still be made.
    pub(super) fn left(&self) -> u32 {
        self.max.saturating_sub(self.made)
    }

    /// Asks the model, again after failures that another attempt may not repeat: the next endpoint at
    /// once, and all of them again after a wait. `transition` is recorded with the reservation of the
    /// next call.
    #[allow(clippy::too_many_lines)] // one call after the other, and what follows each
    pub(super) async fn ask(
        &mut self,
        request: &ChatRequest,
        mut transition: Transition<'r>,
        signal: &mut watch::Receiver<Signal>,
    ) -> Result<Answered<'r>, Unanswered<'r>> {
        let mut attempt = 0;
        let mut tried = Tried::default();
        let wanted = Wanted {
            model: &request.model,
            allowed: self.run.command.spec.models_allowed.as_deref(),
        };
        loop {
            let route = match self.llm.choose(wanted, &tried, None, |_| None).await {
                Ok(route) => route,
                Err(Choice::Forbidden) => {
                    self.give_back(&mut transition, "models_allowed");
                    let why = Why::not_allowed();
                    return Err(Unanswered { why, transition });
                }
                Err(choice) => {
                    self.give_back(&mut transition, "breaker_open");
                    tried = Tried::default();
                    match hold_on(choice, signal).await {
                        Ok(()) => continue,
                        Err(why) => return Err(Unanswered { why, transition }),
                    }
                }
            };
            attempt += 1;
            let request = &ChatRequest {
                model: route.model.clone(),
                ..request.clone()
            };
            let reserved = self.reserved.take_if(|call| call.model == request.model);
            let bounded = if let Some(bounded) = reserved {
                self.run.not_recorded(transition);
                bounded
            } else {
                self.give_back(&mut transition, "breaker_open");
                self.reserve(request, transition).await?
            };
            let started = Instant::now();
            let span = self.span(request, attempt);
            let outcome = match self.call(&route, request, &span, signal).await {
                Ok(outcome) => outcome,
                Err(why) => {
                    telemetry::failed(&span, "abandoned");
                    let transition = self.run.transition();
                    return Err(Unanswered { why, transition });
                }
            };
            let place = route.place;
            let hurried = self.run.longest_call() < self.settings.llm_timeout_ms.duration();
            match &outcome {
                // The run's end was near: that says nothing of the endpoint.
                Err(error) if hurried && error.code == TIMEOUT => drop(route),
                _ => route.report(&outcome),
            }
            let took = started.elapsed();
            count(&request.model, outcome.is_ok(), took);
            transition = self.run.transition();
            transition.progress = true;
            let spent = match &outcome {
                Ok(answer) => answer.usage.map_or(Spent::Unknown, Spent::Known),
                Err(error) if is_unbilled(error.code) => Spent::Nothing,
                Err(_) => Spent::Unknown,
            };
            let audit = Call {
                action: "model_call",
                target: outcome
                    .as_ref()
                    .map_or(&request.model, |answer| &answer.model),
                cost: Cost::default(),
                duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                refused_by: None,
            };
            let (settlement, cost) = self.run.settle(&bounded, spent, audit);
            chat_span::settled(span, &outcome, cost);
            transition.settle.push(settlement);
            let error = match outcome {
                Ok(answer) => {
                    return Ok(Answered {
                        answer,
                        number: self.made,
                        cost,
                        took,
                        transition,
                    });
                }
                Err(error) => error,
            };
            tracing::warn!(code = error.code, attempt, "the model call failed");
            tried.failed(place, error.class);
            let stopped = match self.after(&error, attempt) {
                RetryDecision::Retry { .. } if self.llm.has_another(wanted, &tried) => {
                    continue;
                }
                RetryDecision::Retry { after } if after > PARK_BEYOND => Why::Park { after },
                RetryDecision::Retry { after } => match wait(after, signal).await {
                    Ok(()) => {
                        tried = Tried::default();
                        continue;
                    }
                    Err(why) => why,
                },
                decision => Why::given_up(error, decision),
            };
            return Err(Unanswered {
                why: stopped,
                transition,
            });
        }
    }

    /// Settles the call that the acquire reserved, when it is not made.
    fn give_back(&mut self, transition: &mut Transition<'r>, rule: &str) {
        let Some(bounded) = self.reserved.take() else {
            return;
        };
        let audit = Call {
            action: "model_call",
            target: &bounded.model,
            cost: Cost::default(),
            duration_ms: 0,
            refused_by: Some(rule),
        };
        let (settlement, _) = self.run.settle(&bounded, Spent::Nothing, audit);
        transition.settle.push(settlement);
    }

    /// Reserves the next call together with what the transition holds.
    async fn reserve(
        &mut self,
        request: &ChatRequest,
        mut transition: Transition<'r>,
    ) -> Result<Bounded, Unanswered<'r>> {
        let bounded = match bound(&self.run.context.prices, self.made + 1, request) {
            Ok(bounded) => bounded,
            Err(error) => {
                let (code, message) = ("model_unpriced", error.to_string());
                let why = Why::Failed {
                    code,
                    message,
                    letter: None,
                };
                return Err(Unanswered { why, transition });
            }
        };
        transition.reserve.push(bounded.reservation());
        let why = match self.run.record(transition).await {
            Standing::Owned => {
                self.made += 1;
                return Ok(bounded);
            }
            Standing::OverBudget(refused) => {
                let message = super::over_budget(refused.first());
                let code = "budget_exceeded";
                Why::Failed {
                    code,
                    message,
                    letter: None,
                }
            }
            Standing::Cancel(_) => Why::Cancelled,
            Standing::Lost => Why::Lost,
        };
        let transition = self.run.transition();
        Err(Unanswered { why, transition })
    }

    fn after(&self, error: &LlmError, attempt: u32) -> RetryDecision {
        let class = match error.class {
            LlmErrorClass::Transient { retry_after } => ToolErrorClass::Transient { retry_after },
            LlmErrorClass::Permanent => ToolErrorClass::Permanent,
        };
        decide(&FailedAttempt {
            class,
            effects: Effects::None,
            may_have_arrived: true,
            attempt,
            max_attempts: self.settings.max_attempts.min(attempt + self.left()),
            retries_left: u32::MAX, // `max` is the run's limit
            remaining: Duration::from_millis(self.run.remaining_ms()),
            chance: rand::rng().random(),
        })
    }

    /// The span of one attempt.
    fn span(&self, request: &ChatRequest, attempt: u32) -> Span {
        let span = chat_span::begin(request);
        let spec = &self.run.command.spec;
        for (name, value) in [
            ("tenant", spec.tenant.to_string()),
            ("key_id", spec.key_id.to_string()),
            ("session_id", spec.session_id.to_string()),
            ("run_id", spec.run_id.to_string()),
        ] {
            telemetry::note(&span, name, value);
        }
        telemetry::note(&span, "attempt", i64::from(attempt));
        telemetry::note(&span, "call", i64::from(self.made));
        span
    }

    /// One attempt. A graceful cancellation lets it end; a forced one drops it.
    async fn call(
        &self,
        route: &Route,
        request: &ChatRequest,
        span: &Span,
        signal: &mut watch::Receiver<Signal>,
    ) -> Result<Result<ChatAnswer, LlmError>, Why> {
        let limit = self.settings.llm_timeout_ms.duration();
        let limit = limit.min(self.run.longest_call());
        let mut request = request.clone();
        // The provider goes on from this call.
        if let Some(here) = TraceContext::of(span) {
            request.traceparent = Some(here.to_string());
        }
        let deltas = self.told.then(|| Deltas::new(self.run, self.made));
        let heard = |text: &str| deltas.iter().for_each(|deltas| deltas.heard(text));
        let call = async {
            if self.told {
                route.client.chat_streamed(request, &heard).await
            } else {
                route.client.chat(request).await
            }
        };
        let call = tokio::time::timeout(limit, call.instrument(span.clone()));
        let telling = async {
            match &deltas {
                Some(deltas) => deltas.tell().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(call, telling);
        loop {
            tokio::select! {
                never = &mut telling => match never {},
                answer = &mut call => {
                    if let (Some(deltas), Ok(Ok(_))) = (&deltas, &answer) {
                        deltas.finish().await;
                    }
                    return Ok(answer.unwrap_or_else(|_| Err(LlmError {
                        class: LlmErrorClass::Transient { retry_after: None },
                        code: TIMEOUT,
                        message: "the model did not answer in time".to_owned(),
                    })));
                }
                changed = signal.changed() => {
                    changed.map_err(|_| Why::Lost)?;
                    match *signal.borrow() {
                        Signal::Lost => return Err(Why::Lost),
                        Signal::Cancel(CancelMode::Force) => return Err(Why::Cancelled),
                        Signal::Cancel(CancelMode::Graceful) | Signal::Owned => {}
                    }
                }
            }
        }
    }
}

fn count(model: &str, answered: bool, took: Duration) {
    let outcome = if answered { "ok" } else { "error" };
    let model = labels::model(model);
    metrics::counter!("agenthub_llm_calls_total", "model" => model.clone(), "outcome" => outcome)
        .increment(1);
    metrics::histogram!("agenthub_llm_duration_ms", "model" => model)
        .record(took.as_secs_f64() * 1000.0);
}

/// The number of the last model call that was reserved, or whose answer was taken over.
fn last_call(fields: &Fields) -> u32 {
    let numbers = fields.calls().filter_map(|call| call.parse().ok());
    let answered = fields.answered_calls();
    numbers.chain(answered).max().unwrap_or(0)
}

/// Waits until an endpoint may be asked, or says that the run is to be parked meanwhile.
async fn hold_on(choice: Choice, signal: &mut watch::Receiver<Signal>) -> Result<(), Why> {
    let after = match choice {
        Choice::Wait(after) => after,
        // Another call took the last place for a probe; without a budget, nothing else comes up.
        Choice::Ask(_)
        | Choice::Exhausted
        | Choice::Unaffordable
        | Choice::Final
        | Choice::Forbidden => ASK_AGAIN,
    };
    // Apart from each other, or all who were held back would come back at once.
    let after = after.mul_f64(rand::rng().random_range(1.0..1.1)) + Duration::from_millis(20);
    tracing::info!(
        wait_ms = after.as_millis(),
        "no endpoint of the model may be asked now"
    );
    if after > PARK_HELD_BEYOND {
        return Err(Why::Park { after });
    }
    wait(after, signal).await
}

async fn wait(time: Duration, signal: &mut watch::Receiver<Signal>) -> Result<(), Why> {
    let end = tokio::time::Instant::now() + time;
    loop {
        match *signal.borrow_and_update() {
            Signal::Owned => {}
            Signal::Cancel(_) => return Err(Why::Cancelled),
            Signal::Lost => return Err(Why::Lost),
        }
        tokio::select! {
            () = tokio::time::sleep_until(end) => return Ok(()),
            changed = signal.changed() => changed.map_err(|_| Why::Lost)?,
        }
    }
}
