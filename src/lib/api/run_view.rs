//! Runs as clients see them.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::expose;
use super::state::ApiState;
use super::time::rfc3339;
use crate::ids::TenantId;
use crate::messages::{RunKind, RunSpec};
use crate::plan::{CheckedPlan, Plan};
use crate::privacy::{DataKey, Sealed};
use crate::runs::{Fields, Journal, RunStatus, RunView, StepEntry, StepStatus};

/// Tokens and money.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Tokens that models read.
    input_tokens: u64,
    /// Tokens that models wrote.
    output_tokens: u64,
    /// Millionths of a US dollar.
    cost_micro_usd: u64,
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
    this: String,
    /// Its events.
    stream: String,
    /// Cancels it.
    cancel: String,
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
    code: String,
    /// For people.
    message: Option<String>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum StepState {
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
struct StepBody {
    /// Its name in the plan.
    id: String,
    /// The tool.
    tool: String,
    /// How far it is.
    status: StepState,
    /// Attempts begun.
    attempts: u32,
    /// Its arguments, as the plan has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
    /// Steps that it names as done before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depends_on: Vec<String>,
    /// When its first attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// What it gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<Value>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

/// One call of a model.
#[derive(Debug, Serialize, ToSchema)]
struct ModelCallBody {
    /// From 1.
    number: u32,
    /// The model.
    model: String,
    /// Tokens read; absent when the provider did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<u64>,
    /// Tokens written.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<u64>,
    /// Millionths of a US dollar.
    cost_micro_usd: u64,
    /// Milliseconds that it took.
    duration_ms: u64,
}

/// A run, without what it did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunSummary {
    /// The run.
    pub(super) run_id: String,
    /// Its session.
    session_id: String,
    /// `plan`, `execute` or `plan_execute`.
    #[schema(value_type = String)]
    kind: RunKind,
    /// Where it is in its life.
    pub(super) status: RunStatus,
    /// When it was admitted.
    created_at: String,
    /// When a worker first had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<String>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    /// When it ends as timed out.
    deadline_at: String,
    /// What was to be reached; absent once the session is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal: Option<String>,
    /// What it used so far.
    usage: Usage,
    /// The most that it may cost, in millionths of a US dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_cost_micro_usd: Option<u64>,
    /// The client's own labels.
    metadata: BTreeMap<String, String>,
    /// The run whose finished steps it took over.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    retry_of: Option<crate::ids::RunId>,
    /// Why it did not succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
    /// Where to go on.
    links: Links,
}

/// A run and what it did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunBody {
    #[serde(flatten)]
    pub(super) summary: RunSummary,
    /// Further context for the planner.
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Value>,
    /// The model that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// The tools that its plan may use; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    tools_allowed: Option<Vec<String>>,
    /// Its plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Plan>)]
    plan: Option<Value>,
    /// Its steps, in the order of the plan.
    steps: Vec<StepBody>,
    /// Its model calls.
    model_calls: Vec<ModelCallBody>,
    /// What a finished execution gave: `{answer, outputs}`, the outputs of the steps that no other
    /// step builds on.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
}

/// A run for a list.
pub(super) fn summary(state: &ApiState, tenant: &TenantId, view: &RunView) -> Option<RunSummary> {
    let spec = view.spec()?;
    let key = data_key(state, tenant, view, &spec);
    summarise(view, &spec, key.as_ref())
}

/// A whole run; `None` when what is stored is not a run.
pub(super) fn body(state: &ApiState, tenant: &TenantId, view: &RunView) -> Option<RunBody> {
    let spec = view.spec()?;
    let key = data_key(state, tenant, view, &spec);
    build(view, spec, key.as_ref())
}

fn data_key(
    state: &ApiState,
    tenant: &TenantId,
    view: &RunView,
    spec: &RunSpec,
) -> Option<DataKey> {
    let wrapped = view.session_key.as_ref()?;
    let keys = &state.parts.data_keys;
    match keys.unwrap(wrapped, tenant, &spec.session_id) {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::error!(%error, session_id = %spec.session_id, "a data key does not unwrap");
            None
        }
    }
}

fn summarise(view: &RunView, spec: &RunSpec, key: Option<&DataKey>) -> Option<RunSummary> {
    let fields = &view.fields;
    let at = |name| fields.text(name)?.parse().ok().map(rfc3339);
    let status = fields.status()?;
    Some(RunSummary {
        run_id: view.id.to_string(),
        session_id: spec.session_id.to_string(),
        kind: spec.kind,
        status,
        created_at: rfc3339(spec.created_ms),
        started_at: at("started"),
        ended_at: at("ended"),
        deadline_at: rfc3339(spec.deadline_ms),
        goal: key.and_then(|key| expose::open_text(key, spec.goal.as_ref()?)),
        usage: Usage::of(fields),
        max_cost_micro_usd: spec.max_cost_micro_usd,
        metadata: exposed_labels(&spec.metadata),
        retry_of: spec.retry_of.clone(),
        error: failure(fields, status),
        links: Links::of(view.id.as_str()),
    })
}

