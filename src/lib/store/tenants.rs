//! Tenants in Redis: who there is, and the limits that the gate reads.

use std::collections::{BTreeMap, HashMap};

use redis::AsyncCommands;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::Change;
use super::{Lock, Redis, StoreError};
use crate::ids::TenantId;
use crate::messages::TenantRecord;

impl Redis {
    /// Whether the tenant has, or had, keys.
    pub async fn is_tenant(&self, tenant: &TenantId) -> Result<bool, StoreError> {
        let key = format!("{}:tenants", self.prefix());
        Ok(self.connection().sismember(key, tenant.as_str()).await?)
    }

    /// A tenant's own limits; those that it has none of are absent.
    pub async fn tenant(&self, tenant: &TenantId) -> Result<TenantRecord, StoreError> {
        let name = format!("{}:tenant", self.base(tenant));
        let fields: HashMap<String, String> = self.connection().hgetall(name).await?;
        Ok(TenantRecord {
            tenant: tenant.clone(),
            per_key: parsed(&fields, "per_key")?,
            per_tenant: parsed(&fields, "per_tenant")?,
            max_live_runs: parsed(&fields, "max_live_runs")?,
            max_live_runs_per_key: parsed(&fields, "max_live_runs_per_key")?,
        })
    }

    /// Writes a tenant's limits in place of those that it had; the gate sees them from the next request
    /// on.
    pub async fn put_tenant(&self, record: &TenantRecord, lock: Lock) -> Result<(), StoreError> {
        let mut fields = BTreeMap::new();
        let mut gone = Vec::new();
        let members = [
            ("per_key", json(record.per_key.as_ref())?),
            ("per_tenant", json(record.per_tenant.as_ref())?),
            ("max_live_runs", json(record.max_live_runs.as_ref())?),
            (
                "max_live_runs_per_key",
                json(record.max_live_runs_per_key.as_ref())?,
            ),
        ];
        for (name, text) in members {
            match text {
                Some(text) => _ = fields.insert(name, text),
                None => gone.push(name),
            }
        }
        let change = Change {
            hash: "tenant".to_owned(),
            fields,
            gone,
            list: None,
            member: None,
        };
        lock.write(&change).await
    }
}

fn json<T: Serialize>(value: Option<&T>) -> Result<Option<String>, StoreError> {
    let text = value.map(serde_json::to_string).transpose();
    text.map_err(|e| StoreError::Failed(e.to_string()))
}

fn parsed<T: DeserializeOwned>(
    fields: &HashMap<String, String>,
    name: &str,
) -> Result<Option<T>, StoreError> {
    let value = fields.get(name).map(|text| serde_json::from_str(text));
    value
        .transpose()
        .map_err(|e| StoreError::Failed(format!("a tenant's {name}: {e}")))
}
