//! Commands: what the API asks of the workers, and workers of each other.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::privacy::Sealed;

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunKind {
    /// Make a plan and stop.
    Plan,
    /// Execute a given plan.
    Execute,
    /// Make a plan and execute it.
    PlanExecute,
    /// Let the model call tools, turn by turn, until it answers.
    Agent,
}

impl RunKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Execute => "execute",
            Self::PlanExecute => "plan_execute",
            Self::Agent => "agent",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Plan, Self::Execute, Self::PlanExecute, Self::Agent];
        all.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The command with which a run of this kind begins.
    pub fn first_command(self) -> CommandKind {
        match self {
            Self::Plan | Self::PlanExecute | Self::Agent => CommandKind::Plan,
            Self::Execute => CommandKind::Execute,
        }
    }
}

/// Which worker a command is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// For the planner.
    Plan,
    /// For the executor.
    Execute,
}

impl CommandKind {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Execute => "execute",
        }
    }
}

/// What happens to a run when its session already has a live one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It waits until the runs before it are done.
    #[default]
    Enqueue,
    /// It is refused with 409.
    Reject,
    /// It starts at once.
    Parallel,
}

/// What was asked for, fixed when the run was admitted. Personal data in it is sealed.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RunSpec {
    /// The tenant.
    pub tenant: TenantId,
    /// The run.
    pub run_id: RunId,
    /// Its session.
    pub session_id: SessionId,
    /// The key that submitted it.
    pub key_id: KeyId,
    /// What it does.
    pub kind: RunKind,
    /// Milliseconds since the epoch at its admission.
    pub created_ms: u64,
    /// Milliseconds since the epoch at which it ends as timed out.
    pub deadline_ms: u64,
    /// The goal; sealed text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Sealed>,
    /// Further context for the planner; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Sealed>,
    /// The plan of an `execute` run; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Sealed>,
    /// The tools that the plan may use, of those that the request and its key allow; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools_allowed: Option<Vec<String>>,
    /// The model that plans; the installation's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The models that may be asked for the run, where its key names some; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models_allowed: Option<Vec<String>>,
    /// The most steps that the plan may have.
    pub max_steps: u32,
    /// The most that the run may cost, in millionths of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cost_micro_usd: Option<u64>,
    /// What happens when the session has a live run.
    #[serde(default)]
    pub on_conflict: OnConflict,
    /// The client's own labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The run whose finished steps this one takes over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
    /// The W3C trace context of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// A command on `plan.commands` or `execute.commands`. It holds all that is needed to carry the run
/// out, even where Redis has lost the run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Command {
    /// Schema version.
    pub v: u16,
    /// Which worker it is for.
    pub kind: CommandKind,
    /// How many commands were emitted before for the same run.
    pub wake: u32,
    /// The turn of an agent that was executed last, from 1; 0 before the first, and for all other runs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub turn: u32,
    /// What was asked for.
    pub spec: RunSpec,
    /// For the executor: the plan; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Sealed>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn is_zero(number: &u32) -> bool {
    *number == 0
}
