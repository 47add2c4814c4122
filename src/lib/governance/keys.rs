//! The life of API keys: created, rotated, revoked. Each change is on `agent.state` before it is in
//! Redis, so that a lost Redis locks nobody out and forgets no revocation.

use bytes::Bytes;

use super::{IssuedKey, Role};
use crate::ids::{KeyId, TenantId};
use crate::kafka::{ProduceError, Producer};
use crate::messages::{
    KeyPolicy, KeyRecord, Outgoing, SCHEMA_VERSION, Signer, State, StateRecord, Topic,
};
use crate::runtime::clock;
use crate::store::{Lock, Redis, StoreError};

/// Why a change of a key did not happen.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no such key, or it was revoked: a revoked key never comes back.
    #[error("no such key")]
    Unknown,
    /// No key can be of this tenant.
    #[error("the tenant anonymous stands for requests without a key, and can have none")]
    Reserved,
    /// Kafka did not take the record.
    #[error(transparent)]
    Kafka(#[from] ProduceError),
    /// Redis did not take the record; it will from a repeat of the same call.
    #[error(transparent)]
    Redis(#[from] StoreError),
    /// The record does not serialise.
    #[error("key record: {0}")]
    Record(#[from] serde_json::Error),
}

/// What a new key is to be.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its tenant.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Seconds until it expires; never when absent.
    pub expires_in_s: Option<u64>,
    /// What narrows it, checked by [`check_policy`](super::check_policy).
    pub policy: KeyPolicy,
}

/// Manages keys.
#[derive(Debug, Clone)]
pub struct Keys {
    redis: Redis,
    producer: Producer,
    signer: Signer,
}

impl Keys {
    /// Keys on the given Redis and Kafka, signed by `signer`.
    pub fn new(redis: Redis, producer: Producer, signer: Signer) -> Self {
        Self {
            redis,
            producer,
            signer,
        }
    }

    /// Creates a key. It is in the answer and nowhere else.
    pub async fn create(&self, new: NewKey) -> Result<(KeyRecord, IssuedKey), KeyError> {
        self.create_as(KeyId::generate(), new).await
    }

    /// As [`Keys::create`], under an id that its caller keeps: a repeat makes the same key with another
    /// secret, not a second key.
    pub async fn create_as(
        &self,
        key_id: KeyId,
        new: NewKey,
    ) -> Result<(KeyRecord, IssuedKey), KeyError> {
        let issued = IssuedKey::generate(&self.signer, &new.tenant, &key_id, 1);
        let now = clock::now_ms();
        let record = KeyRecord {
            tenant: new.tenant,
            key_id,
            name: new.name,
            role: new.role.as_str().to_owned(),
            status: "active".to_owned(),
            version: 1,
            hash: issued.secret_hash.clone(),
            old_hash: None,
            old_until_ms: None,
            created_ms: now,
            expires_ms: new
                .expires_in_s
                .map(|s| now.saturating_add(s.saturating_mul(1000))),
            rotated_by: None,
            policy: new.policy,
        };
        if !record.tenant.may_have_keys() {
            return Err(KeyError::Reserved);
        }
        self.redis.add_tenant(&record.tenant).await?;
        let lock = self.lock(&record.tenant, &record.key_id).await?;
        if let Err(error) = self.publish(&record).await {
            lock.release().await;
            return Err(error);
        }
        self.redis.change_key(&record, lock).await?;
        Ok((record, issued))
    }

    /// Gives a key a new secret. The old one stays valid for `grace_s` seconds. A repeat under the same
    /// `request` gives the secret that the first one made another value: nobody has it, and the one that
    /// is in use keeps its grace.
    pub async fn rotate(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
        grace_s: u64,
        request: Option<&str>,
    ) -> Result<(KeyRecord, IssuedKey), KeyError> {
        let mut issued = None;
        let change = |mut record: KeyRecord| {
            if record.status != "active" {
                return Err(KeyError::Unknown);
            }
            let repeated = request.is_some() && record.rotated_by.as_deref() == request;
            record.version += u32::from(!repeated);
            let fresh = IssuedKey::generate(&self.signer, tenant, key_id, record.version);
            let before = std::mem::replace(&mut record.hash, fresh.secret_hash.clone());
            issued = Some(fresh);
            if !repeated {
                record.old_hash = Some(before);
                let until = clock::now_ms().saturating_add(grace_s.saturating_mul(1000));
                record.old_until_ms = Some(until);
                record.rotated_by = request.map(str::to_owned);
            }
            Ok(Some(record))
        };
        let record = self.change(tenant, key_id, change).await?;
        Ok((record, issued.ok_or(KeyError::Unknown)?))
    }

    /// Revokes a key; the next request with it is refused. One that is revoked stays so.
    pub async fn revoke(&self, tenant: &TenantId, key_id: &KeyId) -> Result<KeyRecord, KeyError> {
        let change = |mut record: KeyRecord| {
            if record.status == "revoked" {
                return Ok(None);
            }
            "revoked".clone_into(&mut record.status);
            Ok(Some(record))
        };
        self.change(tenant, key_id, change).await
    }

    /// Changes a key as `change` says of its record (`None`: it stays as it is), under its lock; its
    /// record afterwards.
    async fn change(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
        change: impl FnOnce(KeyRecord) -> Result<Option<KeyRecord>, KeyError>,
    ) -> Result<KeyRecord, KeyError> {
        let lock = self.lock(tenant, key_id).await?;
        match self.changed(tenant, key_id, change).await {
            Ok((record, true)) => {
                self.redis.change_key(&record, lock).await?;
                Ok(record)
            }
            Ok((record, false)) => {
                lock.release().await;
                Ok(record)
            }
            Err(error) => {
                lock.release().await;
                Err(error)
            }
        }
    }

    async fn lock(&self, tenant: &TenantId, key_id: &KeyId) -> Result<Lock, StoreError> {
        self.redis.lock(tenant, &format!("key:{key_id}")).await
    }

    /// The record as it is to be, on `agent.state`; whether it is another than before.
    async fn changed(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
        change: impl FnOnce(KeyRecord) -> Result<Option<KeyRecord>, KeyError>,
    ) -> Result<(KeyRecord, bool), KeyError> {
        let (before, _) = self.get(tenant, key_id).await?;
        match change(before.clone())? {
            None => Ok((before, false)),
            Some(record) => {
                self.publish(&record).await?;
                Ok((record, true))
            }
        }
    }

    /// A tenant's keys, each with when it was last used in milliseconds since the epoch.
    pub async fn list(&self, tenant: &TenantId) -> Result<Vec<(KeyRecord, Option<u64>)>, KeyError> {
        let mut keys = Vec::new();
        for key_id in self.redis.key_ids(tenant).await? {
            keys.extend(self.redis.key(tenant, &key_id).await?);
        }
        Ok(keys)
    }

    /// One key, with when it was last used.
    pub async fn get(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<(KeyRecord, Option<u64>), KeyError> {
        self.redis
            .key(tenant, key_id)
            .await?
            .ok_or(KeyError::Unknown)
    }

    async fn publish(&self, record: &KeyRecord) -> Result<(), KeyError> {
        let state = State::ApiKey(record.clone());
        let value = StateRecord {
            v: SCHEMA_VERSION,
            state,
        };
        let key = value.state.record_key();
        self.producer
            .publish(&Outgoing {
                topic: Topic::AgentState,
                ce_id: format!("{key}/{}/{}/{}", record.version, record.status, record.hash),
                key,
                ce_type: "agenthub.state.api_key".to_owned(),
                tenant: record.tenant.clone(),
                run_id: None,
                not_after_ms: None,
                traceparent: None,
                value: Bytes::from(serde_json::to_vec(&value)?),
            })
            .await?;
        Ok(())
    }
}
