//! Dead letters of workers: what cannot be handled goes to `dead.letter` with its bytes, and only
//! then does its offset move.

use super::WorkerContext;
use crate::dlq::letter::{self, Author, Failure};
use crate::kafka::Incoming;
use crate::messages::{DeadLetter, FailureClass, RunSpec, Topic};
use crate::runs::NewRecord;

/// Sends a dead letter. Waits as long as Kafka is away, or until the process is told to stop: then the
/// record stays uncommitted and comes again.
pub(super) async fn send(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
) {
    let letter = describe(context, record, class, error);
    let producer = context.outbox.producer();
    if !letter::send(producer, record, &letter, &context.stopping).await {
        std::future::pending::<()>().await;
    }
}

/// A dead letter for a run's outbox.
pub(super) fn letter(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
    spec: Option<&RunSpec>,
) -> Option<NewRecord> {
    letter::count(class);
    let mut letter = describe(context, record, class, error);
    letter.tenant = spec.map(|spec| spec.tenant.clone());
    letter.run_id = spec.map(|spec| spec.run_id.clone());
    Some(NewRecord {
        topic: Topic::DeadLetter,
        key: spec.map_or_else(|| letter::key(record), |spec| spec.run_id.to_string()),
        id: letter.id(),
        kind: letter::TYPE.to_owned(),
        value: serde_json::to_string(&letter).ok()?,
    })
}

fn describe(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
) -> DeadLetter {
    let attempts = match class {
        FailureClass::TooManyDeliveries => context.settings.max_deliveries,
        FailureClass::Undecodable | FailureClass::Unsigned | FailureClass::Panicked => 1,
    };
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
