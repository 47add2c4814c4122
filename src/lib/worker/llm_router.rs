//! The model client of a worker: the first endpoint, and the fall-backs when its circuit breaker holds
//! calls back or the call failed in a way that another endpoint may not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::Instrument;

use super::breakers::{Breakers, Guarded, Permit};
use super::chat_span;
use crate::executor::breaker::Verdict;
use crate::llm::endpoints::Endpoint;
use crate::llm::fallback::{Candidate, Choice, choose};
use crate::llm::{ChatAnswer, ChatRequest, LlmClient, LlmError, LlmErrorClass, is_unbilled};
use crate::telemetry::TraceContext;

/// An endpoint and its client.
struct Place {
    endpoint: Endpoint,
    client: Arc<dyn LlmClient>,
    guarded: Guarded,
}

/// Leads calls of models to endpoints.
#[derive(Clone)]
pub struct LlmRouter {
    places: Arc<[Place]>,
    breakers: Arc<Breakers>,
    /// A call that is dropped after this time was waited for in vain.
    patience: Duration,
}

impl fmt::Debug for LlmRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.places.iter().map(|place| &place.endpoint.name);
        f.debug_list().entries(names).finish()
    }
}

/// Where a call goes. Its outcome is to be reported; dropped without, it says nothing of the endpoint.
pub struct Route {
    /// The endpoint's place in the list.
    pub place: usize,
    /// The model to ask for.
    pub model: String,
    /// Its client.
    pub client: Arc<dyn LlmClient>,
    permit: Permit,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("place", &self.place)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

impl Route {
    /// Says how the call ended. A refusal by the provider is an answer: the endpoint works.
    pub fn report(self, outcome: &Result<ChatAnswer, LlmError>) {
        let failed = outcome
            .as_ref()
            .is_err_and(|error| matches!(error.class, LlmErrorClass::Transient { .. }));
        self.permit.report(if failed {
            Verdict::Failure
        } else {
            Verdict::Success
        });
    }
}

/// What is to be asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The model that the request names.
    pub model: &'a str,
    /// The models that may be asked in its stead; all when absent.
    pub allowed: Option<&'a [String]>,
}

/// The course of one call over the endpoints.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    places: Vec<usize>,
    last: Option<LlmErrorClass>,
}

impl Tried {
    /// Notes that the endpoint at this place failed.
    pub fn failed(&mut self, place: usize, class: LlmErrorClass) {
        self.places.push(place);
        self.last = Some(class);
    }
}

impl LlmRouter {
    /// Leads to `endpoints`, the first one first, each with its client. `timeout` is that of one call.
    pub fn new(
        endpoints: Vec<(Endpoint, Arc<dyn LlmClient>)>,
        breakers: Arc<Breakers>,
        timeout: Duration,
    ) -> Self {
        let places = endpoints.into_iter().map(|(endpoint, client)| Place {
            guarded: Guarded::endpoint(&endpoint.name),
            endpoint,
            client,
        });
        Self {
            places: places.collect(),
            breakers,
            // Whoever waits just as long may be a little quicker than the client's own timeout.
            patience: timeout.mul_f64(0.9),
        }
    }

    /// The next endpoint for a call. `bound` is the most that the call can cost with
    /// a model, in millionths of a US dollar, and `budget` what may still be spent.
    pub async fn choose(
        &self,
        wanted: Wanted<'_>,
        tried: &Tried,
        budget: Option<u64>,
        bound: impl Fn(&str) -> Option<u64>,
    ) -> Result<Route, Choice> {
        if let Some(first) = self.places.first() {
            self.breakers.read(&first.guarded.tenant).await;
        }
        let mut candidates = self.candidates(wanted, tried, bound);
        loop {
            let place = match choose(&candidates, budget, tried.last) {
                Choice::Ask(place) => place,
                other => return Err(other),
            };
            let at = &self.places[place];
            match self.breakers.admit(&at.guarded).await {
                Ok(permit) => {
                    return Ok(Route {
                        place,
                        model: at.model(wanted.model).to_owned(),
                        client: at.client.clone(),
                        permit: permit.with_patience(self.patience),
                    });
                }
                // Another call was quicker. Never zero, so that the loop ends.
                Err(wait) => candidates[place].held_for = wait.max(Duration::from_millis(1)),
            }
        }
    }
}

impl LlmRouter {
    /// Whether an endpoint that has not failed yet may be asked, as far as this worker knows.
    pub fn has_another(&self, wanted: Wanted<'_>, tried: &Tried) -> bool {
        let candidates = self.candidates(wanted, tried, |_| None);
        matches!(choose(&candidates, None, tried.last), Choice::Ask(_))
    }

    fn candidates(
        &self,
        Wanted { model, allowed }: Wanted<'_>,
        tried: &Tried,
        bound: impl Fn(&str) -> Option<u64>,
    ) -> Vec<Candidate> {
        let may = |model: &str| allowed.is_none_or(|models| models.iter().any(|m| m == model));
        let candidate = |(place, at): (usize, &Place)| Candidate {
            held_for: self.breakers.wait(&at.guarded),
            bound_micro_usd: bound(at.model(model)),
            failed: tried.places.contains(&place),
            allowed: may(at.model(model)),
        };
        self.places.iter().enumerate().map(candidate).collect()
    }
}

impl Place {
    fn model<'a>(&'a self, requested: &'a str) -> &'a str {
        self.endpoint.model.as_deref().unwrap_or(requested)
    }
}

/// One call keeps to its model, since what was reserved for it was bounded by that model's price. It
/// goes on to the next endpoint only when the one before surely charged nothing: at most one answer is
/// paid for.
#[async_trait]
impl LlmClient for LlmRouter {
    async fn chat(&self, request: ChatRequest) -> Result<ChatAnswer, LlmError> {
        let mut tried = Tried::default();
        let mut failed: Option<LlmError> = None;
        loop {
            let same = |model: &str| (model == request.model).then_some(0);
            let wanted = Wanted {
                model: &request.model,
                allowed: None,
            };
            let route = match self.choose(wanted, &tried, Some(0), same).await {
                Ok(route) => route,
                Err(choice) => return Err(failed.unwrap_or_else(|| held_back(choice))),
            };
            let place = route.place;
            let span = chat_span::begin(&request);
            let call = route.client.chat(ChatRequest {
                traceparent: TraceContext::of(&span).map(|here| here.to_string()),
                ..request.clone()
            });
            let outcome = call.instrument(span.clone()).await;
            chat_span::end(&span, &outcome);
            drop(span);
            route.report(&outcome);
            let error = match outcome {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let endpoint = &self.places[place].endpoint.name;
            tracing::warn!(endpoint, code = error.code, "the model's endpoint failed");
            if !is_unbilled(error.code) {
                return Err(error);
            }
            tried.failed(place, error.class);
            failed = Some(error);
        }
    }
}

fn held_back(choice: Choice) -> LlmError {
    let retry_after = match choice {
        Choice::Wait(wait) => Some(wait),
        _ => None,
    };
    LlmError {
        class: LlmErrorClass::Transient { retry_after },
        code: "llm_breaker_open",
        message: "every endpoint of the model fails too often to be asked now".to_owned(),
    }
}
