//! What an event tells: JSON in the clear, or sealed with its session's data key.
//!
//! One wire form for both: `data` is a JSON object in the clear, or a JSON string, which is that object's
//! text, sealed. The ledger's scripts and Kafka carry either as it is and look into neither.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::privacy::mask::Masked;
use crate::privacy::{DataKey, SealError, Sealed};

/// `data` of an event, as it is kept. Only what holds nothing of a client's goes in the clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Told(String);

impl Told {
    /// Sealed: what may hold anything of a goal, a context, arguments, results or an answer. `masked` is a
    /// JSON object's text.
    pub fn sealed(key: &DataKey, masked: &Masked<String>) -> Self {
        // Base64 needs no escapes.
        Self(format!("\"{}\"", key.seal(masked.as_bytes()).as_str()))
    }

    /// In the clear: names, numbers and texts of the runtime's own. `data` is a JSON object.
    pub fn plain(data: &Value) -> Self {
        Self(data.to_string())
    }

    /// Nothing but that it happened.
    pub fn nothing() -> Self {
        Self("{}".to_owned())
    }

    /// The JSON text, as the ledger takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `data` of an event, as it was kept.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(untagged)]
pub enum Data {
    /// A JSON object, in the clear.
    Clear(#[schemars(with = "serde_json::Map<String, Value>")] String),
    /// A JSON object's text, sealed with the session's data key.
    Sealed(Sealed),
}

impl Data {
    /// Reads `data`, or what a run keeps of its last event.
    pub fn of(data: &RawValue) -> Self {
        Self::of_text(data.get())
    }

    /// As [`Data::of`], of JSON text.
    pub fn of_text(text: &str) -> Self {
        match serde_json::from_str::<String>(text) {
            Ok(sealed) => Self::Sealed(Sealed::from_stored(sealed)),
            Err(_) => Self::Clear(text.to_owned()),
        }
    }

    /// The JSON object's text. What is in the clear needs no key.
    ///
    /// # Errors
    /// It is sealed, and does not open with `key`, or there is none: its session was erased.
    pub fn open(&self, key: Option<&DataKey>) -> Result<Cow<'_, str>, SealError> {
        match self {
            Self::Clear(text) => Ok(Cow::Borrowed(text)),
            Self::Sealed(sealed) => {
                let bytes = key.ok_or(SealError::DoesNotOpen)?.open(sealed)?;
                let text = String::from_utf8(bytes).map_err(|_| SealError::Malformed)?;
                Ok(Cow::Owned(text))
            }
        }
    }

    /// The JSON object; null when it does not open.
    pub fn value(&self, key: Option<&DataKey>) -> Value {
        let opened = self.open(key).ok();
        opened
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;
    use crate::ids::SessionId;
    use crate::privacy::KeyRing;
    use crate::privacy::mask::Masker;

    fn key() -> DataKey {
        let ring = KeyRing::parse(&format!("m:{}", STANDARD.encode([7; 32]))).unwrap();
        ring.generate(&"acme".parse().unwrap(), &SessionId::generate())
            .0
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let (own, other) = (key(), key());
        let data = json!({ "args": { "name": "Ottoline \"Quill\"\n" } });
        let masker = Masker::new(&[]).unwrap();
        let told = Told::sealed(&own, &masker.json(&data).to_text());
        assert!(!told.as_str().contains("Ottoline"), "{told:?}");
        let raw: Box<RawValue> = serde_json::from_str(told.as_str()).unwrap();
        let kept = Data::of(&raw);
        assert_eq!(kept.value(Some(&own)), data);
        assert_eq!(kept.open(Some(&other)), Err(SealError::DoesNotOpen));
        assert_eq!(kept.open(None), Err(SealError::DoesNotOpen));
        assert_eq!(kept.value(None), Value::Null);
    }

    #[test]
    fn what_is_in_the_clear_needs_no_key() {
        let told = Told::plain(&json!({ "steps": 2 }));
        assert_eq!(told.as_str(), r#"{"steps":2}"#);
        assert_eq!(
            Data::of_text(told.as_str()).open(None).unwrap(),
            r#"{"steps":2}"#
        );
    }
}
