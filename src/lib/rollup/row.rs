//! What a record of `audit.logs` holds, if it is to be believed. Pure.

use super::layout::has_place;
use crate::kafka::Incoming;
use crate::messages::{AuditRecord, FailureClass, SCHEMA_VERSION, Signer};

/// Verifies, then decodes.
pub(super) fn read(
    record: &Incoming,
    signer: &Signer,
) -> Result<AuditRecord, (FailureClass, String)> {
    let undecodable = |error: String| (FailureClass::Undecodable, error);
    let Some(value) = &record.value else {
        return Err(undecodable("the record has no value".to_owned()));
    };
    let key = record.key.as_deref().unwrap_or_default();
    signer
        .verify(&record.full_topic, key, &record.headers, value)
        .map_err(|error| (FailureClass::Unsigned, error.to_string()))?;
    let audit: AuditRecord =
        serde_json::from_slice(value).map_err(|error| undecodable(error.to_string()))?;
    if audit.v > SCHEMA_VERSION {
        return Err(undecodable(format!("unknown schema version {}", audit.v)));
    }
    if !has_place(audit.ts) {
        return Err(undecodable(format!("no time: {}", audit.ts)));
    }
    Ok(audit)
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
        let audit = read(&incoming(RECORD), &signer()).unwrap();
        assert_eq!((audit.id.as_str(), audit.ts), ("a", 5));
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
