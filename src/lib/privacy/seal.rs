//! Sealed payloads: AES-256-GCM (NIST SP 800-38D) with a random data key per session, which is
//! itself wrapped by the installation's master keys.

use std::fmt;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, Mac};
use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::ids::{SessionId, TenantId};

const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;

/// Why a payload cannot be opened, or a key cannot be unwrapped. Says nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The text is not a sealed payload or a wrapped key.
    #[error("not a sealed payload")]
    Malformed,
    /// No master key has the id that wrapped the data key.
    #[error("the data key was wrapped by an unknown master key")]
    UnknownMasterKey,
    /// The key does not fit, or the payload was changed.
    #[error("the payload does not open with this key")]
    DoesNotOpen,
}

/// A sealed payload: base64 of nonce and ciphertext. Safe to store, to log and to send.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Takes a text that a store returned. Whether it opens is seen when it is opened.
    pub fn from_stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text as it is stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// The data key of one session.
#[derive(Clone)]
pub struct DataKey {
    cipher: Aes256Gcm,
    /// Bound to every payload, so that one session's payload cannot be passed off as another's.
    owner: String,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.owner)
    }
}

impl DataKey {
    fn new(bytes: &[u8; KEY_BYTES], tenant: &TenantId, session: &SessionId) -> Self {
        Self {
            cipher: Aes256Gcm::new(bytes.into()),
            owner: owner(tenant, session),
        }
    }

    /// Seals `plain`. Each call uses a fresh random nonce; a session makes far fewer than the 2³²
    /// payloads that random nonces allow.
    pub fn seal(&self, plain: &[u8]) -> Sealed {
        Sealed(STANDARD_NO_PAD.encode(encrypt(&self.cipher, plain, self.owner.as_bytes())))
    }

    /// Opens what [`DataKey::seal`] made for the same session.
    pub fn open(&self, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let bytes = STANDARD_NO_PAD
            .decode(&sealed.0)
            .map_err(|_| SealError::Malformed)?;
        decrypt(&self.cipher, &bytes, self.owner.as_bytes())
    }
}

/// The installation's master keys: the first wraps, all unwrap.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<(String, Aes256Gcm)>,
    /// Made of the first key, to derive others from.
    derivation: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|(id, _)| id))
            .finish()
    }
}

impl KeyRing {
    /// Reads `<id>:<base64 of 32 bytes>,…`.
    ///
    /// # Errors
    /// A text that says what is wrong with which position; it never holds a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        let mut derivation = Zeroizing::new([0; KEY_BYTES]);
        for (position, part) in text.split(',').enumerate() {
            let wrong = |what: &str| format!("key {}: {what}", position + 1);
            let (id, key) = part
                .trim()
                .split_once(':')
                .ok_or_else(|| wrong("no `<id>:`"))?;
            let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            if id.is_empty() || !id.bytes().all(label) {
                return Err(wrong("the id is not of lower-case letters and digits"));
            }
            let key = Zeroizing::new(STANDARD.decode(key).map_err(|_| wrong("not base64"))?);
            let key: &[u8; KEY_BYTES] = key
                .as_slice()
                .try_into()
                .map_err(|_| wrong("not of 32 bytes"))?;
            if position == 0 {
                derivation = hmac(key, &[b"agenthub/derivation/1"]);
            }
            keys.push((id.to_owned(), Aes256Gcm::new(key.into())));
        }
        Ok(Self { keys, derivation })
    }

    /// The key of what is kept for a whole tenant and can be made again, such as results of tools.
    /// It follows from the first master key: when that is rotated, what was kept is not found any more.
    pub fn tenant_key(&self, tenant: &TenantId) -> TenantKey {
        TenantKey {
            key: hmac(
                &self.derivation,
                &[b"agenthub/tenant/1", tenant.as_str().as_bytes()],
            ),
        }
    }

    /// A fresh data key for a session, and its wrapped form `<master key id>.<base64>` to store.
    pub fn generate(&self, tenant: &TenantId, session: &SessionId) -> (DataKey, String) {
        let mut bytes = Zeroizing::new([0_u8; KEY_BYTES]);
        rand::rng().fill_bytes(bytes.as_mut());
        let (id, cipher) = &self.keys[0];
        let wrapped = encrypt(cipher, bytes.as_ref(), owner(tenant, session).as_bytes());
        (
            DataKey::new(&bytes, tenant, session),
            format!("{id}.{}", STANDARD_NO_PAD.encode(wrapped)),
        )
    }

    /// The data key that [`KeyRing::generate`] wrapped for the same session.
    pub fn unwrap(
        &self,
        wrapped: &str,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<DataKey, SealError> {
        let (id, text) = wrapped.split_once('.').ok_or(SealError::Malformed)?;
        let cipher = self.keys.iter().find(|(known, _)| known == id);
        let (_, cipher) = cipher.ok_or(SealError::UnknownMasterKey)?;
        let bytes = STANDARD_NO_PAD
            .decode(text)
            .map_err(|_| SealError::Malformed)?;
        let key = Zeroizing::new(decrypt(cipher, &bytes, owner(tenant, session).as_bytes())?);
        let key: &[u8; KEY_BYTES] = key
            .as_slice()
            .try_into()
            .map_err(|_| SealError::Malformed)?;
        Ok(DataKey::new(key, tenant, session))
    }
}

