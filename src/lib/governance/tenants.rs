//! A tenant's own limits: on `agent.state` before they are in Redis.

use super::KeyError;
use super::state_topic::publish;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{State, TenantRecord};
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
        let state = State::Tenant(record.clone());
        let published = publish(
            &self.producer,
            &record.tenant,
            "agenthub.state.tenant",
            state,
        );
        if let Err(error) = published.await {
            lock.release().await;
            return Err(error);
        }
        Ok(self.redis.put_tenant(record, lock).await?)
    }
}
