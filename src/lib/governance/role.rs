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
    /// See and set what the tenant may spend.
    Budgets,
    /// See and redrive dead letters.
    DeadLetters,
}

impl Permission {
    /// The roles that have it.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Sessions | Self::Runs | Self::Tools => &Role::ALL,
            Self::Keys | Self::Budgets | Self::DeadLetters => &[Role::Admin],
        }
    }
}