impl KeyRing {
    /// Seals `plain` for `owner` with the first master key: what opens it must name the same owner. For
    /// what belongs to no session; the form is that of a wrapped key.
    pub fn seal_for(&self, owner: &str, plain: &[u8]) -> String {
        let (id, cipher) = &self.keys[0];
        let sealed = encrypt(cipher, plain, owner.as_bytes());
        format!("{id}.{}", STANDARD_NO_PAD.encode(sealed))
    }

    /// Opens what [`KeyRing::seal_for`] sealed for the same owner.
    pub fn open_for(&self, owner: &str, sealed: &str) -> Result<Vec<u8>, SealError> {
        let (id, text) = sealed.split_once('.').ok_or(SealError::Malformed)?;
        let cipher = self.keys.iter().find(|(known, _)| known == id);
        let (_, cipher) = cipher.ok_or(SealError::UnknownMasterKey)?;
        let bytes = STANDARD_NO_PAD
            .decode(text)
            .map_err(|_| SealError::Malformed)?;
        decrypt(cipher, &bytes, owner.as_bytes())
    }
}

/// A key of one tenant that no store holds: it is derived from the installation's master key.
#[derive(Clone)]
pub struct TenantKey {
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantKey")
    }
}

impl TenantKey {
    /// A digest, in hexadecimal, that tells nothing of `parts` to who does not have the key. Other
    /// parts, or the same bytes divided otherwise, have another one.
    pub fn digest(&self, parts: &[&[u8]]) -> String {
        let mut all: Vec<&[u8]> = vec![b"digest"];
        all.extend(parts);
        hex::encode(hmac(&self.key, &all).as_slice())
    }

    /// Seals `plain` under a name: what is sealed under one does not open under another. Each name has
    /// a key of its own, so that the number of payloads of a tenant is not bounded by random nonces.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Sealed {
        Sealed(STANDARD_NO_PAD.encode(encrypt(&self.cipher(name), plain, name.as_bytes())))
    }

    /// Opens what [`TenantKey::seal`] made under the same name.
    pub fn open(&self, name: &str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let bytes = STANDARD_NO_PAD
            .decode(&sealed.0)
            .map_err(|_| SealError::Malformed)?;
        decrypt(&self.cipher(name), &bytes, name.as_bytes())
    }

    fn cipher(&self, name: &str) -> Aes256Gcm {
        let key = hmac(&self.key, &[b"seal", name.as_bytes()]);
        let key: &[u8; KEY_BYTES] = &key;
        Aes256Gcm::new(key.into())
    }
}

/// HMAC-SHA256 over the parts, each after its length.
fn hmac(key: &[u8; KEY_BYTES], parts: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut mac = <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key)
        .unwrap_or_else(|_| unreachable!("HMAC takes a key of any length"));
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn owner(tenant: &TenantId, session: &SessionId) -> String {
    format!("{tenant}/{session}")
}

