//! A record as people see it. Pure.

use serde::Serialize;
use serde_json::Value;

use crate::kafka::StoredRecord;
use crate::messages::header;
use crate::privacy::mask::Masker;

/// A record for a terminal, or for programs as JSON.
#[derive(Debug, Serialize)]
pub struct View {
    /// The topic's name on the broker.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// When it was made (RFC 3339).
    pub time: Option<String>,
    /// The key.
    pub key: Option<String>,
    /// The headers but the signature.
    pub headers: Vec<(String, Option<String>)>,
    /// The value: JSON where it is JSON, else text; null where it is null.
    pub value: Value,
}

impl View {
    /// What is shown of a record; `value` is what was made of its JSON, if it is JSON. Masked, unless
    /// there is no masker.
    pub fn new(
        topic: &str,
        record: &StoredRecord,
        value: Option<Value>,
        masker: Option<&Masker>,
    ) -> Self {
        let shown = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            match masker {
                Some(masker) => masker.text(&text).to_string(),
                None => text.into_owned(),
            }
        };
        let value = match (value, masker) {
            (Some(value), Some(masker)) => masker.json(&value).into_inner(),
            (Some(value), None) => value,
            (None, _) => record
                .value
                .as_deref()
                .map_or(Value::Null, |v| shown(v).into()),
        };
        let headers = record.headers.iter();
        Self {
            topic: topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            time: record
                .timestamp_ms
                .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
                .map(|time| time.to_string()),
            key: record.key.as_deref().map(shown),
            headers: headers
                .filter(|(name, _)| name != header::SIGNATURE)
                .map(|(name, value)| (name.clone(), value.as_deref().map(shown)))
                .collect(),
            value,
        }
    }

    /// The text of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(n, _)| n == name)?;
        value.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::RunId;
    use crate::replay::selection::tests::record;

    #[test]
    fn what_is_shown_is_masked_and_without_the_signature() {
        let mut record = record(&RunId::generate(), "mail who@example.org");
        let value = bytes::Bytes::from_static(b"f00d");
        record
            .headers
            .push((header::SIGNATURE.to_owned(), Some(value)));
        let masker = Masker::new(&[]).unwrap();
        let opened = json!({ "goal": "write to who@example.org" });
        for value in [Some(opened.clone()), None] {
            let view = View::new("t", &record, value, Some(&masker));
            let text = serde_json::to_string(&view).unwrap();
            assert!(
                !text.contains("example.org") && !text.contains("f00d"),
                "{text}"
            );
            assert_eq!(view.header(header::TENANT), Some("acme"));
            assert_eq!(view.time.as_deref(), Some("1970-01-01T00:00:01Z"));
        }
        let view = View::new("t", &record, Some(opened), None);
        assert_eq!(view.value["goal"], "write to who@example.org");
        record.value = None;
        assert_eq!(View::new("t", &record, None, None).value, Value::Null);
    }
}
