//! A plan: what a run does, as a directed acyclic graph of tool calls. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

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
