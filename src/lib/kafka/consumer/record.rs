//! A received record, and the acknowledgement that moves its partition's offset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use tokio::sync::mpsc::UnboundedSender;

use crate::messages::{Headers, Topic};

/// A record as it came from the broker. Nothing in it was verified.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The topic.
    pub topic: Topic,
    /// Its name on the broker, which signatures cover.
    pub full_topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Milliseconds since the epoch at which it was made; 0 when the broker does not say.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers; those without a value are left out.
    pub headers: Headers,
    /// The assignment under which it was received. It rises when partitions are assigned anew.
    pub generation: u64,
}

impl Incoming {
    /// Copies a message out of librdkafka's memory: key, value and headers share one allocation.
    pub(super) fn copy(
        message: &BorrowedMessage<'_>,
        topic: Topic,
        full_topic: Arc<str>,
        generation: u64,
    ) -> Self {
        let headers = message.headers();
        let header_bytes = headers.map_or(0, |headers| {
            let values = headers.iter().filter_map(|h| h.value);
            values.map(<[u8]>::len).sum()
        });
        let payload = message.key_len() + message.payload_len();
        let mut bytes = BytesMut::with_capacity(payload + header_bytes);
        let mut take = |part: &[u8]| {
            bytes.extend_from_slice(part);
            bytes.split().freeze()
        };
        let key = message.key().map(&mut take);
        let value = message.payload().map(&mut take);
        let headers = headers.map_or_else(Headers::new, |headers| {
            let present = headers.iter().filter_map(|h| Some((h.key, h.value?)));
            present
                .map(|(name, value)| (name.to_owned(), take(value)))
                .collect()
        });
        Self {
            topic,
            full_topic,
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
            key,
            value,
            headers,
            generation,
        }
    }

    /// The text of a header; absent when there is none or it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name)?;
        std::str::from_utf8(value).ok()
    }
}

/// That a record was handled, on its way to the loop that owns the frontiers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub topic: Topic,
    pub partition: i32,
    pub offset: i64,
    pub generation: u64,
}

/// Says that a record was handled, so that its offset may be committed. Dropping it says nothing.
#[derive(Debug)]
pub struct Ack {
    slot: Arc<AckSlot>,
}

/// What the acknowledgements of all attempts at one record share.
#[derive(Debug)]
pub(super) struct AckSlot {
    done: Done,
    given: AtomicBool,
    to: UnboundedSender<Done>,
}

impl AckSlot {
    pub(super) fn new(record: &Incoming, to: UnboundedSender<Done>) -> Arc<Self> {
        Arc::new(Self {
            done: Done {
                topic: record.topic,
                partition: record.partition,
                offset: record.offset,
                generation: record.generation,
            },
            given: AtomicBool::new(false),
            to,
        })
    }

    pub(super) fn ack(self: &Arc<Self>) -> Ack {
        Ack {
            slot: Arc::clone(self),
        }
    }

    pub(super) fn is_given(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// Acknowledges the record, once.
    pub(super) fn give(&self) {
        if !self.given.swap(true, Ordering::AcqRel) {
            // The loop is gone only when the consumer is: then nothing can be committed any more.
            let _gone = self.to.send(self.done);
        }
    }
}

impl Ack {
    /// The record was handled, or something else that survives this process owns it from here on.
    /// May be called before the handler returns.
    pub fn done(self) {
        self.slot.give();
    }
}
