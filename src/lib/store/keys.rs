//! API keys in Redis.

use redis::AsyncCommands;

use super::{Redis, StoreError};
use crate::ids::{KeyId, TenantId};
use crate::messages::KeyRecord;

impl Redis {
    /// Writes a key's record; the gate sees it from the next request on.
    pub async fn put_key(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let base = self.base(&record.tenant);
        let text = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
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
        ];
        let mut pipe = redis::pipe();
        pipe.atomic()
            .hset_multiple(format!("{base}:key:{}", record.key_id), &fields)
            .ignore()
            .sadd(format!("{base}:keys"), record.key_id.as_str())
            .ignore();
        Ok(pipe.query_async(&mut self.connection()).await?)
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
