//! Runs: listed, read, cancelled.

use std::str::FromStr;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

use super::audit;
use super::body::OptionalBody;
use super::caller::Caller;
use super::once::{Begun, Once};
use super::params::{Params, PathId};
use super::run_body::{Links, RunBody, RunSummary};
use super::run_view;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::{RunId, SessionId, TenantId};
use crate::messages::RunKind;
use crate::runs::{Cancel, CancelMode, Gate, Listing, RunStatus, RunView};
use crate::telemetry::labels;

/// Pages of the ledger that one request for a filtered list looks through.
const MAX_PAGES: usize = 10;
const PAGE: u32 = 100;

/// A page of runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunPage {
    /// The newest first.
    data: Vec<RunSummary>,
    /// The `cursor` of the next page; absent on the last. A filtered page may be short, or empty, and
    /// still have a next one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// How a run is to be cancelled.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelRequest {
    /// Whether calls under way may end (`graceful`, the default) or are dropped (`force`).
    #[serde(default)]
    mode: CancelMode,
}

/// A run that is cancelled, or will be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cancelled {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// `cancelled`, or `cancelling` while its worker has yet to hear of it.
    status: RunStatus,
    /// Where to go on.
    links: Links,
}

/// A label of a run: name and value.
struct Label(String, String);

impl FromStr for Label {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (name, value) = text.split_once(':').ok_or(())?;
        Ok(Self(name.to_owned(), value.to_owned()))
    }
}

impl Label {
    fn is_on(&self, view: &RunView) -> bool {
        let spec = view.spec();
        spec.is_some_and(|spec| spec.metadata.get(&self.0) == Some(&self.1))
    }
}

/// List runs, the newest first.
#[utoipa::path(get, path = "/v1/runs", tag = "runs",
    params(("session_id" = Option<String>, Query, description = "Only runs of this session."),
        ("status" = Option<RunStatus>, Query, description = "Only runs in this state."),
        ("metadata" = Option<String>, Query, description = "`<name>:<value>`: only runs that carry this label."),
        ("limit" = Option<u32>, Query, description = "1 to 100; 20 when absent.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses((status = 200, description = "A page of runs.", body = RunPage)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<RunPage>, ApiError> {
    let known = ["session_id", "status", "metadata", "limit", "cursor"];
    let params = Params::read(&uri, &known)?;
    let wanted = params.limit()? as usize;
    let before = params.parsed::<RunId>("cursor", "the next_cursor of a page")?;
    let status = params.parsed::<RunStatus>("status", "the state of a run")?;
    let label = params.parsed::<Label>("metadata", "a label such as team:search")?;
    let session = match params.text("session_id").map(str::parse::<SessionId>) {
        None => None,
        Some(Ok(session)) => Some(session),
        Some(Err(_)) => {
            // No run is of a session that cannot be.
            caller.pass(&state, Permission::Runs).await?;
            return Ok(Json(RunPage {
                data: Vec::new(),
                next_cursor: None,
            }));
        }
    };
    let mut listing = Listing {
        session,
        before: before.map(String::from),
        limit: if status.is_some() || label.is_some() {
            PAGE
        } else {
            params.limit()?
        },
    };
    let mut gate = caller.gate(&state, Permission::Runs);
    let mut data = Vec::new();
    for _ in 0..MAX_PAGES {
        let read = state.runs().runs(caller.tenant(), gate, &listing).await?;
        let (views, _) = caller.found(read)?;
        let full = views.len() == listing.limit as usize;
        for (index, view) in views.iter().enumerate() {
            listing.before = Some(view.id.to_string());
            let matches = (status.is_none() || view.fields.status() == status)
                && label.as_ref().is_none_or(|label| label.is_on(view));
            if matches {
                data.extend(run_view::summary(&state, caller.tenant(), view));
            }
            if data.len() == wanted {
                let more = full || index + 1 < views.len();
                let next_cursor = listing.before.filter(|_| more);
                return Ok(Json(RunPage { data, next_cursor }));
            }
        }
        if !full {
            listing.before = None;
            break;
        }
        gate = caller.look(&state, Permission::Runs);
    }
    Ok(Json(RunPage {
        data,
        next_cursor: listing.before,
    }))
}

/// Read a run: its plan, steps, model calls and result.
#[utoipa::path(get, path = "/v1/runs/{run_id}", tag = "runs",
    params(("run_id" = String, Path, description = "The run.")),
    responses((status = 200, description = "The run.", body = RunBody)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<RunId>,
    _: Params,
) -> Result<Json<RunBody>, ApiError> {
    let run = known(&state, &caller, id).await?;
    let gate = caller.gate(&state, Permission::Runs);
    let read = state.runs().run(caller.tenant(), gate, &run).await?;
    let (view, _) = caller.found(read)?;
    run_view::body(&state, caller.tenant(), &view)
        .map(Json)
        .ok_or_else(|| ApiError::new(ErrorCode::Internal))
}

/// Cancel a run.
#[utoipa::path(post, path = "/v1/runs/{run_id}/cancel", tag = "runs",
    params(("run_id" = String, Path, description = "The run."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat is answered as the first was.")),
    request_body(content = Option<CancelRequest>, description = "May be left out."),
    responses((status = 200, description = "The run is cancelled.", body = Cancelled),
        (status = 202, description = "The run's worker will hear of it, within two seconds as a rule.", body = Cancelled)))]
pub(super) async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<RunId>,
    _: Params,
    once: Once,
    OptionalBody(body): OptionalBody<CancelRequest>,
) -> Result<Response, ApiError> {
    let run = known(&state, &caller, id).await?;
    state.require_kafka()?;
    if !once.is_named() {
        // The gate is in the script that cancels.
        let gate = caller.gate(&state, Permission::Runs);
        return carry_out(&state, &caller, gate, run, body.value.mode).await;
    }
    let begun = once.begin(
        &state,
        &caller,
        Permission::Runs,
        Some(&body),
        run.to_string(),
    );
    match begun.await? {
        Begun::Replay(response) => Ok(response),
        Begun::Turn(turn) => {
            let look = caller.look(&state, Permission::Runs);
            let outcome = carry_out(&state, &caller, look, run, body.value.mode).await;
            turn.end(&state, &caller, outcome).await
        }
    }
}

