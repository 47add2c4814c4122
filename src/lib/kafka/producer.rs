//! The producer: signs a record, sends it, and waits until every in-sync replica has it.
//!
//! Invariant: `Ok` means that the record is on the topic. An error says whether it surely is not, or
//! may be there all the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use metrics::{Counter, Histogram};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders, ToBytes};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use tracing::Span;

use super::catalogue::{Catalogue, CatalogueError};
use super::client::{Connection, KafkaSettings, Observer};
use crate::messages::{Outgoing, Signer, Topic, header};
use crate::telemetry::{self, TraceContext};

/// Where a record was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// Why a record was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProduceError {
    /// The record is surely not on the topic.
    #[error("{topic}: the record was not written: {reason}")]
    NotWritten {
        /// The topic.
        topic: Topic,
        /// What was wrong.
        reason: String,
    },
    /// No acknowledgement arrived in time; the record may be on the topic, or come to be there.
    #[error("{topic}: the record may or may not be written: {reason}")]
    Unknown {
        /// The topic.
        topic: Topic,
        /// What was wrong.
        reason: String,
    },
}

/// Why a producer or consumer could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The embedded catalogue is wrong.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// librdkafka refused the configuration or the call. The text never holds a property's value.
    #[error("Kafka client: {0}")]
    Client(String),
}

impl From<KafkaError> for ClientError {
    fn from(error: KafkaError) -> Self {
        match error {
            // Its text would show the value, which may be a password.
            KafkaError::ClientConfig(_, reason, name, _) => {
                Self::Client(format!("property {name}: {reason}"))
            }
            other => Self::Client(other.to_string()),
        }
    }
}

/// Sends records. Cheap to clone; clones share one connection and one queue.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    client: FutureProducer<Observer>,
    connection: Connection,
    signer: Signer,
    source: String,
    /// By `Topic as usize`.
    topics: Vec<TopicHandle>,
}

/// The name of a topic on the broker and its metrics.
struct TopicHandle {
    name: String,
    ok: Counter,
    not_written: Counter,
    unknown: Counter,
    seconds: Histogram,
}

impl TopicHandle {
    fn new(topic: Topic, settings: &KafkaSettings) -> Self {
        let counter = |outcome: &'static str| {
            metrics::counter!("agenthub_kafka_produce_total",
                "topic" => topic.as_str(), "outcome" => outcome)
        };
        Self {
            name: settings.topic(topic),
            ok: counter("ok"),
            not_written: counter("not_written"),
            unknown: counter("unknown"),
            seconds: metrics::histogram!("agenthub_kafka_produce_seconds",
                "topic" => topic.as_str()),
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer")
            .field("source", &self.inner.source)
            .finish_non_exhaustive()
    }
}

/// A record that was handed to librdkafka.
pub(super) struct Pending {
    topic: Topic,
    since: Instant,
    span: Span,
    ack: Result<DeliveryFuture, ProduceError>,
}

impl Producer {
    /// A producer that signs with `signer` and names `source` (the process) as the origin of its
    /// records. Connects in the background. The metrics recorder must be installed before, or what
    /// is counted here goes nowhere.
    pub fn new(
        settings: &KafkaSettings,
        signer: Signer,
        source: &str,
    ) -> Result<Self, ClientError> {
        let largest = Catalogue::embedded(false)?.max_message_bytes().to_string();
        let timeout = settings.produce_timeout.as_millis().max(1).to_string();
        let config = settings.client(
            source,
            &[
                ("acks", "all"),
                ("enable.idempotence", "true"),
                // A lone record leaves at once; under load, batches form while requests are out.
                ("linger.ms", "0"),
                // Most bytes are sealed, which hardly shrink, and a lone record would wait for it.
                ("compression.type", "none"),
                ("message.timeout.ms", &timeout),
                ("message.max.bytes", &largest),
                ("queue.buffering.max.messages", "100000"),
                ("queue.buffering.max.kbytes", "65536"),
                // Same key, same partition as the Java clients, so that other producers may join.
                ("partitioner", "murmur2_random"),
            ],
        );
        let observer = Observer::default();
        let connection = observer.connection.clone();
        let client = config.create_with_context::<_, FutureProducer<Observer>>(observer)?;
        let topics = Topic::ALL.map(|topic| TopicHandle::new(topic, settings));
        Ok(Self {
            inner: Arc::new(Inner {
                client,
                connection,
                signer,
                source: source.to_owned(),
                topics: topics.into(),
            }),
        })
    }

