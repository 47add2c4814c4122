//! A dead letter as people see it: decoded where it is text, and masked. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::messages::{FailureClass, header};
use crate::privacy::mask::Masker;
use crate::store::IndexedLetter;

/// A letter for a list or a page.
#[derive(Debug, Serialize)]
pub struct View {
    /// The place of the record: topic, partition and offset.
    pub id: String,
    /// Why it was given up.
    pub class: FailureClass,
    /// What was wrong.
    pub error: String,
    /// Whose it is; absent when nobody vouches for the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The run, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// Times that it was tried.
    pub attempts: u32,
    /// When the record was made (RFC 3339).
    pub first: String,
    /// When it was given up.
    pub last: String,
    /// The process that gave it up.
    pub worker: String,
    /// Its trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The record's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The record's headers but its signature, as far as the index has them.
    pub headers: Vec<(String, String)>,
    /// The record's value, as far as the index has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Bytes that the value has.
    pub value_bytes: u64,
    /// Whether `value` is only the beginning.
    pub value_cut: bool,
    /// Where the letter itself is on `dead.letter`, with every byte: the partition.
    pub letter_partition: i32,
    /// And the offset.
    pub letter_offset: i64,
}

impl View {
    /// The letter, masked.
    pub fn new(indexed: &IndexedLetter, masker: &Masker) -> Self {
        let letter = &indexed.letter;
        let shown = |base64: &String| shown(base64, masker);
        let headers = letter.headers.iter();
        Self {
            id: letter.id(),
            class: letter.class,
            error: masker.text(&letter.error).to_string(),
            tenant: letter.tenant.as_ref().map(ToString::to_string),
            run_id: letter.run_id.as_ref().map(ToString::to_string),
            attempts: letter.attempts,
            first: time(letter.first_ms),
            last: time(letter.last_ms),
            worker: letter.worker.clone(),
            traceparent: letter.traceparent.clone(),
            key: letter.key.as_ref().map(shown),
            headers: headers
                .filter(|(name, _)| name != header::SIGNATURE)
                .map(|(name, value)| (masker.text(name).to_string(), shown(value)))
                .collect(),
            value: letter.value.as_ref().map(shown),
            value_bytes: indexed.value_bytes,
            value_cut: indexed.is_cut(),
            letter_partition: indexed.partition,
            letter_offset: indexed.offset,
        }
    }
}

/// Text is shown, JSON by the rules for JSON; bytes that are no text become U+FFFD.
fn shown(base64: &str, masker: &Masker) -> String {
    let bytes = STANDARD.decode(base64).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    masker.json_text(&text).into_inner()
}

fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "unknown".to_owned(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::DeadLetter;

    #[test]
    fn what_is_shown_is_masked_and_without_the_signature() {
        let base64 = |text: &str| STANDARD.encode(text);
        let letter = DeadLetter {
            v: 1,
            topic: "t".to_owned(),
            partition: 0,
            offset: 1,
            key: Some(base64("who@example.org")),
            value: Some(base64(r#"{"password":"sesame","mail":"who@example.org"}"#)),
            headers: vec![
                (header::SIGNATURE.to_owned(), base64("f00d")),
                ("from".to_owned(), base64("who@example.org")),
            ],
            class: FailureClass::Unsigned,
            error: "no".to_owned(),
            attempts: 1,
            first_ms: 0,
            last_ms: u64::MAX,
            worker: "w".to_owned(),
            tenant: None,
            run_id: None,
            traceparent: None,
        };
        // A value so large that the index has only its beginning, which is no JSON any more.
        let long = format!(r#"{{"password":"sesame","pad":"{}"}}"#, "x".repeat(9000));
        let mut cut = letter.clone();
        cut.value = Some(base64(&long));
        let masker = Masker::new(&[]).unwrap();
        let view = View::new(&IndexedLetter::new(cut, 2, 3), &masker);
        assert!(view.value_cut && !view.value.unwrap().contains("sesame"));
        let view = View::new(&IndexedLetter::new(letter, 2, 3), &masker);
        let json = serde_json::to_string(&view).unwrap();
        for secret in ["sesame", "example.org", "f00d", &base64("sesame")] {
            assert!(!json.contains(secret), "{secret}: {json}");
        }
        assert_eq!(
            (view.first.as_str(), view.last.as_str()),
            ("1970-01-01T00:00:00Z", "unknown")
        );
        assert_eq!((view.letter_partition, view.letter_offset), (2, 3));
    }
}
