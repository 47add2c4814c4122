//! Changes of what `agent.state` holds, one after the other.
//!
//! Such a change reads Redis, produces to `agent.state` and then writes Redis. Two at once could reach
//! Kafka and Redis in different orders, and a key that one revokes could come back by the other. So the
//! changes of one thing hold a lock, and the write at the end happens only while it is held.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{ExistenceCheck, SetExpiry, SetOptions};
use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::TenantId;

/// Longer than a record may wait for its acknowledgement: what was produced under the lock has reached
/// the topic, or never will, when another gets it.
const HELD: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

static WRITE: LazyLock<Script> =
    LazyLock::new(|| Script::new("locked_write", &[include_str!("locked_write.lua")]));

/// A lock that is held, until its end writes or it runs out.
#[derive(Debug)]
pub struct Lock {
    redis: Redis,
    tenant: TenantId,
    name: String,
    owner: String,
}

/// What is written at the end.
#[derive(Debug, Serialize)]
pub(super) struct Change<'a> {
    /// The hash, without the tenant's base key.
    pub(super) hash: String,
    /// Its fields.
    pub(super) fields: BTreeMap<&'a str, String>,
    /// Fields that go.
    pub(super) gone: Vec<&'a str>,
    /// A set, without the tenant's base key, and a member of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) list: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) member: Option<&'a str>,
}

impl Redis {
    /// Takes the lock of `thing`, waiting up to two seconds for whoever has it.
    pub async fn lock(&self, tenant: &TenantId, thing: &str) -> Result<Lock, StoreError> {
        let lock = Lock {
            redis: self.clone(),
            tenant: tenant.clone(),
            name: format!("lock:{thing}"),
            owner: uuid::Uuid::new_v4().simple().to_string(),
        };
        let key = format!("{}:{}", self.base(tenant), lock.name);
        let millis = u64::try_from(HELD.as_millis()).unwrap_or(u64::MAX);
        let options = SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .with_expiration(SetExpiry::PX(millis));
        let deadline = tokio::time::Instant::now() + WAIT;
        loop {
            let taken: Option<String> = redis::cmd("SET")
                .arg(&key)
                .arg(&lock.owner)
                .arg(&options)
                .query_async(&mut self.connection())
                .await?;
            if taken.is_some() {
                return Ok(lock);
            }
            if tokio::time::Instant::now() > deadline {
                let text = format!("{thing} is being changed by another request");
                return Err(StoreError::Failed(text));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Lock {
    /// Writes and gives the lock back; an error when it was lost meanwhile.
    pub(super) async fn write(self, change: &Change<'_>) -> Result<(), StoreError> {
        #[derive(Serialize)]
        struct Args<'a> {
            lock: &'a str,
            owner: &'a str,
            #[serde(flatten)]
            change: &'a Change<'a>,
        }
        let args = Args {
            lock: &self.name,
            owner: &self.owner,
            change,
        };
        let written: u8 = self.redis.invoke(&WRITE, &self.tenant, &args, "{}").await?;
        if written == 1 {
            Ok(())
        } else {
            let text = format!("{} was lost before its change was written", self.name);
            Err(StoreError::Failed(text))
        }
    }

    /// Gives the lock back, with nothing changed.
    pub async fn release(self) {
        let nothing = Change {
            hash: String::new(),
            fields: BTreeMap::new(),
            gone: Vec::new(),
            list: None,
            member: None,
        };
        if let Err(error) = self.write(&nothing).await {
            tracing::debug!(%error, "a lock is left to run out");
        }
    }
}
