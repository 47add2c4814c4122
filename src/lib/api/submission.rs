//! The bodies that start runs, checked as far as that needs no I/O.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::validate::{self, Labels};
use crate::config::Settings;
use crate::error::{ApiError, ErrorCode};
use crate::messages::{OnConflict, RunKind};
use crate::plan::{self, CheckedPlan, Plan, PlanLimits, PlanProblem, ToolRules};
use crate::tools::catalogue;

const MAX_GOAL_BYTES: usize = 32 * 1024;
const MAX_MODEL: usize = 128;

/// What happens when the session has a live run.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Conflict {
    /// The new run waits until the runs before it are done.
    #[default]
    Enqueue,
    /// The request is refused with 409.
    Reject,
    /// The new run starts at once.
    Parallel,
}

impl From<Conflict> for OnConflict {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Enqueue => Self::Enqueue,
            Conflict::Reject => Self::Reject,
            Conflict::Parallel => Self::Parallel,
        }
    }
}

/// How a run goes about its goal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    /// Makes a plan, then executes it.
    #[default]
    PlanExecute,
    /// Lets the model call tools, turn by turn, until it answers.
    Agent,
}

/// A goal to be planned.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanRequest {
    /// The session.
    session_id: String,
    /// What is to be reached: 1 to 32768 bytes.
    #[schema(min_length = 1, max_length = 32768)]
    goal: String,
    /// Further context for the planner. Any JSON.
    #[serde(default)]
    context: Option<Value>,
    /// The tools that the plan may use; all when absent.
    #[serde(default)]
    tools_allowed: Option<Vec<String>>,
    /// The model that plans; the installation's default when absent.
    #[serde(default)]
    model: Option<String>,
    /// The most steps that the plan may have; the installation's limit when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    max_steps: Option<u32>,
    /// The most that the run may cost, in US dollars; counted in millionths.
    #[serde(default)]
    #[schema(minimum = 0)]
    max_cost_usd: Option<f64>,
    /// Seconds until the run ends as timed out; the installation's default when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    timeout_s: Option<u64>,
    /// What happens when the session has a live run.
    #[serde(default)]
    on_conflict: Conflict,
    /// The client's own labels: at most 16, names of at most 64 and values of at most 256 characters.
    #[serde(default)]
    metadata: Labels,
}

/// A goal to be reached: planned and executed, or by an agent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunRequest {
    /// The session.
    session_id: String,
    /// What is to be reached: 1 to 32768 bytes.
    #[schema(min_length = 1, max_length = 32768)]
    goal: String,
    /// How the run goes about it.
    #[serde(default)]
    mode: Mode,
    /// Further context for the planner or the agent. Any JSON.
    #[serde(default)]
    context: Option<Value>,
    /// The tools that the plan or the agent may use; all when absent.
    #[serde(default)]
    tools_allowed: Option<Vec<String>>,
    /// The model that plans, or that is the agent; the installation's default when absent.
    #[serde(default)]
    model: Option<String>,
    /// The most steps that the plan may have, or the most calls that an agent may make; the installation's
    /// limit when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    max_steps: Option<u32>,
    /// The most that the run may cost, in US dollars; counted in millionths.
    #[serde(default)]
    #[schema(minimum = 0)]
    max_cost_usd: Option<f64>,
    /// Seconds until the run ends as timed out; the installation's default when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    timeout_s: Option<u64>,
    /// What happens when the session has a live run.
    #[serde(default)]
    on_conflict: Conflict,
    /// The client's own labels: at most 16, names of at most 64 and values of at most 256 characters.
    #[serde(default)]
    metadata: Labels,
}

/// A plan to be executed: either the plan itself or the run that made it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecuteRequest {
    /// The session.
    session_id: String,
    /// The plan.
    #[serde(default)]
    plan: Option<Plan>,
    /// A finished run of the same session whose plan is executed.
    #[serde(default)]
    plan_id: Option<String>,
    /// The tools that the plan may use; all when absent.
    #[serde(default)]
    tools_allowed: Option<Vec<String>>,
    /// The most that the run may cost, in US dollars; counted in millionths.
    #[serde(default)]
    #[schema(minimum = 0)]
    max_cost_usd: Option<f64>,
    /// Seconds until the run ends as timed out; the installation's default when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    timeout_s: Option<u64>,
    /// What happens when the session has a live run.
    #[serde(default)]
    on_conflict: Conflict,
    /// The client's own labels: at most 16, names of at most 64 and values of at most 256 characters.
    #[serde(default)]
    metadata: Labels,
}

/// Where the plan of a run comes from.
#[derive(Debug)]
pub(super) enum PlanSource {
    /// The planner.
    Planner,
    /// The request.
    Given(CheckedPlan),
    /// The run with this id, as the request wrote it.
    Run(String),
}

