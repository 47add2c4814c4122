//! The Ed25519 keys of the audit manifests. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of a key, private or public.
const KEY_BYTES: usize = 32;
/// Characters that the name of a key may have.
const MAX_ID: usize = 64;

/// Signs manifests and heads.
#[derive(Clone)]
pub struct AuditSigner {
    id: String,
    key: SigningKey,
}

impl std::fmt::Debug for AuditSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditSigner")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl AuditSigner {
    /// Parses `<id>:<base64 of the 32-byte private key>`. The error never shows the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (id, bytes) = named_bytes(text)?;
        Ok(Self {
            id,
            key: SigningKey::from_bytes(&bytes),
        })
    }

    /// A new key. Without a name it is named by a hash of its public part.
    pub fn generate(id: Option<String>) -> Result<Self, String> {
        let bytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        let key = SigningKey::from_bytes(&bytes);
        let id = if let Some(id) = id {
            checked_id(&id)?
        } else {
            let hash = Sha256::digest(key.verifying_key().as_bytes());
            format!("audit-{}", hex::encode(&hash[..4]))
        };
        Ok(Self { id, key })
    }

    /// The key's name, which everything that it signed names.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The private key as the setting takes it.
    pub fn private_text(&self) -> SecretString {
        let bytes = Zeroizing::new(self.key.to_bytes());
        format!("{}:{}", self.id, STANDARD.encode(bytes.as_ref())).into()
    }

    /// The public key as `agenthub audit verify` takes it.
    pub fn public_text(&self) -> String {
        let key = self.key.verifying_key();
        format!("{}:{}", self.id, STANDARD.encode(key.as_bytes()))
    }

    /// The public key alone.
    pub fn public(&self) -> PublicKeys {
        PublicKeys([(self.id.clone(), self.key.verifying_key())].into())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

/// The keys whose signatures are believed, by name.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(BTreeMap<String, VerifyingKey>);

impl PublicKeys {
    /// Parses `<id>:<base64 of the 32-byte public key>`, any number of them, separated by commas or
    /// white space.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Self::default();
        for one in text.split([',', ' ', '\t', '\r', '\n']) {
            if one.is_empty() {
                continue;
            }
            let (id, bytes) = named_bytes(one)?;
            let key = VerifyingKey::from_bytes(&bytes)
                .ok()
                .filter(|k| !k.is_weak());
            let key = key.ok_or_else(|| format!("{id}: not an Ed25519 public key"))?;
            keys.add(id, key)?;
        }
        Ok(keys)
    }

    /// These keys and those.
    pub fn and(mut self, others: Self) -> Result<Self, String> {
        for (id, key) in others.0 {
            self.add(id, key)?;
        }
        Ok(self)
    }

    fn add(&mut self, id: String, key: VerifyingKey) -> Result<(), String> {
        if self.0.get(&id).is_some_and(|other| *other != key) {
            return Err(format!("two keys have the name {id}"));
        }
        self.0.insert(id, key);
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether there is one of this name.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    /// Whether the key of this name made the signature. Strict: there is one signature of a message.
    pub(super) fn verify(&self, id: &str, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0
            .get(id)
            .is_some_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

fn checked_id(id: &str) -> Result<String, String> {
    let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(named) {
        return Err(format!(
            "the name of a key has 1 to {MAX_ID} letters, digits, dots, hyphens and underscores"
        ));
    }
    Ok(id.to_owned())
}

fn named_bytes(text: &str) -> Result<(String, Zeroizing<[u8; KEY_BYTES]>), String> {
    let expected = || format!("expected <id>:<base64 of {KEY_BYTES} bytes>");
    let (id, base64) = text.trim().split_once(':').ok_or_else(expected)?;
    let id = checked_id(id)?;
    let bytes = Zeroizing::new(STANDARD.decode(base64).map_err(|_| expected())?);
    let bytes = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| expected())?;
    Ok((id, Zeroizing::new(bytes)))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_generated_key_comes_back_from_its_texts() {
        let signer = AuditSigner::generate(None).unwrap();
        let again = AuditSigner::parse(signer.private_text().expose_secret()).unwrap();
        assert_eq!(again.public_text(), signer.public_text());
        let keys = PublicKeys::parse(&format!(" {},\n", signer.public_text())).unwrap();
        let signature = again.sign(b"m");
        assert!(keys.verify(signer.id(), b"m", &signature));
        assert!(!keys.verify(signer.id(), b"n", &signature));
        assert!(!keys.verify("other", b"m", &signature));
        assert!(!format!("{signer:?}").contains(&signer.private_text().expose_secret()[10..]));
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        for text in ["", "sesame", "a:sesame", ":QUFB", "a b:QUFB", "a:QUFB"] {
            let error = AuditSigner::parse(text).unwrap_err();
            assert!(!error.contains("sesame"), "{error}");
        }
        // The neutral element: every message has a signature that fits it.
        let mut weak = [0; 32];
        weak[0] = 1;
        assert!(PublicKeys::parse(&format!("a:{}", STANDARD.encode(weak))).is_err());
        assert!(PublicKeys::parse("").unwrap().is_empty());
    }

    #[test]
    fn one_name_is_one_key() {
        let make = || {
            AuditSigner::generate(Some("k".to_owned()))
                .unwrap()
                .public_text()
        };
        let (one, other) = (make(), make());
        assert!(PublicKeys::parse(&format!("{one},{other}")).is_err());
        assert!(PublicKeys::parse(&format!("{one},{one}")).is_ok());
    }
}
