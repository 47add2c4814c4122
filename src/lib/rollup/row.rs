//! What a record of `audit.logs` holds, if it is to be believed. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::layout::has_place;
use super::parquet::has_column;
use crate::kafka::Incoming;
use crate::messages::{self, AuditRecord, FailureClass, Signer};

/// An audit record as a file keeps it.
#[derive(Debug)]
pub(super) struct Row {
    /// What this version knows of it.
    pub(super) audit: AuditRecord,
    /// The fields that have no column, as a JSON object: records may come from a later version.
    pub(super) extra: Option<String>,
}

/// Verifies, then decodes.
pub(super) fn read(record: &Incoming, signer: &Signer) -> Result<Row, (FailureClass, String)> {
    let undecodable = |error: String| (FailureClass::Undecodable, error);
    let Some(value) = &record.value else {
        return Err(undecodable("the record has no value".to_owned()));
    };
    let key = record.key.as_deref().unwrap_or_default();
    signer
        .verify(&record.full_topic, key, &record.headers, value)
        .map_err(|error| (FailureClass::Unsigned, error.to_string()))?;
    let audit: AuditRecord =
        messages::read(value).map_err(|error| (error.class(), error.to_string()))?;
    if !has_place(audit.ts) {
        return Err(undecodable(format!("no time: {}", audit.ts)));
    }
    let extra = extra(value).map_err(|error| undecodable(error.to_string()))?;
    Ok(Row { audit, extra })
}

/// The members without a column of their own.
fn extra(value: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_slice(value)?;
    let without = |name: &str| name != "v" && !has_column(name);
    let extra: BTreeMap<_, _> = members
        .into_iter()
        .filter(|(name, _)| without(name))
        .collect();
    if extra.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(&extra).map(Some)
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;

    use super::*;
    use crate::ids::TenantId;
    use crate::messages::{Headers, Outgoing, Topic};

    const RECORD: &str = r#"{"v":1,"id":"a","ts":5,"action":"request","decision":"allowed"}"#;

    fn signer() -> Signer {
        Signer::parse(&format!("a:{}", STANDARD.encode([7; 32]))).unwrap()
    }

    fn incoming(value: &str) -> Incoming {
        let outgoing = Outgoing {
            topic: Topic::AuditLogs,
            key: "system".to_owned(),
            ce_id: "a".to_owned(),
            ce_type: "agenthub.audit".to_owned(),
            tenant: TenantId::system(),
            run_id: None,
            not_after_ms: None,
            traceparent: None,
            value: Bytes::from(value.to_owned()),
        };
        let headers = signer().headers("audit.logs", &outgoing, "test", "2026-01-01T00:00:00Z");
        Incoming {
            topic: Topic::AuditLogs,
            full_topic: "audit.logs".into(),
            partition: 0,
            offset: 1,
            timestamp_ms: 0,
            key: Some(Bytes::from_static(b"system")),
            value: Some(outgoing.value),
            headers: headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), Bytes::from(value)))
                .collect(),
            generation: 1,
        }
    }

    #[test]
    fn a_signed_record_is_read() {
        let row = read(&incoming(RECORD), &signer()).unwrap();
        assert_eq!(
            (row.audit.id.as_str(), row.audit.ts, row.extra),
            ("a", 5, None)
        );
    }

    #[test]
    fn what_has_no_column_is_kept() {
        let later = RECORD.replace("{\"v\"", "{\"later\":{\"a\": [1]},\"b\":null,\"v\"");
        let row = read(&incoming(&later), &signer()).unwrap();
        assert_eq!(
            row.extra.as_deref(),
            Some(r#"{"b":null,"later":{"a": [1]}}"#)
        );
        // Nor does it take the place of a column that only the roll-up fills.
        let forged = RECORD.replace("{\"v\"", "{\"offset\":7,\"row_hash\":\"x\",\"v\"");
        assert_eq!(read(&incoming(&forged), &signer()).unwrap().extra, None);
    }

    #[test]
    fn others_are_refused_by_class() {
        let class = |record: &Incoming| read(record, &signer()).unwrap_err().0;
        for value in [
            "",
            "{}",
            &RECORD.replace("\"v\":1", "\"v\":2"),
            &RECORD.replace("\"ts\":5", "\"ts\":18446744073709551615"),
        ] {
            assert_eq!(
                class(&incoming(value)),
                FailureClass::Undecodable,
                "{value}"
            );
        }
        let none = Incoming {
            value: None,
            ..incoming(RECORD)
        };
        assert_eq!(class(&none), FailureClass::Undecodable);
        let unsigned = Incoming {
            headers: Headers::new(),
            ..incoming(RECORD)
        };
        assert_eq!(class(&unsigned), FailureClass::Unsigned);
        let changed = Incoming {
            value: Some(Bytes::from(RECORD.replace("allowed", "refused"))),
            ..incoming(RECORD)
        };
        assert_eq!(class(&changed), FailureClass::Unsigned);
    }
}
