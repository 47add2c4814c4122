//! Tools: what a plan's steps call. [`catalogue`] describes them and is all that the API sees; the
//! implementations run in the executor.
//!
//! Invariant: a tool is called only with arguments that its JSON Schema accepts, and declares what a
//! repeated call does.

pub mod ads;
pub mod catalogue;
pub mod declared;
pub mod http_fetch;
pub mod http_tool;
pub mod registry;
pub mod retrieval;
pub mod summarize;

use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{RunId, SessionId, TenantId};
use crate::pricing::Usage;

/// What a repeated call of a tool does.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Effects {
    /// Nothing outside changes; it may be repeated.
    None,
    /// The outside knows repeated calls by their `Idempotency-Key`.
    Idempotent,
    /// A second call has a second effect: it is attempted once and never repeated in silence.
    Unsafe,
}

/// What is known of a tool without calling it.
#[derive(Debug, Clone)]
pub struct ToolSpec {
    /// The name that plans use.
    pub name: &'static str,
    /// Rises when the meaning of arguments or results changes.
    pub version: u32,
    /// What it does, for the model.
    pub description: &'static str,
    /// What a repeated call does.
    pub effects: Effects,
    /// JSON Schema (draft 2020-12) of the arguments.
    pub parameters: Value,
    /// How long one attempt may take when neither step nor setting says so.
    pub timeout: Duration,
    /// Whether and how results are kept for other calls with the same arguments. Only a tool without
    /// effects may declare it.
    pub cache: Option<CachePolicy>,
}

/// How results of a tool are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    /// How long, where neither the setting nor the result says less.
    pub ttl: Duration,
    /// For whom.
    pub scope: CacheScope,
}

/// For whom results of a tool are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheScope {
    /// For the tenant whose run made the call.
    Tenant,
    /// For everybody: the result depends on the arguments alone, and they tell nothing of who asks.
    Global,
}

/// One attempt of a step.
#[derive(Debug, Clone)]
pub struct ToolCall {
    /// For whom.
    pub tenant: TenantId,
    /// In which session.
    pub session_id: SessionId,
    /// In which run.
    pub run_id: RunId,
    /// The step.
    pub step_id: String,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The same for every attempt of the step: `<run>/<step>`.
    pub idempotency_key: String,
    /// The arguments, references resolved and checked against the schema.
    pub args: Value,
}

/// What a call gave.
#[derive(Debug, Clone, Default)]
pub struct ToolOutput {
    /// The result, which later steps may refer to.
    pub value: Value,
    /// What a model call inside the tool used; unknown when the provider did not say.
    pub usage: Option<Usage>,
    /// For how long the other side lets the result be kept; nothing forbids it. It says nothing when
    /// absent.
    pub fresh_for: Option<Duration>,
}

/// The model call that a tool makes within one of its own: at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUse {
    /// The model.
    pub model: String,
    /// Tokens that it reads at most.
    pub input_tokens: u64,
    /// Tokens that it writes at most.
    pub max_output_tokens: u32,
}

impl From<Value> for ToolOutput {
    fn from(value: Value) -> Self {
        Self {
            value,
            ..Self::default()
        }
    }
}

/// What the executor does about a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolErrorClass {
    /// A rule forbids the call. Final: no retry, and the breaker is not told.
    Refused,
    /// Another attempt may succeed, not before `retry_after` where it is given.
    Transient {
        /// What the other side asked for.
        retry_after: Option<Duration>,
    },
    /// Another attempt would fail as well.
    Permanent,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ToolError {
    /// What to do about it.
    pub class: ToolErrorClass,
    /// Stable name of the reason, in snake case.
    pub code: &'static str,
    /// For people. Masked before it leaves.
    pub message: String,
}

impl ToolError {
    /// Whether the other side may have received the call. `false` only when there was no connection.
    pub fn may_have_arrived(&self) -> bool {
        !matches!(self.code, "connect_failed" | "name_not_resolved")
    }

    /// A rule forbids the call.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            class: ToolErrorClass::Refused,
            code,
            message: message.into(),
        }
    }

    /// A failure that another attempt would repeat.
    pub fn permanent(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            class: ToolErrorClass::Permanent,
            code,
            message: message.into(),
        }
    }

    /// A failure that another attempt may not repeat.
    pub fn transient(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            class: ToolErrorClass::Transient { retry_after: None },
            code,
            message: message.into(),
        }
    }
}

/// A tool's implementation. The executor enforces the timeout and drops the future on a forced
/// cancel, so a call must be safe to drop at any await.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What is known of the tool.
    fn spec(&self) -> &ToolSpec;

    /// Which of the things outside that the tool reaches a call with these arguments is for, such as a
    /// host: that one of them fails says nothing of the others. `None` when the tool is one thing.
    fn target(&self, _args: &Value) -> Option<String> {
        None
    }

    /// What a result depends on besides tenant and arguments, such as the account or the model that is
    /// used: results are kept apart by it.
    fn credential_scope(&self) -> String {
        String::new()
    }

    /// The model call that a call with these arguments makes; it is paid for from the run's budget, so
    /// that it is reserved before the call.
    fn model_use(&self, args: &Value) -> Option<ModelUse> {
        let _ = args;
        None
    }

    /// Carries out one attempt.
    async fn call(&self, call: ToolCall) -> Result<ToolOutput, ToolError>;
}
