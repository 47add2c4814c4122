//! A plan: what a run does, as a directed acyclic graph of tool calls. Pure.
//!
//! Invariant: a [`CheckedPlan`] has unique step ids, no dependency on a missing step and no cycle; it
//! comes from [`check`], or from storage, where only checked plans are written. What it does not
//! promise is that the arguments fit once references are resolved: the executor validates again.

mod check;
mod checked;
mod graph;
mod problem;
pub mod reference;
#[cfg(test)]
pub(crate) mod samples;
mod size;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use check::{MAX_TIMEOUT_S, PlanLimits, ToolRules, ValidateArgs, check};
pub use checked::CheckedPlan;
pub use problem::{ArgsProblem, MAX_PROBLEMS, PlanProblem, excerpt};

/// The form of a step's id, as a regular expression that JSON Schema understands.
pub const STEP_ID_PATTERN: &str = "^[A-Za-z][A-Za-z0-9_-]{0,31}$";

/// Whether `text` has the form of a step's id: [`STEP_ID_PATTERN`].
pub fn is_step_id(text: &str) -> bool {
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(is_step_id_byte)
}

fn is_step_id_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its steps, in any order that the model or client wrote them.
    pub steps: Vec<Step>,
    /// What the model answered besides, or instead of steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

/// One tool call of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name in the plan.
    pub id: String,
    /// The tool.
    pub tool: String,
    /// Its arguments; strings in it may refer to earlier outputs: `${steps.s1.output.value}`.
    #[serde(default)]
    pub args: Value,
    /// Steps that must be done before, besides those that `args` refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
    /// Seconds that one attempt may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}
