//! What is known from outside of what happened: the topics, the answers of the API, the log of the tool
//! server. Plain data, so that a history can be written by hand.

use std::collections::BTreeMap;

use agenthub::messages::EventId;

/// A submission and what the API answered it.
#[derive(Debug, Clone)]
pub struct Submission {
    pub idempotency_key: String,
    /// The run that each answer of 202 named: it is repeated until there is one.
    pub answers: Vec<String>,
    pub session: String,
}

/// An event, of `agent.events` or of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub session: String,
    pub id: EventId,
    pub prev: Option<EventId>,
    pub kind: String,
    pub run: String,
    pub step: Option<String>,
    pub attempt: Option<u32>,
    /// Milliseconds since the epoch.
    pub ts: u64,
}

impl Told {
    pub fn is_terminal(&self) -> bool {
        [
            "run.succeeded",
            "run.failed",
            "run.cancelled",
            "run.timed_out",
        ]
        .contains(&self.kind.as_str())
    }
}

/// A usage record of `audit.logs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    pub id: String,
    pub run: String,
    pub delta_micro_usd: i64,
}

/// What a tool promises of a repeated call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    None,
    Idempotent,
    Unsafe,
}

/// A call that the tool server had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub promise: Promise,
    /// `Idempotency-Key`: `<run>/<step>`.
    pub key: String,
    pub attempt: u32,
    /// Which executor made it.
    pub worker: String,
    /// Milliseconds since the epoch.
    pub arrived_ms: u64,
    /// The status that it was answered, when it was.
    pub status: Option<u16>,
}

/// A run, as the API shows it at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub status: String,
    /// `error.code`.
    pub code: Option<String>,
    pub cost_micro_usd: u64,
}

/// The tenant's money, as the API shows it at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Money {
    pub limit: u64,
    pub spent: u64,
    pub reserved: u64,
    /// The usage totals.
    pub used: u64,
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct History {
    pub submissions: Vec<Submission>,
    /// `agent.events`, in the order of each partition.
    pub events: Vec<Told>,
    /// `audit.logs`; a record may be there more than once.
    pub settlements: Vec<Settlement>,
    /// By run.
    pub runs: BTreeMap<String, Run>,
    /// What the client of each session's stream was told, over all its connections.
    pub streams: BTreeMap<String, Vec<Told>>,
    /// In the order in which they arrived.
    pub calls: Vec<Call>,
    pub money: Money,
    /// Records that each group has not committed.
    pub lag: BTreeMap<String, i64>,
}
