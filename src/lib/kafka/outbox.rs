//! Produces what the transition scripts put into outboxes, and has the entries removed once they are
//! acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::{ProduceError, Producer};
use crate::ids::{RunId, TenantId};
use crate::runs::{OutboxEntry, Runs};
use crate::runtime::Supervisor;

/// Acknowledged entries are removed together after at most this long: it is off the reply's path, and
/// one script for many runs costs less than one for each.
const GATHER: Duration = Duration::from_millis(25);
/// Entries removed by one script.
const BATCH: usize = 512;
/// Acknowledged entries that may wait for their removal. One too many is dropped: its record is then
/// produced again by a sweeper, which consumers know by its id.
const WAITING: usize = 65_536;

/// An outbox entry whose record Kafka has acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The run.
    pub run: RunId,
    /// The entry's number.
    pub number: u64,
}

/// Empties outboxes.
#[derive(Debug, Clone)]
pub struct OutboxProducer {
    producer: Producer,
    done: mpsc::Sender<(TenantId, Acknowledged)>,
}

impl OutboxProducer {
    /// Its background task runs until `stop`, and removes what is acknowledged by then.
    pub fn start(
        producer: Producer,
        runs: Runs,
        supervisor: &Supervisor,
        stop: CancellationToken,
    ) -> Self {
        let (done, receiver) = mpsc::channel(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        supervisor.run("outbox-removal", move || {
            let (runs, stop, receiver) = (runs.clone(), stop.clone(), receiver.clone());
            async move { remove(&runs, &mut *receiver.lock().await, &stop).await }
        });
        Self { producer, done }
    }

    /// The producer beneath.
    pub fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Produces the entries and waits for every acknowledgement. Acknowledged entries are removed in
    /// the background; an error names the first that was not, and leaves it to the sweepers.
    pub async fn deliver(
        &self,
        tenant: &TenantId,
        entries: &[OutboxEntry],
    ) -> Result<(), ProduceError> {
        let (acknowledged, outcome) = self.produce(entries).await;
        self.forget(tenant, acknowledged);
        outcome
    }

    /// As [`OutboxProducer::deliver`], but the caller has the acknowledged entries removed: with its
    /// next transition, or by [`OutboxProducer::forget`].
    pub async fn produce(
        &self,
        entries: &[OutboxEntry],
    ) -> (Vec<Acknowledged>, Result<(), ProduceError>) {
        let results = self
            .producer
            .send_all(entries.iter().map(|entry| entry.record.get()))
            .await;
        let mut acknowledged = Vec::with_capacity(entries.len());
        let mut outcome = Ok(());
        for (entry, result) in entries.iter().zip(results) {
            match result {
                Ok(_) => acknowledged.push(Acknowledged {
                    run: entry.run_id.clone(),
                    number: entry.number,
                }),
                Err(error) if outcome.is_ok() => outcome = Err(error),
                Err(_) => {}
            }
        }
        (acknowledged, outcome)
    }

    /// Has acknowledged entries removed in the background.
    pub fn forget(&self, tenant: &TenantId, acknowledged: Vec<Acknowledged>) {
        for entry in acknowledged {
            if self.done.try_send((tenant.clone(), entry)).is_err() {
                metrics::counter!("agenthub_outbox_removals_dropped_total").increment(1);
            }
        }
    }
}

async fn remove(
    runs: &Runs,
    receiver: &mut mpsc::Receiver<(TenantId, Acknowledged)>,
    stop: &CancellationToken,
) {
    let mut batch = Vec::new();
    loop {
        let stopping = tokio::select! {
            taken = receiver.recv_many(&mut batch, BATCH) => taken == 0,
            () = stop.cancelled() => true,
        };
        if !stopping {
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
        }
        while batch.len() < BATCH
            && let Ok(more) = receiver.try_recv()
        {
            batch.push(more);
        }
        remove_batch(runs, std::mem::take(&mut batch)).await;
        if stopping && receiver.is_empty() {
            return;
        }
    }
}

async fn remove_batch(runs: &Runs, batch: Vec<(TenantId, Acknowledged)>) {
    let mut tenants: HashMap<TenantId, HashMap<RunId, Vec<u64>>> = HashMap::new();
    for (tenant, entry) in batch {
        tenants
            .entry(tenant)
            .or_default()
            .entry(entry.run)
            .or_default()
            .push(entry.number);
    }
    for (tenant, entries) in tenants {
        let entries: Vec<(RunId, Vec<u64>)> = entries.into_iter().collect();
        if let Err(error) = runs.flushed(&tenant, &entries).await {
            // A sweeper produces them once more; consumers know a repeated record by its id.
            tracing::warn!(%error, runs = entries.len(), "acknowledged outbox entries were not removed");
        }
    }
}
