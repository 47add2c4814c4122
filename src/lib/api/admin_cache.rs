//! Kept results of tools, dropped by admins: of their own tenant, and of any by the operator's.

use axum::extract::State;
use axum::http::Uri;
use axum::response::Json;
use serde::Serialize;
use utoipa::ToSchema;

use super::caller::Caller;
use super::governed::target;
use super::params::{Params, PathId};
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::TenantId;
use crate::tools::{CacheScope, catalogue};

/// What was dropped.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DroppedBody {
    /// The tool.
    tool: &'static str,
    /// Results that there were.
    dropped: u64,
}

/// Drop a tool's kept results. Calls that are being made now are not kept either.
#[utoipa::path(delete, path = "/v1/admin/cache/{tool}", tag = "admin",
    params(("tool" = String, Path, description = "The tool."),
        ("tenant" = Option<String>, Query, description = "For keys of the tenant `system` only; the caller's own when absent.")),
    responses((status = 200, description = "Dropped.", body = DroppedBody)))]
pub(super) async fn drop_kept(
    State(state): State<ApiState>,
    caller: Caller,
    tool: PathId<String>,
    uri: Uri,
) -> Result<Json<DroppedBody>, ApiError> {
    let params = Params::read(&uri, &["tenant"])?;
    let named = match params.text("tenant").map(str::parse::<TenantId>) {
        None => None,
        Some(Ok(tenant)) => Some(tenant),
        Some(Err(_)) => return Err(ApiError::field("tenant", "expected the name of a tenant")),
    };
    caller.pass(&state, Permission::Cache).await?;
    let tenant = target(caller.tenant(), named)?;
    let tool = tool.0.as_deref().and_then(catalogue::find);
    let tool = tool.ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    let tenant = match tool.cache.map(|cache| cache.scope) {
        // What is kept for everybody is the operator's to drop.
        Some(CacheScope::Global) if caller.tenant().is_system() => TenantId::system(),
        Some(CacheScope::Global) => {
            return Err(ApiError::new(ErrorCode::Forbidden)
                .detail("the tool's results are kept for every tenant"));
        }
        Some(CacheScope::Tenant) | None => tenant,
    };
    let dropped = state.parts.redis.drop_results(&tenant, tool.name).await?;
    tracing::info!(tool = tool.name, %tenant, dropped, "kept results were dropped");
    let tool = tool.name;
    Ok(Json(DroppedBody { tool, dropped }))
}
