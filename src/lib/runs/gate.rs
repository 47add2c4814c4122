//! What the gate script is told of a request. Governance fills it in.

use serde::Serialize;

use crate::config::Rule;
use crate::ids::KeyId;
use crate::messages::RateRule;

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
    /// Where the request comes from, as [`address_bits`](crate::store::address_bits) writes it. A key that is bound to networks
    /// is refused without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The model that the request asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The tools that the request cannot do without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// The tools that the request allows: its run may use those that the key allows too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools_allowed: Option<Vec<String>>,
    /// Milliseconds since the epoch that the limits take it to be at least; Redis' own clock when
    /// absent. Lets a test of the windows decide what time it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// 1 when the request counts against the limits, 0 when it only looks.
    pub cost: u8,
    /// Default limits of a key.
    pub key_rules: Vec<RateRule>,
    /// Default limits of a tenant.
    pub tenant_rules: Vec<RateRule>,
}

impl From<Rule> for RateRule {
    fn from(rule: Rule) -> Self {
        Self {
            limit: rule.limit,
            window_ms: rule.window_ms,
        }
    }
}