    /// Sends a record that makes nobody do anything: events, state, audit records, dead letters.
    /// Commands are refused; they take a path that only admitted work can enter.
    pub async fn publish(&self, record: &Outgoing) -> Result<Delivery, ProduceError> {
        refuse_command(record)?;
        self.send(record).await
    }

    /// As [`Producer::publish`] for several records, sent in their order and awaited together. The
    /// results are in the same order.
    pub async fn publish_all(&self, records: &[Outgoing]) -> Vec<Result<Delivery, ProduceError>> {
        if let Some(error) = records.iter().find_map(|r| refuse_command(r).err()) {
            return records.iter().map(|_| Err(error.clone())).collect();
        }
        self.send_all(records.iter()).await
    }

    /// Sends any record and waits for its acknowledgement, at most the produce timeout.
    async fn send(&self, record: &Outgoing) -> Result<Delivery, ProduceError> {
        let pending = self.enqueue(record);
        self.acknowledged(pending).await
    }

    /// Hands every record to the client in the given order, then waits for all acknowledgements.
    /// Records of one partition keep their order.
    pub(super) async fn send_all(
        &self,
        records: impl Iterator<Item = &Outgoing>,
    ) -> Vec<Result<Delivery, ProduceError>> {
        let pending: Vec<Pending> = records.map(|r| self.enqueue(r)).collect();
        join_all(pending.into_iter().map(|p| self.acknowledged(p))).await
    }

    /// Waits until nothing is queued, at most `deadline`. Returns whether that was reached.
    pub async fn flush(&self, deadline: Duration) -> bool {
        let client = self.inner.client.clone();
        let flushed = tokio::task::spawn_blocking(move || client.flush(deadline).is_ok());
        flushed.await.unwrap_or(false)
    }

    /// Asks the cluster for its metadata, at most `timeout`. Blocks the thread.
    pub(super) fn probe(&self, timeout: Duration) -> Result<(), String> {
        let topic = self.handle(Topic::AgentEvents).name.clone();
        let client = self.inner.client.client();
        match client.fetch_metadata(Some(&topic), timeout) {
            Ok(metadata) if metadata.brokers().is_empty() => Err("no broker is up".to_owned()),
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    fn handle(&self, topic: Topic) -> &TopicHandle {
        &self.inner.topics[topic as usize]
    }

    fn enqueue(&self, record: &Outgoing) -> Pending {
        let since = Instant::now();
        let topic = &self.handle(record.topic).name;
        let span = sending(record, topic);
        let time = jiff::Timestamp::now().to_string();
        let mut headers = self
            .inner
            .signer
            .headers(topic, record, &self.inner.source, &time);
        // Whoever takes the record goes on from here.
        if let Some(here) = TraceContext::of(&span) {
            headers.retain(|(name, _)| *name != header::TRACEPARENT);
            headers.push((header::TRACEPARENT, here.to_string()));
        }
        let native = OwnedHeaders::new_with_capacity(headers.len());
        let native = headers.iter().fold(native, |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value.as_bytes()),
            })
        });
        let mut message = FutureRecord::to(topic)
            .key(record.key.as_bytes())
            .headers(native);
        // No value is a null value: on a compacted topic it erases what its key names.
        if !record.value.is_empty() {
            message = message.payload(&record.value[..]);
        }
        let pending = self.hand_over(record.topic, since, message);
        Pending { span, ..pending }
    }

    /// The name of a topic on the broker.
    pub(super) fn name(&self, topic: Topic) -> &str {
        &self.handle(topic).name
    }

    pub(super) fn hand_over<K: ToBytes + ?Sized, V: ToBytes + ?Sized>(
        &self,
        topic: Topic,
        since: Instant,
        message: FutureRecord<'_, K, V>,
    ) -> Pending {
        let sent = self.inner.client.send_result(message);
        Pending {
            topic,
            since,
            span: Span::none(),
            // What cannot be queued was never sent. A full queue is an error too: waiting for room
            // would have no bound.
            ack: sent.map_err(|(error, _)| ProduceError::NotWritten {
                topic,
                reason: error.to_string(),
            }),
        }
    }

    pub(super) async fn acknowledged(&self, pending: Pending) -> Result<Delivery, ProduceError> {
        let topic = pending.topic;
        let result = match pending.ack {
            Err(error) => Err(error),
            Ok(ack) => match ack.await {
                Ok(Ok(delivery)) => Ok(Delivery {
                    partition: delivery.partition,
                    offset: delivery.offset,
                }),
                Ok(Err((error, _))) => Err(classify(topic, &error)),
                Err(_) => Err(ProduceError::Unknown {
                    topic,
                    reason: "the producer was closed".to_owned(),
                }),
            },
        };
        let handle = self.handle(topic);
        match &result {
            Ok(at) => {
                let partition = at.partition.to_string();
                telemetry::note(
                    &pending.span,
                    "messaging.destination.partition.id",
                    partition,
                );
                telemetry::note(&pending.span, "messaging.kafka.offset", at.offset);
                handle.ok.increment(1);
                handle.seconds.record(pending.since.elapsed().as_secs_f64());
            }
            Err(ProduceError::NotWritten { .. }) => {
                telemetry::failed(&pending.span, "not_written");
                handle.not_written.increment(1);
            }
            Err(ProduceError::Unknown { .. }) => {
                telemetry::failed(&pending.span, "unknown");
                handle.unknown.increment(1);
            }
        }
        result
    }
}

