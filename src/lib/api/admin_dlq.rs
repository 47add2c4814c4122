//! Dead letters, for admins: of their own tenant, and of any by the operator's keys.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::body::OptionalBody;
use super::caller::Caller;
use super::governed::target;
use super::params::{Params, PathId};
use super::request_headers::Submitting;
use super::retry::{again, retryable};
use super::run_body::Links;
use super::state::ApiState;
use super::submit::{Asked, admit};
use crate::dlq::{GroupView, View};
use crate::error::{ApiError, ErrorCode};
use crate::governance::{self, Permission};
use crate::ids::{RunId, TenantId};
use crate::messages::{FailureClass, LetterId};
use crate::runs::Redrive;
use crate::store::{IndexedLetter, LetterCursor, LetterFilter, Redis};

const FILTERS: [&str; 9] = [
    "tenant", "class", "tool", "run_id", "group", "since", "until", "limit", "cursor",
];

/// How a letter is redriven.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RedriveRequest {
    /// Start a new run although the letter was redriven before.
    #[serde(default)]
    force: bool,
}

/// A page of letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterPage {
    /// The latest first.
    data: Vec<View>,
    /// The `cursor` of the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Groups of letters about equal failures.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupList {
    /// The latest first.
    data: Vec<GroupView>,
}

/// A letter that was redriven.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RedrivenBody {
    /// The letter.
    letter_id: String,
    /// The run that it started.
    #[schema(value_type = String)]
    run_id: RunId,
    /// Whether an earlier request had started it.
    already: bool,
    /// Where to go on.
    links: Links,
}

/// List dead letters, the latest first.
#[utoipa::path(get, path = "/v1/admin/dlq", tag = "admin",
    params(("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent."),
        ("class" = Option<String>, Query, description = "Only of this class."),
        ("tool" = Option<String>, Query, description = "Only where this tool failed; `model` for the model."),
        ("run_id" = Option<String>, Query, description = "Only the letter of this run."),
        ("group" = Option<String>, Query, description = "Only of the group with this fingerprint."),
        ("since" = Option<String>, Query, format = DateTime, description = "Only those given up at or after this time (RFC 3339)."),
        ("until" = Option<String>, Query, format = DateTime, description = "Only those given up before this time."),
        ("limit" = Option<u32>, Query, description = "1 to 100; 20 when absent.", minimum = 1, maximum = 100),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.")),
    responses((status = 200, description = "A page of letters, masked.", body = LetterPage)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<LetterPage>, ApiError> {
    let params = Params::read(&uri, &FILTERS)?;
    let wanted = params.limit()? as usize;
    let after = params.parsed::<LetterCursor>("cursor", "the next_cursor of a page")?;
    let filter = filter(&params)?;
    let tenant = governed(&state, &caller, &params).await?;
    let letters = redis(&state).letters(&tenant, &filter, after.as_ref(), wanted);
    let letters = letters.await?;
    let full = letters.len() == wanted;
    let next_cursor = letters.last().filter(|_| full);
    Ok(Json(LetterPage {
        next_cursor: next_cursor.map(|last| last.cursor().to_string()),
        data: letters
            .iter()
            .map(|letter| View::new(letter, &state.parts.masker))
            .collect(),
    }))
}

/// List groups of dead letters about equal failures, the latest first.
#[utoipa::path(get, path = "/v1/admin/dlq/groups", tag = "admin",
    params(("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent."),
        ("limit" = Option<u32>, Query, description = "1 to 100; 20 when absent.", minimum = 1, maximum = 100)),
    responses((status = 200, description = "The groups.", body = GroupList)))]
