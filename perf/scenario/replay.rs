//! Replay: how many commands are read, verified and put onto their topic again in a second, against a
//! producer that only sends as many records of the same size.

use std::time::{Duration, Instant};

use agenthub::ids::{RunId, TenantId};
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{Extent, KafkaSettings, Producer, TopicReader, Verified};
use agenthub::messages::{Outgoing, Signer, Topic};
use agenthub::replay::Enqueue;
use anyhow::{Result, ensure};
use futures_util::future::try_join_all;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use super::Stack;
use crate::report::{Report, Row};

const RECORDS: usize = 60_000;
/// Records under way at once, as in a replay.
const UNDER_WAY: usize = 2_000;
/// About what a command of a short goal has.
const VALUE: usize = 800;
/// Signs what nobody else reads.
const SECRET: &str = "perf:cGVyZi1zaWduaW5nLXNlY3JldC1wZXJmLXNpZ25pbmctc2VjcmV0";

/// Measures it, on topics of its own.
pub async fn measure(stack: &Stack, report: &mut Report) -> Result<()> {
    let id = jiff::Timestamp::now().as_millisecond();
    let settings = KafkaSettings {
        brokers: stack.brokers.clone(),
        namespace: format!("perf-replay-{id}"),
        properties: Vec::new(),
        consumer_protocol: false,
        produce_timeout: Duration::from_secs(30),
    };
    let catalogue = Catalogue::embedded(true)?;
    Admin::new(&settings)?.apply(&catalogue, false).await?;
    let signer = Signer::parse(SECRET).map_err(anyhow::Error::msg)?;
    let sent = fill(&settings, &signer).await?;
    let read = read(&settings).await?;
    let replayed = replay(&settings, signer).await?;
    report.row(
        Row::context("replay: records read in a second", format!("{read:.0}/s"))
            .at_least(read, 20_000.0),
    );
    report.row(
        Row::context(
            "replay: commands read, verified and re-enqueued in a second",
            format!("{replayed:.0}/s"),
        )
        .floor(format!("{sent:.0}/s sent only"))
        .at_least(replayed, 20_000.0),
    );
    Ok(())
}

/// Puts signed commands onto the topic; records in a second.
async fn fill(settings: &KafkaSettings, signer: &Signer) -> Result<f64> {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &settings.brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .create()?;
    let topic = settings.topic(Topic::PlanCommands);
    let tenant: TenantId = "perf".parse()?;
    let since = Instant::now();
    for _ in 0..RECORDS / UNDER_WAY {
        let sent = (0..UNDER_WAY).map(|_| {
            let run = RunId::generate();
            let record = Outgoing {
                topic: Topic::PlanCommands,
                key: run.to_string(),
                ce_id: format!("{run}/plan/0"),
                ce_type: "agenthub.command.plan".to_owned(),
                tenant: tenant.clone(),
                run_id: Some(run),
                not_after_ms: Some(0),
                traceparent: None,
                value: vec![b'x'; VALUE].into(),
            };
            let headers = signer.headers(&topic, &record, "perf", "2026-01-01T00:00:00Z");
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| {
                    let value = Some(value.as_bytes());
                    all.insert(Header { key, value })
                });
            let message = FutureRecord::to(&topic)
                .key(&record.key)
                .payload(&record.value[..])
                .headers(headers);
            producer.send_result(message).map_err(|(error, _)| error)
        });
        let sent: Vec<_> = sent.collect::<Result<_, _>>()?;
        for delivered in try_join_all(sent).await? {
            delivered.map_err(|(error, _)| error)?;
        }
    }
    Ok(per_second(since))
}

async fn read(settings: &KafkaSettings) -> Result<f64> {
    let since = Instant::now();
    let mut reader = TopicReader::open(settings, Topic::PlanCommands, Extent::ALL).await?;
    let mut count = 0;
    while reader.next().await?.is_some() {
        count += 1;
    }
    ensure!(count == RECORDS, "{count} records");
    Ok(per_second(since))
}

async fn replay(settings: &KafkaSettings, signer: Signer) -> Result<f64> {
    let producer = Producer::new(settings, signer.clone(), "perf")?;
    let since = Instant::now();
    let mut reader = TopicReader::open(settings, Topic::PlanCommands, Extent::ALL).await?;
    let topic = reader.full_topic().to_owned();
    let mut enqueue = Enqueue::new(producer, None);
    while let Some(record) = reader.next().await? {
        let command = Verified::check(record, Topic::PlanCommands, &topic, &signer)?;
        enqueue.send(&command).await?;
    }
    enqueue.finish().await?;
    ensure!(enqueue.produced() == RECORDS as u64, "not all");
    Ok(per_second(since))
}

#[allow(clippy::cast_precision_loss)] // a small number
fn per_second(since: Instant) -> f64 {
    RECORDS as f64 / since.elapsed().as_secs_f64()
}