fn exposed_labels(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let exposed = |(name, value): (&String, &String)| {
        let name = expose::expose_text(name.clone());
        (name, expose::expose_text(value.clone()))
    };
    labels.iter().map(exposed).collect()
}

/// What the worker recorded, else what the terminal event told, else the status itself.
fn failure(fields: &Fields, status: RunStatus) -> Option<Failure> {
    if !status.is_terminal() || status == RunStatus::Succeeded {
        return None;
    }
    let told: Value = fields
        .text("end")
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let either = |name, alias: &str| {
        let told = || told.get(alias).and_then(Value::as_str);
        fields.text(name).or_else(told).map(str::to_owned)
    };
    Some(Failure {
        code: either("code", "code").unwrap_or_else(|| status.as_str().to_owned()),
        message: either("error", "message").map(expose::expose_text),
    })
}

fn build(view: &RunView, spec: RunSpec, key: Option<&DataKey>) -> Option<RunBody> {
    let summary = summarise(view, &spec, key)?;
    let open = |sealed: &Sealed| expose::open(key?, sealed);
    let plan = view.fields.sealed("plan");
    let plan = plan.as_ref().and_then(open);
    let typed = plan
        .as_ref()
        .and_then(|plan| serde_json::from_value::<CheckedPlan>(plan.clone()).ok());
    let journal = view.fields.journal();
    let steps = steps(typed.as_ref(), &journal, summary.status, &open);
    let executed = spec.kind != RunKind::Plan && summary.status == RunStatus::Succeeded;
    let result = typed.filter(|_| executed).map(|plan| result(&plan, &steps));
    Some(RunBody {
        context: spec.context.as_ref().and_then(open),
        model: spec.model,
        tools_allowed: spec.tools_allowed,
        plan,
        steps,
        model_calls: model_calls(&journal),
        result,
        summary,
    })
}

/// The steps of the plan, each with what the journal has of it. Without a plan that can be read, what
/// the journal has.
fn steps(
    plan: Option<&CheckedPlan>,
    journal: &Journal,
    status: RunStatus,
    open: &dyn Fn(&Sealed) -> Option<Value>,
) -> Vec<StepBody> {
    let Some(plan) = plan else {
        let entries = journal.steps.iter();
        return entries
            .map(|(id, entry)| with_entry(StepBody::new(id, &entry.tool), entry, open))
            .collect();
    };
    let step = |step: &crate::plan::Step| {
        let mut body = StepBody::new(&step.id, &step.tool);
        body.args = Some(step.args.clone());
        body.depends_on.clone_from(&step.depends_on);
        match journal.steps.get(&step.id) {
            Some(entry) => with_entry(body, entry, open),
            None if status.is_terminal() => StepBody {
                status: StepState::Skipped,
                ..body
            },
            None => body,
        }
    };
    plan.steps().iter().map(step).collect()
}

impl StepBody {
    fn new(id: &str, tool: &str) -> Self {
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

fn with_entry(
    body: StepBody,
    entry: &StepEntry,
    open: &dyn Fn(&Sealed) -> Option<Value>,
) -> StepBody {
    let error = entry.code.clone().map(|code| Failure {
        code,
        message: entry.error.clone().map(expose::expose_text),
    });
    StepBody {
        status: match entry.status {
            StepStatus::Running => StepState::Running,
            StepStatus::Retrying => StepState::Retrying,
            StepStatus::Succeeded => StepState::Succeeded,
            StepStatus::Failed => StepState::Failed,
            StepStatus::OutcomeUnknown => StepState::OutcomeUnknown,
        },
        attempts: entry.attempts,
        started_at: Some(rfc3339(entry.started_ms)),
        ended_at: entry.ended_ms.map(rfc3339),
        output: entry.output.as_ref().and_then(open),
        error,
        ..body
    }
}

/// The outputs of the steps that no other step builds on, and the model's answer.
fn result(plan: &CheckedPlan, steps: &[StepBody]) -> Value {
    let built_on: Vec<usize> = (0..plan.steps().len())
        .flat_map(|index| plan.dependencies(index).iter().copied())
        .collect();
    let last = steps
        .iter()
        .enumerate()
        .filter(|(index, _)| !built_on.contains(index));
    let outputs: Map<String, Value> = last
        .filter_map(|(_, step)| Some((step.id.clone(), step.output.clone()?)))
        .collect();
    serde_json::json!({ "answer": plan.plan().answer, "outputs": outputs })
}

fn model_calls(journal: &Journal) -> Vec<ModelCallBody> {
    let body = |(number, call): (&u32, &crate::runs::ModelCall)| ModelCallBody {
        number: *number,
        model: call.model.clone(),
        input_tokens: call.usage.map(|usage| usage.input_tokens),
        output_tokens: call.usage.map(|usage| usage.output_tokens),
        cost_micro_usd: call.cost_micro_usd,
        duration_ms: call.duration_ms,
    };
    journal.model_calls.iter().map(body).collect()
}
