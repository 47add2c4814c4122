//! How the scripts' answers are read.

use redis::{FromRedisValue, Value};

use super::OutboxEntry;
use crate::ids::TenantId;
use crate::store::StoreError;

/// A refusal by a script: nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal: `unauthenticated`, `forbidden`, `rate_limited`, `not_found`, …
    pub code: String,
    /// The rule that refused.
    pub rule: String,
    /// Where the limits stand; empty before they were checked.
    pub limits: Vec<LimitRow>,
    /// The role of the key; `None` when the key itself was refused.
    pub role: Option<String>,
}

/// Where one rate limit stands after a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitRow {
    /// Whose limit: `key` or `tenant`.
    pub scope: String,
    /// Requests accepted in any window.
    pub limit: u32,
    /// Milliseconds.
    pub window_ms: u64,
    /// Requests that would still be accepted.
    pub remaining: u32,
    /// Milliseconds until one more place is free.
    pub reset_ms: u64,
}

/// The elements of an answer, taken one after the other.
pub(super) struct Reply(std::vec::IntoIter<Value>);

impl Reply {
    pub(super) fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    /// The next element; a missing one reads as nil.
    pub(super) fn next<T: FromRedisValue>(&mut self) -> Result<T, StoreError> {
        let value = self.0.next().unwrap_or(Value::Nil);
        T::from_redis_value(value).map_err(|e| StoreError::Failed(e.to_string()))
    }

    pub(super) fn limits(&mut self) -> Result<Vec<LimitRow>, StoreError> {
        let rows: Vec<(String, u32, u64, i64, u64)> = self.next()?;
        let row = |(scope, limit, window_ms, remaining, reset_ms)| LimitRow {
            scope,
            limit,
            window_ms,
            remaining: u32::try_from(remaining).unwrap_or(0),
            reset_ms,
        };
        Ok(rows.into_iter().map(row).collect())
    }

    pub(super) fn outbox(&mut self, tenant: &TenantId) -> Result<Vec<OutboxEntry>, StoreError> {
        let entries: Vec<(String, u64, String)> = self.next()?;
        entries
            .iter()
            .map(|entry| OutboxEntry::parse(tenant, entry))
            .collect()
    }

    /// The rest of a `{ 'refused', code, rule, limits }`, whose first element was read.
    pub(super) fn refusal(&mut self) -> Result<Refusal, StoreError> {
        Ok(Refusal {
            code: self.next()?,
            rule: self.next()?,
            limits: self.limits()?,
            role: self.next()?,
        })
    }
}

pub(super) fn unexpected(script: &str, outcome: &str) -> StoreError {
    StoreError::Failed(format!("script {script} answered {outcome}"))
}
