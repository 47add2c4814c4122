//! The runs that this worker owns, and the renewal of their leases.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ids::{RunId, TenantId};
use crate::runs::{CancelMode, Renewal, Runs};

/// A cancellation is delivered with a renewal, so that this bounds its delay.
const LONGEST_INTERVAL: Duration = Duration::from_secs(2);
/// Leases renewed by one script.
const BATCH: usize = 500;

/// What the owner of a run is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// Go on.
    Owned,
    /// A client asked for the run's end.
    Cancel(CancelMode),
    /// The run is no longer this worker's: another has it, or it has ended.
    Lost,
}

#[derive(Debug)]
struct Lease {
    tenant: TenantId,
    owner: String,
    signal: watch::Sender<Signal>,
}

/// The leases of a worker.
#[derive(Debug, Default)]
pub struct Leases {
    held: Mutex<HashMap<RunId, Lease>>,
}

/// Keeps a run's lease renewed while it exists.
#[derive(Debug)]
pub(super) struct Held {
    leases: Arc<Leases>,
    run: RunId,
    owner: String,
    pub(super) signal: watch::Receiver<Signal>,
}

impl Leases {
    pub(super) fn hold(self: &Arc<Self>, tenant: &TenantId, run: &RunId, owner: &str) -> Held {
        let (sender, signal) = watch::channel(Signal::Owned);
        let lease = Lease {
            tenant: tenant.clone(),
            owner: owner.to_owned(),
            signal: sender,
        };
        self.lock().insert(run.clone(), lease);
        Held {
            leases: self.clone(),
            run: run.clone(),
            owner: owner.to_owned(),
            signal,
        }
    }

    /// Tells a run's owner without waiting for the next renewal.
    pub(super) fn tell(&self, run: &RunId, owner: &str, signal: Signal) {
        if let Some(lease) = self.lock().get(run).filter(|lease| lease.owner == owner) {
            lease.signal.send_replace(signal);
        }
    }

    /// Renews every lease again and again, until `stop`.
    pub async fn renew(&self, runs: &Runs, lease: Duration, stop: &CancellationToken) {
        let interval = (lease / 4).min(LONGEST_INTERVAL);
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
            let mut tenants: HashMap<TenantId, Vec<(RunId, String)>> = HashMap::new();
            {
                let held = self.lock();
                metrics::gauge!("agenthub_leases").set(super::to_f64(held.len() as u64));
                for (run, lease) in &*held {
                    tenants
                        .entry(lease.tenant.clone())
                        .or_default()
                        .push((run.clone(), lease.owner.clone()));
                }
            }
            for (tenant, leases) in tenants {
                for batch in leases.chunks(BATCH) {
                    match runs.renew(&tenant, batch, lease_ms).await {
                        Ok(renewals) => self.tell_all(batch, &renewals),
                        // The leases may run out; whoever takes the runs over then makes these lost.
                        Err(error) => tracing::warn!(%error, "leases were not renewed"),
                    }
                }
            }
        }
    }

    fn tell_all(&self, batch: &[(RunId, String)], renewals: &[Renewal]) {
        for ((run, owner), renewal) in batch.iter().zip(renewals) {
            match renewal {
                Renewal::Owned => {}
                Renewal::Cancel(mode) => self.tell(run, owner, Signal::Cancel(*mode)),
                Renewal::Lost => self.tell(run, owner, Signal::Lost),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, Lease>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.leases.lock();
        if held
            .get(&self.run)
            .is_some_and(|lease| lease.owner == self.owner)
        {
            held.remove(&self.run);
        }
    }
}
