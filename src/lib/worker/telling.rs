//! What a run tells: masked, and short enough for a stream.

use serde_json::{Value, json};

use super::owned::Owned;

/// Bytes of data that an event carries. What is longer is in the run itself.
const MAX_EVENT_DATA: usize = 16 * 1024;
/// Bytes of it that are shown instead.
const PREVIEW: usize = 2 * 1024;

impl Owned {
    /// JSON text of an event's data, masked.
    pub(super) fn told(&self, data: &Value) -> String {
        let text = self.context.masker.json(data).to_string();
        if text.len() <= MAX_EVENT_DATA {
            return text;
        }
        let preview = &text[..text.floor_char_boundary(PREVIEW)];
        json!({ "truncated": true, "bytes": text.len(), "preview": preview }).to_string()
    }
}
