//! The tools, as plans may use them.

use std::time::Duration;

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
use crate::store::OpenBreaker;
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
    /// Seconds that results are kept at most, where the operator's settings say nothing else; absent
    /// when none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_ttl_s: Option<u64>,
    /// Whether the tool works, as the tenant's runs have seen it.
    breaker: BreakerBody,
}

/// What a tool's circuit breakers are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BreakerState {
    /// Calls pass.
    Closed,
    /// It failed too often: no call passes.
    Open,
    /// A few calls pass, to see whether it works again.
    HalfOpen,
}

/// A tool's circuit breakers, for the tenant. A tool that reaches several hosts has one for each: the
/// state is that of the worst, and the others let calls pass.
#[derive(Debug, Serialize, ToSchema)]
struct BreakerBody {
    /// What it does.
    state: BreakerState,
    /// Milliseconds until the last of those that are open lets calls pass again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// How many of them are not closed.
    #[serde(skip_serializing_if = "is_zero")]
    not_closed: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl BreakerBody {
    /// Of those of a tool that are not closed.
    fn new<'a>(breakers: impl Iterator<Item = &'a OpenBreaker>) -> Self {
        let (mut not_closed, mut longest) = (0, Duration::ZERO);
        for breaker in breakers {
            not_closed += 1;
            longest = longest.max(breaker.remaining);
        }
        let state = match (not_closed, longest.is_zero()) {
            (0, _) => BreakerState::Closed,
            (_, true) => BreakerState::HalfOpen,
            (_, false) => BreakerState::Open,
        };
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Self {
            state,
            retry_after_ms: (state == BreakerState::Open).then_some(longest),
            not_closed,
        }
    }
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
    let open = state.parts.redis.open_breakers(caller.tenant()).await?;
    let body = |tool: &'static crate::tools::ToolSpec| ToolBody {
        name: tool.name,
        version: tool.version,
        description: tool.description,
        effects: tool.effects,
        parameters: &tool.parameters,
        timeout_ms: u64::try_from(tool.timeout.as_millis()).unwrap_or(u64::MAX),
        cache_ttl_s: tool.cache.map(|cache| cache.ttl.as_secs()),
        breaker: BreakerBody::new(open.iter().filter(|open| open.tool() == tool.name)),
    };
    let data = catalogue::all().iter().map(body).collect();
    Ok(Json(ToolList { data }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_shows_the_worst_of_its_breakers() {
        let open = |seconds| OpenBreaker {
            name: "t|x".to_owned(),
            remaining: Duration::from_secs(seconds),
            trips: 1,
        };
        let body = |breakers: &[OpenBreaker]| {
            let body = BreakerBody::new(breakers.iter());
            (body.state, body.retry_after_ms, body.not_closed)
        };
        assert_eq!(body(&[]), (BreakerState::Closed, None, 0));
        assert_eq!(body(&[open(0)]), (BreakerState::HalfOpen, None, 1));
        let worst = body(&[open(3), open(0), open(9)]);
        assert_eq!(worst, (BreakerState::Open, Some(9000), 3));
    }
}
