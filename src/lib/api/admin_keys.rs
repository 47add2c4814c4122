//! API keys, managed by admins: of their own tenant, and of any by the operator's.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{JsonBody, OptionalBody};
use super::caller::Caller;
use super::exit::Exit;
use super::governed::target;
use super::once::{Begun, Once};
use super::params::{Params, PathId};
use super::policy_body::LimitBody;
use super::problem::internal;
use super::state::ApiState;
use super::time::rfc3339;
use super::validate;
use crate::error::{ApiError, ErrorCode};
use crate::governance::{IssuedKey, NewKey, Permission, Role, check_policy, parse_networks};
use crate::ids::{KeyId, TenantId};
use crate::messages::{KeyPolicy, KeyRecord};
use crate::tools::catalogue;

const MAX_NAME: usize = 128;
const MAX_EXPIRY_S: u64 = 10 * 365 * 24 * 3600;
const DEFAULT_GRACE_S: u64 = 24 * 3600;
const MAX_GRACE_S: u64 = 30 * 24 * 3600;

/// A key to be created.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKeyRequest {
    /// What people call it: 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// What it may do.
    role: Role,
    /// Seconds until it expires, at most ten years; never when absent.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 315_360_000)]
    expires_in_s: Option<u64>,
    /// Rate limits of its own, 1 to 4; its tenant's when absent.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 4)]
    limits: Option<Vec<LimitBody>>,
    /// The tools that its runs may use, 1 to 64; all when absent.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 64)]
    tools_allowed: Option<Vec<String>>,
    /// The models that may plan its runs, 1 to 64; all when absent.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 64)]
    models_allowed: Option<Vec<String>>,
    /// The addresses and networks (`192.0.2.0/24`) that it may be used from, 1 to 64; all when absent.
    #[serde(default)]
    #[schema(min_items = 1, max_items = 64)]
    ips_allowed: Option<Vec<String>>,
    /// The tenant, for keys of the tenant `system` only; the caller's own when absent.
    #[serde(default)]
    tenant: Option<String>,
}

/// How a key is to be rotated.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RotateRequest {
    /// Seconds that the old secret stays valid: 0 to 2592000; a day when absent.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 2_592_000)]
    grace_s: Option<u64>,
}

/// A key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyBody {
    /// Its stable name; limits and audit refer to it.
    #[schema(value_type = String)]
    key_id: KeyId,
    /// Its tenant.
    #[schema(value_type = String)]
    tenant: TenantId,
    /// What people call it.
    name: String,
    /// What it may do.
    role: String,
    /// `active` or `revoked`.
    status: String,
    /// Rises with each rotation.
    version: u32,
    /// When it was created.
    created_at: String,
    /// When it expires; never when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    /// Until when the secret before the last rotation is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    old_secret_valid_until: Option<String>,
    /// When it was last used, to the minute; absent when it never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_used_at: Option<String>,
    /// Rate limits of its own; its tenant's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Vec<LimitBody>>,
    /// The tools that its runs may use; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    tools_allowed: Option<Vec<String>>,
    /// The models that may plan its runs; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    models_allowed: Option<Vec<String>>,
    /// The networks that it may be used from; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    ips_allowed: Option<Vec<String>>,
}

/// A key with its secret, which is shown here and never again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IssuedKeyBody {
    /// The whole key.
    api_key: String,
    #[serde(flatten)]
    key: KeyBody,
}

/// A tenant's keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyList {
    /// By key id.
    data: Vec<KeyBody>,
}

