//! `Idempotency-Key`: what it names and what it is bound to.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// An `Idempotency-Key` header that is not 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Idempotency-Key must be 1 to 255 visible ASCII characters")]
pub struct InvalidIdempotencyKey;

/// A client's name for a request, so that a repeat of it starts nothing twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// Reads the header, quoted (as in the IETF draft) or bare.
    pub fn parse(header: &[u8]) -> Result<Self, InvalidIdempotencyKey> {
        let text = std::str::from_utf8(header).map_err(|_| InvalidIdempotencyKey)?;
        let text = text
            .strip_prefix('"')
            .and_then(|t| t.strip_suffix('"'))
            .unwrap_or(text);
        let visible = text.bytes().all(|b| b.is_ascii_graphic());
        if visible && (1..=255).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIdempotencyKey)
        }
    }

    /// The claim's name: a hash over method, route template and key. The tenant is part of the Redis
    /// key.
    pub fn claim(&self, method: &str, route: &str) -> String {
        hash(&[method.as_bytes(), route.as_bytes(), self.0.as_bytes()])
    }
}

/// A hash of what a request asks for: body (object keys in order, whatever their order was) and query.
pub fn fingerprint(body: &Value, query: &str) -> String {
    let mut canonical = String::new();
    write_canonical(body, &mut canonical);
    hash(&[canonical.as_bytes(), query.as_bytes()])
}

fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(name, _)| name.as_str());
            out.push('{');
            for (name, value) in members {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn hash(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    hex::encode(digest.finalize())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quoted_and_bare_are_the_same_key() {
        assert_eq!(
            IdempotencyKey::parse(b"\"k-1\""),
            IdempotencyKey::parse(b"k-1")
        );
        for wrong in [&b""[..], b"\"\"", b"a b", "é".as_bytes(), &[b'a'; 256]] {
            assert!(IdempotencyKey::parse(wrong).is_err());
        }
    }

    #[test]
    fn the_claim_depends_on_route_and_method() {
        let key = IdempotencyKey::parse(b"k").unwrap();
        assert_ne!(key.claim("POST", "/v1/plan"), key.claim("POST", "/v1/runs"));
        assert_ne!(key.claim("POST", "/v1/plan"), key.claim("PUT", "/v1/plan"));
    }

    #[test]
    fn member_order_does_not_matter_and_content_does() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":[1,2]}}"#).unwrap();
        let two: Value = serde_json::from_str(r#"{"b":{"c":[1,2]},"a":1}"#).unwrap();
        assert_eq!(fingerprint(&one, ""), fingerprint(&two, ""));
        assert_ne!(
            fingerprint(&one, ""),
            fingerprint(&json!({"a":1,"b":{"c":[2,1]}}), "")
        );
        assert_ne!(fingerprint(&one, ""), fingerprint(&one, "x=1"));
        assert_ne!(
            fingerprint(&json!({"a":"1"}), ""),
            fingerprint(&json!({"a":1}), "")
        );
    }
}
