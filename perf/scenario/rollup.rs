//! The audit roll-up: how many records a second go from the topic to signed files in a folder.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agenthub::config::RedisSettings;
use agenthub::ids::{RunId, SessionId, TenantId};
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{Consumer, ConsumerOptions, KafkaSettings, Producer};
use agenthub::messages::{Outgoing, Signer, Topic};
use agenthub::privacy::mask::Masker;
use agenthub::rollup::{
    AuditSigner, Chain, Limits, PublicKeys, Rollup, VerifyOptions, Writer, WriterParts, verify,
};
use agenthub::runtime::Health;
use agenthub::store::Redis;
use anyhow::{Context, Result, ensure};
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use tokio_util::sync::CancellationToken;

use crate::report::{Report, Row};

const RECORDS: u64 = 400_000;
const BATCH: u64 = 20_000;
const TENANTS: u64 = 20;
const GROUP: &str = "audit-rollup";
/// 2026-02-03T04:00:00Z.
const HOUR: u64 = 1_770_091_200_000;
/// A secret of nobody.
const SECRET: &str = "k1:cGVyZi1zZWNyZXQtcGVyZi1zZWNyZXQtcGVyZi1zZWNyZXQ=";

/// Measures it on a topic of its own, which is filled before.
pub async fn measure(brokers: &str, redis_url: &str, report: &mut Report) -> Result<()> {
    let kafka = KafkaSettings {
        brokers: brokers.to_owned(),
        namespace: format!("perf-{:016x}", rand::random::<u64>()),
        properties: Vec::new(),
        consumer_protocol: false,
        produce_timeout: Duration::from_secs(30),
    };
    let mut catalogue = Catalogue::embedded(true)?;
    let wanted = [Topic::AuditLogs, Topic::DeadLetter];
    catalogue.topics.retain(|spec| wanted.contains(&spec.topic));
    Admin::new(&kafka)?.apply(&catalogue, false).await?;
    let signer = Signer::parse(SECRET).map_err(anyhow::Error::msg)?;
    let producer = Producer::new(&kafka, signer.clone(), "perf")?;
    for start in (0..RECORDS).step_by(usize::try_from(BATCH)?) {
        let records: Vec<Outgoing> = (start..start + BATCH).map(record).collect();
        for result in producer.publish_all(&records).await {
            result?;
        }
    }

    let folder = tempfile::tempdir()?;
    let seconds = roll_up(&kafka, redis_url, signer, producer, folder.path()).await?;
    #[allow(clippy::cast_precision_loss)] // a small number
    let rate = RECORDS as f64 / seconds;
    report.row(
        Row::context(
            "audit roll-up of 400,000 records of 20 tenants to a folder, one process: records/s",
            format!("{rate:.0}/s"),
        )
        .at_least(rate, 50_000.0),
    );
    Ok(())
}

/// Seconds from the start of a roll-up until signed manifests list everything. Then verifies it.
async fn roll_up(
    kafka: &KafkaSettings,
    redis_url: &str,
    signer: Signer,
    producer: Producer,
    folder: &Path,
) -> Result<f64> {
    let store: Arc<dyn ObjectStore> =
        Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true));
    let limits = Limits {
        max_records: 50_000,
        max_age: Duration::from_secs(1),
    };
    let rollup = Rollup::new(signer, limits);
    let key = AuditSigner::generate(None).map_err(anyhow::Error::msg)?;
    let keys = key.public();
    let parts = WriterParts {
        kafka,
        group: GROUP,
        store: store.clone(),
        producer,
        masker: Arc::new(Masker::new(&[])?),
        health: Health::new(&[]),
        worker: "perf".to_owned(),
        signer: key,
        accepted: PublicKeys::default(),
        redis: Redis::open(
            &RedisSettings::of_url(&redis_url.to_owned().into())?,
            &kafka.namespace,
            Duration::from_secs(5),
        )?,
        head_interval: Duration::from_hours(1),
    };
    let writer = Writer::new(rollup.clone(), parts)?;
    let options = ConsumerOptions {
        max_in_flight: limits.max_in_flight(),
        ..ConsumerOptions::default()
    };
    let consumer = Consumer::in_order(kafka, GROUP, &[Topic::AuditLogs], rollup.sink(), options)?;
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let writing = tokio::spawn(writer.run(stop.clone(), end.clone()));
    let consuming = tokio::spawn(consumer.run(stop.clone()));

    let chain = Chain::new(store.clone(), kafka.topic(Topic::AuditLogs));
    let partitions = i32::try_from(partitions()?)?;
    let mut began = None;
    let seconds = loop {
        let mut rows = 0;
        for partition in 0..partitions {
            rows += chain
                .all(partition, &keys)
                .await?
                .iter()
                .map(agenthub::rollup::Manifest::rows)
                .sum::<u64>();
        }
        // Joining the group is not what is measured: the first manifest begins it, without its records.
        if rows > 0 && began.is_none() {
            began = Some((Instant::now(), rows));
        }
        if let Some((since, first)) = began.filter(|_| rows >= RECORDS) {
            #[allow(clippy::cast_precision_loss)] // a small number
            let share = (RECORDS - first) as f64 / RECORDS as f64;
            ensure!(share > 0.5, "too few records are left to be measured");
            break since.elapsed().as_secs_f64() / share;
        }
        ensure!(!writing.is_finished(), "the writer ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    stop.cancel();
    consuming.await??;
    end.cancel();
    writing.await??;
    let options = VerifyOptions {
        keys,
        ..VerifyOptions::default()
    };
    let verified = verify(store, &options).await.context("what was written")?;
    ensure!(verified.rows == RECORDS, "{} rows", verified.rows);
    Ok(seconds)
}

fn partitions() -> Result<usize> {
    let catalogue = Catalogue::embedded(true)?;
    let spec = catalogue
        .topics
        .iter()
        .find(|spec| spec.topic == Topic::AuditLogs);
    Ok(usize::try_from(spec.context("no audit.logs")?.partitions)?)
}

/// A record as the API writes one for a request.
fn record(number: u64) -> Outgoing {
    let tenant = format!("tenant-{}", number % TENANTS);
    let id = uuid::Uuid::now_v7().to_string();
    let value = serde_json::json!({
        "v": 1, "id": id, "ts": HOUR + number, "action": "request", "tenant": tenant,
        "key_id": "0123456789abcdef", "role": "client", "method": "POST", "route": "/v1/runs", "status": 202,
        "session_id": SessionId::generate(), "run_id": RunId::generate(),
        "input_hash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "input_tokens": number % 977, "output_tokens": number % 313, "cost_micro_usd": number % 1009,
        "ip": "192.0.2.0/24", "trace_id": uuid::Uuid::new_v4().simple().to_string(),
        "duration_ms": number % 101, "decision": "allowed",
    });
    Outgoing {
        topic: Topic::AuditLogs,
        key: tenant.clone(),
        ce_id: id,
        ce_type: "agenthub.audit".to_owned(),
        tenant: tenant.parse().unwrap_or_else(|_| TenantId::system()),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: value.to_string().into(),
    }
}