impl KeyBody {
    fn new(exit: &Exit, record: KeyRecord, used_ms: Option<u64>) -> Self {
        let policy = record.policy;
        let networks = policy.ips_allowed;
        Self {
            key_id: record.key_id,
            tenant: record.tenant,
            name: exit.text(&record.name),
            role: record.role,
            status: record.status,
            version: record.version,
            created_at: rfc3339(record.created_ms),
            expires_at: record.expires_ms.map(rfc3339),
            old_secret_valid_until: record.old_until_ms.map(rfc3339),
            last_used_at: used_ms.map(rfc3339),
            limits: LimitBody::bodies(policy.limits),
            tools_allowed: policy.tools_allowed,
            models_allowed: policy.models_allowed,
            ips_allowed: networks.map(|nets| nets.iter().map(ToString::to_string).collect()),
        }
    }
}

/// Create a key. The answer alone holds it.
#[utoipa::path(post, path = "/v1/admin/api-keys", tag = "admin", request_body = NewKeyRequest,
    params(("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat is answered as the first was.")),
    responses((status = 201, description = "Created.", body = IssuedKeyBody,
        headers(("Location" = String, description = "The key's record.")))))]
pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    _: Params,
    once: Once,
    body: JsonBody<NewKeyRequest>,
) -> Result<Response, ApiError> {
    let request = body.value.clone();
    validate::text("/name", Some(&request.name), MAX_NAME)?;
    if let Some(seconds) = request.expires_in_s {
        validate::range("/expires_in_s", seconds, 1, MAX_EXPIRY_S)?;
    }
    let networks = request.ips_allowed.as_deref();
    let networks = networks.map(|texts| parse_networks("/ips_allowed", texts));
    let policy = KeyPolicy {
        limits: LimitBody::rules(request.limits),
        tools_allowed: request.tools_allowed,
        models_allowed: request.models_allowed,
        ips_allowed: networks.transpose()?,
    };
    check_policy(&policy, |name| catalogue::find(name).is_some())?;
    let named = named("/tenant", request.tenant.as_deref())?;
    state.require_kafka()?;
    let subject = KeyId::generate().to_string();
    let begun = once.begin(&state, &caller, Permission::Keys, Some(&body), subject);
    let turn = match begun.await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Turn(turn) => turn,
    };
    let make = async {
        let new = NewKey {
            tenant: target(caller.tenant(), named)?,
            name: request.name,
            role: request.role,
            expires_in_s: request.expires_in_s,
            policy,
        };
        let key_id: KeyId = turn.subject.parse().map_err(|error| internal(&error))?;
        caller.scope.notes().target = Some(format!("key/{key_id}"));
        let (record, issued) = state.parts.keys.create_as(key_id, new).await?;
        let location = format!("/v1/admin/api-keys/{}", record.key_id);
        let body = Json(issued_body(&state, record, issued));
        Ok((StatusCode::CREATED, [(LOCATION, location)], body).into_response())
    };
    let outcome = make.await;
    turn.end(&state, &caller, outcome).await
}

