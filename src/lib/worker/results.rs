//! Results of tools, kept for other calls with the same arguments. Of calls that are made at the same
//! time one goes out, over all workers; the others wait for what it gives.
//!
//! Nobody waits for one that died: its lease ends within [`LEASE`], and one of those who wait makes the
//! call. Nobody waits longer than half of its own time either: then it makes its own. Redis away costs
//! the cache, and no call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rand::RngExt;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::owned::new_owner;
use crate::config::ToolTtl;
use crate::executor::canonical::canonical;
use crate::ids::TenantId;
use crate::privacy::{KeyCache, TenantKey};
use crate::store::{Kept, Look, Redis, ResultName};
use crate::tools::{CachePolicy, CacheScope, Effects, Tool, ToolError, ToolOutput};

/// A call whose worker died is waited for no longer.
const LEASE: Duration = Duration::from_secs(3);
/// How often a lease is renewed.
const RENEW: Duration = Duration::from_secs(1);
/// That a result may not be kept is remembered so long: until then, calls do not wait for each other.
const REMEMBER_NOTHING: Duration = Duration::from_secs(30);
/// Bytes of a result that is kept; larger ones are made again.
const MOST_BYTES: usize = 64 * 1024;
/// First and longest wait between two looks for a result.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(250));

/// Where a result came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From a call of its own.
    Call,
    /// It was there.
    Cache,
    /// From a call that another step was making.
    Shared,
}

impl Origin {
    /// The name in traces.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Call => "miss",
            Self::Cache => "hit",
            Self::Shared => "coalesced",
        }
    }
}

/// What a result is kept under, and for how long.
#[derive(Debug)]
pub(super) struct Entry {
    tenant: TenantId,
    tool: String,
    digest: String,
    key: TenantKey,
    ttl: Duration,
}

/// Kept results.
#[derive(Debug)]
pub struct Results {
    redis: Redis,
    keys: KeyCache,
    ttls: HashMap<String, Duration>,
    /// Within the process those who want the same take turns, so that one of them alone asks Redis.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Results {
    /// Results in `redis`, sealed with keys derived from the ring of `keys`. `ttls` are the operator's.
    pub fn new(redis: Redis, keys: KeyCache, ttls: &[ToolTtl]) -> Self {
        let ttl = |ttl: &ToolTtl| (ttl.tool.clone(), Duration::from_secs(ttl.seconds));
        Self {
            redis,
            keys,
            ttls: ttls.iter().map(ttl).collect(),
            turns: Mutex::default(),
        }
    }

    /// Where the result of a call would be kept; `None` when the tool's results are not.
    pub(super) fn entry(&self, tenant: &TenantId, tool: &dyn Tool, args: &Value) -> Option<Entry> {
        let spec = tool.spec();
        let CachePolicy { ttl, scope } = spec.cache?;
        let ttl = self.ttls.get(spec.name).copied().unwrap_or(ttl);
        if spec.effects != Effects::None || ttl.is_zero() {
            return None;
        }
        let tenant = match scope {
            CacheScope::Tenant => tenant.clone(),
            CacheScope::Global => TenantId::system(),
        };
        let key = self.keys.tenant_key(&tenant);
        let digest = key.digest(&[
            spec.name.as_bytes(),
            &spec.version.to_be_bytes(),
            tool.credential_scope().as_bytes(),
            canonical(args).as_bytes(),
        ]);
        Some(Entry {
            tenant,
            tool: spec.name.to_owned(),
            digest,
            key,
            ttl,
        })
    }

    /// The result: kept, or from a call that somebody is making, or from `call`, which is made at most
    /// once. `patience` is how long another's call is waited for.
    pub(super) async fn get(
        &self,
        entry: &Entry,
        patience: Duration,
        call: impl Future<Output = Result<ToolOutput, ToolError>>,
    ) -> (Origin, Result<ToolOutput, ToolError>) {
        let owner = new_owner();
        let found = self.find(entry, &owner, Instant::now() + patience).await;
        let outcome = match &found {
            Found::Value(..) => "hit",
            Found::Shared(..) => "coalesced",
            Found::Lead => "miss",
            Found::Alone => "bypassed",
        };
        metrics::counter!("agenthub_cache_lookups_total", "tool" => entry.tool.clone(), "outcome" => outcome)
            .increment(1);
        match found {
            Found::Value(value) | Found::Shared(value) => {
                metrics::counter!("agenthub_cache_hits_total", "tool" => entry.tool.clone())
                    .increment(1);
                let origin = if outcome == "hit" {
                    Origin::Cache
                } else {
                    Origin::Shared
                };
                (origin, Ok(value.into()))
            }
            Found::Lead => (Origin::Call, self.lead(entry, &owner, call).await),
            Found::Alone => (Origin::Call, call.await),
        }
    }

