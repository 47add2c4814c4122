//! The checks between a request and a topic: key, role, limits, idempotency. What can be decided
//! without I/O is decided here; the rest runs inside the script that acts on the request.
//!
//! Invariant: a request reaches a topic only through [`Runs::admit`](crate::runs::Runs::admit), whose
//! script runs the gate before it changes anything.

mod api_key;
mod audit;
mod budgets;
mod erasure;
mod idempotency;
mod keys;
mod policy;
mod role;
mod state_topic;
mod tenants;

pub use api_key::{IssuedKey, PresentedKey};
pub use audit::{AuditTrail, Place, TrailFull};
pub use budgets::Budgets;
pub use erasure::{ErasedSession, Erasure, ErasureError, Erasures, Whom, erased_record};
pub use idempotency::{IdempotencyKey, InvalidIdempotencyKey, fingerprint};
pub use keys::{KeyError, Keys, NewKey};
pub use policy::{PolicyError, check_policy, check_rules, parse_networks};
pub use role::{Permission, Role};
pub use tenants::Tenants;

use std::net::IpAddr;

use crate::config::Settings;
use crate::ids::TenantId;
use crate::messages::{RateRule, Signer};
use crate::runs::Gate;
use crate::store::address_bits;

/// What governs requests: signing secrets and default limits.
#[derive(Debug, Clone)]
pub struct Governance {
    signer: Signer,
    key_rules: Vec<RateRule>,
    tenant_rules: Vec<RateRule>,
}

impl Governance {
    /// With the installation's secrets and default limits.
    pub fn new(signer: Signer, settings: &Settings) -> Self {
        let rules = |rules: &[crate::config::Rule]| rules.iter().map(|r| (*r).into()).collect();
        Self {
            signer,
            key_rules: rules(&settings.key_limits),
            tenant_rules: rules(&settings.tenant_limits),
        }
    }

    /// Reads an API key and checks its signature, without I/O: `None` when it was not issued here.
    pub fn recognise(&self, text: &str) -> Option<PresentedKey> {
        PresentedKey::parse(text, &self.signer)
    }

    /// A keyed hash of what a tenant, or somebody unknown, sent.
    pub fn hash_input(&self, tenant: Option<&TenantId>, input: &[u8]) -> String {
        let anonymous = TenantId::anonymous();
        let tenant = tenant.unwrap_or(&anonymous);
        self.signer.hash_input(tenant.as_str(), input)
    }

    /// What the gate is to check for a request of `key` from `ip` that needs `permission` and counts
    /// against the limits.
    pub fn gate(&self, key: &PresentedKey, ip: Option<IpAddr>, permission: Permission) -> Gate {
        Gate {
            key_id: key.key_id.clone(),
            secret_hash: key.secret_hash.clone(),
            roles: permission
                .roles()
                .iter()
                .map(|role| role.as_str())
                .collect(),
            ip: ip.map(address_bits),
            model: None,
            tools: Vec::new(),
            tools_allowed: None,
            not_before: None,
            cost: 1,
            key_rules: self.key_rules.clone(),
            tenant_rules: self.tenant_rules.clone(),
        }
    }

    /// As [`Governance::gate`], for a further look within a request that was counted already.
    pub fn look(&self, key: &PresentedKey, ip: Option<IpAddr>, permission: Permission) -> Gate {
        Gate {
            cost: 0,
            ..self.gate(key, ip, permission)
        }
    }
}
