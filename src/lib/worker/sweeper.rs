//! The sweeper: does what is due by the runs' timers. Every worker has one; a timer is claimed by the
//! script that acts on it, so that several sweepers do not act twice.

use std::time::Duration;

use rand::RngExt;
use tokio_util::sync::CancellationToken;

use crate::ids::TenantId;
use crate::kafka::OutboxProducer;
use crate::runs::Runs;
use crate::store::StoreError;

/// Runs handled by one script.
const BATCH: u32 = 100;

/// Looks at due timers again and again.
#[derive(Debug, Clone)]
pub struct Sweeper {
    runs: Runs,
    outbox: OutboxProducer,
    interval: Duration,
}

impl Sweeper {
    /// A sweeper that looks every `interval`.
    pub fn new(runs: Runs, outbox: OutboxProducer, interval: Duration) -> Self {
        Self {
            runs,
            outbox,
            interval,
        }
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            // Sweepers that were started together drift apart.
            let wait = self.interval.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "sweep");
            }
        }
    }

    async fn sweep(&self) -> Result<(), StoreError> {
        for tenant in self.runs.tenants_with_due_timers().await? {
            if let Err(error) = self.sweep_tenant(&tenant).await {
                tracing::warn!(%error, %tenant, "sweep");
            }
        }
        Ok(())
    }

    async fn sweep_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        loop {
            let swept = self.runs.sweep(tenant, BATCH).await?;
            for (action, run) in &swept.actions {
                metrics::counter!("agenthub_sweeper_actions_total", "action" => action.clone())
                    .increment(1);
                tracing::info!(%tenant, run_id = run, action, "swept");
            }
            if let Err(error) = self.outbox.deliver(tenant, &swept.outbox).await {
                // While Kafka is away there is always more: the other tenants have their turn.
                tracing::warn!(%error, %tenant, "the outbox stays for the next sweep");
                return Ok(());
            }
            if swept.actions.len() < BATCH as usize {
                return Ok(());
            }
        }
    }
}
