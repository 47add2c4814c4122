//! Signatures of Kafka records and API keys: HMAC-SHA256 (RFC 2104) by rotating secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Headers, Outgoing, Topic, header};

/// Why a signature was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The record carries no signature, or one without a key id.
    #[error("the record is not signed")]
    Missing,
    /// No accepted secret has the named id.
    #[error("the record is signed with an unknown secret")]
    UnknownKey,
    /// The signature does not fit the record.
    #[error("the record's signature does not fit")]
    Mismatch,
}

/// Signs with the current secret and verifies with every accepted one.
#[derive(Clone)]
pub struct Signer {
    /// `(id, secret)`; the first is the current one.
    secrets: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.secrets.iter().map(|(id, _)| id))
            .finish()
    }
}

/// Marks what a signature is for, so that one kind never passes as another.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    Record,
    ApiKey,
    Input,
}

impl Signer {
    /// Reads `<id>:<base64>,<id>:<base64>,…`; the first signs, all verify.
    ///
    /// # Errors
    /// A text that says what is wrong with which position; it never holds a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut secrets = Vec::new();
        for (position, part) in text.split(',').enumerate() {
            let wrong = |what: &str| format!("secret {}: {what}", position + 1);
            let (id, secret) = part
                .trim()
                .split_once(':')
                .ok_or_else(|| wrong("no `<id>:`"))?;
            let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if id.is_empty() || !id.bytes().all(label) {
                return Err(wrong("the id is not of lower-case letters and digits"));
            }
            let secret = STANDARD.decode(secret).map_err(|_| wrong("not base64"))?;
            if secret.len() < 32 {
                return Err(wrong("shorter than 32 bytes"));
            }
            secrets.push((id.to_owned(), secret));
        }
        Ok(Self { secrets })
    }

    /// The id of the secret that signs and the signature of `record`, in hexadecimal.
    pub fn sign(&self, topic: &str, record: &Outgoing) -> (&str, String) {
        let (id, secret) = &self.secrets[0];
        let run_id = record.run_id.as_ref().map_or("", |id| id.as_str());
        let not_after = record
            .not_after_ms
            .map(|ms| ms.to_string())
            .unwrap_or_default();
        let parts = [
            topic.as_bytes(),
            record.key.as_bytes(),
            record.tenant.as_str().as_bytes(),
            run_id.as_bytes(),
            record.ce_id.as_bytes(),
            not_after.as_bytes(),
            &record.value,
        ];
        (
            id,
            hex::encode(mac(secret, Purpose::Record, &parts).finalize().into_bytes()),
        )
    }

    /// Checks the signature of a received record, in constant time.
    ///
    /// `topic` is the name on the broker, so that a record copied to another topic or installation
    /// does not verify.
    pub fn verify(
        &self,
        topic: &str,
        key: &[u8],
        headers: &Headers,
        value: &[u8],
    ) -> Result<(), SignatureError> {
        let get = |name: &str| headers.get(name).map_or(&b""[..], |v| v);
        let signature =
            hex::decode(get(header::SIGNATURE)).map_err(|_| SignatureError::Mismatch)?;
        if signature.is_empty() {
            return Err(SignatureError::Missing);
        }
        let kid = get(header::KEY_ID);
        let secret = self.secrets.iter().find(|(id, _)| id.as_bytes() == kid);
        let (_, secret) = secret.ok_or(SignatureError::UnknownKey)?;
        let parts = [
            topic.as_bytes(),
            key,
            get(header::TENANT),
            get(header::CE_SUBJECT),
            get(header::CE_ID),
            get(header::NOT_AFTER),
            value,
        ];
        mac(secret, Purpose::Record, &parts)
            .verify_slice(&signature)
            .map_err(|_| SignatureError::Mismatch)
    }

    /// Signs the text of an API key with the current secret; 32 bytes.
    pub fn sign_api_key(&self, text: &str) -> [u8; 32] {
        mac(&self.secrets[0].1, Purpose::ApiKey, &[text.as_bytes()])
            .finalize()
            .into_bytes()
            .into()
    }

    /// A keyed hash of what a tenant sent, in hexadecimal, by the current secret: equal inputs can be
    /// told, and nothing can be guessed from it without the secret.
    pub fn hash_input(&self, tenant: &str, input: &[u8]) -> String {
        let parts = [tenant.as_bytes(), input];
        hex::encode(
            mac(&self.secrets[0].1, Purpose::Input, &parts)
                .finalize()
                .into_bytes(),
        )
    }

    /// Whether any accepted secret made `signature` over `text`. Takes the same time whichever of
    /// them fits.
    pub fn verify_api_key(&self, text: &str, signature: &[u8]) -> bool {
        let fits = |(_, secret): &(String, Vec<u8>)| {
            mac(secret, Purpose::ApiKey, &[text.as_bytes()])
                .verify_slice(signature)
                .is_ok()
        };
        self.secrets
            .iter()
            .fold(false, |any, secret| any | fits(secret))
    }
}

