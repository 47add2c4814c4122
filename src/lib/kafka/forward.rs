//! Puts stored commands onto their topic once more: the original bytes and headers, never signed
//! again.

use std::time::Instant;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use super::producer::{Delivery, Pending, ProduceError, Producer};
use super::reader::StoredRecord;
use crate::messages::{SignatureError, Signer, Topic};

/// Why a record is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotForwarded {
    /// Its topic is no queue of work: readers of the topic would count it twice, or take an old state
    /// for the newest.
    #[error("records of {0} are what happened, not work to be done")]
    NoCommand(Topic),
    /// It is not a command that this installation made for this topic.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// A stored command whose signature was checked: it passed governance when it was made.
#[derive(Debug, Clone)]
pub struct Verified {
    topic: Topic,
    record: StoredRecord,
}

impl Verified {
    /// Checks a record that was read from `topic`, whose name on the broker is `full_topic`.
    pub fn check(
        record: StoredRecord,
        topic: Topic,
        full_topic: &str,
        signer: &Signer,
    ) -> Result<Self, NotForwarded> {
        if !topic.carries_commands() {
            return Err(NotForwarded::NoCommand(topic));
        }
        signer.verify(
            full_topic,
            record.key.as_deref().unwrap_or_default(),
            &record.signed_headers(),
            record.value.as_deref().unwrap_or_default(),
        )?;
        Ok(Self { topic, record })
    }

    /// The record.
    pub fn record(&self) -> &StoredRecord {
        &self.record
    }
}

impl Producer {
    /// Forwards a command to its topic. It is handed over in the order of the calls; the future
    /// resolves when it is acknowledged.
    pub fn forward(
        &self,
        verified: &Verified,
    ) -> impl Future<Output = Result<Delivery, ProduceError>> + use<> {
        let record = &verified.record;
        let headers = record.headers.iter();
        let native = OwnedHeaders::new_with_capacity(record.headers.len());
        let native = headers.fold(native, |native, (key, value)| {
            native.insert(Header {
                key,
                value: value.as_deref(),
            })
        });
        let mut message = FutureRecord::<[u8], [u8]>::to(self.name(verified.topic)).headers(native);
        if let Some(key) = record.key.as_deref() {
            message = message.key(key);
        }
        if let Some(value) = record.value.as_deref() {
            message = message.payload(value);
        }
        let pending: Pending = self.hand_over(verified.topic, Instant::now(), message);
        let producer = self.clone();
        async move { producer.acknowledged(pending).await }
    }
}