fn encrypt(cipher: &Aes256Gcm, plain: &[u8], aad: &[u8]) -> Vec<u8> {
    let mut nonce = [0_u8; NONCE_BYTES];
    rand::rng().fill_bytes(&mut nonce);
    let sealed = cipher
        .encrypt(&Nonce::from(nonce), Payload { msg: plain, aad })
        .unwrap_or_else(|_| unreachable!("a payload in memory is shorter than AES-GCM's 64 GiB"));
    [&nonce[..], &sealed].concat()
}

fn decrypt(cipher: &Aes256Gcm, bytes: &[u8], aad: &[u8]) -> Result<Vec<u8>, SealError> {
    let (nonce, sealed) = bytes
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(SealError::Malformed)?;
    cipher
        .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad })
        .map_err(|_| SealError::DoesNotOpen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(ids: &[&str]) -> KeyRing {
        let key = |id: &str| format!("{id}:{}", STANDARD.encode(id.repeat(32)));
        KeyRing::parse(&ids.iter().map(|id| key(id)).collect::<Vec<_>>().join(",")).unwrap()
    }

    fn ids() -> (TenantId, SessionId) {
        ("acme".parse().unwrap(), SessionId::generate())
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_with_the_unwrapped_key(plain: Vec<u8>) {
            let (tenant, session) = ids();
            let (key, wrapped) = ring(&["a"]).generate(&tenant, &session);
            let again = ring(&["b", "a"]).unwrap(&wrapped, &tenant, &session).unwrap();
            prop_assert_eq!(again.open(&key.seal(&plain)).unwrap(), plain);
        }

        #[test]
        fn a_changed_payload_does_not_open(plain: Vec<u8>, position: usize, bit in 0..8_u32) {
            let (tenant, session) = ids();
            let (key, _) = ring(&["a"]).generate(&tenant, &session);
            let mut bytes = STANDARD_NO_PAD.decode(key.seal(&plain).as_str()).unwrap();
            let position = position % bytes.len();
            bytes[position] ^= 1 << bit;
            let changed = Sealed::from_stored(STANDARD_NO_PAD.encode(bytes));
            prop_assert_eq!(key.open(&changed), Err(SealError::DoesNotOpen));
        }
    }

    #[test]
    fn another_session_or_ring_opens_nothing() {
        let (tenant, session) = ids();
        let (key, wrapped) = ring(&["a"]).generate(&tenant, &session);
        let (other_tenant, other) = ids();
        assert!(
            ring(&["a"])
                .unwrap(&wrapped, &other_tenant, &other)
                .is_err()
        );
        let unknown = ring(&["b"]).unwrap(&wrapped, &tenant, &session);
        assert_eq!(unknown.unwrap_err(), SealError::UnknownMasterKey);
        let (other_key, _) = ring(&["a"]).generate(&tenant, &other);
        assert_eq!(other_key.open(&key.seal(b"x")), Err(SealError::DoesNotOpen));
        assert_eq!(
            key.open(&Sealed::from_stored("?")),
            Err(SealError::Malformed)
        );
    }

    #[test]
    fn a_tenants_key_is_its_own_and_each_name_has_one() {
        let tenant = |name: &str| name.parse::<TenantId>().unwrap();
        let key = ring(&["a", "b"]).tenant_key(&tenant("acme"));
        let sealed = key.seal("n", b"result");
        let again = ring(&["a"]).tenant_key(&tenant("acme"));
        assert_eq!(again.open("n", &sealed).unwrap(), b"result");
        assert_eq!(again.digest(&[b"x", b"y"]), key.digest(&[b"x", b"y"]));
        for (ids, name) in [(&["a"], "other"), (&["b"], "acme")] {
            let other = ring(ids).tenant_key(&tenant(name));
            assert_eq!(other.open("n", &sealed), Err(SealError::DoesNotOpen));
            assert_ne!(other.digest(&[b"x", b"y"]), key.digest(&[b"x", b"y"]));
        }
        assert_eq!(key.open("m", &sealed), Err(SealError::DoesNotOpen));
        assert_eq!(
            key.open("n", &Sealed::from_stored("?")),
            Err(SealError::Malformed)
        );
        assert_ne!(key.digest(&[b"x", b"y"]), key.digest(&[b"xy"]));
        assert_ne!(key.digest(&[b"x", b"y"]), key.digest(&[b"", b"xy"]));
    }
}
