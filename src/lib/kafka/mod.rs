//! Kafka: the topics, the producer and the consumer loop. The only room that knows rdkafka.
//!
//! Invariant: a record that was acknowledged is on the topic; an offset that is committed has
//! nothing undone before it.

pub mod admin;
pub mod catalogue;
mod client;
pub mod consumer;
mod forward;
pub mod frontier;
mod health;
mod outbox;
mod producer;
mod reader;
pub mod schemas;

pub use client::KafkaSettings;
pub use consumer::{
    Ack, Consumer, ConsumerError, ConsumerOptions, ConsumerSnapshot, ConsumerState, Ended, Handler,
    Incoming, Sink, StartFrom,
};
pub use forward::{NotForwarded, Verified};
pub use health::BrokerHealth;
pub use outbox::{Acknowledged, OutboxProducer};
pub use producer::{ClientError, Delivery, ProduceError, Producer};
pub use reader::{Extent, Place, ReadError, StoredRecord, TopicReader};
