//! Floor (d): the transitions of runs as scripts and records, without any of the work between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka::consumer::StreamConsumer;
use rdkafka::producer::{FutureProducer, FutureRecord};
use redis::Script;
use redis::aio::MultiplexedConnection;
use tokio::task::JoinSet;

use super::kafka;

/// Transitions of a run that plans and calls one tool.
const TRANSITIONS: u32 = 5;

const TRANSITION: &str = "
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'owner', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('LTRIM', KEYS[2], -100, -1)
redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
redis.call('ZADD', KEYS[4], ARGV[1], KEYS[1])
return redis.call('PUBLISH', KEYS[2], ARGV[3])
";

#[derive(Clone)]
struct Ledger {
    redis: MultiplexedConnection,
    producer: FutureProducer,
    script: Arc<Script>,
    topic: Arc<str>,
}

/// Runs a second with `at_once` runs in flight for `time`.
pub async fn runs_per_second(
    redis_url: &str,
    brokers: &str,
    at_once: usize,
    time: Duration,
) -> Result<f64> {
    let topic = format!("perf.ledger.{}", jiff::Timestamp::now().as_millisecond());
    kafka::create_topics(brokers, &[&topic]).await?;
    let consumer = kafka::consumer(brokers, &topic)?;
    let client = redis::Client::open(redis_url)?;
    let ledger = Ledger {
        redis: client.get_multiplexed_async_connection().await?,
        producer: kafka::producer(brokers)?,
        script: Arc::new(Script::new(TRANSITION)),
        topic: topic.into(),
    };
    // Connections are made and code is warm before the clock starts.
    ledger.clone().run("warm-up").await?;

    let mut consuming = JoinSet::new();
    consuming.spawn(consume(consumer));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let since = Instant::now();
    for task in 0..at_once {
        let (ledger, done) = (ledger.clone(), Arc::clone(&done));
        tasks.spawn(async move {
            let mut number = 0_u64;
            while since.elapsed() < time {
                ledger.clone().run(&format!("{task}-{number}")).await?;
                number += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let done = done.load(Ordering::Relaxed) as f64;
    Ok(done / since.elapsed().as_secs_f64())
}

/// Takes the records off the broker, as a worker must.
async fn consume(consumer: StreamConsumer) {
    while consumer.recv().await.is_ok() {}
}

impl Ledger {
    async fn run(mut self, id: &str) -> Result<()> {
        let event = "x".repeat(500);
        for state in 1..=TRANSITIONS {
            self.script
                .key(format!("perf:{{t}}:run:{id}"))
                .key(format!("perf:{{t}}:history:{id}"))
                .key(format!("perf:{{t}}:outbox:{id}"))
                .key("perf:{t}:timers")
                .arg(state)
                .arg("owner")
                .arg(&event)
                .invoke_async::<i64>(&mut self.redis)
                .await?;
            let record = FutureRecord::to(&self.topic).key(id).payload(&event);
            let sent = self.producer.send(record, Duration::from_secs(5)).await;
            sent.map_err(|(error, _)| error)?;
        }
        Ok(())
    }
}
