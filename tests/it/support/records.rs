//! Topics as they are on the broker, read without a group.

use std::collections::BTreeMap;
use std::time::Duration;

use agenthub::kafka::KafkaSettings;
use agenthub::messages::{EventBatch, Topic};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::stack::Stack;

/// A record.
#[derive(Debug, Clone)]
pub struct Found {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, Vec<u8>>,
}

impl Stack {
    /// Everything that is on a topic now.
    pub async fn records(&self, topic: Topic) -> Vec<Found> {
        let kafka = self.kafka();
        let name = kafka.topic(topic);
        tokio::task::spawn_blocking(move || read(&kafka, &name))
            .await
            .unwrap()
    }

    /// The ids of the terminal events of a run that are on `agent.events`, each once.
    pub async fn terminal_events_on_kafka(&self, run: &str) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for record in self.records(Topic::AgentEvents).await {
            let batch: EventBatch = serde_json::from_slice(&record.value).unwrap();
            let terminal = batch
                .events
                .iter()
                .filter(|event| event.run_id.as_str() == run && event.event_type.is_terminal());
            ids.extend(terminal.map(|event| event.id.to_string()));
        }
        ids.sort();
        ids.dedup(); // a record may be produced more than once; its events have the same ids
        ids
    }
}

fn read(kafka: &KafkaSettings, topic: &str) -> Vec<Found> {
    let timeout = Duration::from_secs(10);
    let mut config = ClientConfig::new();
    for property in &kafka.properties {
        let (name, value) = property.split_once('=').unwrap();
        config.set(name, value);
    }
    let consumer: BaseConsumer = config
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", "it-reader")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), timeout).unwrap();
    let mut places = TopicPartitionList::new();
    let mut left = 0;
    let mut ends = BTreeMap::new();
    for partition in metadata.topics()[0].partitions() {
        let id = partition.id();
        let (low, high) = consumer.fetch_watermarks(topic, id, timeout).unwrap();
        left += high - low;
        ends.insert(id, high);
        places
            .add_partition_offset(topic, id, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&places).unwrap();
    let mut found = Vec::new();
    while left > 0 {
        let record = consumer.poll(timeout).expect("records below the watermark");
        let record = match record {
            Ok(record) => record,
            // The client connects again by itself.
            Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure,
            )) => continue,
            Err(error) => panic!("{error}"),
        };
        if record.offset() >= ends[&record.partition()] {
            continue; // came since, and does not stand for one that is still to be read
        }
        let headers = record.headers().into_iter().flat_map(Headers::iter);
        found.push(Found {
            key: record.key().unwrap_or_default().to_vec(),
            value: record.payload().unwrap_or_default().to_vec(),
            headers: headers
                .map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec()))
                .collect(),
        });
        left -= 1;
    }
    found
}
