//! Heads of the chains, for those who want to know later that nothing was cut off: in Redis for the API
//! after every manifest, and now and then on `audit.logs`, so that the chains also vouch for each other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::keys::AuditSigner;
use super::manifest::Link;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{AuditDecision, Outgoing, SCHEMA_VERSION, Topic};
use crate::store::Redis;

/// The action of a record that holds a head.
pub(super) const ACTION: &str = "audit_head";
/// The longest that a manifest's follow-up waits for Redis: what it missed comes with the next one.
const REDIS_WAIT: Duration = Duration::from_millis(500);
/// Pause before what could not be published is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// The heads of the partitions that this process writes.
#[derive(Debug)]
pub(super) struct Heads {
    signer: AuditSigner,
    redis: Redis,
    producer: Producer,
    interval: Duration,
    due: Instant,
    /// By partition: what was not published yet.
    fresh: HashMap<i32, Link>,
}

impl Heads {
    pub(super) fn new(
        signer: AuditSigner,
        redis: Redis,
        producer: Producer,
        interval: Duration,
    ) -> Self {
        Self {
            signer,
            redis,
            producer,
            interval,
            due: Instant::now() + interval,
            fresh: HashMap::new(),
        }
    }

    /// When [`Heads::publish_due`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.fresh.is_empty()).then_some(self.due)
    }

    /// Shows the end of a chain in Redis. That it cannot be shown holds nothing up.
    pub(super) async fn show(&mut self, link: &Link, now_ms: u64) {
        self.fresh.insert(link.partition, link.clone());
        let head = match link.head(&self.signer, now_ms) {
            Ok(head) => head,
            Err(error) => return failed("redis", &error),
        };
        let shown = self
            .redis
            .show_audit_head(link.partition, link.sequence, &head);
        match tokio::time::timeout(REDIS_WAIT, shown).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed("redis", &error),
            Err(late) => failed("redis", &late),
        }
    }

    /// Puts the heads that changed onto `audit.logs`, when it is time.
    pub(super) async fn publish_due(&mut self, now: Instant) {
        if self.fresh.is_empty() || now < self.due {
            return;
        }
        self.due = now + self.interval;
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        let links: Vec<Link> = self.fresh.values().cloned().collect();
        for link in links {
            let record = match record(&link, &self.signer, now_ms) {
                Ok(record) => record,
                Err(error) => return failed("audit.logs", &error),
            };
            match self.producer.publish(&record).await {
                Ok(_) => _ = self.fresh.remove(&link.partition),
                Err(error) => {
                    failed("audit.logs", &error);
                    self.due = now + AGAIN.min(self.interval);
                    return;
                }
            }
        }
    }
}

fn failed(place: &'static str, error: &dyn std::fmt::Display) {
    metrics::counter!("agenthub_rollup_head_failures_total", "place" => place).increment(1);
    tracing::warn!(%error, place, "a head was not published");
}

/// The audit record of a head. Its name is the same for the same manifest, so that repeats are known.
fn record(link: &Link, signer: &AuditSigner, now_ms: u64) -> Result<Outgoing, serde_json::Error> {
    let id = format!(
        "audit-head/{}/{}/{}",
        link.topic, link.partition, link.sequence
    );
    let audit = json!({
        "v": SCHEMA_VERSION,
        "id": id,
        "ts": now_ms,
        "action": ACTION,
        "tenant": TenantId::system(),
        "target": link.head(signer, now_ms)?,
        "decision": AuditDecision::Allowed,
    });
    Ok(Outgoing {
        topic: Topic::AuditLogs,
        key: TenantId::system().to_string(),
        ce_id: id,
        ce_type: "agenthub.audit".to_owned(),
        tenant: TenantId::system(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: serde_json::to_vec(&audit)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::AuditRecord;
    use crate::rollup::Head;

    #[test]
    fn the_record_of_a_head_is_one_and_holds_it() {
        let signer = AuditSigner::generate(None).unwrap();
        let link = Link {
            topic: "t".to_owned(),
            partition: 2,
            sequence: 4,
            start: 10,
            end: 20,
            sha256: "00".to_owned(),
        };
        let outgoing = record(&link, &signer, 5).unwrap();
        assert_eq!(outgoing.ce_id, "audit-head/t/2/4");
        let audit: AuditRecord = serde_json::from_slice(&outgoing.value).unwrap();
        assert_eq!((audit.action.as_str(), audit.ts), (ACTION, 5));
        let head = Head::read(audit.target.unwrap().as_bytes(), &signer.public()).unwrap();
        assert_eq!((head[0].partition, head[0].end), (2, 20));
    }
}
