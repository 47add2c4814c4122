//! What workers share of their circuit breakers: until when one is open, and who probes.
//!
//! Durations travel, not times: Redis' clock is the only one that is compared with itself.

use std::sync::LazyLock;
use std::time::Duration;

use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::TenantId;

/// A breaker that nobody asked for is forgotten so long after it might have half-opened.
const FORGET: Duration = Duration::from_mins(10);

static BREAKERS: LazyLock<Script> =
    LazyLock::new(|| Script::new("breakers", &[include_str!("breakers.lua")]));

/// A breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBreaker {
    /// Its name: that of a tool, or `<tool>|<what of it>`.
    pub name: String,
    /// Time until probes pass; nothing when they do already.
    pub remaining: Duration,
    /// Times in a row that it opened.
    pub trips: u32,
}

impl OpenBreaker {
    /// The tool that it belongs to.
    pub fn tool(&self) -> &str {
        self.name
            .split_once('|')
            .map_or(self.name.as_str(), |(tool, _)| tool)
    }
}

#[derive(Default, Serialize)]
struct Args<'a> {
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lasts_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trips: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    forget_ms: u64,
}

impl<'a> Args<'a> {
    fn new(op: &'static str, name: &'a str) -> Self {
        Self {
            op,
            name: Some(name),
            forget_ms: millis(FORGET),
            ..Self::default()
        }
    }
}

impl Redis {
    /// A tenant's breakers that are not closed.
    pub async fn open_breakers(&self, tenant: &TenantId) -> Result<Vec<OpenBreaker>, StoreError> {
        let args = Args {
            name: None,
            ..Args::new("read", "")
        };
        let flat: Vec<String> = self.invoke(&BREAKERS, tenant, &args, "{}").await?;
        let mut items = flat.into_iter();
        let mut found = Vec::new();
        while let (Some(name), Some(remaining), Some(trips)) =
            (items.next(), items.next(), items.next())
        {
            let unreadable = |_| StoreError::Failed("a breaker is not readable".to_owned());
            found.push(OpenBreaker {
                name,
                remaining: Duration::from_millis(remaining.parse().map_err(unreadable)?),
                trips: trips.parse().map_err(unreadable)?,
            });
        }
        Ok(found)
    }

    /// Tells every worker that a breaker has opened. What was shared before is never shortened.
    pub async fn share_open(
        &self,
        tenant: &TenantId,
        name: &str,
        lasts: Duration,
        trips: u32,
    ) -> Result<(), StoreError> {
        let args = Args {
            lasts_ms: Some(millis(lasts)),
            trips: Some(trips),
            ..Args::new("open", name)
        };
        self.change(tenant, &args).await.map(|_| ())
    }

    /// Tells every worker that a breaker has closed.
    pub async fn share_closed(&self, tenant: &TenantId, name: &str) -> Result<(), StoreError> {
        let args = Args::new("close", name);
        self.change(tenant, &args).await.map(|_| ())
    }

    /// Whether a probe may be made: at most `limit` are under way over all workers. One whose worker
    /// dies counts no longer than `lasts`.
    pub async fn begin_probe(
        &self,
        tenant: &TenantId,
        name: &str,
        probe: &str,
        limit: u32,
        lasts: Duration,
    ) -> Result<bool, StoreError> {
        let args = Args {
            probe: Some(probe),
            limit: Some(limit),
            lasts_ms: Some(millis(lasts)),
            ..Args::new("probe", name)
        };
        Ok(self.change(tenant, &args).await? == 1)
    }

    /// A probe is over.
    pub async fn end_probe(
        &self,
        tenant: &TenantId,
        name: &str,
        probe: &str,
    ) -> Result<(), StoreError> {
        let args = Args {
            probe: Some(probe),
            ..Args::new("done", name)
        };
        self.change(tenant, &args).await.map(|_| ())
    }

    async fn change(&self, tenant: &TenantId, args: &Args<'_>) -> Result<i64, StoreError> {
        self.invoke(&BREAKERS, tenant, args, "{}").await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
