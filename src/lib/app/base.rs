//! What every process has: secrets, Redis, Kafka, telemetry, health, and its orderly end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use secrecy::ExposeSecret;

use crate::config::{Settings, Source};
use crate::kafka::{BrokerHealth, KafkaSettings, OutboxProducer, Producer};
use crate::messages::Signer;
use crate::privacy::mask::{self, Masker};
use crate::privacy::{KeyCache, KeyRing};
use crate::runs::Runs;
use crate::runtime::{Check, Health, Shutdown, Supervisor, on_hangup};
use crate::store::Redis;
use crate::telemetry::{LogFilter, Telemetry};
use crate::tools::catalogue;
use crate::tools::declared::{self, Declared};

/// Sessions whose data keys a process keeps at hand.
const CACHED_KEYS: usize = 10_000;
/// Time for the last records and spans to leave.
const FLUSH: Duration = Duration::from_secs(3);

/// Why a process ends in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// A signal.
    ToStop,
    /// Its work is done.
    Done,
}

/// The parts that every process has.
pub(super) struct Base {
    pub(super) kafka: KafkaSettings,
    pub(super) signer: Signer,
    pub(super) keys: KeyCache,
    pub(super) masker: Arc<Masker>,
    pub(super) redis: Redis,
    pub(super) runs: Runs,
    pub(super) outbox: OutboxProducer,
    pub(super) telemetry: Telemetry,
    pub(super) health: Health,
    pub(super) shutdown: Shutdown,
    pub(super) supervisor: Supervisor,
    /// The operator's tools; they are in the catalogue.
    pub(super) declared: Vec<Declared>,
}

impl Base {
    /// Sets everything up. Dependencies that are away do not stop a process from starting: it is not
    /// ready until they are there.
    pub(super) fn start(
        service: &'static str,
        settings: &Settings,
        redis_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let declared = declared::load(settings.tools_file.as_deref())?;
        let specs = declared.iter().map(|tool| tool.spec.clone());
        anyhow::ensure!(
            catalogue::declare(specs),
            "the tools were looked at too early"
        );
        let masker = Arc::new(Masker::new(&mask_patterns(settings)?)?);
        let telemetry = Telemetry::start(service, settings, &masker).map_err(|e| anyhow!(e))?;
        let secret = |name: &'static str| move |e: String| anyhow!("{name}: {e}");
        let signer = Signer::parse(settings.signing_secrets.expose_secret())
            .map_err(secret("AGENTHUB_SIGNING_SECRETS"))?;
        let ring = KeyRing::parse(settings.master_keys.expose_secret())
            .map_err(secret("AGENTHUB_MASTER_KEYS"))?;
        let kafka = KafkaSettings::from(settings);
        let redis = Redis::connect(settings, redis_timeout)?;
        let producer = Producer::new(&kafka, signer.clone(), service)?;
        let shutdown = Shutdown::new();
        let supervisor = Supervisor::new(shutdown.end());
        let runs = Runs::new(redis.clone(), settings);
        let outbox =
            OutboxProducer::start(producer.clone(), runs.clone(), &supervisor, shutdown.end());
        let health = Health::new(&["kafka", "redis"]);
        let base = Self {
            kafka,
            signer,
            keys: KeyCache::new(ring, CACHED_KEYS),
            masker,
            redis,
            runs,
            outbox,
            telemetry,
            health,
            shutdown,
            supervisor,
            declared,
        };
        base.watch_dependencies(BrokerHealth::new(producer));
        base.reload_log_filter();
        tracing::info!(service, version = env!("CARGO_PKG_VERSION"), "started");
        Ok(base)
    }

    fn watch_dependencies(&self, broker: BrokerHealth) {
        let (redis, health) = (self.redis.clone(), self.health.clone());
        let check: Check = Arc::new(move || {
            let (redis, health) = (redis.clone(), health.clone());
            Box::pin(async move {
                redis.check_durability().await.map_err(|e| e.to_string())?;
                // Half a ledger takes nothing in. Workers go on: what is there may be acted on.
                let rebuilt = redis.is_being_rebuilt().await;
                health.close(rebuilt.map_err(|e| e.to_string())?);
                Ok(())
            })
        });
        self.watch("redis", check);
        let broker = Arc::new(broker);
        let check: Check = Arc::new(move || {
            let broker = broker.clone();
            Box::pin(async move { broker.check().await })
        });
        self.watch("kafka", check);
    }

    fn watch(&self, name: &'static str, check: Check) {
        let (health, stop) = (self.health.clone(), self.shutdown.end());
        self.supervisor.run("dependency-watch", move || {
            health.clone().watch(name, check.clone(), stop.clone())
        });
    }

    /// Reads `AGENTHUB_LOG` again on each SIGHUP. Whatever is wrong with it, the process goes on as before.
    fn reload_log_filter(&self) {
        let (filter, stop) = (self.telemetry.log_filter(), self.shutdown.end());
        self.supervisor.run("log-filter", move || {
            let (filter, stop) = (filter.clone(), stop.clone());
            async move {
                let told = on_hangup(&stop, || match reread(&filter) {
                    Ok(changed) => tracing::info!(changed, "SIGHUP: log filter"),
                    Err(error) => tracing::error!(error, "SIGHUP: the log filter stays"),
                });
                if let Err(error) = told.await {
                    tracing::error!(%error, "SIGHUP is not heard");
                }
            }
        });
    }

    /// Waits until the process is told to stop, or `ended` says that its work is done, or why it cannot
    /// go on. From here on it is not ready and takes nothing in.
    pub(super) async fn until_told(
        &self,
        ended: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<Told> {
        let outcome = tokio::select! {
            signal = Shutdown::signalled() => signal.context("signals").map(|signal| {
                tracing::info!(signal, "stopping");
                Told::ToStop
            }),
            ended = ended => ended.map(|()| Told::Done),
        };
        self.health.stop();
        self.shutdown.begin();
        outcome
    }

    /// The end: what was produced is acknowledged, what was acknowledged is removed, telemetry is out.
    pub(super) async fn finish(self) {
        if !self.outbox.producer().flush(FLUSH).await {
            tracing::warn!("records are left to the outboxes");
        }
        self.shutdown.finish();
        if !self.supervisor.join(FLUSH).await {
            tracing::warn!("tasks were still running at the end");
        }
        tracing::info!("stopped");
        let telemetry = self.telemetry;
        // Exporting blocks.
        let _ = tokio::task::spawn_blocking(move || telemetry.flush(FLUSH)).await;
    }
}

fn reread(filter: &LogFilter) -> Result<bool, String> {
    let source = Source::from_process().map_err(|e| e.to_string())?;
    let directives: String = source.setting("AGENTHUB_LOG").map_err(|e| e.to_string())?;
    filter.set(&directives)
}

fn mask_patterns(settings: &Settings) -> anyhow::Result<Vec<String>> {
    let Some(path) = &settings.mask_patterns_file else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("AGENTHUB_MASK_PATTERNS_FILE {}", path.display()))?;
    Ok(mask::patterns(&text))
}
