//! Records in a file: one JSON object a line, every byte of them, so that they can be put onto their
//! topic again. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::kafka::StoredRecord;

const VERSION: u16 = 1;

/// Why a line is not a saved record.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It is not the JSON of one.
    #[error("not a saved record: {0}")]
    Json(#[from] serde_json::Error),
    /// It was written by a later version.
    #[error("a saved record of version {0}, which this build does not know")]
    Version(u16),
    /// A part of it is not base64.
    #[error("a saved record whose {0} is not base64")]
    Base64(&'static str),
}

/// A saved record. Payloads that were sealed stay so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    v: u16,
    /// The topic's name on the broker, which the record's signature covers.
    pub topic: String,
    partition: i32,
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, Option<String>)>,
}

impl Saved {
    /// What is kept of a record of `topic`.
    pub fn new(topic: &str, record: &StoredRecord) -> Self {
        let text = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| STANDARD.encode(bytes));
        let headers = record.headers.iter();
        Self {
            v: VERSION,
            topic: topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: text(&record.key),
            value: text(&record.value),
            headers: headers
                .map(|(name, value)| (name.clone(), text(value)))
                .collect(),
        }
    }

    /// Reads a line.
    pub fn parse(line: &[u8]) -> Result<Self, SavedError> {
        let saved: Self = serde_json::from_slice(line)?;
        if saved.v > VERSION {
            return Err(SavedError::Version(saved.v));
        }
        Ok(saved)
    }

    /// The record, as it was.
    pub fn record(&self) -> Result<StoredRecord, SavedError> {
        let bytes = |text: &Option<String>, what: &'static str| {
            let decoded = text.as_ref().map(|text| STANDARD.decode(text));
            let decoded = decoded.transpose().map_err(|_| SavedError::Base64(what))?;
            Ok::<_, SavedError>(decoded.map(Bytes::from))
        };
        let headers = self.headers.iter();
        Ok(StoredRecord {
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: bytes(&self.key, "key")?,
            value: bytes(&self.value, "value")?,
            headers: headers
                .map(|(name, value)| Ok((name.clone(), bytes(value, "header")?)))
                .collect::<Result<_, SavedError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_byte_for_byte() {
        let bytes = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
        let record = StoredRecord {
            partition: 1,
            offset: 42,
            timestamp_ms: Some(5),
            key: bytes(b"\xff\x00"),
            value: None,
            headers: vec![
                ("twice".to_owned(), bytes(b"1")),
                ("twice".to_owned(), bytes(b"\xfe")),
                ("null".to_owned(), None),
                ("empty".to_owned(), bytes(b"")),
            ],
        };
        let line = serde_json::to_vec(&Saved::new("t.plan.commands", &record)).unwrap();
        let saved = Saved::parse(&line).unwrap();
        assert_eq!(saved.topic, "t.plan.commands");
        let back = saved.record().unwrap();
        assert_eq!((back.partition, back.offset), (1, 42));
        assert_eq!((&back.key, &back.value), (&record.key, &record.value));
        assert_eq!(back.headers, record.headers);
    }

    #[test]
    fn what_is_none_is_refused_with_the_reason() {
        let error = |line: &str| match Saved::parse(line.as_bytes()) {
            Ok(saved) => saved.record().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        let line = |v: u16, key: &str| {
            format!(
                r#"{{"v":{v},"topic":"t","partition":0,"offset":0,"timestamp_ms":null,"key":"{key}","value":null,"headers":[]}}"#
            )
        };
        assert!(error("{}").contains("not a saved record"));
        assert!(error(&line(2, "")).contains("version 2"));
        assert!(error(&line(1, "!")).contains("key is not base64"));
    }
}