/// List a tenant's keys.
#[utoipa::path(get, path = "/v1/admin/api-keys", tag = "admin",
    params(("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    responses((status = 200, description = "The keys.", body = KeyList)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<KeyList>, ApiError> {
    let tenant = governed(&state, &caller, &uri).await?;
    let keys = state.parts.keys.list(&tenant).await?;
    let data = keys
        .into_iter()
        .map(|(record, used)| KeyBody::new(&state.exit, record, used))
        .collect();
    Ok(Json(KeyList { data }))
}

/// Read a key's record.
#[utoipa::path(get, path = "/v1/admin/api-keys/{key_id}", tag = "admin",
    params(("key_id" = String, Path, description = "The key."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    responses((status = 200, description = "The key.", body = KeyBody)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<KeyId>,
    uri: Uri,
) -> Result<Json<KeyBody>, ApiError> {
    let tenant = governed(&state, &caller, &uri).await?;
    let (record, used) = state.parts.keys.get(&tenant, &known(&caller, id)?).await?;
    Ok(Json(KeyBody::new(&state.exit, record, used)))
}

/// Give a key a new secret. The answer alone holds it.
#[utoipa::path(post, path = "/v1/admin/api-keys/{key_id}/rotate", tag = "admin",
    params(("key_id" = String, Path, description = "The key."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat is answered as the first was.")),
    request_body(content = Option<RotateRequest>, description = "May be left out."),
    responses((status = 200, description = "Rotated.", body = IssuedKeyBody)))]
pub(super) async fn rotate(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<KeyId>,
    uri: Uri,
    once: Once,
    OptionalBody(body): OptionalBody<RotateRequest>,
) -> Result<Response, ApiError> {
    let grace_s = body.value.grace_s.unwrap_or(DEFAULT_GRACE_S);
    validate::range("/grace_s", grace_s, 0, MAX_GRACE_S)?;
    let named = named_in(&uri)?;
    state.require_kafka()?;
    // Names this rotation in the key's record, so that another attempt at it is known as a repeat.
    let subject = uuid::Uuid::new_v4().simple().to_string();
    let begun = once.begin(&state, &caller, Permission::Keys, Some(&body), subject);
    let turn = match begun.await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Turn(turn) => turn,
    };
    let rotate = async {
        let tenant = target(caller.tenant(), named)?;
        let (keys, id) = (&state.parts.keys, known(&caller, id)?);
        let rotation = keys.rotate(&tenant, &id, grace_s, Some(&turn.subject));
        let (record, issued) = rotation.await?;
        Ok(Json(issued_body(&state, record, issued)).into_response())
    };
    let outcome = rotate.await;
    turn.end(&state, &caller, outcome).await
}

/// Revoke a key, for good: the next request with it is refused, its streams close.
#[utoipa::path(post, path = "/v1/admin/api-keys/{key_id}/revoke", tag = "admin",
    params(("key_id" = String, Path, description = "The key."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent."),
        ("Idempotency-Key" = Option<String>, Header, description = "The client's name for the request: a repeat is answered as the first was.")),
    responses((status = 200, description = "Revoked.", body = KeyBody)))]
pub(super) async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<KeyId>,
    uri: Uri,
    once: Once,
) -> Result<Response, ApiError> {
    let named = named_in(&uri)?;
    state.require_kafka()?;
    let begun = once.begin::<()>(&state, &caller, Permission::Keys, None, String::new());
    let turn = match begun.await? {
        Begun::Replay(response) => return Ok(response),
        Begun::Turn(turn) => turn,
    };
    let revoke = async {
        let tenant = target(caller.tenant(), named)?;
        let record = state
            .parts
            .keys
            .revoke(&tenant, &known(&caller, id)?)
            .await?;
        Ok(Json(KeyBody::new(&state.exit, record, None)).into_response())
    };
    let outcome = revoke.await;
    turn.end(&state, &caller, outcome).await
}

fn issued_body(state: &ApiState, record: KeyRecord, issued: IssuedKey) -> IssuedKeyBody {
    IssuedKeyBody {
        api_key: issued.text,
        key: KeyBody::new(&state.exit, record, None),
    }
}

fn known(caller: &Caller, id: PathId<KeyId>) -> Result<KeyId, ApiError> {
    let id = id.0.ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    caller.scope.notes().target = Some(format!("key/{id}"));
    Ok(id)
}

/// The tenant that a query names.
fn named_in(uri: &Uri) -> Result<Option<TenantId>, ApiError> {
    let params = Params::read(uri, &["tenant"])?;
    named("tenant", params.text("tenant"))
}

fn named(field: &str, name: Option<&str>) -> Result<Option<TenantId>, ApiError> {
    let tenant = name.map(str::parse).transpose();
    tenant.map_err(|_| ApiError::field(field, "expected the name of a tenant"))
}

/// Passes the gate of a read; the tenant whose keys it is about.
async fn governed(state: &ApiState, caller: &Caller, uri: &Uri) -> Result<TenantId, ApiError> {
    let named = named_in(uri)?;
    caller.pass(state, Permission::Keys).await?;
    target(caller.tenant(), named)
}
