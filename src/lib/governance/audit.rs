//! The trail of requests: audit records on their way to `audit.logs`, beside the requests' path.
//!
//! A request reserves a place in a bounded buffer before it is handled, and its record takes the place
//! when it is answered. A task produces what is there, batch by batch, and keeps a batch until Kafka has
//! acknowledged it. So a request that was answered has a place for its record, and Kafka being away
//! costs it nothing until the buffer is full: it is refused then, or goes unrecorded but counted, as the
//! operator has chosen.
//!
//! What requests without a valid key can make the trail write is bounded: so many records a second, and
//! beyond that sums.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::{AuditFull, Settings};
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{AuditRecord, Outgoing, Topic};
use crate::runtime::{Supervisor, clock};

/// Records that are produced together.
const BATCH: usize = 512;
/// How often sums are written, and requests without a key get new places.
const TICK: Duration = Duration::from_secs(1);
/// Requests without a valid key that get a record of their own, each second.
const ANONYMOUS: u32 = 100;
/// Sums that are kept apart; further ones are added up by their status alone.
const MAX_SUMS: usize = 256;
/// After a failed produce, growing to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Time for what is left when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// The buffer is full, and the operator wants requests refused then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrailFull;

/// A place for one record.
#[derive(Debug)]
pub struct Place(mpsc::OwnedPermit<AuditRecord>);

/// What records have in common that are added up.
type SumKey = (
    Option<TenantId>,
    Option<String>,
    Option<String>,
    Option<u16>,
    Option<String>,
);

/// Records that were added up: the first of each kind, with the count of all.
#[derive(Debug, Default)]
struct Sums(BTreeMap<SumKey, AuditRecord>);

impl Sums {
    fn add(&mut self, mut record: AuditRecord) {
        let count = record.count;
        let key = |r: &AuditRecord| {
            let of = (r.tenant.clone(), r.method.clone(), r.route.clone());
            (of.0, of.1, of.2, r.status, r.rule.clone())
        };
        let mut at = key(&record);
        if self.0.len() >= MAX_SUMS && !self.0.contains_key(&at) {
            record.tenant = None;
            record.key_id = None;
            record.role = None;
            record.method = None;
            record.route = None;
            record.ip = None;
            record.rule = None;
            at = key(&record);
        }
        match self.0.entry(at) {
            std::collections::btree_map::Entry::Vacant(place) => _ = place.insert(record),
            std::collections::btree_map::Entry::Occupied(mut sum) => {
                let sum = sum.get_mut();
                sum.count = sum.count.saturating_add(count);
                // What is true of all of them stays.
                if sum.ip != record.ip {
                    sum.ip = None;
                }
                sum.trace_id = None;
                sum.input_hash = None;
                if sum.key_id != record.key_id {
                    sum.key_id = None;
                }
            }
        }
    }

    fn take(&mut self) -> impl Iterator<Item = AuditRecord> + use<> {
        std::mem::take(&mut self.0).into_values()
    }
}

#[derive(Debug)]
struct Shared {
    sums: Mutex<Sums>,
    /// Requests without a valid key that may still have a record of their own in this second.
    anonymous: AtomicU32,
}

impl Shared {
    fn sums(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admits_anonymous(&self) -> bool {
        let taken = |left: u32| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.anonymous.fetch_update(set, fetch, taken).is_ok()
    }
}

/// The trail. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuditTrail {
    sender: mpsc::Sender<AuditRecord>,
    shared: Arc<Shared>,
    full: AuditFull,
}

impl AuditTrail {
    /// Its task produces until `stop`, and then what is left, for at most two seconds.
    pub fn start(
        producer: Producer,
        settings: &Settings,
        supervisor: &Supervisor,
        stop: CancellationToken,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(settings.audit_buffer.max(1));
        let shared = Arc::new(Shared {
            sums: Mutex::default(),
            anonymous: AtomicU32::new(ANONYMOUS),
        });
        let intake = Arc::new(tokio::sync::Mutex::new((receiver, Vec::new())));
        let trail = Self {
            sender,
            shared: shared.clone(),
            full: settings.audit_full,
        };
        supervisor.run("audit-trail", move || {
            let (producer, stop) = (producer.clone(), stop.clone());
            let (shared, intake) = (shared.clone(), intake.clone());
            async move {
                let (receiver, batch) = &mut *intake.lock().await;
                produce(&producer, &shared, receiver, batch, &stop).await;
            }
        });
        trail
    }

    /// Reserves a place for a request that is about to be handled. `None` when there is none and the
    /// request is to go on all the same.
    pub fn reserve(&self) -> Result<Option<Place>, TrailFull> {
        match self.sender.clone().try_reserve_owned() {
            Ok(permit) => Ok(Some(Place(permit))),
            Err(_) if self.full == AuditFull::Refuse => Err(TrailFull),
            Err(_) => Ok(None),
        }
    }

    /// Hands a record over. One without a place is counted when there is none.
    pub fn record(&self, place: Option<Place>, record: AuditRecord) {
        if record.tenant.is_none() && !self.shared.admits_anonymous() {
            metrics::counter!("agenthub_audit_summed_total").increment(1);
            return self.shared.sums().add(record);
        }
        if let Some(Place(permit)) = place {
            permit.send(record);
        } else if let Err(refused) = self.sender.try_send(record) {
            metrics::counter!("agenthub_audit_summed_total").increment(1);
            self.shared.sums().add(refused.into_inner());
        }
    }
}

