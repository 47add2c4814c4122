//! API keys in Redis.

use std::collections::BTreeMap;

use redis::AsyncCommands;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::Change;
use super::{Lock, Redis, StoreError, network_bits};
use crate::ids::{KeyId, TenantId};
use crate::messages::{KeyPolicy, KeyRecord};

impl Redis {
    /// Writes a key's record; the gate sees it from the next request on.
    pub async fn put_key(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let base = self.base(&record.tenant);
        let fields: Vec<_> = key_fields(record)?.into_iter().collect();
        let mut pipe = redis::pipe();
        pipe.atomic()
            .hset_multiple(format!("{base}:key:{}", record.key_id), &fields)
            .ignore()
            .sadd(format!("{base}:keys"), record.key_id.as_str())
            .ignore();
        Ok(pipe.query_async(&mut self.connection()).await?)
    }

    /// As [`Redis::put_key`], for a change that was made under the key's lock.
    pub async fn change_key(&self, record: &KeyRecord, lock: Lock) -> Result<(), StoreError> {
        let change = Change {
            hash: format!("key:{}", record.key_id),
            fields: key_fields(record)?,
            gone: Vec::new(),
            list: Some("keys"),
            member: Some(record.key_id.as_str()),
        };
        lock.write(&change).await
    }

    /// A key's record and when it was last used, in milliseconds since the epoch.
    pub async fn key(
        &self,
        tenant: &TenantId,
        key_id: &KeyId,
    ) -> Result<Option<(KeyRecord, Option<u64>)>, StoreError> {
        let name = format!("{}:key:{key_id}", self.base(tenant));
        let fields: std::collections::HashMap<String, String> =
            self.connection().hgetall(name).await?;
        if fields.is_empty() {
            return Ok(None);
        }
        let text = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let number = |name: &str| text(name).parse::<u64>().ok();
        let record = KeyRecord {
            tenant: tenant.clone(),
            key_id: key_id.clone(),
            name: text("name"),
            role: text("role"),
            status: text("status"),
            version: text("version").parse().unwrap_or(1),
            hash: text("hash"),
            old_hash: Some(text("old_hash")).filter(|hash| !hash.is_empty()),
            old_until_ms: number("old_until"),
            created_ms: number("created").unwrap_or(0),
            expires_ms: number("expires"),
            rotated_by: Some(text("rotated_by")).filter(|request| !request.is_empty()),
            policy: KeyPolicy {
                limits: parsed(&text("limits"))?,
                tools_allowed: parsed(&text("tools"))?,
                models_allowed: parsed(&text("models"))?,
                ips_allowed: parsed(&text("ips"))?,
            },
        };
        Ok(Some((record, number("used"))))
    }

    /// The ids of a tenant's keys.
    pub async fn key_ids(&self, tenant: &TenantId) -> Result<Vec<KeyId>, StoreError> {
        let names: Vec<String> = self
            .connection()
            .smembers(format!("{}:keys", self.base(tenant)))
            .await?;
        let mut ids: Vec<KeyId> = names
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        ids.sort();
        Ok(ids)
    }
}

/// JSON text, or none.
fn json<T: Serialize>(value: Option<&T>) -> Result<String, StoreError> {
    let text = value.map(serde_json::to_string).transpose();
    let text = text.map_err(|e| StoreError::Failed(e.to_string()))?;
    Ok(text.unwrap_or_default())
}

fn parsed<T: DeserializeOwned>(text: &str) -> Result<Option<T>, StoreError> {
    if text.is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_str(text);
    value
        .map(Some)
        .map_err(|e| StoreError::Failed(format!("an API key's record: {e}")))
}

/// A key's record as the gate reads it.
fn key_fields(record: &KeyRecord) -> Result<BTreeMap<&'static str, String>, StoreError> {
    let text = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let policy = &record.policy;
    // What the gate compares, made of `ips`.
    let nets = policy.ips_allowed.as_ref();
    let nets: Option<Vec<String>> = nets.map(|nets| nets.iter().map(network_bits).collect());
    let fields = [
        ("name", record.name.clone()),
        ("role", record.role.clone()),
        ("status", record.status.clone()),
        ("version", record.version.to_string()),
        ("hash", record.hash.clone()),
        ("old_hash", record.old_hash.clone().unwrap_or_default()),
        ("old_until", text(record.old_until_ms)),
        ("created", record.created_ms.to_string()),
        ("expires", text(record.expires_ms)),
        ("rotated_by", record.rotated_by.clone().unwrap_or_default()),
        ("limits", json(policy.limits.as_ref())?),
        ("tools", json(policy.tools_allowed.as_ref())?),
        ("models", json(policy.models_allowed.as_ref())?),
        ("ips", json(policy.ips_allowed.as_ref())?),
        ("nets", json(nets.as_ref())?),
    ];
    Ok(fields.into())
}
