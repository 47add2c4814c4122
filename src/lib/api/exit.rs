//! The one door through which opened payloads, and texts that clients gave, leave.

use std::sync::Arc;

use serde_json::Value;

use crate::privacy::mask::Masker;
use crate::privacy::{DataKey, Sealed};

/// Masks what leaves.
#[derive(Debug, Clone)]
pub(super) struct Exit {
    masker: Arc<Masker>,
}

impl Exit {
    pub(super) fn new(masker: Arc<Masker>) -> Self {
        Self { masker }
    }

    /// A value, fit to leave.
    pub(super) fn json(&self, value: &Value) -> Value {
        self.masker.json(value).into_inner()
    }

    /// A text, fit to leave.
    pub(super) fn text(&self, text: &str) -> String {
        self.masker.text(text).into_inner().into_owned()
    }

    /// A sealed JSON value, opened; `None` when it does not open.
    pub(super) fn open(&self, key: &DataKey, sealed: &Sealed) -> Option<Value> {
        open(key, sealed).map(|value| self.json(&value))
    }

    /// A sealed text, opened; `None` when it does not open.
    pub(super) fn open_text(&self, key: &DataKey, sealed: &Sealed) -> Option<String> {
        let plain = String::from_utf8(plain(key, sealed)?).ok()?;
        Some(self.text(&plain))
    }
}

/// A sealed JSON value, opened and not masked: to look at, not to send.
pub(super) fn open(key: &DataKey, sealed: &Sealed) -> Option<Value> {
    serde_json::from_slice(&plain(key, sealed)?).ok()
}

fn plain(key: &DataKey, sealed: &Sealed) -> Option<Vec<u8>> {
    match key.open(sealed) {
        Ok(plain) => Some(plain),
        Err(error) => {
            tracing::error!(%error, "a stored payload does not open");
            None
        }
    }
}
