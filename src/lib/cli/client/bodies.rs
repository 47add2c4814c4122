//! What the API answers, as far as the commands look at it. What is missing or new is no error: the
//! API may be older or younger than the command line.

use serde::Deserialize;
use serde_json::Value;

/// An event of a run.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// What happened, such as `step.started`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The step that it is about.
    #[serde(default)]
    pub step_id: Option<String>,
    /// Which attempt of the step, from 1.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// What is told of it; its form goes by the kind.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// A text of the data; empty when there is none.
    pub fn text(&self, name: &str) -> &str {
        self.data
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// A whole number of the data.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.data.get(name).and_then(Value::as_u64)
    }

    /// The status in which this event leaves the run; `None` when more events follow.
    pub fn end(&self) -> Option<&str> {
        self.kind
            .strip_prefix("run.")
            .filter(|status| is_terminal(status))
    }
}

/// Whether a run in this status stays in it.
pub fn is_terminal(status: &str) -> bool {
    matches!(status, "succeeded" | "failed" | "cancelled" | "timed_out")
}

/// Tokens and money.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Millionths of a US dollar.
    pub cost_micro_usd: u64,
}

/// Why a run or a step failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Failure {
    /// Stable name of the reason.
    pub code: String,
    /// For people.
    pub message: Option<String>,
}

/// A step of a run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Step {
    pub id: String,
    pub tool: String,
    pub status: String,
    pub attempts: u32,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub error: Option<Failure>,
}

/// A run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_field_names)] // the names on the wire
pub struct Run {
    pub run_id: String,
    pub session_id: String,
    pub kind: String,
    pub status: String,
    pub goal: Option<String>,
    pub created_at: String,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    pub usage: Usage,
    pub error: Option<Failure>,
    pub steps: Vec<Step>,
    /// `{answer, outputs}` of a run that was executed.
    pub result: Option<Value>,
    /// The plan, `{steps, answer?}`.
    pub plan: Option<Value>,
}

/// A tool.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tool {
    pub name: String,
    pub description: String,
    pub effects: String,
    pub timeout_ms: u64,
    pub breaker: Breaker,
}

/// A tool's circuit breaker.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Breaker {
    pub state: String,
    pub retry_after_ms: Option<u64>,
}
