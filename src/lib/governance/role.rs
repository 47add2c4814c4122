//! Roles and what they may do: the one table.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Uses sessions and runs.
    Client,
    /// A client that may also look behind the scenes.
    Developer,
    /// Governs its tenant.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Client, Self::Developer, Self::Admin];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Developer => "developer",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| "expected client, developer or admin".to_owned())
    }
}

/// What a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Create, read and delete sessions.
    Sessions,
    /// Start, read, cancel and follow runs.
    Runs,
    /// See the tools.
    Tools,
    /// Manage the tenant's keys.
    Keys,
    /// Set and read what holds for the tenant as a whole.
    Tenants,
    /// Drop results of tools that are kept for the tenant.
    Cache,
    /// See how far the audit chains go.
    Audit,
    /// See and set what the tenant may spend.
    Budgets,
    /// See and redrive dead letters.
    DeadLetters,
}

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 9] = [
        Self::Sessions,
        Self::Runs,
        Self::Tools,
        Self::Keys,
        Self::Tenants,
        Self::Cache,
        Self::Audit,
        Self::Budgets,
        Self::DeadLetters,
    ];

    /// What it allows.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Sessions => "create, list, read and delete sessions",
            Self::Runs => "start, list, read, cancel and follow runs",
            Self::Tools => "see the tools",
            Self::Keys => "manage the API keys of the tenant",
            Self::Tenants => "read and set what holds for the tenant as a whole",
            Self::Cache => "drop kept results of tools",
            Self::Audit => "see how far the audit chains go",
            Self::Budgets => "read and set what the tenant may spend, read what it used",
            Self::DeadLetters => "list, read and redrive dead letters",
        }
    }

    /// The roles that have it.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Sessions | Self::Runs | Self::Tools => &Role::ALL,
            Self::Keys
            | Self::Tenants
            | Self::Cache
            | Self::Audit
            | Self::Budgets
            | Self::DeadLetters => &[Role::Admin],
        }
    }
}
