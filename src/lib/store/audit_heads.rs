//! The heads of the audit chains in Redis, where the API finds them: `<base of system>:audit:heads`, a hash
//! of signed heads by partition, and `…:audit:heads:seq`, their numbers.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use redis::AsyncCommands;
use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::TenantId;

static SHOW: LazyLock<Script> =
    LazyLock::new(|| Script::new("audit_head", &[include_str!("audit_head.lua")]));

#[derive(Serialize)]
struct Shown<'a> {
    partition: String,
    sequence: u64,
    head: &'a str,
}

impl Redis {
    /// Shows a partition's signed head, JSON text, unless a later one is there.
    pub async fn show_audit_head(
        &self,
        partition: i32,
        sequence: u64,
        head: &str,
    ) -> Result<(), StoreError> {
        let shown = Shown {
            partition: partition.to_string(),
            sequence,
            head,
        };
        self.invoke(&SHOW, &TenantId::system(), &shown, "{}").await
    }

    /// The signed heads, JSON texts, by partition.
    pub async fn audit_heads(&self) -> Result<BTreeMap<i32, String>, StoreError> {
        let key = format!("{}:audit:heads", self.base(&TenantId::system()));
        Ok(self.connection().hgetall(key).await?)
    }
}
