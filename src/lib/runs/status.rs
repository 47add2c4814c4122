//! The states of a run.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a run is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Admitted; no worker has it yet, or it waits for its place.
    Queued,
    /// The planner has it.
    Planning,
    /// The executor has it, or will.
    Executing,
    /// It waits for the time of its next attempt.
    RetryWait,
    /// A client asked for its end, and its worker has not yet heard.
    Cancelling,
    /// Done.
    Succeeded,
    /// It ended with a failure.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It did not end in time.
    TimedOut,
}

impl RunStatus {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Queued,
        Self::Planning,
        Self::Executing,
        Self::RetryWait,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// Whether nothing follows.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut
        )
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Planning => "planning",
            Self::Executing => "executing",
            Self::RetryWait => "retry_wait",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }
}

impl FromStr for RunStatus {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(())
    }
}

/// How a run is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CancelMode {
    /// Calls under way may end; nothing new begins.
    #[default]
    Graceful,
    /// Calls under way are dropped.
    Force,
}
