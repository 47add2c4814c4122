//! A run as Redis holds it: its fields and its journal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CancelMode, RunStatus};
use crate::messages::FailureClass;
use crate::pricing::Usage;
use crate::privacy::Sealed;

/// The fields of a hash.
#[derive(Debug, Clone, Default)]
pub struct Fields(BTreeMap<String, String>);

impl Fields {
    pub(super) fn from_flat(flat: Vec<String>) -> Self {
        let mut fields = BTreeMap::new();
        let mut items = flat.into_iter();
        while let (Some(name), Some(value)) = (items.next(), items.next()) {
            fields.insert(name, value);
        }
        Self(fields)
    }

    /// The text of a field.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field that holds a number; 0 when it is absent.
    pub fn number(&self, name: &str) -> u64 {
        self.text(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    /// A field that holds a sealed payload.
    pub fn sealed(&self, name: &str) -> Option<Sealed> {
        self.text(name).map(Sealed::from_stored)
    }

    /// The state of a run.
    pub fn status(&self) -> Option<RunStatus> {
        self.text("status")?.parse().ok()
    }

    /// Whether and how a client asked for the run's end.
    pub fn cancel(&self) -> Option<CancelMode> {
        parse_cancel(self.text("cancel")?)
    }

    /// The model calls that were reserved, by name.
    pub fn calls(&self) -> impl Iterator<Item = &str> {
        self.0.keys().filter_map(|name| name.strip_prefix("b:"))
    }

    /// The numbers of the model calls whose answers are in the journal.
    pub fn answered_calls(&self) -> impl Iterator<Item = u32> {
        let names = self.0.keys();
        names.filter_map(|name| name.strip_prefix("m:")?.parse().ok())
    }

    /// Whether a model call was reserved and is not settled.
    pub fn is_open(&self, call: &str) -> bool {
        let open = self.text("open").unwrap_or_default();
        open.split(' ').any(|name| name == call)
    }

    /// What was recorded of the run's steps and model calls.
    pub fn journal(&self) -> Journal {
        let entries = |prefix: &'static str| {
            self.0
                .iter()
                .filter_map(move |(name, text)| Some((name.strip_prefix(prefix)?, text)))
        };
        Journal {
            steps: entries("s:")
                .filter_map(|(id, text)| Some((id.to_owned(), serde_json::from_str(text).ok()?)))
                .collect(),
            model_calls: entries("m:")
                .filter_map(|(number, text)| {
                    Some((number.parse().ok()?, serde_json::from_str(text).ok()?))
                })
                .collect(),
        }
    }
}

pub(super) fn parse_cancel(text: &str) -> Option<CancelMode> {
    match text {
        "graceful" => Some(CancelMode::Graceful),
        "force" => Some(CancelMode::Force),
        _ => None,
    }
}

/// What was recorded of a run's steps and model calls.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    /// By step id.
    pub steps: BTreeMap<String, StepEntry>,
    /// By number, from 1.
    pub model_calls: BTreeMap<u32, ModelCall>,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// An attempt was begun.
    Running,
    /// Its attempt failed; another follows.
    Retrying,
    /// Done.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Whether its effect happened is not known.
    OutcomeUnknown,
}

/// The code of a step whose outcome was not known, until somebody said that it failed.
pub const RESOLVED_FAILED: &str = "resolved_failed";

/// The journal's entry of a step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepEntry {
    /// How far it is.
    pub status: StepStatus,
    /// The tool.
    pub tool: String,
    /// Attempts begun.
    pub attempts: u32,
    /// Milliseconds since the epoch at which the first attempt began.
    pub started_ms: u64,
    /// Milliseconds since the epoch at which it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// Milliseconds since the epoch at which its next attempt is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_ms: Option<u64>,
    /// What it gave; sealed JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Sealed>,
    /// Why it failed; a stable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Why it failed, for people; masked text, sealed, since it may quote what was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Sealed>,
    /// The dead letter that its failure makes of the run; none where a rule forbade the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub letter: Option<FailureClass>,
}

/// The journal's entry of a model call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelCall {
    /// The model.
    pub model: String,
    /// What it used; unknown when the provider did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Millionths of a US dollar.
    pub cost_micro_usd: u64,
    /// Milliseconds that it took.
    pub duration_ms: u64,
    /// The answer; sealed JSON.
    pub answer: Sealed,
}
