//! A dead letter as people see it: decoded where it is text, and masked. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use crate::ids::TenantId;
use crate::messages::{FailureClass, LetterId, header};
use crate::privacy::mask::Masker;
use crate::store::{IndexedLetter, LetterGroup};

/// Why a run became a letter, in short.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = EarlierLetter)]
pub struct Earlier {
    /// The letter.
    pub id: String,
    /// Why its run was given up.
    #[schema(value_type = String)]
    pub class: FailureClass,
    /// What was wrong.
    pub error: String,
    /// Its run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// When it was given up (RFC 3339).
    pub last: String,
}

/// What was done about a letter.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = LetterRedriven)]
pub struct RedrivenView {
    /// The run that it started.
    pub run_id: String,
    /// When (RFC 3339).
    pub at: String,
}

/// Letters about equal failures.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = LetterGroup)]
pub struct GroupView {
    /// What they have in common.
    pub fingerprint: String,
    /// Whose they are.
    pub tenant: String,
    /// Why they were given up.
    #[schema(value_type = String)]
    pub class: FailureClass,
    /// The stable name of the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The tool that failed, or `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What was wrong with the last of them.
    pub error: String,
    /// Letters in the index.
    pub count: u64,
    /// When the first of them was given up (RFC 3339).
    pub first: String,
    /// And the last.
    pub last: String,
    /// The last of them.
    pub latest: String,
}

impl GroupView {
    /// The group of a tenant, masked.
    pub fn new(tenant: &TenantId, group: &LetterGroup, masker: &Masker) -> Self {
        let letter = &group.latest.letter;
        let safe = |text: &String| masker.text(text).to_string();
        Self {
            fingerprint: group.fingerprint.clone(),
            tenant: tenant.to_string(),
            class: letter.class,
            code: letter.end.code.as_ref().map(safe),
            tool: letter.end.tool.as_ref().map(safe),
            error: masker.text(&letter.error).to_string(),
            count: group.count,
            first: time(group.first_ms),
            last: time(group.last_ms),
            latest: LetterId::from(letter).to_string(),
        }
    }
}

/// A letter for a list or a page.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Letter)]
pub struct View {
    /// The place of the record: topic, partition and offset, with dots between them.
    pub id: String,
    /// What letters about equal failures have in common.
    pub group: String,
    /// Why it was given up.
    #[schema(value_type = String)]
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
    /// The stable name of the reason why the run failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The tool that failed, or `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The step that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// State of the tool's circuit breaker when the run was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// The run that its run had gone on after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<String>,
    /// What was done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redriven: Option<RedrivenView>,
    /// The letters of the runs before it in a chain of redrives, the latest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redrives: Vec<Earlier>,
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
        let safe = |text: &String| masker.text(text).to_string();
        let headers = letter.headers.iter();
        Self {
            id: LetterId::from(letter).to_string(),
            group: indexed.group.clone(),
            class: letter.class,
            error: masker.text(&letter.error).to_string(),
            tenant: letter.tenant.as_ref().map(ToString::to_string),
            run_id: letter.run_id.as_ref().map(ToString::to_string),
            attempts: letter.attempts,
            first: time(letter.first_ms),
            last: time(letter.last_ms),
            worker: letter.worker.clone(),
            code: letter.end.code.as_ref().map(safe),
            tool: letter.end.tool.as_ref().map(safe),
            step_id: letter.end.step_id.as_ref().map(safe),
            breaker: letter.end.breaker.clone(),
            retry_of: letter.end.retry_of.as_ref().map(ToString::to_string),
            redriven: indexed.redriven.as_ref().map(|redriven| RedrivenView {
                run_id: redriven.run.to_string(),
                at: time(redriven.at_ms),
            }),
            redrives: Vec::new(),
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

    /// With the letters that came before it in a chain of redrives.
    pub fn with_history(self, history: &[IndexedLetter], masker: &Masker) -> Self {
        let earlier = |indexed: &IndexedLetter| Earlier {
            id: LetterId::from(&indexed.letter).to_string(),
            class: indexed.letter.class,
            error: masker.text(&indexed.letter.error).to_string(),
            run_id: indexed.letter.run_id.as_ref().map(ToString::to_string),
            last: time(indexed.letter.last_ms),
        };
        Self {
            redrives: history.iter().map(earlier).collect(),
            ..self
        }
    }
}

/// Text is shown, JSON by the rules for JSON; bytes that are no text become U+FFFD.
fn shown(base64: &str, masker: &Masker) -> String {
    let bytes = STANDARD.decode(base64).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    masker.json_text(&text).into_inner()
}

pub(super) fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "unknown".to_owned(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{DeadLetter, RunEnd};

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
            end: RunEnd::default(),
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