    async fn find(&self, entry: &Entry, owner: &str, deadline: Instant) -> Found {
        let turn = self.turn(&entry.digest);
        let mut waited = false;
        let _turn = if let Ok(turn) = turn.try_lock() {
            turn
        } else {
            waited = true;
            match timeout_at(deadline, turn.lock()).await {
                Ok(turn) => turn,
                Err(_) => return Found::Alone,
            }
        };
        let mut pause = LOOK_AGAIN.0;
        loop {
            let look = self.redis.look_for_result(entry.name(), owner, LEASE).await;
            match look {
                Ok(Look::Found(Kept::Nothing)) => return Found::Alone,
                Ok(Look::Found(Kept::Result(sealed))) => {
                    let opened = entry.key.open(&entry.digest, &sealed).ok();
                    return match opened.and_then(|json| serde_json::from_slice(&json).ok()) {
                        Some(value) if waited => Found::Shared(value),
                        Some(value) => Found::Value(value),
                        None => Found::Alone,
                    };
                }
                Ok(Look::Lead) => return Found::Lead,
                Ok(Look::Wait) => {}
                Err(error) => {
                    tracing::debug!(%error, "kept results are out of reach");
                    return Found::Alone;
                }
            }
            waited = true;
            let jitter = rand::rng().random_range(0.5..1.0);
            let next = Instant::now() + pause.mul_f64(jitter);
            if next >= deadline {
                return Found::Alone;
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(LOOK_AGAIN.1);
        }
    }

    /// Makes the call that others wait for, and leaves them what it gave.
    async fn lead(
        &self,
        entry: &Entry,
        owner: &str,
        call: impl Future<Output = Result<ToolOutput, ToolError>>,
    ) -> Result<ToolOutput, ToolError> {
        tokio::pin!(call);
        let outcome = loop {
            tokio::select! {
                outcome = &mut call => break outcome,
                () = tokio::time::sleep(RENEW) => {
                    let renewed = self.redis.renew_result_lease(entry.name(), owner, LEASE);
                    if let Err(error) = renewed.await {
                        tracing::debug!(%error, "the lease of a call was not renewed");
                    }
                }
            }
        };
        let left = match outcome.as_ref().map(|output| entry.to_keep(output)) {
            Ok((kept, ttl)) => {
                let kept = self.redis.keep_result(entry.name(), owner, &kept, ttl);
                kept.await.map(|_| ())
            }
            Err(_) => self.redis.free_result_lease(entry.name(), owner).await,
        };
        if let Err(error) = left {
            tracing::debug!(%error, "a result was not kept");
        }
        outcome
    }

    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(digest.to_owned(), Arc::downgrade(&turn));
        turn
    }
}

/// What was found of a result.
enum Found {
    /// It was there.
    Value(Value),
    /// It came while it was waited for.
    Shared(Value),
    /// Nothing, and others wait for this call.
    Lead,
    /// Nothing, and nobody waits.
    Alone,
}

impl Entry {
    fn name(&self) -> ResultName<'_> {
        ResultName {
            tenant: &self.tenant,
            tool: &self.tool,
            digest: &self.digest,
        }
    }

    /// What is kept of a result, and for how long.
    fn to_keep(&self, output: &ToolOutput) -> (Kept, Duration) {
        let ttl = output.fresh_for.unwrap_or(self.ttl).min(self.ttl);
        let json = output.value.to_string();
        if ttl.is_zero() || json.len() > MOST_BYTES {
            return (Kept::Nothing, REMEMBER_NOTHING.min(self.ttl));
        }
        let sealed = self.key.seal(&self.digest, json.as_bytes());
        (Kept::Result(sealed), ttl)
    }
}
