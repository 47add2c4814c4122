//! The audit roll-up.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use secrecy::ExposeSecret;
use tokio::sync::oneshot;

use super::base::Base;
use super::consumer::{self, Reading};
use crate::config::{Settings, StorageSettings};
use crate::kafka::{Consumer, ConsumerOptions};
use crate::messages::Topic;
use crate::rollup::{
    AuditSigner, Keeper, Limits, PublicKeys, Retention, Rollup, Writer, WriterParts,
};
use crate::tools::retrieval::storage::Storage;

pub(super) const SERVICE: &str = "agenthub-audit-rollup";

const GROUP: &str = "audit-rollup";
/// Redis is told the heads of the chains, and waited for no longer than that.
const REDIS_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn serve(settings: Arc<Settings>, reading: Reading) -> anyhow::Result<()> {
    let (signer, accepted) = signing_keys(&settings)?;
    let base = Base::start(SERVICE, &settings, REDIS_TIMEOUT)?;
    consumer::serve_probes(&base, settings.probe_addr).await?;
    let storage = Storage::open(&StorageSettings::from(settings.as_ref()))?;
    let limits = Limits::from(settings.as_ref());
    let rollup = Rollup::new(base.signer.clone(), limits);
    let group = reading.group(GROUP);
    let keeper = Keeper {
        store: storage.store.clone(),
        signer: signer.clone(),
        accepted: accepted.clone(),
        retention: Retention::new(&settings)
            .map_err(|name| anyhow!("AGENTHUB_AUDIT_TENANT_RETENTION_DAYS: no tenant {name}"))?,
        interval: settings.audit_retention_interval_ms.duration(),
    };
    let stop = base.shutdown.intake();
    base.supervisor
        .run("audit-retention", move || keeper.clone().run(stop.clone()));
    let parts = WriterParts {
        kafka: &base.kafka,
        group: &group,
        store: storage.store,
        producer: base.outbox.producer().clone(),
        masker: base.masker.clone(),
        health: base.health.clone(),
        worker: format!("{SERVICE}@{}", uuid::Uuid::now_v7()),
        signer,
        accepted,
        redis: base.redis.clone(),
        head_interval: settings.audit_head_interval_ms.duration(),
    };
    let writer = Writer::new(rollup.clone(), parts)?;
    let (to_ended, ended) = oneshot::channel();
    {
        let (stopping, end) = (base.shutdown.intake(), base.shutdown.end());
        // It is not started again: what it holds is not committed, and the next process resumes from
        // the last manifest.
        base.supervisor.run_once("rollup-writer", async move {
            let _ = to_ended.send(writer.run(stopping, end).await);
        });
    }
    let options = reading
        .options(&base, &settings, SERVICE, &group, Topic::AuditLogs)
        .await?;
    let options = ConsumerOptions {
        max_in_flight: limits.max_in_flight(),
        ..options
    };
    let kafka = base.kafka.clone();
    let consumer = consumer::start(&base, move || {
        let topics = [Topic::AuditLogs];
        Consumer::in_order(&kafka, &group, &topics, rollup.sink(), options.clone())
    });
    let failed = async {
        match ended.await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => anyhow!("the writer ended"),
        }
    };
    consumer.run(base, failed).await
}

/// The key that signs, and those that signed before it.
fn signing_keys(settings: &Settings) -> anyhow::Result<(AuditSigner, PublicKeys)> {
    let key = settings.audit_signing_key.expose_secret();
    if key.is_empty() {
        return Err(anyhow!(
            "AGENTHUB_AUDIT_SIGNING_KEY is required: `agenthub audit keygen` makes a key"
        ));
    }
    let signer = AuditSigner::parse(key).map_err(|e| anyhow!("AGENTHUB_AUDIT_SIGNING_KEY: {e}"))?;
    let accepted = PublicKeys::parse(&settings.audit_public_keys)
        .map_err(|e| anyhow!("AGENTHUB_AUDIT_PUBLIC_KEYS: {e}"))?;
    Ok((signer, accepted))
}
