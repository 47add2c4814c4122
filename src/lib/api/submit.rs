//! Starting runs: governed and put into the ledger by one script, then produced.

use axum::extract::State;
use axum::http::header::{LOCATION, VARY};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::body::JsonBody;
use super::caller::Caller;
use super::request_headers::Submitting;
use super::run_body::{Links, RunBody};
use super::state::ApiState;
use super::submission::{
    ExecuteRequest, PlanRequest, PlanSource, RunRequest, Submission, check_plan,
};
use super::{audit, problem::internal, sessions, wait};
use crate::error::{ApiError, ErrorCode};
use crate::governance::{IdempotencyKey, Permission};
use crate::ids::{RunId, SessionId};
use crate::messages::{CommandKind, OnConflict, QueuedState, RunKind, RunSpec, Told};
use crate::plan::Plan;
use crate::privacy::{DataKey, Sealed};
use crate::runs::{Admission, Admit, Claim, Gate, Redrive, RunStatus};
use crate::runtime::clock;

/// A run that was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Submitted {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// Its session.
    #[schema(value_type = String)]
    session_id: SessionId,
    /// `queued`.
    status: RunStatus,
    /// Where to go on.
    links: Links,
}

/// Plan a goal.
#[utoipa::path(post, path = "/v1/plan", tag = "runs", request_body = PlanRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat starts nothing twice."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N ≤ 60 seconds for the plan.")),
    responses((status = 200, description = "The run has ended within the time of `Prefer: wait`; it holds the plan.", body = RunBody),
        (status = 202, description = "The run was accepted.", body = Submitted,
            headers(("Location" = String, description = "The run."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn plan(
    State(state): State<ApiState>,
    caller: Caller,
    how: Submitting,
    body: JsonBody<PlanRequest>,
) -> Result<Response, ApiError> {
    let fingerprint = body.fingerprint(&caller.scope.facts().query, how.idempotency.is_some());
    let submission = Submission::plan(body.value, state.settings())?;
    submit(&state, &caller, &how, submission, &fingerprint).await
}

/// Plan a goal and execute the plan.
#[utoipa::path(post, path = "/v1/runs", tag = "runs", request_body = RunRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat starts nothing twice."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N ≤ 60 seconds for the result.")),
    responses((status = 200, description = "The run has ended within the time of `Prefer: wait`.", body = RunBody),
        (status = 202, description = "The run was accepted.", body = Submitted,
            headers(("Location" = String, description = "The run."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn run(
    State(state): State<ApiState>,
    caller: Caller,
    how: Submitting,
    body: JsonBody<RunRequest>,
) -> Result<Response, ApiError> {
    let fingerprint = body.fingerprint(&caller.scope.facts().query, how.idempotency.is_some());
    let submission = Submission::run(body.value, state.settings())?;
    submit(&state, &caller, &how, submission, &fingerprint).await
}

/// Execute a plan.
#[utoipa::path(post, path = "/v1/execute", tag = "runs", request_body = ExecuteRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat starts nothing twice."),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N ≤ 60 seconds for the result.")),
    responses((status = 200, description = "The run has ended within the time of `Prefer: wait`.", body = RunBody),
        (status = 202, description = "The run was accepted.", body = Submitted,
            headers(("Location" = String, description = "The run."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn execute(
    State(state): State<ApiState>,
    caller: Caller,
    how: Submitting,
    body: JsonBody<ExecuteRequest>,
) -> Result<Response, ApiError> {
    let fingerprint = body.fingerprint(&caller.scope.facts().query, how.idempotency.is_some());
    let submission = Submission::execute(body.value, state.settings())?;
    submit(&state, &caller, &how, submission, &fingerprint).await
}

async fn submit(
    state: &ApiState,
    caller: &Caller,
    how: &Submitting,
    submission: Submission,
    fingerprint: &str,
) -> Result<Response, ApiError> {
    priced(state, &submission)?;
    state.require_kafka()?;
    let Ok(session) = submission.session.parse::<SessionId>() else {
        return Err(caller.not_found(state, Permission::Runs).await);
    };
    caller.scope.notes().session = Some(session.clone());
    let key = sessions::data_key(state, caller, Permission::Runs, &session).await?;
    let plan = sealed_plan(state, caller, &submission, &session, &key).await?;
    let tools = plan.iter().flat_map(|(_, plan)| &plan.steps);
    let tools = tools.map(|step| step.tool.clone()).collect();
    let plan = plan.map(|(sealed, _)| sealed);
    let spec = specify(caller, submission, session, &key);
    start(
        state,
        caller,
        how,
        &spec,
        (plan.as_ref(), tools),
        fingerprint,
    )
    .await
}

/// Starts the run, and waits for its end as far as the client wants to. A plan that is given comes with
/// the tools that its key must allow.
pub(super) async fn start(
    state: &ApiState,
    caller: &Caller,
    how: &Submitting,
    spec: &RunSpec,
    (plan, tools): (Option<&Sealed>, Vec<String>),
    fingerprint: &str,
) -> Result<Response, ApiError> {
    let asked = Asked {
        claim: how.idempotency.as_ref(),
        fingerprint,
        redrive: None,
    };
    let (run, replayed) = admit(state, caller, &asked, spec, (plan, tools)).await?;
    caller.scope.notes().run = Some(run.clone());

    let ended = match how.wait {
        Some(time) => wait::for_end(state, caller, &spec.session_id, &run, time).await,
        None => None,
    };
    let mut response = match ended {
        Some(ended) => Json(ended).into_response(),
        None => accepted(spec.session_id.clone(), run),
    };
    let headers = response.headers_mut();
    if replayed {
        let name = HeaderName::from_static("idempotency-replayed");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    if let Some(time) = how.wait {
        let name = HeaderName::from_static("preference-applied");
        if let Ok(value) = HeaderValue::try_from(format!("wait={}", time.as_secs())) {
            headers.insert(name, value);
        }
    }
    headers.insert(VARY, HeaderValue::from_static("Prefer"));
    Ok(response)
}

/// Refuses a model whose calls cannot be paid for: without a price there is no bound to reserve.
fn priced(state: &ApiState, submission: &Submission) -> Result<(), ApiError> {
    if submission.kind == RunKind::Execute {
        return Ok(());
    }
    let model = submission.model.as_ref().unwrap_or(&state.settings().model);
    match state.parts.prices.price(model, Timestamp::now()) {
        Some(_) => Ok(()),
        None => Err(ApiError::field(
            "/model",
            "the model has no price, so its calls cannot be budgeted",
        )),
    }
}

fn accepted(session_id: SessionId, run_id: RunId) -> Response {
    let links = Links::of(run_id.as_str());
    let location = format!("/v1/runs/{run_id}");
    let body = Submitted {
        run_id,
        session_id,
        status: RunStatus::Queued,
        links,
    };
    (StatusCode::ACCEPTED, [(LOCATION, location)], Json(body)).into_response()
}

/// The plan of an `execute` run, sealed and open.
async fn sealed_plan(
    state: &ApiState,
    caller: &Caller,
    submission: &Submission,
    session: &SessionId,
    key: &DataKey,
) -> Result<Option<(Sealed, Plan)>, ApiError> {
    let id = match &submission.plan {
        PlanSource::Planner => return Ok(None),
        PlanSource::Given(plan) => {
            let json = serde_json::to_vec(plan).map_err(|error| internal(&error))?;
            return Ok(Some((key.seal(&json), plan.plan().clone())));
        }
        PlanSource::Run(id) => id,
    };
    let Ok(id) = id.parse::<RunId>() else {
        return Err(caller.not_found(state, Permission::Runs).await);
    };
    let look = caller.look(state, Permission::Runs);
    let read = state.runs().run(caller.tenant(), look, &id).await?;
    let view = match caller.found(read) {
        Ok((view, _)) if view.fields.text("session") == Some(session.as_str()) => view,
        Err(error) if error.code != ErrorCode::NotFound => return Err(error),
        // A look is not counted; guessing at runs is.
        _ => return Err(caller.not_found(state, Permission::Runs).await),
    };
    let ended = view.fields.status().is_some_and(RunStatus::is_terminal);
    let sealed = view.fields.sealed("plan").filter(|_| ended);
    let Some(sealed) = sealed else {
        return Err(ApiError::new(ErrorCode::PlanNotReady).details(json!({ "field": "/plan_id" })));
    };
    let json = key.open(&sealed)?;
    let plan: Plan = serde_json::from_slice(&json).map_err(|error| internal(&error))?;
    check_plan(&plan, submission.tools_allowed.as_deref(), state.settings())?;
    Ok(Some((sealed, plan)))
}

fn specify(caller: &Caller, submission: Submission, session: SessionId, key: &DataKey) -> RunSpec {
    let created_ms = clock::now_ms();
    let lasts_ms = submission.timeout_s.saturating_mul(1000);
    RunSpec {
        tenant: caller.tenant().clone(),
        run_id: RunId::generate(),
        session_id: session,
        key_id: caller.key.key_id.clone(),
        kind: submission.kind,
        created_ms,
        deadline_ms: created_ms.saturating_add(lasts_ms),
        goal: submission.goal.map(|goal| key.seal(goal.as_bytes())),
        context: submission
            .context
            .map(|context| key.seal(context.to_string().as_bytes())),
        plan: None, // it travels beside the specification, as a plan that was made does
        tools_allowed: submission.tools_allowed,
        models_allowed: None,
        model: submission.model,
        max_steps: submission.max_steps,
        max_cost_micro_usd: submission.max_cost_micro_usd,
        on_conflict: submission.on_conflict,
        metadata: submission.metadata,
        retry_of: None,
        traceparent: Some(caller.scope.facts().trace.to_string()),
    }
}

/// How a run is asked for.
pub(super) struct Asked<'a> {
    /// The client's name for the request.
    pub(super) claim: Option<&'a IdempotencyKey>,
    /// A hash of what is asked for.
    pub(super) fingerprint: &'a str,
    /// The dead letter that is redriven; the request passed the gate already.
    pub(super) redrive: Option<Redrive<'a>>,
}

impl Asked<'_> {
    fn gate(&self, state: &ApiState, caller: &Caller, spec: &RunSpec) -> Gate {
        match &self.redrive {
            None => caller.gate(state, Permission::Runs),
            Some(_) => Gate {
                key_id: spec.key_id.clone(),
                ..caller.look(state, Permission::DeadLetters)
            },
        }
    }
}

/// What a rebuild needs of a claim: its name and what it is bound to, sealed.
async fn queued_state(
    state: &ApiState,
    caller: &Caller,
    asked: &Asked<'_>,
    spec: &RunSpec,
    claim: &str,
) -> Result<Sealed, ApiError> {
    let state_of = QueuedState {
        claim: claim.to_owned(),
        fingerprint: asked.fingerprint.to_owned(),
    };
    let json = serde_json::to_vec(&state_of).map_err(|error| internal(&error))?;
    let session = &spec.session_id;
    let key = match &asked.redrive {
        Some(redrive) if redrive.operator => passed_key(state, spec).await?,
        _ => sessions::data_key(state, caller, Permission::Runs, session).await?,
    };
    Ok(key.seal(&json))
}

/// The data key of a run's session, for a request that passed the gate of the operator's tenant.
async fn passed_key(state: &ApiState, spec: &RunSpec) -> Result<DataKey, ApiError> {
    let (tenant, session) = (&spec.tenant, &spec.session_id);
    let keys = &state.parts.data_keys;
    if let Some(key) = keys.get(tenant, session) {
        return Ok(key);
    }
    let wrapped = state.runs().wrapped_key(tenant, session).await?;
    let wrapped = wrapped.ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    Ok(keys.unwrap(&wrapped, tenant, session)?)
}

/// Puts the run into the ledger and its command onto the topic; the run, and whether an earlier
/// request with the same key, or about the same letter, had done so.
pub(super) async fn admit(
    state: &ApiState,
    caller: &Caller,
    asked: &Asked<'_>,
    spec: &RunSpec,
    (plan, tools): (Option<&Sealed>, Vec<String>),
) -> Result<(RunId, bool), ApiError> {
    let run = &spec.run_id;
    let facts = caller.scope.facts();
    let claim = asked.claim;
    let claim = claim.map(|key| key.claim(facts.method, &facts.route));
    let queued_state = match &claim {
        Some(claim) => Some(queued_state(state, caller, asked, spec, claim).await?),
        None => None,
    };
    // What the key allows too is known to the script, which writes it into the specification.
    let tools_allowed = spec.tools_allowed.clone();
    // An operator's redrive has no key of this tenant: it keeps to what the run before was held to.
    let operator = asked.redrive.as_ref().is_some_and(|r| r.operator);
    let untold = RunSpec {
        tools_allowed: None,
        models_allowed: spec.models_allowed.clone().filter(|_| operator),
        ..spec.clone()
    };
    let text = serde_json::to_string(&untold).map_err(|error| internal(&error))?;
    let model = spec.model.as_ref().unwrap_or(&state.settings().model);
    let mut queued = json!({ "kind": spec.kind, "deadline_ms": spec.deadline_ms });
    if let Some(source) = &spec.retry_of {
        queued["retry_of"] = json!(source);
    }
    let queued = Told::plain(&queued);
    let id = format!("{run}/audit");
    let audit = audit::allowed(
        state,
        caller,
        &id,
        Some(202),
        Some(&spec.session_id),
        Some(run),
    )?;
    let admit = Admit {
        gate: Gate {
            model: (plan.is_none() || spec.kind == RunKind::Agent).then(|| model.clone()),
            tools,
            tools_allowed,
            ..asked.gate(state, caller, spec)
        },
        idempotency: claim.as_deref().map(|key| Claim {
            key,
            fingerprint: asked.fingerprint,
            ttl_ms: state.settings().idempotency_ttl_s.saturating_mul(1000),
        }),
        tenant: &spec.tenant,
        run,
        session: &spec.session_id,
        kind: spec.kind,
        // A retry goes on with the plan of the run before it.
        stage: match plan {
            Some(_) => CommandKind::Execute,
            None => spec.kind.first_command(),
        },
        spec: &text,
        deadline: spec.deadline_ms,
        parallel: spec.on_conflict == OnConflict::Parallel,
        reject: spec.on_conflict == OnConflict::Reject,
        budget: spec.max_cost_micro_usd,
        retry_of: spec.retry_of.as_ref(),
        traceparent: spec.traceparent.as_deref(),
        plan,
        queued,
        queued_state,
        audit: &audit,
    };
    let admission = match &asked.redrive {
        None => state.runs().admit(&admit).await?,
        Some(redrive) => state.runs().admit_redrive(&admit, redrive).await?,
    };
    match admission {
        Admission::Refused(refusal) => {
            let error = caller.refused(refusal);
            if error.code == ErrorCode::NotFound {
                state.parts.data_keys.forget(&spec.session_id);
            }
            Err(error)
        }
        Admission::Replayed { limits, run } => {
            caller.note_limits(limits);
            Ok((run, true))
        }
        Admission::Admitted(admitted) => {
            caller.note_limits(admitted.limits);
            caller.note_role(admitted.role);
            caller.scope.notes().recorded = true; // in the run's outbox
            if let Err(error) = state.deliver(&spec.tenant, &admitted.outbox).await {
                let named = asked.claim.is_some() || asked.redrive.is_some();
                not_produced(state, spec, named, error.into()).await?;
            }
            Ok((run.clone(), false))
        }
    }
}

/// What becomes of a run whose command Kafka did not acknowledge. One that the client can ask for again
/// by its key is left to the sweeper; another one ends here, unless a worker has it already.
async fn not_produced(
    state: &ApiState,
    spec: &RunSpec,
    named: bool,
    error: ApiError,
) -> Result<(), ApiError> {
    let RunSpec { tenant, run_id, .. } = spec;
    if named {
        let details = json!({ "dependency": "kafka", "run_id": run_id });
        return Err(error.details(details));
    }
    let data = json!({
        "code": "enqueue_failed",
        "message": "the run's command could not be put onto its topic",
    });
    match state
        .runs()
        .abandon(tenant, run_id, &Told::plain(&data))
        .await?
    {
        Some(_) => Err(error), // the sweeper produces its end
        None => Ok(()),
    }
}
