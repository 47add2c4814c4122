//! Results of tools that are kept for later calls, and the leases of the calls that others wait for.

use std::sync::LazyLock;
use std::time::Duration;

use serde::Serialize;

use super::{Redis, Script, StoreError};
use crate::ids::TenantId;
use crate::privacy::Sealed;

/// Results that are kept of one tool for one tenant; those that end first go first.
const MOST: usize = 1000;

static RESULTS: LazyLock<Script> =
    LazyLock::new(|| Script::new("results", &[include_str!("results.lua")]));

/// What is kept under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// A result.
    Result(Sealed),
    /// What the call gave may not be kept: each makes its own.
    Nothing,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// This was kept.
    Found(Kept),
    /// Nothing, and the caller is to make the call that others wait for.
    Lead,
    /// Nothing yet: somebody is making the call.
    Wait,
}

/// Names one result: of a tool, for a tenant.
#[derive(Debug, Clone, Copy)]
pub struct ResultName<'a> {
    /// For whom it is kept.
    pub tenant: &'a TenantId,
    /// The tool.
    pub tool: &'a str,
    /// Digest of what the result depends on.
    pub digest: &'a str,
}

#[derive(Default, Serialize)]
struct Args<'a> {
    op: &'static str,
    tool: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<&'a str>,
    most: usize,
}

impl<'a> Args<'a> {
    fn of(op: &'static str, name: ResultName<'a>, owner: &'a str) -> Self {
        Self {
            op,
            tool: name.tool,
            name: Some(name.digest),
            owner: Some(owner),
            most: MOST,
            ..Self::default()
        }
    }
}

impl Redis {
    /// What is kept under a name. Where nothing is and nobody makes the call, the caller becomes the
    /// one who does, as `owner`, for the time of the lease.
    pub async fn look_for_result(
        &self,
        name: ResultName<'_>,
        owner: &str,
        lease: Duration,
    ) -> Result<Look, StoreError> {
        let args = Args {
            lease_ms: Some(millis(lease)),
            ..Args::of("look", name, owner)
        };
        let answer: Vec<String> = self.invoke(&RESULTS, name.tenant, &args, "{}").await?;
        let answer: Vec<&str> = answer.iter().map(String::as_str).collect();
        match answer.as_slice() {
            ["lead"] => Ok(Look::Lead),
            ["wait"] => Ok(Look::Wait),
            ["hit", "n"] => Ok(Look::Found(Kept::Nothing)),
            ["hit", entry] if entry.starts_with('v') => {
                Ok(Look::Found(Kept::Result(Sealed::from_stored(&entry[1..]))))
            }
            _ => Err(StoreError::Failed("a kept result is not readable".into())),
        }
    }

    /// Keeps the lease of a call that is still being made; whether the owner had it still.
    pub async fn renew_result_lease(
        &self,
        name: ResultName<'_>,
        owner: &str,
        lease: Duration,
    ) -> Result<bool, StoreError> {
        let args = Args {
            lease_ms: Some(millis(lease)),
            ..Args::of("renew", name, owner)
        };
        Ok(self.change_result(name.tenant, &args).await? == 1)
    }

    /// Keeps what a call gave, and ends its lease. An owner who lost the lease, such as by a drop of
    /// the tool's results, keeps nothing; whether it was kept.
    pub async fn keep_result(
        &self,
        name: ResultName<'_>,
        owner: &str,
        kept: &Kept,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let entry = match kept {
            Kept::Result(sealed) => format!("v{}", sealed.as_str()),
            Kept::Nothing => "n".to_owned(),
        };
        let args = Args {
            ttl_ms: Some(millis(ttl).max(1)),
            entry: Some(&entry),
            ..Args::of("keep", name, owner)
        };
        Ok(self.change_result(name.tenant, &args).await? == 1)
    }

    /// Ends the lease of a call that gave nothing: one of those who wait makes it next.
    pub async fn free_result_lease(
        &self,
        name: ResultName<'_>,
        owner: &str,
    ) -> Result<(), StoreError> {
        let args = Args::of("free", name, owner);
        self.change_result(name.tenant, &args).await.map(|_| ())
    }

    /// Drops every result of a tool that is kept for a tenant; how many there were.
    pub async fn drop_results(&self, tenant: &TenantId, tool: &str) -> Result<u64, StoreError> {
        let args = Args {
            op: "drop",
            tool,
            most: MOST,
            ..Args::default()
        };
        let dropped = self.change_result(tenant, &args).await?;
        Ok(u64::try_from(dropped).unwrap_or(0))
    }

    async fn change_result(&self, tenant: &TenantId, args: &Args<'_>) -> Result<i64, StoreError> {
        self.invoke(&RESULTS, tenant, args, "{}").await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
