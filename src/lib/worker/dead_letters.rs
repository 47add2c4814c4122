//! Dead letters of workers: what cannot be handled goes to `dead.letter` with its bytes, and only
//! then does its offset move.

use super::WorkerContext;
use super::owned::Owned;
use crate::dlq::letter::{self, Author, Failure};
use crate::executor::retry::{GiveUpReason, RetryDecision};
use crate::kafka::Incoming;
use crate::messages::{DeadLetter, FailureClass, RunEnd, Topic};
use crate::runs::NewRecord;

/// What [`RunEnd::tool`] says when the model failed.
pub(super) const MODEL: &str = "model";

/// Sends a dead letter. Waits as long as Kafka is away, or until the process is told to stop: then the
/// record stays uncommitted and comes again.
pub(super) async fn send(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
) {
    let letter = describe(context, record, class, error, 1);
    let producer = context.outbox.producer();
    if !letter::send(producer, record, &letter, &context.stopping).await {
        std::future::pending::<()>().await;
    }
}

/// The dead letter that a failure makes of its run; none where a rule forbade the call, and none where
/// the failure is not what the run ends by.
pub(super) fn class_of(decision: RetryDecision) -> Option<FailureClass> {
    match decision {
        RetryDecision::OutcomeUnknown => Some(FailureClass::OutcomeUnknown),
        RetryDecision::GiveUp { reason } => match reason {
            GiveUpReason::Refused => None,
            GiveUpReason::Permanent => Some(FailureClass::Permanent),
            GiveUpReason::AttemptsExhausted
            | GiveUpReason::RunRetriesExhausted
            | GiveUpReason::Deadline => Some(FailureClass::AttemptsExhausted),
        },
        RetryDecision::Retry { .. } => None,
    }
}

/// Why a run becomes a dead letter.
#[derive(Debug, Clone)]
pub(super) struct Ending<'a> {
    pub(super) class: FailureClass,
    /// What was wrong; it is masked and cut here.
    pub(super) error: &'a str,
    /// Attempts at the step, the model call or the command.
    pub(super) attempts: u32,
    pub(super) code: &'a str,
    pub(super) tool: Option<&'a str>,
    pub(super) step: Option<&'a str>,
    /// State of the tool's circuit breaker.
    pub(super) breaker: Option<&'static str>,
}

impl Owned {
    /// The dead letter of this run, for the outbox of the transition that ends it.
    pub(super) fn dead_letter(&self, ending: &Ending<'_>) -> Option<NewRecord> {
        let spec = &self.command.spec;
        let mut letter = describe(
            &self.context,
            &self.record,
            ending.class,
            ending.error,
            ending.attempts,
        );
        letter.tenant = Some(spec.tenant.clone());
        letter.run_id = Some(spec.run_id.clone());
        letter.first_ms = spec.created_ms;
        letter.end = RunEnd {
            code: Some(ending.code.to_owned()),
            tool: ending.tool.map(str::to_owned),
            step_id: ending.step.map(str::to_owned),
            breaker: ending.breaker.map(str::to_owned),
            retry_of: spec.retry_of.clone(),
        };
        let value = match serde_json::to_string(&letter) {
            Ok(value) => value,
            Err(error) => {
                // Strings and numbers always have a JSON form.
                tracing::error!(%error, "a dead letter has no JSON form");
                return None;
            }
        };
        letter::count(ending.class);
        Some(NewRecord {
            topic: Topic::DeadLetter,
            key: spec.run_id.to_string(),
            id: letter.id(),
            kind: letter::TYPE.to_owned(),
            value,
        })
    }
}

fn describe(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
    attempts: u32,
) -> DeadLetter {
    let failure = Failure {
        class,
        error,
        attempts,
    };
    let author = Author {
        worker: &context.worker,
        masker: &context.masker,
    };
    letter::describe(record, failure, author)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_a_rule_forbids_is_no_dead_letter() {
        let class = |reason| class_of(RetryDecision::GiveUp { reason });
        assert_eq!(class(GiveUpReason::Refused), None);
        assert_eq!(
            class(GiveUpReason::Permanent),
            Some(FailureClass::Permanent)
        );
        for reason in [GiveUpReason::AttemptsExhausted, GiveUpReason::Deadline] {
            assert_eq!(class(reason), Some(FailureClass::AttemptsExhausted));
        }
        assert_eq!(
            class_of(RetryDecision::OutcomeUnknown),
            Some(FailureClass::OutcomeUnknown)
        );
        let after = Duration::ZERO;
        assert_eq!(class_of(RetryDecision::Retry { after }), None);
    }
}