/// The span of a record on its way, within the work that it comes of; where that is another trace's or
/// nobody's, such as a sweeper's, within what the record itself names.
fn sending(record: &Outgoing, topic: &str) -> Span {
    let named = record.traceparent.as_deref();
    let named: Option<TraceContext> = named.and_then(|named| named.parse().ok());
    if named.is_none() && !telemetry::tracing_now() {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: telemetry::SPANS,
        "send",
        otel.name = %format!("send {}", record.topic),
        otel.kind = "producer",
        messaging.system = "kafka",
        messaging.operation.type = "send",
        messaging.operation.name = "send",
        messaging.destination.name = topic,
        messaging.message.id = %record.ce_id,
        messaging.kafka.message.key = %record.key,
        messaging.message.body.size = record.value.len(),
        tenant = %record.tenant,
        run_id = record.run_id.as_ref().map(tracing::field::display),
    );
    if let Some(named) = named {
        let current = TraceContext::of(&Span::current());
        if current.is_none_or(|current| !current.is_with(&named)) {
            named.enter(&span);
        }
    }
    span
}

fn refuse_command(record: &Outgoing) -> Result<(), ProduceError> {
    if record.topic.carries_commands() {
        return Err(ProduceError::NotWritten {
            topic: record.topic,
            reason: "commands are sent by admission alone".to_owned(),
        });
    }
    Ok(())
}

/// Whether a failed delivery surely left nothing on the topic. What is not known to be refused by
/// the broker as a whole counts as unknown: a timeout says nothing of a request that was sent.
fn classify(topic: Topic, error: &KafkaError) -> ProduceError {
    use RDKafkaErrorCode as Code;
    let reason = error.to_string();
    match error.rdkafka_error_code() {
        Some(
            Code::QueueFull
            | Code::PurgeQueue
            | Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::MessageBatchTooLarge
            | Code::UnknownTopic
            | Code::UnknownTopicOrPartition
            | Code::UnknownPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::NotEnoughReplicas
            | Code::InvalidRequiredAcks
            | Code::PolicyViolation
            | Code::InvalidRecord,
        ) => ProduceError::NotWritten { topic, reason },
        _ => ProduceError::Unknown { topic, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_found_by_their_number() {
        for (number, topic) in Topic::ALL.into_iter().enumerate() {
            assert_eq!(topic as usize, number);
        }
    }

    #[test]
    fn a_timeout_is_unknown_and_a_refusal_is_not() {
        let of = |code| classify(Topic::AuditLogs, &KafkaError::MessageProduction(code));
        for code in [
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::PurgeInflight,
            RDKafkaErrorCode::NotEnoughReplicasAfterAppend,
            RDKafkaErrorCode::BrokerTransportFailure,
        ] {
            assert!(matches!(of(code), ProduceError::Unknown { .. }), "{code:?}");
        }
        for code in [
            RDKafkaErrorCode::QueueFull,
            RDKafkaErrorCode::MessageSizeTooLarge,
            RDKafkaErrorCode::NotEnoughReplicas,
        ] {
            let error = of(code);
            assert!(matches!(error, ProduceError::NotWritten { .. }), "{code:?}");
        }
    }

    #[test]
    fn a_refused_property_is_named_without_its_value() {
        let settings = KafkaSettings {
            brokers: "127.0.0.1:1".to_owned(),
            namespace: String::new(),
            properties: vec!["linger.ms=sesame".to_owned()],
            consumer_protocol: false,
            produce_timeout: Duration::from_secs(1),
        };
        let secret = format!("k:{}", base64_of_32_bytes());
        let signer = Signer::parse(&secret).unwrap();
        let error = Producer::new(&settings, signer, "test").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("linger.ms") && !text.contains("sesame"),
            "{text}"
        );
    }

    fn base64_of_32_bytes() -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode([7; 32])
    }
}
