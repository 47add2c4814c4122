//! The model client: one call is one attempt. Retry, budgets and cancellation are the worker's.
//!
//! [`openai`] is the client of one endpoint, [`endpoints`] lists them and [`fallback`] chooses among them,
//! [`input_bound_tokens`] bounds what a call can read, and [`sim`] is a server that stands
//! in for a provider where there is none.
//!
//! Invariant: the client neither sleeps nor repeats a call by itself.

mod bound;
pub mod endpoints;
pub mod fallback;
pub mod openai;
pub mod sim;

pub use bound::input_bound_tokens;

use crate::pricing::Usage;

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum ChatMessage {
    /// Instructions.
    System {
        /// The text.
        content: String,
    },
    /// What the user said.
    User {
        /// The text.
        content: String,
    },
    /// What the model said before.
    Assistant {
        /// The text, where there was one.
        content: Option<String>,
        /// The functions that it called.
        tool_calls: Vec<FunctionCall>,
    },
    /// What a called function gave.
    Tool {
        /// The call that this answers.
        tool_call_id: String,
        /// The result.
        content: String,
    },
}

/// A function that the model called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The model's name for the call.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, as the model wrote them: usually, not surely, JSON.
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: Value,
}

/// One call of a model.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    /// The model.
    pub model: String,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// What it may call; none forbids calling.
    pub functions: Vec<Function>,
    /// The most tokens that it may answer with.
    pub max_output_tokens: u32,
    /// W3C trace context, sent along.
    pub traceparent: Option<String>,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatAnswer {
    /// The model that answered, as the provider names it.
    pub model: String,
    /// The text, where there is one.
    pub content: Option<String>,
    /// The functions that it calls.
    pub tool_calls: Vec<FunctionCall>,
    /// Whether the answer was cut at the token limit.
    pub truncated: bool,
    /// What it used; unknown when the provider did not say.
    pub usage: Option<Usage>,
}

/// What the worker does about a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LlmErrorClass {
    /// Another attempt may succeed, not before `retry_after` where the provider gave it.
    Transient {
        /// What the provider asked for.
        retry_after: Option<Duration>,
    },
    /// Another attempt would fail as well.
    Permanent,
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct LlmError {
    /// What to do about it.
    pub class: LlmErrorClass,
    /// Stable name of the reason, in snake case.
    pub code: &'static str,
    /// For people. Masked before it leaves.
    pub message: String,
}

/// Whether a call that failed with `code` was surely not charged: the provider refused it, or never
/// received it. Of the other failures it is not known.
pub fn is_unbilled(code: &str) -> bool {
    matches!(
        code,
        "llm_rate_limited"
            | "llm_quota_exhausted"
            | "llm_unavailable"
            | "llm_unauthorized"
            | "llm_not_found"
            | "llm_bad_request"
            | "llm_unreachable"
            | "llm_breaker_open"
    )
}

/// A client of an OpenAI-compatible endpoint.
#[async_trait]
pub trait LlmClient: Send + Sync {
    /// Makes one call. Dropping the future abandons it.
    async fn chat(&self, request: ChatRequest) -> Result<ChatAnswer, LlmError>;
}
