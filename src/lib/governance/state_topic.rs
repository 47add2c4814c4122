//! What is set for a tenant, on `agent.state` before it is in Redis, so that a lost Redis forgets none of it.

use bytes::Bytes;
use uuid::Uuid;

use super::KeyError;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{Outgoing, SCHEMA_VERSION, State, StateRecord, Topic};

/// Puts `state` of a tenant onto the topic; `ce_type` is its kind. Returns when Kafka has it.
pub(super) async fn publish(
    producer: &Producer,
    tenant: &TenantId,
    ce_type: &str,
    state: State,
) -> Result<(), KeyError> {
    let value = StateRecord {
        v: SCHEMA_VERSION,
        state,
    };
    let key = value.state.record_key();
    let outgoing = Outgoing {
        topic: Topic::AgentState,
        ce_id: format!("{key}/{}", Uuid::now_v7().simple()),
        key,
        ce_type: ce_type.to_owned(),
        tenant: tenant.clone(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: Bytes::from(serde_json::to_vec(&value)?),
    };
    producer.publish(&outgoing).await?;
    Ok(())
}
