//! What admins set for tenants: an admin for its own, the operator's keys for every tenant.

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::JsonBody;
use super::caller::Caller;
use super::governed;
use super::params::{Params, PathId};
use super::policy_body::LimitBody;
use super::state::ApiState;
use super::validate;
use crate::error::ApiError;
use crate::governance::{Permission, check_rules};
use crate::ids::TenantId;
use crate::messages::TenantRecord;

const MAX_LIVE_RUNS: u32 = 1_000_000;

/// A tenant's own limits. They replace the ones before as a whole: what is left out is the
/// installation's default.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TenantLimits {
    /// Rate limits of each key that has none of its own, 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4)]
    per_key: Option<Vec<LimitBody>>,
    /// Rate limits of the tenant as a whole, 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4)]
    per_tenant: Option<Vec<LimitBody>>,
    /// Runs that may be live at once; the others wait their turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_live_runs: Option<u32>,
    /// Runs of one key that may be live at once; the others wait their turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1_000_000)]
    max_live_runs_per_key: Option<u32>,
}

impl From<TenantRecord> for TenantLimits {
    fn from(record: TenantRecord) -> Self {
        Self {
            per_key: LimitBody::bodies(record.per_key),
            per_tenant: LimitBody::bodies(record.per_tenant),
            max_live_runs: record.max_live_runs,
            max_live_runs_per_key: record.max_live_runs_per_key,
        }
    }
}

/// Set a tenant's own limits, in place of those that it had.
#[utoipa::path(put, path = "/v1/admin/tenants/{tenant}/limits", tag = "admin", request_body = TenantLimits,
    params(("tenant" = String, Path, description = "The tenant: the caller's own, or any for keys of the tenant `system`.")),
    responses((status = 200, description = "Set.", body = TenantLimits)))]
pub(super) async fn set_limits(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<TenantId>,
    _: Params,
    body: JsonBody<TenantLimits>,
) -> Result<Json<TenantLimits>, ApiError> {
    let limits = body.value;
    let per_key = LimitBody::rules(limits.per_key);
    let per_tenant = LimitBody::rules(limits.per_tenant);
    for (field, rules) in [("/per_key", &per_key), ("/per_tenant", &per_tenant)] {
        if let Some(rules) = rules {
            check_rules(field, rules)?;
        }
    }
    let caps = [
        ("/max_live_runs", limits.max_live_runs),
        ("/max_live_runs_per_key", limits.max_live_runs_per_key),
    ];
    for (field, cap) in caps {
        if let Some(cap) = cap {
            validate::range(field, cap, 1, MAX_LIVE_RUNS)?;
        }
    }
    state.require_kafka()?;
    let record = TenantRecord {
        tenant: governed::in_path(&state, &caller, Permission::Tenants, id).await?,
        per_key,
        per_tenant,
        max_live_runs: limits.max_live_runs,
        max_live_runs_per_key: limits.max_live_runs_per_key,
    };
    state.parts.tenants.set_limits(&record).await?;
    Ok(Json(record.into()))
}

/// Read a tenant's own limits. Those that it has none of are the installation's defaults.
#[utoipa::path(get, path = "/v1/admin/tenants/{tenant}/limits", tag = "admin",
    params(("tenant" = String, Path, description = "The tenant: the caller's own, or any for keys of the tenant `system`.")),
    responses((status = 200, description = "The limits.", body = TenantLimits)))]
pub(super) async fn read_limits(
    State(state): State<ApiState>,
    caller: Caller,
    id: PathId<TenantId>,
    _: Params,
) -> Result<Json<TenantLimits>, ApiError> {
    let tenant = governed::in_path(&state, &caller, Permission::Tenants, id).await?;
    let record = state.parts.tenants.limits(&tenant).await?;
    Ok(Json(record.into()))
}
