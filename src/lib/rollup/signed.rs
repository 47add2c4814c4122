//! Signed JSON: `{"signature":"<base64>","signed":{…}}`. The signature is Ed25519 over the canonical form
//! of `signed` (RFC 8785: keys sorted, no white space), so that other programs can check it: `jq -cjS
//! .signed` prints exactly what was signed. `signed` says what it is (`kind`) and by which key (`key`), so
//! that neither can be exchanged. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::keys::{AuditSigner, PublicKeys};

/// Version of these forms.
pub(super) const VERSION: u16 = 1;

/// Why a signed text is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// It does not have the form.
    #[error("not of the form of a signed object: {0}")]
    Form(String),
    /// It says that it is something else.
    #[error("it is of the kind {found}, not {expected}")]
    Kind {
        /// What was asked for.
        expected: &'static str,
        /// What it says.
        found: String,
    },
    /// It was written by a later version.
    #[error("it has the version {0}, which this program does not know")]
    Version(u64),
    /// No public key of this name is given.
    #[error("it is signed by the key {0}, whose public key is not given")]
    UnknownKey(String),
    /// The signature does not fit.
    #[error("its signature by the key {0} does not fit")]
    Signature(String),
    /// The content is as signed, but its text is not as it was written.
    #[error("its text is not as it was written")]
    NotCanonical,
}

/// What can be signed.
pub(super) trait Signable: Serialize + DeserializeOwned {
    /// What it is, in `signed.kind`.
    const KIND: &'static str;
}

/// The text of a signed object. `content` must name its kind, its version and the signer's key.
pub(super) fn sign<T: Signable>(
    content: &T,
    signer: &AuditSigner,
) -> Result<String, serde_json::Error> {
    let text = canonical(serde_json::to_value(content)?)?;
    let signature = STANDARD.encode(signer.sign(text.as_bytes()));
    Ok(format!(
        "{{\"signature\":\"{signature}\",\"signed\":{text}}}"
    ))
}

/// What a signed object holds, if one of the keys signed it. `written` is whether its text must be as
/// [`sign`] wrote it.
pub(super) fn open<T: Signable>(
    text: &[u8],
    keys: &PublicKeys,
    written: bool,
) -> Result<T, SignedError> {
    let form = |error: serde_json::Error| SignedError::Form(error.to_string());
    let mut whole: Map<String, Value> = serde_json::from_slice(text).map_err(form)?;
    let (signed, signature) = (whole.remove("signed"), whole.remove("signature"));
    let signature = signature.as_ref().and_then(Value::as_str);
    let signature = signature.and_then(|text| STANDARD.decode(text).ok());
    let signature: Option<[u8; 64]> = signature.and_then(|bytes| bytes.try_into().ok());
    let (Some(signed), Some(signature), true) = (signed, signature, whole.is_empty()) else {
        return Err(SignedError::Form("no signature".to_owned()));
    };
    let found = signed["kind"].as_str().unwrap_or_default();
    if found != T::KIND {
        return Err(SignedError::Kind {
            expected: T::KIND,
            found: found.to_owned(),
        });
    }
    match signed["v"].as_u64() {
        Some(version) if version <= u64::from(VERSION) => {}
        version => return Err(SignedError::Version(version.unwrap_or(0))),
    }
    let key = signed["key"].as_str().unwrap_or_default().to_owned();
    if !keys.has(&key) {
        return Err(SignedError::UnknownKey(key));
    }
    let message = canonical(signed.clone()).map_err(form)?;
    if !keys.verify(&key, message.as_bytes(), &signature) {
        return Err(SignedError::Signature(key));
    }
    if written {
        let signature = STANDARD.encode(signature);
        let again = json!({ "signature": signature, "signed": signed });
        if canonical(again).map_err(form)?.as_bytes() != text {
            return Err(SignedError::NotCanonical);
        }
    }
    serde_json::from_value(signed).map_err(form)
}

/// RFC 8785 for what is signed here: texts and whole numbers below 2^53.
fn canonical(mut value: Value) -> Result<String, serde_json::Error> {
    value.sort_all_objects();
    serde_json::to_string(&value)
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Note {
        v: u16,
        kind: String,
        key: String,
        b: u32,
        a: String,
    }

    impl Signable for Note {
        const KIND: &'static str = "note";
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Other {}

    impl Signable for Other {
        const KIND: &'static str = "other";
    }

    fn signer() -> AuditSigner {
        AuditSigner::generate(Some("k".to_owned())).unwrap()
    }

    fn note() -> Note {
        Note {
            v: 1,
            kind: "note".to_owned(),
            key: "k".to_owned(),
            b: 7,
            a: "é \"".to_owned(),
        }
    }

    #[test]
    fn what_is_signed_comes_back_and_nothing_else_does() {
        let signer = signer();
        let text = sign(&note(), &signer).unwrap();
        assert!(
            text.contains(r#""signed":{"a":"é \"","b":7,"key":"k","kind":"note","v":1}"#),
            "{text}"
        );
        let keys = signer.public();
        let open = |text: &str| open::<Note>(text.as_bytes(), &keys, true);
        assert_eq!(open(&text), Ok(note()));
        assert_eq!(
            open(&text.replace(":7", ":8")),
            Err(SignedError::Signature("k".to_owned()))
        );
        assert_eq!(
            open(&text.replace("\"v\":1", "\"v\":2")),
            Err(SignedError::Version(2))
        );
        assert_eq!(
            open(&text.replace("\"key\":\"k\"", "\"key\":\"l\"")),
            Err(SignedError::UnknownKey("l".to_owned()))
        );
        assert!(matches!(open("[]"), Err(SignedError::Form(_))));
        assert!(matches!(open("{"), Err(SignedError::Form(_))));
        let kind = super::open::<Other>(text.as_bytes(), &keys, true).unwrap_err();
        assert!(matches!(kind, SignedError::Kind { .. }));
        // Another key of the same name.
        let other = self::signer().public();
        let other = super::open::<Note>(text.as_bytes(), &other, true);
        assert_eq!(other, Err(SignedError::Signature("k".to_owned())));
    }

    #[test]
    fn a_text_that_was_laid_out_anew_is_signed_but_not_as_written() {
        let signer = signer();
        let text = sign(&note(), &signer).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let open = |written| super::open::<Note>(pretty.as_bytes(), &signer.public(), written);
        assert_eq!(open(false), Ok(note()));
        assert_eq!(open(true), Err(SignedError::NotCanonical));
    }
}