async fn produce(
    producer: &Producer,
    shared: &Shared,
    receiver: &mut mpsc::Receiver<AuditRecord>,
    batch: &mut Vec<Outgoing>,
    stop: &CancellationToken,
) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut records = Vec::with_capacity(BATCH);
    loop {
        let stopping = tokio::select! {
            // A batch that a panic left behind goes first.
            () = std::future::ready(()), if !batch.is_empty() => false,
            taken = receiver.recv_many(&mut records, BATCH) => taken == 0,
            _ = tick.tick() => {
                shared.anonymous.store(ANONYMOUS, Ordering::Relaxed);
                records.extend(shared.sums().take());
                false
            }
            () = stop.cancelled() => true,
        };
        if stopping {
            break;
        }
        metrics::gauge!("agenthub_audit_waiting").set(as_f64(receiver.len()));
        batch.extend(records.drain(..).filter_map(outgoing));
        send(producer, batch, stop).await;
    }
    records.extend(shared.sums().take());
    while let Ok(record) = receiver.try_recv() {
        records.push(record);
    }
    batch.extend(records.drain(..).filter_map(outgoing));
    let left = tokio::time::timeout(LAST, deliver(producer, batch)).await;
    if left.is_err() || !batch.is_empty() {
        tracing::error!(records = batch.len(), "audit records were not delivered");
    }
}

/// Produces the batch until every record is acknowledged, or the process ends.
async fn send(producer: &Producer, batch: &mut Vec<Outgoing>, stop: &CancellationToken) {
    let mut pause = PAUSE;
    while !batch.is_empty() && !stop.is_cancelled() {
        deliver(producer, batch).await;
        if !batch.is_empty() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Tries once; what was not acknowledged stays. It may be on the topic all the same: readers know a
/// repeated record by its `ce_id`.
async fn deliver(producer: &Producer, batch: &mut Vec<Outgoing>) {
    let results = producer.publish_all(batch).await;
    let failed = results.iter().filter(|result| result.is_err()).count();
    if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
        tracing::warn!(%error, records = failed, "audit records wait for Kafka");
    }
    let mut results = results.into_iter();
    batch.retain(|_| results.next().is_none_or(|result| result.is_err()));
}

fn outgoing(mut record: AuditRecord) -> Option<Outgoing> {
    if record.id.is_empty() {
        record.id = Uuid::now_v7().to_string();
    }
    if record.ts == 0 {
        record.ts = clock::now_ms();
    }
    let tenant = record.tenant.clone().unwrap_or_else(TenantId::anonymous);
    let value = serde_json::to_vec(&record);
    if let Err(error) = &value {
        tracing::error!(%error, "an audit record does not serialise");
    }
    Some(Outgoing {
        topic: Topic::AuditLogs,
        key: tenant.to_string(),
        ce_id: record.id,
        ce_type: "agenthub.audit".to_owned(),
        tenant,
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: Bytes::from(value.ok()?),
    })
}

#[allow(clippy::cast_precision_loss)] // of no use beyond 2^52 records
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{AuditDecision, SCHEMA_VERSION};

    fn record(route: &str, ip: &str) -> AuditRecord {
        AuditRecord {
            v: SCHEMA_VERSION,
            id: "a".to_owned(),
            ts: 1,
            action: "request".to_owned(),
            count: 1,
            tenant: None,
            key_id: None,
            role: None,
            method: Some("GET".to_owned()),
            route: Some(route.to_owned()),
            status: Some(401),
            session_id: None,
            run_id: None,
            target: None,
            input_hash: None,
            input_tokens: 0,
            output_tokens: 0,
            cost_micro_usd: 0,
            call: None,
            settlement: None,
            delta_micro_usd: None,
            month: None,
            ip: Some(ip.to_owned()),
            trace_id: Some("t".to_owned()),
            duration_ms: 0,
            decision: AuditDecision::Refused,
            rule: None,
            resolved: None,
        }
    }

    #[test]
    fn sums_keep_what_is_true_of_all_and_count_every_one() {
        let mut sums = Sums::default();
        for ip in ["192.0.2.0/24", "192.0.2.0/24"] {
            sums.add(record("/v1/runs", ip));
        }
        sums.add(record("/v1/tools", "192.0.2.0/24"));
        sums.add(record("/v1/tools", "198.51.100.0/24"));
        let summed: Vec<_> = sums.take().collect();
        assert_eq!(summed.iter().map(|r| r.count).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(summed[0].ip.as_deref(), Some("192.0.2.0/24"));
        assert_eq!(summed[1].ip, None);
        assert_eq!(sums.take().count(), 0);
    }

    #[test]
    fn sums_are_bounded_whatever_is_sent() {
        let mut sums = Sums::default();
        for number in 0..10_000 {
            sums.add(record(&format!("/made/up/{number}"), "192.0.2.0/24"));
        }
        let summed: Vec<_> = sums.take().collect();
        assert_eq!(summed.len(), MAX_SUMS + 1);
        assert_eq!(summed.iter().map(|r| r.count).sum::<u64>(), 10_000);
    }
}
