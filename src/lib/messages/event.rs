//! Events: what happened in a run, for clients and for the record.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::ids::{InvalidId, RunId, SessionId};
use crate::privacy::Sealed;

/// The name of an event: `<gen>-<seq>`. `seq` rises by one in a session; `gen` rises when a failover
/// or a rebuild could make `seq` regress. Also the id of the event's entry in the session's stream.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct EventId {
    /// Generation of the session's numbering.
    pub generation: u64,
    /// Number within the generation, from 1.
    pub seq: u64,
}

impl FromStr for EventId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parsed = text.split_once('-').and_then(|(generation, seq)| {
            Some(Self {
                generation: generation.parse().ok()?,
                seq: seq.parse().ok()?,
            })
        });
        parsed.ok_or(InvalidId { kind: "event id" })
    }
}

impl TryFrom<String> for EventId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.generation, self.seq)
    }
}

macro_rules! event_types {
    ($( $(#[doc = $doc:literal])+ $variant:ident = $name:literal; )+) => {
        /// The kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum EventType {
            $( $(#[doc = $doc])+ #[serde(rename = $name)] $variant, )+
        }

        impl EventType {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $name, )+ }
            }
        }
    };
}

event_types! {
    /// The run was admitted.
    RunQueued = "run.queued";
    /// The planner took the run up.
    PlanStarted = "plan.started";
    /// A piece of the model's answer; not kept on Kafka.
    LlmDelta = "llm.delta";
    /// The plan was accepted.
    PlanCreated = "plan.created";
    /// The executor took the run up.
    RunStarted = "run.started";
    /// An attempt of a step begins.
    StepStarted = "step.started";
    /// A step says how far it is.
    StepProgress = "step.progress";
    /// An attempt failed and another will follow.
    StepRetrying = "step.retrying";
    /// A step is done.
    StepCompleted = "step.completed";
    /// A step failed for good.
    StepFailed = "step.failed";
    /// A budget is nearly used up.
    BudgetWarning = "budget.warning";
    /// The run is done.
    RunSucceeded = "run.succeeded";
    /// The run failed.
    RunFailed = "run.failed";
    /// The run was cancelled.
    RunCancelled = "run.cancelled";
    /// The run did not end in time.
    RunTimedOut = "run.timed_out";
}

impl EventType {
    /// Whether nothing can follow this event in its run.
    pub fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::RunSucceeded | Self::RunFailed | Self::RunCancelled | Self::RunTimedOut
        )
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event, as clients receive it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its name.
    pub id: EventId,
    /// The event before it in the session; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<EventId>,
    /// What happened.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// The session.
    pub session_id: SessionId,
    /// The run.
    pub run_id: RunId,
    /// The step, where it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// Which attempt of the step, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Milliseconds since the epoch, by Redis' clock.
    pub ts: u64,
    /// What is to be told of it, masked: a JSON object, or where it may hold what a client gave or got, a
    /// string: the object's text, sealed with the session's data key.
    #[schemars(with = "super::Data")]
    pub data: Box<RawValue>,
    /// On Kafka only: what a rebuild needs of what masking hides; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Sealed>,
}

/// What `state` of a `run.queued` holds, sealed, when the request had an `Idempotency-Key`: a late
/// repeat of it starts nothing twice after a rebuild either.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedState {
    /// Name of the claim: a hash of the key and its scope.
    pub claim: String,
    /// Hash of what was asked for.
    pub fingerprint: String,
}

/// The value of a record on `agent.events`: the events of one transition.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EventBatch {
    /// Schema version.
    pub v: u16,
    /// In the order of their ids.
    pub events: Vec<Event>,
}
