//! Takes records in from the consumer and gathers them for the writer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::batch::{Batches, Bounds};
use super::row::{self, Row};
use crate::config::Settings;
use crate::kafka::{Ack, Incoming, Sink};
use crate::messages::{FailureClass, Signer, Topic};

/// Bytes of records after which a file is written, whatever their number.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The consumer remembers no more records than twice this.
const MAX_RECORDS: usize = 100_000;

/// When files are written.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Records that are gathered over all partitions; the largest batch is then written.
    pub max_records: usize,
    /// The longest that a record waits to be written.
    pub max_age: Duration,
}

impl Limits {
    /// Records that the consumer may have in flight: as many are gathered while as many are written.
    pub fn max_in_flight(&self) -> usize {
        self.records() * 2
    }

    fn records(&self) -> usize {
        self.max_records.clamp(1, MAX_RECORDS)
    }
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        Self {
            max_records: settings.rollup_max_records,
            max_age: settings.rollup_max_age_ms.duration(),
        }
    }
}

/// A record that was taken in.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) offset: i64,
    /// When it came to the topic, in milliseconds since the epoch.
    pub(super) produced_ms: u64,
    pub(super) content: Content,
    pub(super) ack: Ack,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Content {
    /// A row of a file.
    Row(Box<Row>),
    /// A dead letter.
    Unfit(Box<Unfit>),
}

/// A record that cannot become a row.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) record: Incoming,
    pub(super) class: FailureClass,
    pub(super) error: String,
}

/// What consumers and the writer share.
#[derive(Debug)]
pub(super) struct Shared {
    batches: Mutex<Batches<Entry>>,
    /// Told when there may be something to write, or something to wait for.
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn batches(&self) -> MutexGuard<'_, Batches<Entry>> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The roll-up between its consumer and its [`Writer`](super::Writer).
#[derive(Debug, Clone)]
pub struct Rollup {
    pub(super) shared: Arc<Shared>,
    signer: Signer,
    consumers: Arc<AtomicU64>,
}

impl Rollup {
    /// A roll-up of records that `signer` verifies.
    pub fn new(signer: Signer, limits: Limits) -> Self {
        let bounds = Bounds {
            records: limits.records(),
            bytes: MAX_BYTES,
            age: limits.max_age,
        };
        Self {
            shared: Arc::new(Shared {
                batches: Mutex::new(Batches::new(bounds)),
                changed: Notify::new(),
            }),
            signer,
            consumers: Arc::default(),
        }
    }

    /// What a new consumer hands its records to. Each consumer needs one of its own: it tells its
    /// assignments from those of the consumer before it.
    pub fn sink(&self) -> Arc<dyn Sink> {
        Arc::new(Intake {
            shared: self.shared.clone(),
            signer: self.signer.clone(),
            consumer: self.consumers.fetch_add(1, Ordering::Relaxed),
        })
    }
}

struct Intake {
    shared: Arc<Shared>,
    signer: Signer,
    consumer: u64,
}

impl Sink for Intake {
    fn take(&self, record: Incoming, ack: Ack) {
        let (partition, offset) = (record.partition, record.offset);
        let produced_ms = u64::try_from(record.timestamp_ms).unwrap_or(0);
        let epoch = (self.consumer, record.generation);
        let bytes = record.value.as_ref().map_or(0, bytes::Bytes::len);
        let content = match row::read(&record, &self.signer) {
            Ok(row) => Content::Row(Box::new(row)),
            Err((class, error)) => Content::Unfit(Box::new(Unfit {
                record,
                class,
                error,
            })),
        };
        let entry = Entry {
            offset,
            produced_ms,
            content,
            ack,
        };
        let now = Instant::now();
        let look = self
            .shared
            .batches()
            .push(partition, epoch, entry, bytes, now);
        if look {
            self.shared.changed.notify_one();
        }
    }

    fn revoking(&self, places: &[(Topic, i32)]) {
        let partitions = places.iter().map(|(_, partition)| *partition);
        self.shared.batches().hurry(partitions);
        self.shared.changed.notify_one();
    }
}
