//! What `agent.state` holds: the newest record of each key and session, from which a lost Redis is
//! filled again.

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{KeyId, SessionId, TenantId};
use crate::privacy::Sealed;

/// The value of a record on `agent.state`. A null value erases what its key names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct StateRecord {
    /// Schema version.
    pub v: u16,
    /// What it is.
    #[serde(flatten)]
    pub state: State,
}

/// One kind of state.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum State {
    /// An API key.
    ApiKey(KeyRecord),
    /// A session.
    Session(SessionRecord),
    /// What holds for a tenant as a whole.
    Tenant(TenantRecord),
    /// A tenant's budget.
    Budget(BudgetRecord),
}

impl State {
    /// The record key: `key/<tenant>/<key id>`, `session/<tenant>/<session id>`, `tenant/<tenant>` or
    /// `budget/<tenant>`.
    pub fn record_key(&self) -> String {
        match self {
            Self::ApiKey(key) => format!("key/{}/{}", key.tenant, key.key_id),
            Self::Session(session) => session_record_key(&session.tenant, &session.session_id),
            Self::Tenant(record) => format!("tenant/{}", record.tenant),
            Self::Budget(budget) => format!("budget/{}", budget.tenant),
        }
    }
}

/// The record key of a session.
pub fn session_record_key(tenant: &TenantId, session: &SessionId) -> String {
    format!("session/{tenant}/{session}")
}

/// An API key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyRecord {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its stable name.
    pub key_id: KeyId,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: String,
    /// `active` or `revoked`.
    pub status: String,
    /// Rises with each rotation.
    pub version: u32,
    /// SHA-256 of the current secret, in hexadecimal.
    pub hash: String,
    /// SHA-256 of the secret before the last rotation, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_hash: Option<String>,
    /// Milliseconds since the epoch until which the old secret is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_until_ms: Option<u64>,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// The request that rotated it last, where that had an `Idempotency-Key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_by: Option<String>,
    /// What narrows it.
    #[serde(flatten)]
    pub policy: KeyPolicy,
}

/// At most `limit` requests in any window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RateRule {
    /// Requests.
    pub limit: u32,
    /// Milliseconds.
    pub window_ms: u64,
}

/// What narrows a key beyond its role. What is absent does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeyPolicy {
    /// Rate limits of its own, instead of its tenant's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Vec<RateRule>>,
    /// The tools that its runs may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_allowed: Option<Vec<String>>,
    /// The models that may plan its runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models_allowed: Option<Vec<String>>,
    /// The networks that it may be used from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub ips_allowed: Option<Vec<IpNet>>,
}

/// What a tenant may spend in each calendar month (UTC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BudgetRecord {
    /// The tenant.
    pub tenant: TenantId,
    /// Millionths of a US dollar; no limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_micro_usd: Option<u64>,
}

/// A session: what a rebuild needs of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SessionRecord {
    /// Its tenant.
    pub tenant: TenantId,
    /// The session.
    pub session_id: SessionId,
    /// Its data key, wrapped by a master key.
    pub wrapped_key: String,
    /// Its context; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Sealed>,
    /// Whom it is about; sealed text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Sealed>,
    /// The client's labels; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Sealed>,
    /// The most that its runs may cost together, in millionths of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_micro_usd: Option<u64>,
    /// Milliseconds to live without a read.
    pub ttl_ms: u64,
    /// The key that created it.
    pub key_id: KeyId,
    /// Milliseconds since the epoch.
    pub created_ms: u64,
}

/// A tenant's own limits. What is absent is the installation's default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TenantRecord {
    /// The tenant.
    pub tenant: TenantId,
    /// Rate limits of each key that has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_key: Option<Vec<RateRule>>,
    /// Rate limits of the tenant as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_tenant: Option<Vec<RateRule>>,
    /// Runs that may be live at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_live_runs: Option<u32>,
    /// Runs of one key that may be live at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_live_runs_per_key: Option<u32>,
}
