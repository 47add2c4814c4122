//! Going on after a run that did not succeed: what became of its unsure steps is said, and a new run takes
//! over what was finished.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use super::body::{JsonBody, OptionalBody};
use super::caller::Caller;
use super::once::{Begun, Once};
use super::params::{Params, PathId};
use super::problem::internal;
use super::request_headers::Submitting;
use super::run_body::RunBody;
use super::state::ApiState;
use super::submit::{Submitted, start};
use super::{audit, sessions, validate};
use crate::error::{ApiError, ErrorCode};
use crate::governance::{self, Permission};
use crate::ids::RunId;
use crate::messages::{CommandKind, OnConflict, ResolvedStep, RunKind, RunSpec};
use crate::privacy::Sealed;
use crate::runs::{
    Gate, RESOLVED_FAILED, Resolve, Resolved, RunStatus, RunView, StepEntry, StepStatus,
};
use crate::runtime::clock;

/// What a retry changes.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryRequest {
    /// Seconds until the new run ends as timed out; as many as the old one had when absent.
    #[serde(default)]
    #[schema(minimum = 1)]
    timeout_s: Option<u64>,
    /// The most that the new run may cost, in US dollars; as much as the old one when absent.
    #[serde(default)]
    #[schema(minimum = 0)]
    max_cost_usd: Option<f64>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Resolution {
    /// Its effect happened: a retry does not repeat it.
    Succeeded,
    /// Its effect did not happen: a retry makes it.
    Failed,
}

/// What became of a step whose outcome is unknown.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ResolveRequest {
    /// Whether its effect happened.
    outcome: Resolution,
    /// What it gave, for the steps that build on it; with `succeeded` only. Any JSON.
    #[serde(default)]
    output: Option<Value>,
}

/// A step that was resolved.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ResolvedBody {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// The step.
    step_id: String,
    /// `succeeded` or `failed`.
    status: &'static str,
}

