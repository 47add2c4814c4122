//! Reads a part of a topic without a group: nothing is committed, and no consumer notices.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::Offset;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message};
use rdkafka::metadata::MetadataPartition;

use super::client::{KafkaSettings, Observer};
use super::producer::ClientError;
use crate::messages::{Headers, Topic};

/// How long the brokers may take to say where a topic begins and ends.
const METADATA_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the next record may take.
const RECORD_TIMEOUT: Duration = Duration::from_secs(30);

/// A place in each partition of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The oldest record that there is.
    Earliest,
    /// The end as it is now.
    Latest,
    /// An offset.
    Offset(i64),
    /// The first record made at or after this time, in milliseconds since the epoch.
    Time(i64),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(offset) = text.parse::<i64>() {
            return if offset >= 0 {
                Ok(Self::Offset(offset))
            } else {
                Err("an offset is not negative".to_owned())
            };
        }
        let time = text.parse::<jiff::Timestamp>();
        time.map(|time| Self::Time(time.as_millisecond()))
            .map_err(|_| {
                "expected an offset, a time such as 2026-01-31T12:00:00Z, earliest or latest"
                    .to_owned()
            })
    }
}

/// Which part of a topic is read: from `from`, inclusive, to `to`, exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub from: Place,
    /// Where it ends.
    pub to: Place,
    /// Only this partition.
    pub partition: Option<i32>,
}

impl Extent {
    /// Everything that is on the topic now.
    pub const ALL: Self = Self {
        from: Place::Earliest,
        to: Place::Latest,
        partition: None,
    };
}

/// Why a topic could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The topic, or the partition that was asked for, does not exist.
    #[error("{0} does not exist")]
    Unknown(String),
    /// The client could not be made, or failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The brokers gave nothing for too long.
    #[error("{topic}: the brokers gave no record for {} s", RECORD_TIMEOUT.as_secs())]
    Silent {
        /// The topic's name on the broker.
        topic: String,
    },
}

impl From<KafkaError> for ReadError {
    fn from(error: KafkaError) -> Self {
        Self::Client(error.into())
    }
}

/// A record as it is stored: every byte and every header, in their order. Nothing was verified.
#[derive(Clone)]
pub struct StoredRecord {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Milliseconds since the epoch; absent when the broker does not say.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value; absent where it is null.
    pub value: Option<Bytes>,
    /// The headers, in their order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl fmt::Debug for StoredRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredRecord({}/{})", self.partition, self.offset)
    }
}

impl StoredRecord {
    fn copy(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|h| h.iter());
        Self {
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(Bytes::copy_from_slice),
            value: message.payload().map(Bytes::copy_from_slice),
            headers: headers
                .map(|h| (h.key.to_owned(), h.value.map(Bytes::copy_from_slice)))
                .collect(),
        }
    }

    /// The text of a header, the last one where a name occurs twice; absent when there is none or it
    /// is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(n, _)| n == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    /// The headers as signatures cover them.
    pub fn signed_headers(&self) -> Headers {
        let present = self.headers.iter();
        present
            .filter_map(|(name, value)| Some((name.clone(), value.clone()?)))
            .collect()
    }

    /// Bytes of key, value and headers.
    pub fn size(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers = self.headers.iter().map(|(name, v)| name.len() + len(v));
        len(&self.key) + len(&self.value) + headers.sum::<usize>()
    }
}

/// What is still to be read of a partition.
#[derive(Debug)]
struct Left {
    next: i64,
    end: i64,
}

/// Reads the records of a topic, each partition's in their order.
pub struct TopicReader {
    consumer: StreamConsumer<Observer>,
    topic: String,
    left: BTreeMap<i32, Left>,
    total: u64,
}

