//! The one door through which opened payloads leave.

use serde_json::Value;

use crate::privacy::{DataKey, Sealed};

/// Makes an opened payload fit to leave the system.
pub(super) fn expose(value: Value) -> Value {
    value
}

/// As [`expose`], for a text.
pub(super) fn expose_text(text: String) -> String {
    match expose(Value::String(text)) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A sealed JSON value, opened and exposed; `None` when it does not open.
pub(super) fn open(key: &DataKey, sealed: &Sealed) -> Option<Value> {
    let plain = plain(key, sealed)?;
    serde_json::from_slice(&plain).ok().map(expose)
}

/// A sealed text, opened and exposed; `None` when it does not open.
pub(super) fn open_text(key: &DataKey, sealed: &Sealed) -> Option<String> {
    let plain = plain(key, sealed)?;
    String::from_utf8(plain).ok().map(expose_text)
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
