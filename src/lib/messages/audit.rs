//! Audit and usage records on `audit.logs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::privacy::Sealed;

/// How a request or an action was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditDecision {
    /// It was allowed.
    Allowed,
    /// It was refused; `rule` says by what.
    Refused,
}

/// One request, or one action of a worker that spends money or touches the outside.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct AuditRecord {
    /// Schema version.
    pub v: u16,
    /// Unique name of the record.
    pub id: String,
    /// Milliseconds since the epoch.
    pub ts: u64,
    /// `request`, `model_call`, `tool_call`, or `tool_cached` for a kept result in place of a call.
    pub action: String,
    /// Requests that it stands for; more than one where many of a kind were added up.
    #[serde(default = "one")]
    pub count: u64,
    /// The tenant; absent when the request was not authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The key that asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<KeyId>,
    /// Its role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// HTTP method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Route template, never the raw path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
    /// The run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// What was used or changed: a tool, a model, a key, a tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Keyed hash of the input, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_hash: Option<String>,
    /// Tokens that the model read.
    #[serde(default)]
    pub input_tokens: u64,
    /// Tokens that the model wrote.
    #[serde(default)]
    pub output_tokens: u64,
    /// Millionths of a US dollar.
    #[serde(default)]
    pub cost_micro_usd: u64,
    /// The model call that it settles, as its run names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// How: `actual`, or `bounded` when its use is not known and its bound counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settlement: Option<String>,
    /// What that adds to the money spent, in millionths of a US dollar; below zero when it corrects a bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta_micro_usd: Option<i64>,
    /// The month (`yyyymm`, UTC) whose budgets it counts towards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub month: Option<String>,
    /// The client's address, masked to its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Trace id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Milliseconds that it took.
    #[serde(default)]
    pub duration_ms: u64,
    /// How it was decided.
    pub decision: AuditDecision,
    /// The rule that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What was said of a step whose outcome was not known; a rebuild restores it from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<ResolvedStep>,
}

/// What somebody said of a step of a run that has ended.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedStep {
    /// The step.
    pub step_id: String,
    /// Whether its effect happened.
    pub succeeded: bool,
    /// What it gave; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Sealed>,
}

fn one() -> u64 {
    1
}
