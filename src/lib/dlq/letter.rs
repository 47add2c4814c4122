//! A dead letter, from a record that cannot be handled to its acknowledgement.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::ids::TenantId;
use crate::kafka::{Incoming, Producer};
use crate::messages::{DeadLetter, FailureClass, Outgoing, RunEnd, SCHEMA_VERSION, Topic, header};
use crate::privacy::mask::Masker;
use crate::runtime::clock;

/// What kind of message a dead letter is.
pub const TYPE: &str = "agenthub.dead_letter";
/// Bytes of the error text that are kept.
const MAX_ERROR: usize = 1024;
/// Longest pause between two attempts to write a letter.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Who gives a record up.
#[derive(Debug, Clone, Copy)]
pub struct Author<'a> {
    /// The name of the process.
    pub worker: &'a str,
    /// Masks the error text.
    pub masker: &'a Masker,
}

/// Why a record is given up.
#[derive(Debug, Clone, Copy)]
pub struct Failure<'a> {
    /// The kind of failure.
    pub class: FailureClass,
    /// What was wrong; it is masked and cut here.
    pub error: &'a str,
    /// Times that the record was tried.
    pub attempts: u32,
}

/// The letter about a record. It names neither tenant nor run: who trusts the record fills them in.
pub fn describe(record: &Incoming, failure: Failure<'_>, author: Author<'_>) -> DeadLetter {
    let mut error = author.masker.text(failure.error).to_string();
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
        class: failure.class,
        error,
        attempts: failure.attempts,
        first_ms: u64::try_from(record.timestamp_ms).unwrap_or(0),
        last_ms: clock::now_ms(),
        worker: author.worker.to_owned(),
        tenant: None,
        run_id: None,
        traceparent: record.header(header::TRACEPARENT).map(str::to_owned),
        end: RunEnd::default(),
    }
}

/// The key of a letter: that of its record.
pub fn key(record: &Incoming) -> String {
    let key = record.key.as_deref().unwrap_or_default();
    String::from_utf8_lossy(key).into_owned()
}

/// Counts a letter.
pub fn count(class: FailureClass) {
    metrics::counter!("agenthub_dead_letters_total", "class" => class.as_str()).increment(1);
}

/// Writes a letter about a record that nobody vouches for, so that it is the operator's. Waits as
/// long as Kafka is away. Returns whether it was acknowledged; false only once `stopping` is
/// cancelled, and then the record is to stay uncommitted.
pub async fn send(
    producer: &Producer,
    record: &Incoming,
    letter: &DeadLetter,
    stopping: &CancellationToken,
) -> bool {
    let value = match serde_json::to_vec(letter) {
        Ok(value) => Bytes::from(value),
        Err(error) => {
            // Strings and numbers always have a JSON form.
            tracing::error!(%error, "a dead letter has no JSON form");
            return false;
        }
    };
    let outgoing = Outgoing {
        topic: Topic::DeadLetter,
        key: key(record),
        ce_id: letter.id(),
        ce_type: TYPE.to_owned(),
        tenant: TenantId::system(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value,
    };
    let mut delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times()
        .build();
    while let Err(error) = producer.publish(&outgoing).await {
        tracing::warn!(%error, "the dead letter was not acknowledged; trying again");
        tokio::select! {
            () = stopping.cancelled() => return false,
            () = tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)) => {}
        }
    }
    count(letter.class);
    tracing::warn!(
        topic = %record.topic,
        partition = record.partition,
        offset = record.offset,
        class = %letter.class,
        error = letter.error,
        "dead letter"
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Headers;

    #[test]
    fn a_letter_holds_the_bytes_and_a_masked_short_reason() {
        let record = Incoming {
            topic: Topic::AuditLogs,
            full_topic: "ns.audit.logs".into(),
            partition: 2,
            offset: 9,
            timestamp_ms: 5,
            key: None,
            value: Some(Bytes::from_static(b"\xff{")),
            headers: Headers::from([("h".to_owned(), Bytes::from_static(b"\x00"))]),
            generation: 1,
        };
        let masker = Masker::new(&[]).unwrap();
        let long = format!("who@example.org {}", "\u{e9}".repeat(2000));
        let failure = Failure {
            class: FailureClass::Undecodable,
            error: &long,
            attempts: 1,
        };
        let author = Author {
            worker: "w",
            masker: &masker,
        };
        let letter = describe(&record, failure, author);
        assert_eq!(letter.id(), "ns.audit.logs/2/9");
        assert_eq!((letter.key, letter.value.as_deref()), (None, Some("/3s=")));
        assert_eq!(letter.headers, [("h".to_owned(), "AA==".to_owned())]);
        assert!(letter.error.len() <= MAX_ERROR && !letter.error.contains("example.org"));
        assert_eq!((letter.first_ms, letter.tenant), (5, None));
    }
}
