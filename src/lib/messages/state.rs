//! What `agent.state` holds: the newest record of each key and session, from which a lost Redis is
//! filled again.

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
    /// A tenant's budget.
    Budget(BudgetRecord),
}

impl State {
    /// The record key: `key/<tenant>/<key id>`, `session/<tenant>/<session id>` or `budget/<tenant>`.
    pub fn record_key(&self) -> String {
        match self {
            Self::ApiKey(key) => format!("key/{}/{}", key.tenant, key.key_id),
            Self::Session(session) => session_record_key(&session.tenant, &session.session_id),
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
