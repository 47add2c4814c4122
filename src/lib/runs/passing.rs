//! What is told in passing: to who listens now. It has no id, is in no history, and may be missed.

use serde::{Deserialize, Serialize};

use super::{Runs, scripts};
use crate::ids::{RunId, TenantId};
use crate::messages::EventType;
use crate::store::StoreError;

/// What was told in passing: masked JSON text, and what is needed to select it.
#[derive(Debug, Clone)]
pub struct PassingEvent {
    /// What happened.
    pub event_type: EventType,
    /// The run.
    pub run_id: RunId,
    /// The whole, JSON text.
    pub json: String,
}

impl PassingEvent {
    /// Reads its JSON text.
    pub fn parse(json: &str) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(rename = "type")]
            event_type: EventType,
            run_id: RunId,
        }
        let head: Head = serde_json::from_str(json)
            .map_err(|e| StoreError::Failed(format!("passing event: {e}")))?;
        Ok(Self {
            event_type: head.event_type,
            run_id: head.run_id,
            json: json.to_owned(),
        })
    }
}

impl Runs {
    /// Tells a piece of what a run's model writes; `data` is masked JSON text. Returns how many
    /// processes listened: 0 as well when the run is not `owner`'s any more.
    pub async fn tell_delta(
        &self,
        tenant: &TenantId,
        run: &RunId,
        owner: &str,
        data: &str,
    ) -> Result<u64, StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            run: &'a RunId,
            owner: &'a str,
            data: &'a str,
        }
        let args = Args { run, owner, data };
        let listened: i64 = self
            .redis
            .invoke(&scripts::DELTA, tenant, &args, &self.settings)
            .await?;
        Ok(u64::try_from(listened).unwrap_or(0))
    }
}
