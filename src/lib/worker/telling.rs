//! What a run tells: masked, short enough for a stream, and sealed, since it stays in the history and on
//! Kafka.

use serde_json::{Value, json};

use super::owned::Owned;
use crate::messages::Told;
use crate::privacy::DataKey;
use crate::privacy::mask::Masker;

/// Bytes of data that an event carries. What is longer is in the run itself.
const MAX_EVENT_DATA: usize = 16 * 1024;
/// Bytes of it that are shown instead.
const PREVIEW: usize = 2 * 1024;

/// An event's data, whole.
pub(super) fn tell(masker: &Masker, key: &DataKey, data: &Value) -> Told {
    Told::sealed(key, &masker.json(data).to_text())
}

impl Owned {
    /// An event's data; what is too long is cut.
    pub(super) fn told(&self, data: &Value) -> Told {
        let text = self.context.masker.json(data).to_text();
        Told::sealed(&self.key, &text.json_within(MAX_EVENT_DATA, PREVIEW))
    }

    /// The data of a failure, which is told nowhere else and therefore whole: a message may quote what was
    /// given.
    pub(super) fn failure(&self, code: &str, message: &str) -> Told {
        self.told_whole(&json!({ "code": code, "message": message }))
    }

    /// As [`Owned::told`], and never cut.
    pub(super) fn told_whole(&self, data: &Value) -> Told {
        tell(&self.context.masker, &self.key, data)
    }
}
