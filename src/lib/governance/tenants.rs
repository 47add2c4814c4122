//! A tenant's own limits: on `agent.state` before they are in Redis.

use bytes::Bytes;

use super::KeyError;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{Outgoing, SCHEMA_VERSION, State, StateRecord, TenantRecord, Topic};
use crate::runtime::clock;
use crate::store::Redis;

/// Manages what is kept of tenants.
#[derive(Debug, Clone)]
pub struct Tenants {
    redis: Redis,
    producer: Producer,
}

impl Tenants {
    /// Tenants on the given Redis and Kafka.
    pub fn new(redis: Redis, producer: Producer) -> Self {
        Self { redis, producer }
    }

    /// A tenant's own limits. One that never had a key is unknown.
    pub async fn limits(&self, tenant: &TenantId) -> Result<TenantRecord, KeyError> {
        if self.redis.is_tenant(tenant).await? {
            Ok(self.redis.tenant(tenant).await?)
        } else {
            Err(KeyError::Unknown)
        }
    }

    /// Replaces a tenant's own limits: what `record` leaves out is the installation's default again.
    pub async fn set_limits(&self, record: &TenantRecord) -> Result<(), KeyError> {
        if !self.redis.is_tenant(&record.tenant).await? {
            return Err(KeyError::Unknown);
        }
        let lock = self.redis.lock(&record.tenant, "tenant").await?;
        if let Err(error) = self.publish(record).await {
            lock.release().await;
            return Err(error);
        }
        Ok(self.redis.put_tenant(record, lock).await?)
    }

    async fn publish(&self, record: &TenantRecord) -> Result<(), KeyError> {
        let value = StateRecord {
            v: SCHEMA_VERSION,
            state: State::Tenant(record.clone()),
        };
        let key = value.state.record_key();
        let outgoing = Outgoing {
            topic: Topic::AgentState,
            ce_id: format!("{key}/{}", clock::now_ms()),
            key,
            ce_type: "agenthub.state.tenant".to_owned(),
            tenant: record.tenant.clone(),
            run_id: None,
            not_after_ms: None,
            traceparent: None,
            value: Bytes::from(serde_json::to_vec(&value)?),
        };
        self.producer.publish(&outgoing).await?;
        Ok(())
    }
}
