//! Dead letters: what cannot be handled goes to `dead.letter` with its bytes, and only then does its
//! offset move.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::{WorkerContext, reconnect_delays};
use crate::ids::TenantId;
use crate::kafka::Incoming;
use crate::messages::{DeadLetter, FailureClass, Outgoing, RunSpec, SCHEMA_VERSION, Topic, header};
use crate::runs::NewRecord;

/// Bytes of the error text that are kept.
const MAX_ERROR: usize = 1024;
const TYPE: &str = "agenthub.dead_letter";

/// Sends a dead letter. Waits as long as Kafka is away, or until the process is told to stop: then the
/// record stays uncommitted and comes again.
pub(super) async fn send(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
) {
    let letter = describe(context, record, class, error, None);
    let Ok(value) = serde_json::to_vec(&letter) else {
        return;
    };
    let outgoing = Outgoing {
        topic: Topic::DeadLetter,
        key: record_key(record),
        ce_id: letter_id(record),
        ce_type: TYPE.to_owned(),
        tenant: unknown_tenant(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: Bytes::from(value),
    };
    let mut delays = reconnect_delays();
    while let Err(error) = context.outbox.producer().publish(&outgoing).await {
        tracing::warn!(%error, "the dead letter was not acknowledged; trying again");
        tokio::select! {
            () = context.stopping.cancelled() => return std::future::pending().await,
            () = tokio::time::sleep(delays.next().unwrap_or(super::LONGEST_DELAY)) => {}
        }
    }
    count(class);
    tracing::warn!(
        topic = %record.topic,
        partition = record.partition,
        offset = record.offset,
        class = ?class,
        error = letter.error,
        "dead letter"
    );
}

/// A dead letter for a run's outbox.
pub(super) fn letter(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
    spec: Option<&RunSpec>,
) -> Option<NewRecord> {
    count(class);
    let letter = describe(context, record, class, error, spec);
    Some(NewRecord {
        topic: Topic::DeadLetter,
        key: spec.map_or_else(|| record_key(record), |spec| spec.run_id.to_string()),
        id: letter_id(record),
        kind: TYPE.to_owned(),
        value: serde_json::to_string(&letter).ok()?,
    })
}

fn describe(
    context: &WorkerContext,
    record: &Incoming,
    class: FailureClass,
    error: &str,
    spec: Option<&RunSpec>,
) -> DeadLetter {
    let mut error = context.masker.text(error).to_string();
    if error.len() > MAX_ERROR {
        error.truncate(error.floor_char_boundary(MAX_ERROR));
    }
    let encode = |bytes: &Bytes| STANDARD.encode(bytes);
    DeadLetter {
        v: SCHEMA_VERSION,
        topic: record.full_topic.to_string(),
        partition: record.partition,
        offset: record.offset,
        key: record.key.as_ref().map(encode),
        value: record.value.as_ref().map(encode),
        headers: record
            .headers
            .iter()
            .map(|(name, value)| (name.clone(), encode(value)))
            .collect(),
        class,
        error,
        attempts: match class {
            FailureClass::TooManyDeliveries => context.settings.max_deliveries,
            _ => 1,
        },
        first_ms: u64::try_from(record.timestamp_ms).unwrap_or(0),
        last_ms: context.now_ms(),
        worker: context.worker.clone(),
        tenant: spec.map(|spec| spec.tenant.clone()),
        run_id: spec.map(|spec| spec.run_id.clone()),
        traceparent: record.header(header::TRACEPARENT).map(str::to_owned),
    }
}

fn count(class: FailureClass) {
    let name = match class {
        FailureClass::Undecodable => "undecodable",
        FailureClass::Unsigned => "unsigned",
        FailureClass::TooManyDeliveries => "too_many_deliveries",
        FailureClass::Panicked => "panicked",
    };
    metrics::counter!("agenthub_dead_letters_total", "class" => name).increment(1);
}

fn record_key(record: &Incoming) -> String {
    let key = record.key.as_deref().unwrap_or_default();
    String::from_utf8_lossy(key).into_owned()
}

fn letter_id(record: &Incoming) -> String {
    format!(
        "{}/{}/{}",
        record.full_topic, record.partition, record.offset
    )
}

/// Whom a record belongs to that nobody vouches for: the operator.
fn unknown_tenant() -> TenantId {
    TenantId::system()
}
