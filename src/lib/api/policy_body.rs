//! Rate limits as bodies write them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::governance::PolicyError;
use crate::messages::RateRule;

/// At most `limit` requests in any window.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitBody {
    /// Requests: 1 to 100000.
    #[schema(minimum = 1, maximum = 100_000)]
    limit: u32,
    /// Milliseconds: 1 to 86400000.
    #[schema(minimum = 1, maximum = 86_400_000)]
    window_ms: u64,
}

impl From<LimitBody> for RateRule {
    fn from(body: LimitBody) -> Self {
        Self {
            limit: body.limit,
            window_ms: body.window_ms,
        }
    }
}

impl From<RateRule> for LimitBody {
    fn from(rule: RateRule) -> Self {
        Self {
            limit: rule.limit,
            window_ms: rule.window_ms,
        }
    }
}

impl LimitBody {
    /// The rules that a body lists.
    pub(super) fn rules(bodies: Option<Vec<Self>>) -> Option<Vec<RateRule>> {
        bodies.map(|bodies| bodies.into_iter().map(RateRule::from).collect())
    }

    /// The rules as a body lists them.
    pub(super) fn bodies(rules: Option<Vec<RateRule>>) -> Option<Vec<Self>> {
        rules.map(|rules| rules.into_iter().map(Self::from).collect())
    }
}

impl From<PolicyError> for ApiError {
    fn from(error: PolicyError) -> Self {
        Self::field(error.field, error.problem)
    }
}