/// A checked request to start a run.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) kind: RunKind,
    /// As the request wrote it: what cannot be an id is answered like an unknown one.
    pub(super) session: String,
    pub(super) goal: Option<String>,
    pub(super) context: Option<Value>,
    pub(super) plan: PlanSource,
    pub(super) tools_allowed: Option<Vec<String>>,
    pub(super) model: Option<String>,
    pub(super) max_steps: u32,
    pub(super) max_cost_micro_usd: Option<u64>,
    pub(super) timeout_s: u64,
    pub(super) on_conflict: OnConflict,
    pub(super) metadata: Labels,
}

impl Submission {
    pub(super) fn plan(request: PlanRequest, settings: &Settings) -> Result<Self, ApiError> {
        goal(&request.goal)?;
        validate::text("/model", request.model.as_deref(), MAX_MODEL)?;
        validate::tools(request.tools_allowed.as_deref())?;
        validate::labels(&request.metadata)?;
        Ok(Self {
            kind: RunKind::Plan,
            session: request.session_id,
            goal: Some(request.goal),
            context: request.context,
            plan: PlanSource::Planner,
            tools_allowed: request.tools_allowed,
            model: request.model,
            max_steps: max_steps(request.max_steps, settings)?,
            max_cost_micro_usd: validate::micro_usd("/max_cost_usd", request.max_cost_usd)?,
            timeout_s: timeout(request.timeout_s, settings)?,
            on_conflict: request.on_conflict.into(),
            metadata: request.metadata,
        })
    }

    pub(super) fn run(request: RunRequest, settings: &Settings) -> Result<Self, ApiError> {
        let kind = match request.mode {
            Mode::PlanExecute => RunKind::PlanExecute,
            Mode::Agent => RunKind::Agent,
        };
        let plan = PlanRequest {
            session_id: request.session_id,
            goal: request.goal,
            context: request.context,
            tools_allowed: request.tools_allowed,
            model: request.model,
            max_steps: request.max_steps,
            max_cost_usd: request.max_cost_usd,
            timeout_s: request.timeout_s,
            on_conflict: request.on_conflict,
            metadata: request.metadata,
        };
        Ok(Self {
            kind,
            ..Self::plan(plan, settings)?
        })
    }

    pub(super) fn execute(request: ExecuteRequest, settings: &Settings) -> Result<Self, ApiError> {
        validate::tools(request.tools_allowed.as_deref())?;
        validate::labels(&request.metadata)?;
        let tools = request.tools_allowed.as_deref();
        let plan = match (request.plan, request.plan_id) {
            (Some(plan), None) => PlanSource::Given(check_plan(&plan, tools, settings)?),
            (None, Some(run)) => PlanSource::Run(run),
            (None, None) => return Err(ApiError::field("/plan", "plan or plan_id is required")),
            (Some(_), Some(_)) => {
                return Err(ApiError::field("/plan_id", "not together with plan"));
            }
        };
        Ok(Self {
            kind: RunKind::Execute,
            session: request.session_id,
            goal: None,
            context: None,
            plan,
            tools_allowed: request.tools_allowed,
            model: None,
            max_steps: max_steps(None, settings)?,
            max_cost_micro_usd: validate::micro_usd("/max_cost_usd", request.max_cost_usd)?,
            timeout_s: timeout(request.timeout_s, settings)?,
            on_conflict: request.on_conflict.into(),
            metadata: request.metadata,
        })
    }
}

fn goal(goal: &str) -> Result<(), ApiError> {
    validate::bytes("/goal", goal, MAX_GOAL_BYTES)
}

fn max_steps(asked: Option<u32>, settings: &Settings) -> Result<u32, ApiError> {
    let most = u32::try_from(settings.max_steps).unwrap_or(u32::MAX);
    validate::range("/max_steps", asked.unwrap_or(most), 1, most)
}

fn timeout(asked: Option<u64>, settings: &Settings) -> Result<u64, ApiError> {
    let most = settings.max_run_timeout_s;
    validate::range(
        "/timeout_s",
        asked.unwrap_or(settings.run_timeout_s),
        1,
        most,
    )
}

/// Checks a plan that comes from a client.
pub(super) fn check_plan(
    plan: &Plan,
    allowed: Option<&[String]>,
    settings: &Settings,
) -> Result<CheckedPlan, ApiError> {
    let limits = PlanLimits {
        max_steps: settings.max_steps,
        max_plan_depth: settings.max_plan_depth,
        max_args_bytes: settings.max_args_bytes.0,
        allow_answer: false,
    };
    let rules = ToolRules {
        allowed,
        known: &|name| catalogue::find(name).is_some(),
        validate: &|name, args| catalogue::validate_args(name, args),
    };
    plan::check(plan, &limits, &rules).map_err(|problems| invalid_plan(&problems))
}

fn invalid_plan(problems: &[PlanProblem]) -> ApiError {
    let detail = problems
        .first()
        .map_or_else(String::new, ToString::to_string);
    let field = problems.first().map_or("", |problem| &problem.path);
    ApiError::new(ErrorCode::InvalidPlan)
        .detail(format!("/plan{detail}"))
        .details(serde_json::json!({
            "field": format!("/plan{field}"),
            "problems": problems,
        }))
}
