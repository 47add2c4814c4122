//! Runs and sessions as they are read.

use super::Fields;
use crate::ids::{RunId, SessionId};
use crate::messages::{EventId, RunSpec};

/// A run as it is read.
#[derive(Debug, Clone)]
pub struct RunView {
    /// The run.
    pub id: RunId,
    /// Its fields.
    pub fields: Fields,
    /// The wrapped data key of its session; absent when the session was erased.
    pub session_key: Option<String>,
}

impl RunView {
    pub(super) fn new(id: RunId, flat: Vec<String>, key: String) -> Self {
        let session_key = (!key.is_empty()).then_some(key);
        Self {
            id,
            fields: Fields::from_flat(flat),
            session_key,
        }
    }

    /// What was asked for.
    pub fn spec(&self) -> Option<RunSpec> {
        serde_json::from_str(self.fields.text("spec")?).ok()
    }
}

/// A session as it is read.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// The session.
    pub id: SessionId,
    /// Its fields.
    pub fields: Fields,
}

impl SessionView {
    pub(super) fn new(id: SessionId, flat: Vec<String>) -> Self {
        Self {
            id,
            fields: Fields::from_flat(flat),
        }
    }

    /// The newest event of the session; none before the first.
    pub fn last_event(&self) -> Option<EventId> {
        let seq = self.fields.number("seq");
        (seq > 0).then(|| EventId {
            generation: self.fields.number("gen"),
            seq,
        })
    }
}