pub(super) async fn groups(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<GroupList>, ApiError> {
    let params = Params::read(&uri, &["tenant", "limit"])?;
    let limit = params.limit()? as usize;
    let tenant = governed(&state, &caller, &params).await?;
    let groups = redis(&state).letter_groups(&tenant, limit).await?;
    let data = groups
        .iter()
        .map(|group| GroupView::new(&tenant, group, &state.parts.masker))
        .collect();
    Ok(Json(GroupList { data }))
}

/// Read a dead letter, and the letters before it in a chain of redrives.
#[utoipa::path(get, path = "/v1/admin/dlq/{letter_id}", tag = "admin",
    params(("letter_id" = String, Path, description = "The letter: `<topic>.<partition>.<offset>` of the record."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    responses((status = 200, description = "The letter, masked.", body = View)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<LetterId>,
    uri: Uri,
) -> Result<Json<View>, ApiError> {
    let params = Params::read(&uri, &["tenant"])?;
    let tenant = governed(&state, &caller, &params).await?;
    let indexed = known(&state, &tenant, id).await?;
    let history = redis(&state).letter_history(&tenant, &indexed.letter);
    let history = history.await?;
    let masker = &state.parts.masker;
    Ok(Json(
        View::new(&indexed, masker).with_history(&history, masker),
    ))
}

/// Redrive a dead letter: a new run goes on after the one that failed, and takes over its finished
/// steps.
#[utoipa::path(post, path = "/v1/admin/dlq/{letter_id}/redrive", tag = "admin",
    params(("letter_id" = String, Path, description = "The letter."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat starts nothing twice, forced or not.")),
    request_body(content = Option<RedriveRequest>, description = "May be left out."),
    responses((status = 202, description = "The new run was accepted; with `already`, an earlier request had started it.", body = RedrivenBody,
        headers(("Location" = String, description = "The run."), ("Idempotency-Replayed" = String, description = "`true` for the repeat of a request.")))))]
pub(super) async fn redrive(
    State(state): State<ApiState>,
    caller: Caller,
    how: Submitting,
    id: PathId<LetterId>,
    uri: Uri,
    OptionalBody(body): OptionalBody<RedriveRequest>,
) -> Result<Response, ApiError> {
    let request = body.value;
    let params = Params::read(&uri, &["tenant"])?;
    state.require_kafka()?;
    let tenant = governed(&state, &caller, &params).await?;
    let indexed = known(&state, &tenant, id).await?;
    let letter_id = LetterId::from(&indexed.letter);
    // A request that its client named is looked up by that name first, in the script.
    let named = how.idempotency.is_some();
    if let Some(before) = indexed.redriven.filter(|_| !request.force && !named) {
        return Ok(answer(&caller, &letter_id, before.run, (true, false)));
    }
    let Some(source) = indexed.letter.run_id else {
        return Err(not_redrivable(
            "no_run",
            "the record was not trusted enough to know its run",
        ));
    };
    // The run is kept for a time only, and an erased session's not at all.
    let view = state.runs().passed_run(&tenant, &source).await?;
    let view = view.filter(|view| view.session_key.is_some());
    let Some((view, old)) = view.and_then(|view| view.spec().map(|spec| (view, spec))) else {
        return Err(not_redrivable(
            "run_gone",
            "the run, or its session, is no longer there",
        ));
    };
    retryable(&view)?;
    let operator = tenant != *caller.tenant();
    let key_id = old.key_id.clone();
    let (mut spec, plan) = again(&caller, &view, old);
    if operator {
        spec.key_id = key_id; // a run belongs to a key of its own tenant
    }
    // The route's template is the same for every letter.
    let what = json!({ "letter": letter_id.to_string(), "request": request });
    let fingerprint = governance::fingerprint(&what, &caller.scope.facts().query);
    let name = letter_id.indexed();
    let asked = Asked {
        claim: how.idempotency.as_ref(),
        fingerprint: &fingerprint,
        redrive: Some(Redrive {
            letter: &name,
            force: request.force,
            operator,
        }),
    };
    let (run, already) = {
        // Tools that the key does not allow any more are refused when they would be called.
        let plan = (plan.as_ref(), Vec::new());
        admit(&state, &caller, &asked, &spec, plan).await?
    };
    if !already {
        metrics::counter!("agenthub_dlq_redriven_total").increment(1);
    }
    Ok(answer(
        &caller,
        &letter_id,
        run,
        (already, named && already),
    ))
}

/// `replayed` says that the answer is due to the client's name for its request.
fn answer(
    caller: &Caller,
    letter: &LetterId,
    run: RunId,
    (already, replayed): (bool, bool),
) -> Response {
    caller.scope.notes().run = Some(run.clone());
    let links = Links::of(run.as_str());
    let location = links.this.clone();
    let body = Json(RedrivenBody {
        letter_id: letter.to_string(),
        run_id: run,
        already,
        links,
    });
    let mut response = (StatusCode::ACCEPTED, [(LOCATION, location)], body).into_response();
    if replayed {
        let name = HeaderName::from_static("idempotency-replayed");
        let headers = response.headers_mut();
        headers.insert(name, HeaderValue::from_static("true"));
    }
    response
}

fn not_redrivable(rule: &str, detail: &str) -> ApiError {
    ApiError::new(ErrorCode::NotRedrivable)
        .detail(detail)
        .details(json!({ "rule": rule }))
}

fn redis(state: &ApiState) -> &Redis {
    state.runs().redis()
}

async fn known(
    state: &ApiState,
    tenant: &TenantId,
    id: PathId<LetterId>,
) -> Result<IndexedLetter, ApiError> {
    let not_found = || ApiError::new(ErrorCode::NotFound);
    let id = id.0.ok_or_else(not_found)?;
    let letter = redis(state).letter(tenant, &id.indexed()).await?;
    letter.ok_or_else(not_found)
}

fn filter(params: &Params) -> Result<LetterFilter, ApiError> {
    let classes = FailureClass::ALL.map(FailureClass::as_str).join(", ");
    let time = |name| {
        let expected = "a time such as 2026-01-31T12:00:00Z";
        let time = params.parsed::<jiff::Timestamp>(name, expected)?;
        let ms = |time: jiff::Timestamp| u64::try_from(time.as_millisecond()).unwrap_or(0);
        Ok::<_, ApiError>(time.map(ms))
    };
    Ok(LetterFilter {
        class: params.parsed("class", &format!("one of {classes}"))?,
        tool: params.text("tool").map(str::to_owned),
        run: params.parsed("run_id", "the id of a run")?,
        group: params.text("group").map(str::to_owned),
        since_ms: time("since")?,
        until_ms: time("until")?,
    })
}

/// Passes the gate; the tenant whose letters the request is about.
async fn governed(
    state: &ApiState,
    caller: &Caller,
    params: &Params,
) -> Result<TenantId, ApiError> {
    let named = params.parsed::<TenantId>("tenant", "the name of a tenant")?;
    caller.pass(state, Permission::DeadLetters).await?;
    target(caller.tenant(), named)
}