/// Retry a run that did not succeed: a new run takes over its plan and its finished steps.
#[utoipa::path(post, path = "/v1/runs/{run_id}/retry", tag = "runs",
    params(("run_id" = String, Path, description = "The run that did not succeed."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat starts nothing twice."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N ≤ 60 seconds for the result.")),
    request_body(content = Option<RetryRequest>, description = "May be left out."),
    responses((status = 200, description = "The new run has ended within the time of `Prefer: wait`.", body = RunBody),
        (status = 202, description = "The new run was accepted.", body = Submitted,
            headers(("Location" = String, description = "The new run."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn retry(
    State(state): State<ApiState>,
    caller: Caller,
    how: Submitting,
    id: PathId<RunId>,
    _: Params,
    OptionalBody(body): OptionalBody<RetryRequest>,
) -> Result<Response, ApiError> {
    let request = body.value;
    if let Some(seconds) = request.timeout_s {
        let most = state.settings().max_run_timeout_s;
        validate::range("/timeout_s", seconds, 1, most)?;
    }
    let max_cost = validate::micro_usd("/max_cost_usd", request.max_cost_usd)?;
    state.require_kafka()?;
    let (source, view) = read(&state, &caller, id).await?;
    let spec = view
        .spec()
        .ok_or_else(|| ApiError::new(ErrorCode::Internal))?;
    // An erased session has no data key any more, and neither has what its runs did.
    sessions::data_key(&state, &caller, Permission::Runs, &spec.session_id).await?;
    if let Err(error) = retryable(&view) {
        return Err(caller.counted(&state, Permission::Runs, error).await);
    }
    // The route's template is the same for every run.
    let named = json!({ "run": source, "request": request });
    let fingerprint = governance::fingerprint(&named, &caller.scope.facts().query);
    let (mut spec, plan) = again(&caller, &view, spec);
    if let Some(seconds) = request.timeout_s {
        spec.deadline_ms = spec.created_ms.saturating_add(seconds.saturating_mul(1000));
    }
    spec.max_cost_micro_usd = max_cost.or(spec.max_cost_micro_usd);
    // Tools that the key does not allow any more are refused when they would be called.
    let plan = (plan.as_ref(), Vec::new());
    start(&state, &caller, &how, &spec, plan, &fingerprint).await
}

/// Say what became of a step whose outcome is unknown.
#[utoipa::path(post, path = "/v1/runs/{run_id}/steps/{step_id}/resolve", tag = "runs",
    params(("run_id" = String, Path, description = "The run."),
        ("step_id" = String, Path, description = "The step."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat is answered as the first was.")),
    request_body = ResolveRequest,
    responses((status = 200, description = "It is in the run's journal; a retry builds on it.", body = ResolvedBody)))]
pub(super) async fn resolve(
    State(state): State<ApiState>,
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    _: Params,
    once: Once,
    body: JsonBody<ResolveRequest>,
) -> Result<Response, ApiError> {
    if body.value.outcome == Resolution::Failed && body.value.output.is_some() {
        return Err(ApiError::field("/output", "only with succeeded"));
    }
    state.require_kafka()?;
    let Ok(Path(path)) = path else {
        return Err(caller.not_found(&state, Permission::Runs).await);
    };
    if !once.is_named() {
        // The gate is in the script that resolves.
        let gate = caller.gate(&state, Permission::Runs);
        return settle(&state, &caller, gate, path, body.value).await;
    }
    let begun = once.begin(
        &state,
        &caller,
        Permission::Runs,
        Some(&body),
        String::new(),
    );
    match begun.await? {
        Begun::Replay(response) => Ok(response),
        Begun::Turn(turn) => {
            let look = caller.look(&state, Permission::Runs);
            let outcome = settle(&state, &caller, look, path, body.value).await;
            turn.end(&state, &caller, outcome).await
        }
    }
}

async fn settle(
    state: &ApiState,
    caller: &Caller,
    gate: Gate,
    (run, step): (String, String),
    ResolveRequest { outcome, output }: ResolveRequest,
) -> Result<Response, ApiError> {
    let (run, view) = read(state, caller, PathId(run.parse().ok())).await?;
    let was = view.fields.text(&format!("s:{step}"));
    let entry = was.and_then(|text| serde_json::from_str::<StepEntry>(text).ok());
    let (Some(was), Some(mut entry)) = (was, entry) else {
        return Err(caller.not_found(state, Permission::Runs).await);
    };
    if entry.status != StepStatus::OutcomeUnknown {
        let error = ApiError::new(ErrorCode::OutcomeKnown);
        return Err(caller.counted(state, Permission::Runs, error).await);
    }
    let spec = view
        .spec()
        .ok_or_else(|| ApiError::new(ErrorCode::Internal))?;
    let key = sessions::data_key(state, caller, Permission::Runs, &spec.session_id).await?;
    let status = match outcome {
        Resolution::Succeeded => {
            let output = output.unwrap_or(Value::Null).to_string();
            entry.status = StepStatus::Succeeded;
            entry.output = Some(key.seal(output.as_bytes()));
            (entry.code, entry.error) = (None, None);
            "succeeded"
        }
        Resolution::Failed => {
            entry.status = StepStatus::Failed;
            entry.code = Some(RESOLVED_FAILED.to_owned());
            "failed"
        }
    };
    let resolved = ResolvedStep {
        step_id: step.clone(),
        succeeded: outcome == Resolution::Succeeded,
        output: entry
            .output
            .clone()
            .filter(|_| outcome == Resolution::Succeeded),
    };
    let entry = serde_json::to_string(&entry).map_err(|error| internal(&error))?;
    let audit_id = format!("{run}/resolve/{}", Uuid::now_v7().simple());
    let audit = audit::allowed_with(
        state,
        caller,
        &audit_id,
        Some(200),
        Some(&spec.session_id),
        Some(&run),
        Some(resolved),
    )?;
    let resolve = Resolve {
        gate,
        tenant: caller.tenant(),
        run: &run,
        step: &step,
        was,
        entry: &entry,
        audit_id: &audit_id,
        audit: &audit,
    };
    match state.runs().resolve(caller.tenant(), &resolve).await? {
        Resolved::Refused(refusal) => return Err(caller.refused(refusal)),
        Resolved::Done { limits, outbox } => {
            caller.note_limits(limits);
            caller.scope.notes().recorded = true; // in the run's outbox
            if let Err(error) = state.deliver(caller.tenant(), &outbox).await {
                tracing::warn!(%error, "the outbox of a resolved run is left to the sweeper");
            }
        }
    }
    let body = ResolvedBody {
        run_id: run,
        step_id: step,
        status,
    };
    Ok(Json(body).into_response())
}

/// The run as it is; the request is counted when it is acted upon.
async fn read(
    state: &ApiState,
    caller: &Caller,
    id: PathId<RunId>,
) -> Result<(RunId, RunView), ApiError> {
    let Some(run) = id.0 else {
        return Err(caller.not_found(state, Permission::Runs).await);
    };
    caller.scope.notes().run = Some(run.clone());
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().run(caller.tenant(), look, &run).await?;
    match caller.found(read) {
        Ok((view, _)) => Ok((run, view)),
        // A look is not counted; guessing at runs is.
        Err(error) if error.code == ErrorCode::NotFound => {
            Err(caller.not_found(state, Permission::Runs).await)
        }
        Err(error) => Err(error),
    }
}

/// Refuses a run of which a step has an unknown outcome: a new run could repeat its effect. Whether the
/// run ended in a way that is retried is for the script to say.
pub(super) fn retryable(view: &RunView) -> Result<(), ApiError> {
    let unsure = unsure_steps(view);
    if unsure.is_empty() {
        return Ok(());
    }
    let details = json!({ "status": view.fields.status(), "steps": unsure });
    Err(ApiError::new(ErrorCode::NotRetryable).details(details))
}

fn unsure_steps(view: &RunView) -> Vec<String> {
    if view.fields.status() == Some(RunStatus::Succeeded) {
        return Vec::new();
    }
    let steps = view.fields.journal().steps.into_iter();
    let unsure = steps.filter(|(_, entry)| entry.status == StepStatus::OutcomeUnknown);
    unsure.map(|(id, _)| id).collect()
}

/// The specification of a new run of the caller's that goes on after an old one, and the plan that it
/// goes on with.
pub(super) fn again(caller: &Caller, view: &RunView, old: RunSpec) -> (RunSpec, Option<Sealed>) {
    let created_ms = clock::now_ms();
    let lasts_ms = old.deadline_ms.saturating_sub(old.created_ms);
    let plan = view.fields.sealed("plan");
    let plan = plan.filter(|_| match old.kind {
        RunKind::Plan => false,
        // The calls of one turn: they are gone on with when they were under way.
        RunKind::Agent => view.fields.text("stage") == Some(CommandKind::Execute.as_str()),
        RunKind::Execute | RunKind::PlanExecute => true,
    });
    let spec = RunSpec {
        run_id: RunId::generate(),
        key_id: caller.key.key_id.clone(),
        created_ms,
        deadline_ms: created_ms.saturating_add(lasts_ms),
        on_conflict: match old.on_conflict {
            OnConflict::Reject => OnConflict::Enqueue,
            other => other,
        },
        retry_of: Some(view.id.clone()),
        traceparent: Some(caller.scope.facts().trace.to_string()),
        ..old
    };
    (spec, plan)
}