/// Each part is preceded by its length, so that no two lists of parts give the same bytes.
fn mac(secret: &[u8], purpose: Purpose, parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret)
        .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    mac.update(match purpose {
        Purpose::Record => &b"agenthub.record.v1"[..],
        Purpose::ApiKey => b"agenthub.key.v1",
        Purpose::Input => b"agenthub.input.v1",
    });
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac
}

impl Signer {
    /// The headers that a record of `topic` (its name on the broker) is sent with, signature
    /// included. `source` is the process, `time` RFC 3339.
    pub fn headers(
        &self,
        topic: &str,
        record: &Outgoing,
        source: &str,
        time: &str,
    ) -> Vec<(&'static str, String)> {
        let (kid, signature) = self.sign(topic, record);
        let mut headers = vec![
            (header::CE_SPECVERSION, "1.0".to_owned()),
            (header::CE_ID, record.ce_id.clone()),
            (header::CE_TYPE, record.ce_type.clone()),
            (header::CE_SOURCE, source.to_owned()),
            (header::CE_TIME, time.to_owned()),
            (header::TENANT, record.tenant.as_str().to_owned()),
            (header::KEY_ID, kid.to_owned()),
            (header::SIGNATURE, signature),
        ];
        if let Some(run_id) = &record.run_id {
            headers.push((header::CE_SUBJECT, run_id.as_str().to_owned()));
        }
        if let Some(not_after) = record.not_after_ms {
            headers.push((header::NOT_AFTER, not_after.to_string()));
        }
        if let Some(traceparent) = &record.traceparent {
            headers.push((header::TRACEPARENT, traceparent.clone()));
        }
        headers
    }
}

impl Topic {
    /// Whether records of this topic make workers do something: those must be verified before use.
    pub fn carries_commands(self) -> bool {
        matches!(self, Self::PlanCommands | Self::ExecuteCommands)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::ids::RunId;

    fn signer(ids: &[&str]) -> Signer {
        let secret = |id: &str| format!("{id}:{}", STANDARD.encode(id.repeat(32)));
        Signer::parse(
            &ids.iter()
                .map(|id| secret(id))
                .collect::<Vec<_>>()
                .join(","),
        )
        .unwrap()
    }

    fn record() -> Outgoing {
        Outgoing {
            topic: Topic::PlanCommands,
            key: "k".into(),
            ce_id: "run/plan/0/0".into(),
            ce_type: "agenthub.command.plan".into(),
            tenant: "acme".parse().unwrap(),
            run_id: Some(RunId::generate()),
            not_after_ms: Some(7),
            traceparent: None,
            value: Bytes::from_static(b"{}"),
        }
    }

    fn received(signer: &Signer, record: &Outgoing) -> Headers {
        let headers = signer.headers("t", record, "test", "2026-01-01T00:00:00Z");
        headers
            .into_iter()
            .map(|(k, v)| (k.to_owned(), Bytes::from(v)))
            .collect()
    }

    #[test]
    fn rotation_keeps_old_signatures_valid() {
        let headers = received(&signer(&["a"]), &record());
        assert_eq!(
            signer(&["b", "a"]).verify("t", b"k", &headers, b"{}"),
            Ok(())
        );
        assert_eq!(
            signer(&["b"]).verify("t", b"k", &headers, b"{}"),
            Err(SignatureError::UnknownKey)
        );
    }

    #[test]
    fn every_signed_part_counts() {
        let signer = signer(&["a"]);
        let headers = received(&signer, &record());
        let mismatch = Err(SignatureError::Mismatch);
        assert_eq!(signer.verify("u", b"k", &headers, b"{}"), mismatch);
        assert_eq!(signer.verify("t", b"l", &headers, b"{}"), mismatch);
        assert_eq!(signer.verify("t", b"k", &headers, b"[]"), mismatch);
        for name in [
            header::TENANT,
            header::CE_SUBJECT,
            header::CE_ID,
            header::NOT_AFTER,
        ] {
            let mut changed = headers.clone();
            changed.insert(name.to_owned(), Bytes::from_static(b"other"));
            assert_eq!(
                signer.verify("t", b"k", &changed, b"{}"),
                mismatch,
                "{name}"
            );
        }
        let mut unsigned = headers;
        unsigned.remove(header::SIGNATURE);
        assert_eq!(
            signer.verify("t", b"k", &unsigned, b"{}"),
            Err(SignatureError::Missing)
        );
    }

    #[test]
    fn short_and_malformed_secrets_are_refused() {
        for text in ["", "a", "a:!", "a:c2hvcnQ=", "A:c2hvcnQ="] {
            assert!(Signer::parse(text).is_err(), "{text}");
        }
    }
}
