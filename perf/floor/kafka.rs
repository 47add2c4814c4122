//! Floor (b): a record produced until it is acknowledged, and until a consumer has it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use tokio::time::sleep;

use crate::samples::Samples;

const PARTITIONS: i32 = 3;
const VALUE: [u8; 512] = [b'x'; 512];

/// A producer and a consumer of a topic of their own.
pub struct KafkaFloor {
    producer: FutureProducer,
    consumer: StreamConsumer,
    /// Three topics, as a transition writes to.
    produced: [String; 3],
    hopped: String,
}

impl KafkaFloor {
    /// Makes the topics and connects.
    pub async fn start(brokers: &str) -> Result<Self> {
        let id = jiff::Timestamp::now().as_millisecond();
        let produced = [1, 2, 3].map(|n| format!("perf.floor.{id}.produce{n}"));
        let hopped = format!("perf.floor.{id}.hop");
        let [first, second, third] = &produced;
        create_topics(brokers, &[first, second, third, &hopped]).await?;
        Ok(Self {
            producer: producer(brokers)?,
            consumer: consumer(brokers, &hopped)?,
            produced,
            hopped,
        })
    }

    /// Lone records until their acknowledgement.
    pub async fn produce(&self, count: i32, pause: Duration) -> Result<Samples> {
        let mut samples = Samples::default();
        for i in 0..count {
            sleep(pause).await;
            let since = Instant::now();
            self.send(&self.produced[0], i).await?;
            samples.push(since.elapsed());
        }
        Ok(samples)
    }

    /// Three records on three topics, sent at once, until the last is acknowledged.
    pub async fn produce_three(&self, count: i32, pause: Duration) -> Result<Samples> {
        let mut samples = Samples::default();
        for i in 0..count {
            sleep(pause).await;
            let since = Instant::now();
            let [first, second, third] = &self.produced;
            tokio::try_join!(
                self.send(first, i),
                self.send(second, i),
                self.send(third, i)
            )?;
            samples.push(since.elapsed());
        }
        Ok(samples)
    }

    /// Lone records until a consumer has them.
    pub async fn hop(&self, count: i32, pause: Duration) -> Result<Samples> {
        let mut samples = Samples::default();
        for i in 0..count {
            sleep(pause).await;
            let since = Instant::now();
            let (sent, received) = tokio::join!(self.send(&self.hopped, i), async {
                let received = self.consumer.recv().await.map(drop);
                received.map(|()| since.elapsed())
            });
            sent?;
            samples.push(received?);
        }
        Ok(samples)
    }

    async fn send(&self, topic: &str, number: i32) -> Result<()> {
        let record = FutureRecord::<str, _>::to(topic)
            .partition(number % PARTITIONS)
            .payload(&VALUE[..]);
        let sent = self.producer.send(record, Duration::from_secs(5)).await;
        sent.map(drop).map_err(|(error, _)| error.into())
    }
}

/// Makes topics and waits until they are there.
pub async fn create_topics(brokers: &str, names: &[&str]) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .create()?;
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)))
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    for result in admin.create_topics(&topics, &options).await? {
        if let Err((name, code)) = result {
            bail!("topic {name}: {code}");
        }
    }
    Ok(())
}

/// A producer with the promises that the product needs, and no wait for batches.
pub fn producer(brokers: &str) -> Result<FutureProducer> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("socket.nagle.disable", "true")
        .create()
        .context("a producer")
}

/// A consumer of every partition of a topic from its beginning, without a group.
pub fn consumer(brokers: &str, topic: &str) -> Result<StreamConsumer> {
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", topic)
        .set("enable.auto.commit", "false")
        .set("socket.nagle.disable", "true")
        .create()
        .context("a consumer")?;
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    Ok(consumer)
}

/// Records by topic.
pub type Records = BTreeMap<String, i64>;

/// How many records every topic of the product has had.
pub fn records_of_the_product(brokers: &str) -> Result<Records> {
    let timeout = Duration::from_secs(5);
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "perf.watermarks")
        .create()?;
    let metadata = consumer.fetch_metadata(None, timeout)?;
    let mut records = Records::new();
    for topic in metadata.topics() {
        let name = topic.name();
        if name.starts_with("perf.") || name.starts_with("__") {
            continue;
        }
        for partition in topic.partitions() {
            let (_, end) = consumer.fetch_watermarks(name, partition.id(), timeout)?;
            *records.entry(name.to_owned()).or_default() += end;
        }
    }
    Ok(records)
}

/// As [`records_of_the_product`], without those of `before`, for topics that have had any since.
pub fn records_since(brokers: &str, before: &Records) -> Result<Records> {
    let mut records = records_of_the_product(brokers)?;
    for (topic, count) in before {
        records.entry(topic.clone()).and_modify(|all| *all -= count);
    }
    records.retain(|_, count| *count > 0);
    Ok(records)
}
