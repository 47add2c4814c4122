//! Redis: the connection, and how scripts run on it.
//!
//! Invariant: every key that a request or a run touches carries its tenant's hash tag, so that one
//! script can touch them all, on a cluster too.

mod address_bits;
mod audit_heads;
mod breakers;
mod connection;
mod dead_letters;
mod keys;
mod lock;
mod rebuilding;
mod results;
mod script;
mod sentinel;
mod tenants;

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{AsyncCommands, FromRedisValue, RedisError};
use serde::Serialize;
use tracing::{Instrument, Span};

use crate::config::{ConfigError, RedisSettings, Settings};
use crate::ids::TenantId;
use crate::telemetry;

pub use address_bits::{address_bits, network_bits};
pub use breakers::OpenBreaker;
pub use connection::Connection;
pub use dead_letters::{
    IndexedLetter, LetterCursor, LetterFilter, LetterGroup, MAX_LETTERS, Redriven,
};
pub use lock::Lock;
pub use results::{Kept, Look, ResultName};
pub use script::Script;

/// Why Redis did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, or did not answer in time. Whether it did what was asked is unknown.
    #[error("redis is not available: {0}")]
    Unavailable(RedisError),
    /// It answered with an error, or with something unexpected.
    #[error("redis: {0}")]
    Failed(String),
}

/// The span of a script's call, within the work that it is part of.
fn calling(script: &Script) -> Span {
    if !telemetry::tracing_now() {
        return Span::none();
    }
    tracing::info_span!(
        target: telemetry::SPANS,
        "redis",
        otel.name = %format!("EVALSHA {}", script.name()),
        otel.kind = "client",
        db.system.name = "redis",
        db.operation.name = "EVALSHA",
        db.stored_procedure.name = script.name(),
    )
}

impl From<ConfigError> for StoreError {
    fn from(error: ConfigError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        let away = error.is_io_error()
            || error.is_timeout()
            || error.is_connection_refusal()
            || error.is_connection_dropped()
            || error.is_cluster_error()
            || matches!(
                error.code(),
                Some("LOADING" | "MASTERDOWN" | "READONLY" | "CLUSTERDOWN")
            );
        if away {
            Self::Unavailable(error)
        } else {
            Self::Failed(error.to_string())
        }
    }
}

/// A script's answer, and how many replicas have what it wrote.
type Replicated<T> = (Result<T, RedisError>, Result<u32, RedisError>);

/// A shared, pipelined connection that restores itself.
#[derive(Clone)]
pub struct Redis {
    connection: Connection,
    prefix: Arc<str>,
    timeout: Duration,
    wait_replicas: u32,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What became of a request to write the append-only file anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AofRewrite {
    /// It began, or begins when a snapshot ends.
    Started,
    /// One is under way, which may have begun too early.
    UnderWay,
    /// This user may not ask for it, or the service offers none.
    Refused,
}

impl Redis {
    /// A connection that is made when it is first needed, and made again when it breaks. Each
    /// command ends within `timeout`, whatever Redis does.
    pub fn connect(settings: &Settings, timeout: Duration) -> Result<Self, StoreError> {
        let redis = RedisSettings::of(settings)?;
        Self::open(&redis, &settings.namespace, timeout)
    }

