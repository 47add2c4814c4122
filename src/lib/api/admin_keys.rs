//! API keys, managed by admins: of their own tenant, and of any by the operator's.

use axum::extract::State;
use axum::http::header::LOCATION;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::body::{JsonBody, OptionalBody};
use super::caller::Caller;
use super::exit::Exit;
use super::params::{Params, PathId};
use super::state::ApiState;
use super::time::rfc3339;
use super::validate;
use crate::error::{ApiError, ErrorCode};
use crate::governance::{IssuedKey, NewKey, Permission, Role};
use crate::ids::{KeyId, TenantId};
use crate::messages::KeyRecord;

const MAX_NAME: usize = 128;
const MAX_EXPIRY_S: u64 = 10 * 365 * 24 * 3600;
const DEFAULT_GRACE_S: u64 = 24 * 3600;
const MAX_GRACE_S: u64 = 30 * 24 * 3600;

/// A key to be created.
#[derive(Debug, Deserialize, ToSchema)]
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
        }
    }
}

/// Create a key. The answer alone holds it.
#[utoipa::path(post, path = "/v1/admin/api-keys", tag = "admin", request_body = NewKeyRequest,
    responses((status = 201, description = "Created.", body = IssuedKeyBody,
        headers(("Location" = String, description = "The key's record.")))))]
pub(super) async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    _: Params,
    body: JsonBody<NewKeyRequest>,
) -> Result<Response, ApiError> {
    let request = body.value;
    validate::text("/name", Some(&request.name), MAX_NAME)?;
    if let Some(seconds) = request.expires_in_s {
        validate::range("/expires_in_s", seconds, 1, MAX_EXPIRY_S)?;
    }
    let tenant = request.tenant.as_deref();
    let tenant = govern(&state, &caller, "/tenant", tenant, true).await?;
    let new = NewKey {
        tenant,
        name: request.name,
        role: request.role,
        expires_in_s: request.expires_in_s,
    };
    let (record, issued) = state.parts.keys.create(new).await?;
    let location = format!("/v1/admin/api-keys/{}", record.key_id);
    let body = Json(issued_body(&state, record, issued));
    Ok((StatusCode::CREATED, [(LOCATION, location)], body).into_response())
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
    let tenant = governed(&state, &caller, &uri, false).await?;
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
    let tenant = governed(&state, &caller, &uri, false).await?;
    let (record, used) = state.parts.keys.get(&tenant, &known(id)?).await?;
    Ok(Json(KeyBody::new(&state.exit, record, used)))
}

/// Give a key a new secret. The answer alone holds it.
#[utoipa::path(post, path = "/v1/admin/api-keys/{key_id}/rotate", tag = "admin",
    params(("key_id" = String, Path, description = "The key."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    request_body(content = Option<RotateRequest>, description = "May be left out."),
    responses((status = 200, description = "Rotated.", body = IssuedKeyBody)))]
pub(super) async fn rotate(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<KeyId>,
    uri: Uri,
    OptionalBody(request): OptionalBody<RotateRequest>,
) -> Result<Json<IssuedKeyBody>, ApiError> {
    let grace_s = request.grace_s.unwrap_or(DEFAULT_GRACE_S);
    validate::range("/grace_s", grace_s, 0, MAX_GRACE_S)?;
    let tenant = governed(&state, &caller, &uri, true).await?;
    let keys = &state.parts.keys;
    let (record, issued) = keys.rotate(&tenant, &known(id)?, grace_s).await?;
    Ok(Json(issued_body(&state, record, issued)))
}

/// Revoke a key, for good: the next request with it is refused, its streams close.
#[utoipa::path(post, path = "/v1/admin/api-keys/{key_id}/revoke", tag = "admin",
    params(("key_id" = String, Path, description = "The key."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    responses((status = 200, description = "Revoked.", body = KeyBody)))]
pub(super) async fn revoke(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<KeyId>,
    uri: Uri,
) -> Result<Json<KeyBody>, ApiError> {
    let tenant = governed(&state, &caller, &uri, true).await?;
    let record = state.parts.keys.revoke(&tenant, &known(id)?).await?;
    Ok(Json(KeyBody::new(&state.exit, record, None)))
}

fn issued_body(state: &ApiState, record: KeyRecord, issued: IssuedKey) -> IssuedKeyBody {
    IssuedKeyBody {
        api_key: issued.text,
        key: KeyBody::new(&state.exit, record, None),
    }
}

fn known(id: PathId<KeyId>) -> Result<KeyId, ApiError> {
    id.0.ok_or_else(|| ApiError::new(ErrorCode::NotFound))
}

async fn governed(
    state: &ApiState,
    caller: &Caller,
    uri: &Uri,
    changes: bool,
) -> Result<TenantId, ApiError> {
    let params = Params::read(uri, &["tenant"])?;
    govern(state, caller, "tenant", params.text("tenant"), changes).await
}

/// Passes the gate; the tenant whose keys the request is about. `field` is where it was named.
async fn govern(
    state: &ApiState,
    caller: &Caller,
    field: &str,
    named: Option<&str>,
    changes: bool,
) -> Result<TenantId, ApiError> {
    let named = match named.map(str::parse::<TenantId>) {
        None => None,
        Some(Ok(tenant)) => Some(tenant),
        Some(Err(_)) => return Err(ApiError::field(field, "expected the name of a tenant")),
    };
    if changes {
        state.require_kafka()?;
    }
    caller.pass(state, Permission::Keys).await?;
    target(caller.tenant(), named)
}

/// An admin key governs its own tenant; one of the operator's tenant governs every tenant.
pub(super) fn target(own: &TenantId, named: Option<TenantId>) -> Result<TenantId, ApiError> {
    match named {
        None => Ok(own.clone()),
        Some(tenant) if tenant == *own || own.is_system() => Ok(tenant),
        Some(_) => Err(ApiError::new(ErrorCode::Forbidden)
            .detail("the key governs its own tenant alone")
            .details(json!({ "rule": "tenant" }))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_operator_governs_other_tenants() {
        let tenant = |name: &str| name.parse::<TenantId>().unwrap();
        let target = |own, named: Option<&str>| target(&tenant(own), named.map(tenant));
        assert_eq!(target("acme", None).unwrap(), tenant("acme"));
        assert_eq!(target("acme", Some("acme")).unwrap(), tenant("acme"));
        assert_eq!(target("system", Some("acme")).unwrap(), tenant("acme"));
        let refused = target("acme", Some("other")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Forbidden);
        assert_eq!(
            target("acme", Some("system")).unwrap_err().code,
            ErrorCode::Forbidden
        );
    }
}