impl fmt::Debug for TopicReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicReader")
            .field("topic", &self.topic)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl TopicReader {
    /// Finds out where `extent` begins and ends in each partition. What is written from now on is
    /// not part of it, not even what its own reader writes.
    pub async fn open(
        settings: &KafkaSettings,
        topic: Topic,
        extent: Extent,
    ) -> Result<Self, ReadError> {
        let topic = settings.topic(topic);
        let group = settings.group("replay");
        let config = settings.client(
            "agenthub-replay",
            &[
                // librdkafka wants one for any assignment. It is never joined or committed to.
                ("group.id", &group),
                ("enable.auto.commit", "false"),
                ("enable.auto.offset.store", "false"),
                ("enable.partition.eof", "true"),
                ("auto.offset.reset", "earliest"),
                ("isolation.level", "read_committed"),
                ("check.crcs", "true"),
                ("queued.max.messages.kbytes", "32768"),
                ("allow.auto.create.topics", "false"),
            ],
        );
        let consumer: StreamConsumer<Observer> = config.create_with_context(Observer::default())?;
        // librdkafka's metadata calls block their thread.
        let asked = tokio::task::spawn_blocking(move || {
            let left = extents(&consumer, &topic, extent);
            (consumer, topic, left)
        });
        let (consumer, topic, left) = asked.await.map_err(|_| KafkaError::Canceled)?;
        let left = left?;
        let mut places = TopicPartitionList::new();
        for (partition, left) in &left {
            places.add_partition_offset(&topic, *partition, Offset::Offset(left.next))?;
        }
        consumer.assign(&places)?;
        let mut reader = Self {
            consumer,
            topic,
            left,
            total: 0,
        };
        reader.total = reader.remaining();
        Ok(reader)
    }

    /// Offsets in the part that is read. A compacted topic has fewer records.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Offsets that are still to be read.
    pub fn remaining(&self) -> u64 {
        let left = self.left.values();
        left.map(|left| u64::try_from(left.end - left.next).unwrap_or(0))
            .sum()
    }

    /// The topic's name on the broker, which signatures cover.
    pub fn full_topic(&self) -> &str {
        &self.topic
    }

    /// The next record; `None` at the end of the part.
    pub async fn next(&mut self) -> Result<Option<StoredRecord>, ReadError> {
        while !self.left.is_empty() {
            let received = tokio::time::timeout(RECORD_TIMEOUT, self.consumer.recv()).await;
            let received = received.map_err(|_| ReadError::Silent {
                topic: self.topic.clone(),
            })?;
            let record = match received {
                Ok(message) => StoredRecord::copy(&message),
                // Compaction and transactions leave offsets without a record, at the end too.
                Err(KafkaError::PartitionEOF(partition)) => {
                    self.left.remove(&partition);
                    continue;
                }
                // librdkafka goes on by itself: a broker may be away for a moment.
                Err(error) if is_transient(&error) => {
                    tracing::warn!(%error, topic = self.topic, "reading");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some(left) = self.left.get_mut(&record.partition) else {
                continue; // was fetched before its partition was paused
            };
            left.next = (record.offset + 1).min(left.end);
            let beyond = record.offset >= left.end;
            if left.next >= left.end {
                self.left.remove(&record.partition);
                self.pause(record.partition)?;
            }
            if !beyond {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// A partition that was read to its end may go on growing.
    fn pause(&self, partition: i32) -> Result<(), ReadError> {
        let mut places = TopicPartitionList::new();
        places.add_partition(&self.topic, partition);
        Ok(self.consumer.pause(&places)?)
    }
}

fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
        )
    )
}

/// The part of each partition that has something to read.
fn extents(
    consumer: &StreamConsumer<Observer>,
    topic: &str,
    extent: Extent,
) -> Result<BTreeMap<i32, Left>, ReadError> {
    let metadata = consumer.fetch_metadata(Some(topic), METADATA_TIMEOUT)?;
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    let partitions: Vec<i32> = found
        .filter(|topic| topic.error().is_none())
        .map(|topic| {
            topic
                .partitions()
                .iter()
                .map(MetadataPartition::id)
                .collect()
        })
        .unwrap_or_default();
    let wanted = |id: &i32| extent.partition.is_none_or(|partition| partition == *id);
    let partitions: Vec<i32> = partitions.into_iter().filter(wanted).collect();
    if partitions.is_empty() {
        let partition = extent.partition.map(|id| format!(" partition {id}"));
        let name = format!("{topic}{}", partition.unwrap_or_default());
        return Err(ReadError::Unknown(name));
    }
    let mut ends = BTreeMap::new();
    for id in &partitions {
        let (low, high) = consumer.fetch_watermarks(topic, *id, METADATA_TIMEOUT)?;
        ends.insert(*id, (low, high));
    }
    let from = offsets(consumer, topic, &ends, extent.from)?;
    let to = offsets(consumer, topic, &ends, extent.to)?;
    let left = partitions.into_iter().map(|id| {
        let (next, end) = (from[&id], to[&id]);
        (id, Left { next, end })
    });
    Ok(left.filter(|(_, left)| left.next < left.end).collect())
}

/// Where `place` is in each partition, within what is stored.
fn offsets(
    consumer: &StreamConsumer<Observer>,
    topic: &str,
    ends: &BTreeMap<i32, (i64, i64)>,
    place: Place,
) -> Result<BTreeMap<i32, i64>, ReadError> {
    let of = |at: fn(i64, i64) -> i64| ends.iter().map(|(id, (l, h))| (*id, at(*l, *h))).collect();
    Ok(match place {
        Place::Earliest => of(|low, _| low),
        Place::Latest => of(|_, high| high),
        Place::Offset(offset) => ends
            .iter()
            .map(|(id, (low, high))| (*id, offset.clamp(*low, *high)))
            .collect(),
        Place::Time(ms) => {
            let mut asked = TopicPartitionList::new();
            for id in ends.keys() {
                asked.add_partition_offset(topic, *id, Offset::Offset(ms))?;
            }
            let found = consumer.offsets_for_times(asked, METADATA_TIMEOUT)?;
            let mut places = BTreeMap::new();
            for (id, (low, high)) in ends {
                let found = found.find_partition(topic, *id);
                let offset = match found.map(|f| f.offset()) {
                    Some(Offset::Offset(offset)) => offset.clamp(*low, *high),
                    _ => *high, // nothing is as young as that
                };
                places.insert(*id, offset);
            }
            places
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_offsets_times_and_ends() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!(place("earliest"), Ok(Place::Earliest));
        assert_eq!(place("latest"), Ok(Place::Latest));
        assert_eq!(place("17"), Ok(Place::Offset(17)));
        assert_eq!(place("1970-01-01T00:00:01Z"), Ok(Place::Time(1000)));
        assert_eq!(place("1970-01-01T01:00:01+01:00"), Ok(Place::Time(1000)));
        for wrong in ["", "-1", "yesterday", "2026-01-31", "1.5"] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_last_header_of_a_name_counts_as_it_does_for_workers() {
        let bytes = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let record = StoredRecord {
            partition: 0,
            offset: 0,
            timestamp_ms: None,
            key: bytes("k"),
            value: None,
            headers: vec![
                ("a".to_owned(), bytes("1")),
                ("a".to_owned(), bytes("2")),
                ("b".to_owned(), None),
            ],
        };
        assert_eq!(record.header("a"), Some("2"));
        assert_eq!(record.header("b"), None);
        let signed = record.signed_headers();
        assert_eq!((signed.len(), &signed["a"][..]), (1, &b"2"[..]));
        assert_eq!(record.size(), 6);
    }
}