    /// As [`Redis::connect`], for commands that need no other settings.
    pub fn open(
        settings: &RedisSettings,
        namespace: &str,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            connection: Connection::new(settings, timeout)?,
            prefix: prefix(namespace).into(),
            timeout,
            wait_replicas: settings.wait_replicas,
        })
    }

    /// What every key begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The base key of a tenant, hash tag included.
    pub fn base(&self, tenant: &TenantId) -> String {
        base_key(&self.prefix, tenant)
    }

    /// A connection for plain commands.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Runs a script for a tenant. `settings` is the JSON text of what the scripts need to know of the
    /// installation.
    pub async fn invoke<T: FromRedisValue>(
        &self,
        script: &Script,
        tenant: &TenantId,
        args: &impl Serialize,
        settings: &str,
    ) -> Result<T, StoreError> {
        let args = serde_json::to_string(args).map_err(|e| StoreError::Failed(e.to_string()))?;
        let mut connection = self.connection.clone();
        let started = Instant::now();
        let mut call = script.prepared();
        call.key(self.base(tenant)).arg(args).arg(settings);
        let span = calling(script);
        let answer = self
            .within(self.call(&call, &mut connection))
            .instrument(span.clone())
            .await;
        if answer.is_err() {
            telemetry::failed(&span, "redis");
        }
        metrics::histogram!("agenthub_redis_script_ms", "script" => script.name())
            .record(started.elapsed().as_secs_f64() * 1000.0);
        if answer.is_err() {
            metrics::counter!("agenthub_redis_errors_total", "script" => script.name())
                .increment(1);
        }
        answer
    }

    /// Calls a script, and waits until what it wrote is on as many replicas as the settings ask for. Where
    /// it is not in time, it may be lost with the master: its outcome is unknown. Both commands go over one
    /// connection, since `WAIT` is about the writes of its own connection.
    async fn call<T: FromRedisValue>(
        &self,
        call: &redis::ScriptInvocation<'_>,
        connection: &mut Connection,
    ) -> Result<T, RedisError> {
        let wanted = self.wait_replicas;
        if wanted == 0 {
            return call.invoke_async(connection).await;
        }
        // The connection itself gives up at the timeout. Zero would wait for ever.
        let at_most = (self.timeout / 2).as_millis().max(1).to_string();
        let mut both = redis::pipe();
        both.ignore_errors().invoke_script(call);
        both.cmd("WAIT").arg(wanted).arg(at_most);
        let mut outcome: Replicated<T> = both.query_async(connection).await?;
        if matches!(&outcome.0, Err(error) if error.code() == Some("NOSCRIPT")) {
            call.load_async(connection).await?;
            outcome = both.query_async(connection).await?;
        }
        let (answer, replicas) = (outcome.0?, outcome.1?);
        if replicas >= wanted {
            return Ok(answer);
        }
        let late = format!("{replicas} of {wanted} replicas have it");
        Err(std::io::Error::new(std::io::ErrorKind::TimedOut, late).into())
    }

    /// What `command` gives. Connecting, loading a script and calling it have one timeout together.
    pub async fn within<T>(
        &self,
        command: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, StoreError> {
        let outcome = tokio::time::timeout(self.timeout, command).await;
        let late = std::io::ErrorKind::TimedOut;
        Ok(outcome.map_err(|_| StoreError::Unavailable(std::io::Error::from(late).into()))??)
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.connection.clone().ping::<()>().await?)
    }

    /// Refuses a Redis that may lose what it has acknowledged: without AOF, or with an eviction
    /// policy that drops keys. Where `CONFIG` is not allowed, as on managed services, that Redis
    /// answers has to do.
    pub async fn check_durability(&self) -> Result<(), StoreError> {
        for (name, wanted) in [("appendonly", "yes"), ("maxmemory-policy", "noeviction")] {
            let mut command = redis::cmd("CONFIG");
            command.arg("GET").arg(name);
            let answer: Result<Vec<String>, StoreError> = command
                .query_async(&mut self.connection())
                .await
                .map_err(StoreError::from);
            match answer {
                Ok(pair) if pair.get(1).is_some_and(|value| value == wanted) => {}
                Ok(_) => return Err(StoreError::Failed(format!("{name} must be {wanted}"))),
                Err(StoreError::Failed(_)) => return self.ping().await,
                Err(away) => return Err(away),
            }
        }
        Ok(())
    }

    /// Has the append-only file written anew, so that what was removed is not in it any more.
    ///
    /// # Errors
    /// Redis cannot be reached. That it refuses is an outcome.
    pub async fn rewrite_aof(&self) -> Result<AofRewrite, StoreError> {
        let asked: Result<String, StoreError> = redis::cmd("BGREWRITEAOF")
            .query_async(&mut self.connection())
            .await
            .map_err(StoreError::from);
        match asked {
            Ok(_) => Ok(AofRewrite::Started),
            Err(StoreError::Failed(why)) if why.contains("in progress") => Ok(AofRewrite::UnderWay),
            Err(StoreError::Failed(why)) => {
                tracing::warn!(why, "the append-only file is not rewritten");
                Ok(AofRewrite::Refused)
            }
            Err(away) => Err(away),
        }
    }

    /// The tenants that have, or had, keys.
    pub async fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let key = format!("{}:tenants", self.prefix);
        let names: Vec<String> = self.connection.clone().smembers(key).await?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    /// Makes the tenant known to the sweepers.
    pub async fn add_tenant(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let key = format!("{}:tenants", self.prefix);
        Ok(self
            .connection
            .clone()
            .sadd::<_, _, ()>(key, tenant.as_str())
            .await?)
    }
}

/// What every key of an installation begins with.
pub fn prefix(namespace: &str) -> String {
    if namespace.is_empty() {
        "ah".to_owned()
    } else {
        format!("ah:{namespace}")
    }
}

/// The base key of a tenant, hash tag included.
pub fn base_key(prefix: &str, tenant: &TenantId) -> String {
    format!("{prefix}:{{{tenant}}}")
}
