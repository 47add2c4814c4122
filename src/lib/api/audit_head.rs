//! The heads of the audit chains, for clients who keep one: with it they can show later that records
//! were cut off, or the chain written anew.

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::caller::Caller;
use super::params::Params;
use super::state::ApiState;
use crate::error::ApiError;
use crate::governance::Permission;

/// The heads.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditHeads {
    /// One signed head for each partition that has records, as the roll-up signed it: `signature` and
    /// `signed`. They tell how far the chains go, and nothing of what is in them.
    #[schema(value_type = Vec<Object>)]
    data: Vec<Box<RawValue>>,
}

/// Read the signed heads of the audit chains. Keep them elsewhere: `agenthub audit verify --head` shows
/// with one that the chain still has everything up to it.
#[utoipa::path(get, path = "/v1/admin/audit/head", tag = "admin",
    responses((status = 200, description = "The heads.", body = AuditHeads)))]
pub(super) async fn read(
    State(state): State<ApiState>,
    caller: Caller,
    _: Params,
) -> Result<Json<AuditHeads>, ApiError> {
    caller.pass(&state, Permission::Audit).await?;
    let heads = state.parts.redis.audit_heads().await?;
    let data = heads.into_values().filter_map(|head| {
        let read = RawValue::from_string(head);
        read.inspect_err(|error| tracing::error!(%error, "a shown audit head is no JSON"))
            .ok()
    });
    Ok(Json(AuditHeads {
        data: data.collect(),
    }))
}
