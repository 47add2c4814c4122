//! How the ledger is filled again from what the topics hold. Order matters: history and ended runs,
//! which nothing acts on, come before the session that makes its live runs go on.

use std::collections::BTreeMap;

use redis::AsyncCommands;
use serde::Serialize;

use super::{Runs, scripts};
use crate::ids::{RunId, SessionId, TenantId};
use crate::store::StoreError;

/// As in `budget.lua`: 400 days.
const USE_RETENTION_S: i64 = 400 * 86_400;
/// Events written at once.
const EVENTS: usize = 500;

/// A run to be restored: its fields as the scripts keep them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredRun {
    /// The run.
    pub id: RunId,
    /// Its fields; the timer, its places and its outbox are not among them.
    pub fields: BTreeMap<String, String>,
}

/// A session to be restored, with its live runs in the order of their admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredSession {
    /// The session.
    pub session: SessionId,
    /// Its fields.
    pub fields: BTreeMap<String, String>,
    /// Milliseconds to live from now on, when it has no live run.
    pub ttl_ms: u64,
    /// Its runs that have not ended.
    pub runs: Vec<RestoredRun>,
}

impl Runs {
    /// Restores a part of a session's history: event ids with the events' JSON text, in order.
    pub async fn restore_history(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        events: &[(String, String)],
    ) -> Result<(), StoreError> {
        let key = format!("{}:ev:{session}", self.redis.base(tenant));
        for events in events.chunks(EVENTS) {
            let mut pipe = redis::pipe();
            for (id, text) in events {
                pipe.xadd(&key, id, &[("e", text)]).ignore();
            }
            let () = pipe.query_async(&mut self.redis.connection()).await?;
        }
        Ok(())
    }

    /// Restores runs of a session that have ended, each with the milliseconds that it is kept.
    pub async fn restore_ended(
        &self,
        tenant: &TenantId,
        session: &SessionId,
        runs: &[(RestoredRun, u64)],
    ) -> Result<(), StoreError> {
        let base = self.redis.base(tenant);
        for (run, keep_ms) in runs {
            let name = format!("{base}:run:{}", run.id);
            let fields: Vec<(&String, &String)> = run.fields.iter().collect();
            let keep_ms = i64::try_from(*keep_ms).unwrap_or(i64::MAX);
            let mut pipe = redis::pipe();
            pipe.atomic()
                .hset_multiple(&name, &fields)
                .ignore()
                .pexpire(&name, keep_ms)
                .ignore()
                .zadd(format!("{base}:runs"), run.id.as_str(), 0)
                .ignore()
                .zadd(format!("{base}:sruns:{session}"), run.id.as_str(), 0)
                .ignore();
            let () = pipe.query_async(&mut self.redis.connection()).await?;
        }
        Ok(())
    }

    /// Restores a session with its live runs, which go on from here; false when it is there already.
    pub async fn restore_session(
        &self,
        tenant: &TenantId,
        session: &RestoredSession,
    ) -> Result<bool, StoreError> {
        self.redis
            .invoke(&scripts::REBUILD, tenant, session, &self.settings)
            .await
    }

    /// Restores what was spent in a month (`yyyymm`): by `t` for the tenant itself, and by key.
    pub async fn restore_spent(
        &self,
        tenant: &TenantId,
        month: &str,
        spent: &BTreeMap<String, i64>,
    ) -> Result<(), StoreError> {
        let name = format!("{}:spend:{month}", self.redis.base(tenant));
        let spent = spent.iter();
        let fields: Vec<(String, i64)> = spent
            .map(|(who, amount)| (format!("{who}.spent"), (*amount).max(0)))
            .collect();
        let mut connection = self.redis.connection();
        Ok(connection.hset_multiple(name, &fields).await?)
    }

    /// Restores what was used on a day (`yyyymmdd`): calls, tokens read, of those cached, written, of
    /// those reasoning, and money.
    pub async fn restore_used(
        &self,
        tenant: &TenantId,
        day: &str,
        used: &BTreeMap<String, [i64; 6]>,
    ) -> Result<(), StoreError> {
        let name = format!("{}:use:{day}", self.redis.base(tenant));
        let used = used.iter();
        let fields: Vec<(&String, String)> = used
            .map(|(user, sums)| (user, sums.map(|n| n.max(0).to_string()).join(" ")))
            .collect();
        let mut pipe = redis::pipe();
        pipe.atomic()
            .hset_multiple(&name, &fields)
            .ignore()
            .expire(&name, USE_RETENTION_S)
            .ignore();
        Ok(pipe.query_async(&mut self.redis.connection()).await?)
    }

    /// Restores what a tenant may spend in each month.
    pub async fn restore_budget(
        &self,
        tenant: &TenantId,
        limit: Option<u64>,
    ) -> Result<(), StoreError> {
        let Some(limit) = limit else { return Ok(()) };
        let name = format!("{}:tenant", self.redis.base(tenant));
        let mut connection = self.redis.connection();
        Ok(connection.hset(name, "budget", limit).await?)
    }

    /// Restores the claim of an `Idempotency-Key` for `keep_ms` milliseconds.
    pub async fn restore_claim(
        &self,
        tenant: &TenantId,
        claim: (&str, &str),
        run: &RunId,
        keep_ms: u64,
    ) -> Result<(), StoreError> {
        let (key, fingerprint) = claim;
        let name = format!("{}:idem:{key}", self.redis.base(tenant));
        let fields = [("fingerprint", fingerprint), ("run", run.as_str())];
        let keep_ms = i64::try_from(keep_ms).unwrap_or(i64::MAX);
        let mut pipe = redis::pipe();
        pipe.atomic()
            .hset_multiple(&name, &fields)
            .ignore()
            .pexpire(&name, keep_ms)
            .ignore();
        Ok(pipe.query_async(&mut self.redis.connection()).await?)
    }
}
