//! The sweeper: does what is due by the runs' timers. Every worker has one; a timer is claimed by the
//! script that acts on it, so that several sweepers do not act twice.

use std::time::{Duration, Instant};

use rand::RngExt;
use tokio_util::sync::CancellationToken;

use super::to_f64;
use crate::ids::TenantId;
use crate::kafka::OutboxProducer;
use crate::runs::{Runs, Swept};
use crate::store::StoreError;
use crate::telemetry::labels;

/// Runs handled by one script.
const BATCH: u32 = 100;
/// How often a worker tells how much of their budgets tenants have used.
const BUDGETS_EVERY: Duration = Duration::from_secs(15);

/// Looks at due timers again and again.
#[derive(Debug, Clone)]
pub struct Sweeper {
    runs: Runs,
    outbox: OutboxProducer,
    interval: Duration,
    /// How long an outbox age is shown: an entry that stays is seen again within this time.
    outbox_window: Duration,
}

impl Sweeper {
    /// A sweeper that looks every `interval`, in an installation that produces a record again after
    /// `outbox_retry`.
    pub fn new(
        runs: Runs,
        outbox: OutboxProducer,
        interval: Duration,
        outbox_retry: Duration,
    ) -> Self {
        Self {
            runs,
            outbox,
            interval,
            outbox_window: 2 * (outbox_retry + interval),
        }
    }

    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut gauges = Gauges::new(self.outbox_window);
        let mut budgets_due = Instant::now();
        loop {
            // Sweepers that were started together drift apart.
            let wait = self.interval.mul_f64(rand::rng().random_range(0.5..1.5));
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            if let Err(error) = self.sweep(&mut gauges).await {
                tracing::warn!(%error, "sweep");
            }
            if budgets_due <= Instant::now() {
                budgets_due = Instant::now() + BUDGETS_EVERY;
                if let Err(error) = self.tell_budgets().await {
                    tracing::warn!(%error, "budgets");
                }
            }
        }
    }

    /// How much of their budgets the tenants have used that have one.
    async fn tell_budgets(&self) -> Result<(), StoreError> {
        for (tenant, spending) in self.runs.budgets().await? {
            let Some(limit) = spending.limit.filter(|limit| *limit > 0) else {
                continue;
            };
            let used = to_f64(spending.spent + spending.reserved) / to_f64(limit);
            metrics::gauge!("agenthub_budget_used_ratio", "tenant" => labels::tenant(tenant.as_str()))
                .set(used);
        }
        Ok(())
    }

    async fn sweep(&self, gauges: &mut Gauges) -> Result<(), StoreError> {
        let due = self.runs.tenants_with_due_timers().await?;
        let oldest = due.iter().map(|(_, waited)| *waited).max();
        metrics::gauge!("agenthub_timer_delay_seconds")
            .set(oldest.unwrap_or_default().as_secs_f64());
        for (tenant, _) in due {
            if let Err(error) = self.sweep_tenant(&tenant, gauges).await {
                tracing::warn!(%error, %tenant, "sweep");
            }
        }
        gauges.outbox_age(Duration::ZERO, Instant::now());
        Ok(())
    }

    async fn sweep_tenant(&self, tenant: &TenantId, gauges: &mut Gauges) -> Result<(), StoreError> {
        loop {
            let swept = self.runs.sweep(tenant, BATCH).await?;
            for done in &swept.actions {
                tell(tenant, done);
            }
            gauges.outbox_age(swept.outbox_age, Instant::now());
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

fn tell(tenant: &TenantId, done: &Swept) {
    let (action, run) = (&done.action, &done.run);
    metrics::counter!("agenthub_sweeper_actions_total", "action" => action.clone()).increment(1);
    tracing::info!(%tenant, run_id = run, action, "swept");
    // No worker tells of these ends.
    if let Some(kind) = done.ended {
        let kind = kind.as_str();
        metrics::counter!("agenthub_runs_total",
            "tenant" => labels::tenant(tenant.as_str()), "kind" => kind, "outcome" => action.clone())
        .increment(1);
        tracing::info!(%tenant, run_id = run, kind, outcome = action, "run ended");
    }
}

/// The highest outbox age of the last sweeps. One sweep says little: an entry that stays is looked at
/// once per retry, and by one of several sweepers.
#[derive(Debug)]
struct Gauges {
    window: Duration,
    highest: Duration,
    seen: Option<Instant>,
}

impl Gauges {
    fn new(window: Duration) -> Self {
        Self {
            window,
            highest: Duration::ZERO,
            seen: None,
        }
    }

    fn outbox_age(&mut self, age: Duration, now: Instant) {
        let shown = self.after(age, now);
        metrics::gauge!("agenthub_outbox_age_seconds").set(shown.as_secs_f64());
    }

    fn after(&mut self, age: Duration, now: Instant) -> Duration {
        let stale = self
            .seen
            .is_none_or(|seen| now.saturating_duration_since(seen) > self.window);
        if stale || age >= self.highest {
            self.highest = age;
            self.seen = Some(now);
        }
        self.highest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_age_is_shown_until_it_was_not_seen_for_a_window() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut gauges = Gauges::new(4 * second);
        assert_eq!(gauges.after(3 * second, start), 3 * second);
        assert_eq!(gauges.after(Duration::ZERO, start + second), 3 * second);
        assert_eq!(gauges.after(5 * second, start + 3 * second), 5 * second);
        assert_eq!(gauges.after(second, start + 7 * second), 5 * second);
        assert_eq!(gauges.after(second, start + 8 * second), second);
        assert_eq!(
            gauges.after(Duration::ZERO, start + 20 * second),
            Duration::ZERO
        );
    }
}