async fn carry_out(
    state: &ApiState,
    caller: &Caller,
    gate: Gate,
    run: RunId,
    mode: CancelMode,
) -> Result<Response, ApiError> {
    let tenant = caller.tenant();
    let audit_id = format!("{run}/cancel/{}", Uuid::now_v7().simple());
    let audit = audit::allowed(state, caller, &audit_id, None, None, Some(&run))?;
    let outcome = state
        .runs()
        .cancel(tenant, gate, &run, mode, (&audit_id, &audit))
        .await?;
    let status = match outcome {
        Cancel::Refused(refusal) => return Err(caller.refused(refusal)),
        Cancel::Ended { limits, status } => {
            caller.note_limits(limits);
            // A repeated request finds what it asked for.
            if status != Some(RunStatus::Cancelled) {
                return Err(ApiError::new(ErrorCode::RunEnded).details(json!({ "status": status })));
            }
            RunStatus::Cancelled
        }
        Cancel::Accepted {
            limits,
            status,
            outbox,
            ended,
        } => {
            caller.note_limits(limits);
            caller.scope.notes().recorded = true; // in the run's outbox
            if let Some(kind) = ended {
                tell_end(tenant, &run, kind);
            }
            if let Err(error) = state.deliver(tenant, &outbox).await {
                // The ledger has decided; the sweeper produces what Kafka did not take.
                tracing::warn!(%error, "the outbox of a cancelled run is left to the sweeper");
            }
            status.unwrap_or(RunStatus::Cancelling)
        }
    };
    let code = match status {
        RunStatus::Cancelled => StatusCode::OK,
        _ => StatusCode::ACCEPTED,
    };
    let links = Links::of(run.as_str());
    let body = Cancelled {
        run_id: run,
        status,
        links,
    };
    Ok((code, Json(body)).into_response())
}

/// The one line of a run's end in the log, and its metrics: no worker had it.
fn tell_end(tenant: &TenantId, run: &RunId, kind: RunKind) {
    let (kind, outcome) = (kind.as_str(), RunStatus::Cancelled.as_str());
    metrics::counter!("agenthub_runs_total",
        "tenant" => labels::tenant(tenant.as_str()), "kind" => kind, "outcome" => outcome)
    .increment(1);
    tracing::info!(%tenant, run_id = %run, kind, outcome, "run ended");
}

async fn known(state: &ApiState, caller: &Caller, id: PathId<RunId>) -> Result<RunId, ApiError> {
    match id.0 {
        Some(run) => {
            caller.scope.notes().run = Some(run.clone());
            Ok(run)
        }
        None => Err(caller.not_found(state, Permission::Runs).await),
    }
}
