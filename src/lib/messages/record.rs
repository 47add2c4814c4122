//! Topics, headers, and a record on its way to a topic.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ids::{RunId, TenantId};

/// The topics, by the names that `topics/topics.toml` gives them (without the namespace).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Topic {
    /// Commands for the planner.
    #[serde(rename = "plan.commands")]
    PlanCommands,
    /// Commands for the executor.
    #[serde(rename = "execute.commands")]
    ExecuteCommands,
    /// What happened in runs.
    #[serde(rename = "agent.events")]
    AgentEvents,
    /// Keys, tenants, limits, budgets and sessions; compacted.
    #[serde(rename = "agent.state")]
    AgentState,
    /// Audit and usage records.
    #[serde(rename = "audit.logs")]
    AuditLogs,
    /// Records that could not be handled, with the reason.
    #[serde(rename = "dead.letter")]
    DeadLetter,
}

/// A name that no topic has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown topic {0}")]
pub struct UnknownTopic(pub String);

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 6] = [
        Self::PlanCommands,
        Self::ExecuteCommands,
        Self::AgentEvents,
        Self::AgentState,
        Self::AuditLogs,
        Self::DeadLetter,
    ];

    /// The name without the namespace.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PlanCommands => "plan.commands",
            Self::ExecuteCommands => "execute.commands",
            Self::AgentEvents => "agent.events",
            Self::AgentState => "agent.state",
            Self::AuditLogs => "audit.logs",
            Self::DeadLetter => "dead.letter",
        }
    }

    /// The name on the broker: `<namespace>.<name>`, or the bare name without a namespace.
    pub fn full_name(self, namespace: &str) -> String {
        if namespace.is_empty() {
            self.as_str().to_owned()
        } else {
            format!("{namespace}.{}", self.as_str())
        }
    }
}

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(name: &str) -> Result<Self, UnknownTopic> {
        let known = Self::ALL.into_iter().find(|t| t.as_str() == name);
        known.ok_or_else(|| UnknownTopic(name.to_owned()))
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Names of the headers. Those that begin with `ce_` are the CloudEvents Kafka protocol binding's.
pub mod header {
    /// Names one logical message: the same over retries and re-emissions, another for the next.
    pub const CE_ID: &str = "ce_id";
    /// What kind of message this is.
    pub const CE_TYPE: &str = "ce_type";
    /// The process that made it.
    pub const CE_SOURCE: &str = "ce_source";
    /// The run that it is about.
    pub const CE_SUBJECT: &str = "ce_subject";
    /// When it was made (RFC 3339).
    pub const CE_TIME: &str = "ce_time";
    /// `1.0`.
    pub const CE_SPECVERSION: &str = "ce_specversion";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// The tenant whose message this is.
    pub const TENANT: &str = "ah_tenant";
    /// HMAC-SHA256 over what [`Signer`](crate::messages::Signer) lists, in hexadecimal.
    pub const SIGNATURE: &str = "ah_signature";
    /// Which secret made the signature.
    pub const KEY_ID: &str = "ah_kid";
    /// Milliseconds since the epoch after which a command is not to be carried out.
    pub const NOT_AFTER: &str = "ah_not_after";
}

/// The headers of a received record. The last one wins where a name occurs twice.
pub type Headers = BTreeMap<String, Bytes>;

/// A record on its way to a topic. The producer signs it.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where it goes.
    pub topic: Topic,
    /// Its key, which decides its partition.
    pub key: String,
    /// The name of the logical message.
    pub ce_id: String,
    /// Its kind, such as `agenthub.command.plan`.
    pub ce_type: String,
    /// The tenant whose message this is.
    pub tenant: TenantId,
    /// The run that it is about, where it is about one.
    pub run_id: Option<RunId>,
    /// Milliseconds since the epoch after which it is not to be carried out.
    pub not_after_ms: Option<u64>,
    /// The W3C trace context in which it was made.
    pub traceparent: Option<String>,
    /// The value, JSON. An empty one is sent as a null value, which erases the key on a compacted topic.
    pub value: Bytes,
}
