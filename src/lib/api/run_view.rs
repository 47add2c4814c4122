//! Runs as clients see them: how the bodies are made of what is stored.

use serde_json::{Map, Value, json};

use super::agent_view as agent;
use super::exit::{self, Exit};
use super::run_body::{
    Failure, Links, ModelCallBody, RunBody, RunSummary, StepBody, StepState, Usage,
};
use super::state::ApiState;
use super::time::rfc3339;
use crate::ids::TenantId;
use crate::messages::{Data, RunKind, RunSpec};
use crate::plan::{CheckedPlan, Step};
use crate::privacy::{DataKey, Sealed};
use crate::runs::{Fields, Journal, ModelCall, RunStatus, RunView, StepEntry, StepStatus};
use crate::tools::{Effects, catalogue};

/// A run for a list.
pub(super) fn summary(state: &ApiState, tenant: &TenantId, view: &RunView) -> Option<RunSummary> {
    let spec = view.spec()?;
    let key = data_key(state, tenant, view, &spec);
    summarise(&state.exit, view, &spec, key.as_ref())
}

/// A whole run; `None` when what is stored is not a run.
pub(super) fn body(state: &ApiState, tenant: &TenantId, view: &RunView) -> Option<RunBody> {
    let spec = view.spec()?;
    let key = data_key(state, tenant, view, &spec);
    build(&state.exit, view, spec, key.as_ref())
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

fn summarise(
    exit: &Exit,
    view: &RunView,
    spec: &RunSpec,
    key: Option<&DataKey>,
) -> Option<RunSummary> {
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
        goal: key.and_then(|key| exit.open_text(key, spec.goal.as_ref()?)),
        usage: Usage::of(fields),
        max_cost_micro_usd: spec.max_cost_micro_usd,
        metadata: exit.json(&json!(spec.metadata)),
        retry_of: spec.retry_of.clone(),
        error: failure(exit, fields, status, key),
        links: Links::of(view.id.as_str()),
    })
}

/// The code that the worker recorded, else what the terminal event told, else the status itself.
fn failure(
    exit: &Exit,
    fields: &Fields,
    status: RunStatus,
    key: Option<&DataKey>,
) -> Option<Failure> {
    if !status.is_terminal() || status == RunStatus::Succeeded {
        return None;
    }
    let told = fields
        .text("end")
        .map_or(Value::Null, |text| Data::of_text(text).value(key));
    let text = |name: &str| told.get(name).and_then(Value::as_str);
    let code = fields.text("code").or_else(|| text("code"));
    Some(Failure {
        code: code.unwrap_or_else(|| status.as_str()).to_owned(),
        message: text("message").map(|text| exit.text(text)),
    })
}

/// What a run's parts are read with.
pub(super) struct Reader<'a> {
    pub(super) exit: &'a Exit,
    pub(super) key: Option<&'a DataKey>,
    status: RunStatus,
}

fn build(exit: &Exit, view: &RunView, spec: RunSpec, key: Option<&DataKey>) -> Option<RunBody> {
    let summary = summarise(exit, view, &spec, key)?;
    let reader = Reader {
        exit,
        key,
        status: summary.status,
    };
    let plan = view.fields.sealed("plan");
    let plan = plan.and_then(|sealed| exit::open(key?, &sealed));
    let typed: Option<CheckedPlan> = plan
        .as_ref()
        .and_then(|plan| serde_json::from_value(plan.clone()).ok());
    let journal = view.fields.journal();
    let executed = spec.kind != RunKind::Plan && summary.status == RunStatus::Succeeded;
    let (plan, steps, result) = if spec.kind == RunKind::Agent {
        let answers = agent::answers(&reader, &journal);
        let result = agent::result(&reader, &answers).filter(|_| executed);
        (None, agent::steps(&reader, &answers, &journal), result)
    } else {
        let steps = reader.steps(typed.as_ref(), &journal);
        let result = typed
            .filter(|_| executed)
            .map(|plan| reader.result(&plan, &steps));
        (plan, steps, result)
    };
    Some(RunBody {
        context: spec.context.and_then(|sealed| reader.open(&sealed)),
        model: spec.model.map(|model| exit.text(&model)),
        tools_allowed: spec.tools_allowed,
        plan: plan.map(|plan| exit.json(&plan)),
        steps,
        model_calls: model_calls(&journal),
        result,
        summary,
    })
}

