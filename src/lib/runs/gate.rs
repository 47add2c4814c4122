//! What the gate script is told of a request. Governance fills it in.

use serde::Serialize;

use crate::config::Rule;
use crate::ids::KeyId;

/// The gate's arguments: who asks, who may, and the limits that apply where neither key nor tenant has
/// its own.
#[derive(Debug, Clone, Serialize)]
pub struct Gate {
    /// The key that the request presents.
    pub key_id: KeyId,
    /// SHA-256 of its secret, in hexadecimal.
    pub secret_hash: String,
    /// The roles that may make this request.
    pub roles: Vec<&'static str>,
    /// 1 when the request counts against the limits, 0 when it only looks.
    pub cost: u8,
    /// Default limits of a key.
    pub key_rules: Vec<GateRule>,
    /// Default limits of a tenant.
    pub tenant_rules: Vec<GateRule>,
}

/// At most `limit` requests in any window.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct GateRule {
    /// Requests.
    pub limit: u32,
    /// Milliseconds.
    pub window_ms: u64,
}

impl From<Rule> for GateRule {
    fn from(rule: Rule) -> Self {
        Self {
            limit: rule.limit,
            window_ms: rule.window_ms,
        }
    }
}
