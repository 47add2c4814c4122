//! The tools, as plans may use them.

use axum::extract::State;
use axum::response::Json;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::caller::Caller;
use super::params::Params;
use super::state::ApiState;
use crate::error::ApiError;
use crate::governance::Permission;
use crate::tools::{Effects, catalogue};

/// A tool.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ToolBody {
    /// The name that plans use.
    name: &'static str,
    /// Rises when the meaning of arguments or results changes.
    version: u32,
    /// What it does.
    description: &'static str,
    /// What a repeated call does.
    effects: Effects,
    /// JSON Schema (draft 2020-12) of the arguments.
    #[schema(value_type = Object)]
    parameters: &'static Value,
    /// Milliseconds that one attempt may take when its step says nothing else.
    timeout_ms: u64,
}

/// The tools.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ToolList {
    /// In the order in which models see them.
    data: Vec<ToolBody>,
}

/// List the tools.
#[utoipa::path(get, path = "/v1/tools", tag = "tools",
    responses((status = 200, description = "The tools.", body = ToolList)))]
pub(super) async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    _: Params,
) -> Result<Json<ToolList>, ApiError> {
    caller.pass(&state, Permission::Tools).await?;
    let body = |tool: &'static crate::tools::ToolSpec| ToolBody {
        name: tool.name,
        version: tool.version,
        description: tool.description,
        effects: tool.effects,
        parameters: &tool.parameters,
        timeout_ms: u64::try_from(tool.timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let data = catalogue::all().iter().map(body).collect();
    Ok(Json(ToolList { data }))
}