impl Reader<'_> {
    fn open(&self, sealed: &Sealed) -> Option<Value> {
        self.exit.open(self.key?, sealed)
    }

    /// Whether the run has ended.
    pub(super) fn ended(&self) -> bool {
        self.status.is_terminal()
    }

    /// The steps of the plan, each with what the journal has of it. Without a plan that can be read,
    /// what the journal has.
    fn steps(&self, plan: Option<&CheckedPlan>, journal: &Journal) -> Vec<StepBody> {
        if let Some(plan) = plan {
            let entry = |step: &Step| journal.steps.get(&step.id);
            let steps = plan.steps().iter();
            return steps.map(|step| self.step(step, entry(step))).collect();
        }
        let begun =
            |(id, entry): (&String, &StepEntry)| self.begun(StepBody::new(id, &entry.tool), entry);
        journal.steps.iter().map(begun).collect()
    }

    fn step(&self, step: &Step, entry: Option<&StepEntry>) -> StepBody {
        let mut body = StepBody::new(&step.id, &step.tool);
        body.args = Some(self.exit.json(&step.args));
        body.depends_on.clone_from(&step.depends_on);
        match entry {
            Some(entry) => self.begun(body, entry),
            None if self.status.is_terminal() => StepBody {
                status: StepState::Skipped,
                ..body
            },
            None => body,
        }
    }

    pub(super) fn begun(&self, body: StepBody, entry: &StepEntry) -> StepBody {
        let (status, code) = match entry.status {
            // The run ended before the step did, and nobody was there to record how that ended.
            StepStatus::Running | StepStatus::Retrying if self.status.is_terminal() => {
                let code = entry.code.clone();
                let code = code.unwrap_or_else(|| self.status.as_str().to_owned());
                (cut_off(entry), Some(code))
            }
            status => (status.into(), entry.code.clone()),
        };
        let error = code.map(|code| Failure {
            code,
            message: entry
                .error
                .as_ref()
                .and_then(|sealed| self.exit.open_text(self.key?, sealed)),
        });
        StepBody {
            status,
            attempts: entry.attempts,
            started_at: Some(rfc3339(entry.started_ms)),
            ended_at: entry.ended_ms.map(rfc3339),
            output: entry.output.as_ref().and_then(|sealed| self.open(sealed)),
            error,
            ..body
        }
    }

    /// The outputs of the steps that no other step builds on, and the model's answer.
    fn result(&self, plan: &CheckedPlan, steps: &[StepBody]) -> Value {
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
        let answer = plan.plan().answer.as_deref();
        let answer = answer.map(|text| self.exit.text(text));
        json!({ "answer": answer, "outputs": outputs })
    }
}

/// How a step stands whose run ended in the middle of it.
fn cut_off(entry: &StepEntry) -> StepState {
    let harmless = catalogue::find(&entry.tool).is_some_and(|tool| tool.effects == Effects::None);
    if harmless || entry.status == StepStatus::Retrying {
        StepState::Failed
    } else {
        StepState::OutcomeUnknown
    }
}

fn model_calls(journal: &Journal) -> Vec<ModelCallBody> {
    let body = |(number, call): (&u32, &ModelCall)| ModelCallBody {
        number: *number,
        model: call.model.clone(),
        input_tokens: call.usage.map(|usage| usage.input_tokens),
        output_tokens: call.usage.map(|usage| usage.output_tokens),
        cost_micro_usd: call.cost_micro_usd,
        duration_ms: call.duration_ms,
    };
    journal.model_calls.iter().map(body).collect()
}
