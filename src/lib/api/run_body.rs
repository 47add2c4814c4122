//! Runs as clients see them: the bodies.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::ids::RunId;
use crate::messages::RunKind;
use crate::plan::Plan;
use crate::runs::{Fields, RunStatus, StepStatus};

/// Tokens and money.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Tokens that models read.
    pub(super) input_tokens: u64,
    /// Tokens that models wrote.
    pub(super) output_tokens: u64,
    /// Millionths of a US dollar.
    pub(super) cost_micro_usd: u64,
}

impl Usage {
    pub(super) fn of(fields: &Fields) -> Self {
        Self {
            input_tokens: fields.number("input_tokens"),
            output_tokens: fields.number("output_tokens"),
            cost_micro_usd: fields.number("cost_micro_usd"),
        }
    }
}

/// Where to go on from a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Links {
    /// The run.
    #[serde(rename = "self")]
    pub(super) this: String,
    /// Its events.
    pub(super) stream: String,
    /// Cancels it.
    pub(super) cancel: String,
}

impl Links {
    pub(super) fn of(run: &str) -> Self {
        Self {
            this: format!("/v1/runs/{run}"),
            stream: format!("/v1/stream?run_id={run}"),
            cancel: format!("/v1/runs/{run}/cancel"),
        }
    }
}

/// Why a run or a step failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Failure {
    /// Stable name of the reason, in snake case.
    pub(super) code: String,
    /// For people.
    pub(super) message: Option<String>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum StepState {
    /// Not begun.
    Pending,
    /// An attempt was begun.
    Running,
    /// An attempt failed; another follows.
    Retrying,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Whether its effect happened is not known.
    OutcomeUnknown,
    /// The run ended before it began.
    Skipped,
}

/// One step of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StepBody {
    /// Its name in the plan.
    pub(super) id: String,
    /// The tool.
    pub(super) tool: String,
    /// How far it is.
    pub(super) status: StepState,
    /// Attempts begun.
    pub(super) attempts: u32,
    /// Its arguments, as the plan has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<Value>,
    /// Steps that it names as done before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) depends_on: Vec<String>,
    /// When its first attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended_at: Option<String>,
    /// What it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<Value>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
}

/// One call of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelCallBody {
    /// From 1.
    pub(super) number: u32,
    /// The model.
    pub(super) model: String,
    /// Tokens read; absent when the provider did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) input_tokens: Option<u64>,
    /// Tokens written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output_tokens: Option<u64>,
    /// Millionths of a US dollar.
    pub(super) cost_micro_usd: u64,
    /// Milliseconds that it took.
    pub(super) duration_ms: u64,
}

/// A run, without what it did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunSummary {
    /// The run.
    pub(super) run_id: String,
    /// Its session.
    pub(super) session_id: String,
    /// `plan`, `execute`, `plan_execute` or `agent`.
    #[schema(value_type = String)]
    pub(super) kind: RunKind,
    /// Where it is in its life.
    pub(super) status: RunStatus,
    /// When it was admitted.
    pub(super) created_at: String,
    /// When a worker first had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ended_at: Option<String>,
    /// When it ends as timed out.
    pub(super) deadline_at: String,
    /// What was to be reached; absent once the session is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) goal: Option<String>,
    /// What it used so far.
    pub(super) usage: Usage,
    /// The most that it may cost, in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_cost_micro_usd: Option<u64>,
    /// The client's own labels.
    #[schema(value_type = BTreeMap<String, String>)]
    pub(super) metadata: Value,
    /// The run whose finished steps it took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(super) retry_of: Option<RunId>,
    /// Why it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Failure>,
    /// Where to go on.
    pub(super) links: Links,
}

/// A run and what it did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunBody {
    #[serde(flatten)]
    pub(super) summary: RunSummary,
    /// Further context for the planner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) context: Option<Value>,
    /// The model that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model: Option<String>,
    /// The tools that its plan may use; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tools_allowed: Option<Vec<String>>,
    /// Its plan; an agent has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Plan>)]
    pub(super) plan: Option<Value>,
    /// Its steps, in the order of the plan; of an agent the calls of its turns: `t2s1` is the first of the
    /// second turn.
    pub(super) steps: Vec<StepBody>,
    /// Its model calls.
    pub(super) model_calls: Vec<ModelCallBody>,
    /// What a finished execution gave: `{answer, outputs}`, the outputs of the steps that no other
    /// step builds on; what a finished agent gave: `{answer}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) result: Option<Value>,
}

impl StepBody {
    pub(super) fn new(id: &str, tool: &str) -> Self {
        Self {
            id: id.to_owned(),
            tool: tool.to_owned(),
            status: StepState::Pending,
            attempts: 0,
            args: None,
            depends_on: Vec::new(),
            started_at: None,
            ended_at: None,
            output: None,
            error: None,
        }
    }
}

impl From<StepStatus> for StepState {
    fn from(status: StepStatus) -> Self {
        match status {
            StepStatus::Running => Self::Running,
            StepStatus::Retrying => Self::Retrying,
            StepStatus::Succeeded => Self::Succeeded,
            StepStatus::Failed => Self::Failed,
            StepStatus::OutcomeUnknown => Self::OutcomeUnknown,
        }
    }
}
