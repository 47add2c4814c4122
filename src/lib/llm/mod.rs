//! The model client: one call is one attempt. Retry, budgets and cancellation are the worker's.
//!
//! [`openai`] is the client of one endpoint, [`endpoints`] lists them and [`fallback`] chooses among them, [`pricing`] says what a call costs, and [`sim`] is a server that stands
//! in for a provider where there is none.
//!
//! Invariant: the client neither sleeps nor repeats a call by itself.

pub mod endpoints;
pub mod fallback;
pub mod openai;
pub mod pricing;
pub mod sim;

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

/// Tokens of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read, those from the provider's cache included.
    pub input_tokens: u64,
    /// Of those, read from the provider's cache.
    pub cached_tokens: u64,
    /// Written, reasoning included.
    pub output_tokens: u64,
    /// Of those, spent on reasoning.
    pub reasoning_tokens: u64,
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

/// A client of an OpenAI-compatible endpoint.
#[async_trait]
pub trait LlmClient: Send + Sync {
    /// Makes one call. Dropping the future abandons it.
    async fn chat(&self, request: ChatRequest) -> Result<ChatAnswer, LlmError>;
}
