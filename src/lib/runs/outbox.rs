//! The outbox: records that a transition made and that Kafka has not acknowledged yet.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ids::{RunId, TenantId};
use crate::messages::{Outgoing, Topic};
use crate::store::StoreError;

/// Something that passed governance.
///
/// The only way to make one is to read it from a run's outbox, where only a governed admission or a
/// transition of an admitted run can have put it. The producer of commands takes nothing else, so
/// putting ungoverned work on a topic does not compile:
///
/// ```compile_fail
/// # fn outgoing() -> agenthub::messages::Outgoing { unimplemented!() }
/// let forged = agenthub::runs::Admitted(outgoing());
/// ```
#[derive(Debug, Clone)]
pub struct Admitted<T>(T);

impl<T> Admitted<T> {
    /// What was admitted.
    pub fn get(&self) -> &T {
        &self.0
    }
}

/// One record of a run's outbox.
#[derive(Debug, Clone)]
pub struct OutboxEntry {
    /// The run.
    pub run_id: RunId,
    /// The entry's number in the run.
    pub number: u64,
    /// What is to be produced.
    pub record: Admitted<Outgoing>,
}

/// As the scripts write it.
#[derive(Deserialize)]
struct Stored<'a> {
    topic: Topic,
    key: String,
    id: String,
    #[serde(rename = "type")]
    kind: String,
    not_after: Option<u64>,
    traceparent: Option<String>,
    #[serde(borrow)]
    value: &'a RawValue,
}

impl OutboxEntry {
    /// Reads what a script returned: run, number, JSON text.
    pub(super) fn parse(
        tenant: &TenantId,
        (run, number, text): &(String, u64, String),
    ) -> Result<Self, StoreError> {
        let wrong = |error: String| StoreError::Failed(format!("outbox of {run}: {error}"));
        let stored: Stored<'_> = serde_json::from_str(text).map_err(|e| wrong(e.to_string()))?;
        let run_id: RunId = run.parse().map_err(|_| wrong("not a run id".to_owned()))?;
        let record = Outgoing {
            topic: stored.topic,
            key: stored.key,
            ce_id: stored.id,
            ce_type: stored.kind,
            tenant: tenant.clone(),
            run_id: Some(run_id.clone()),
            not_after_ms: stored.not_after,
            traceparent: stored.traceparent,
            value: Bytes::copy_from_slice(stored.value.get().as_bytes()),
        };
        Ok(Self {
            run_id,
            number: *number,
            record: Admitted(record),
        })
    }
}
