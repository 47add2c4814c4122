//! API keys: `ah_<tenant>_<key id>_<version>s<secret>_<signature>`.
//!
//! The signature is HMAC-SHA256 (RFC 2104) over everything before it, in hexadecimal, so that a
//! forged key is refused before any I/O and cannot burn anybody's quota.

use rand::Rng;
use sha2::{Digest, Sha256};

use crate::ids::{KeyId, TenantId};
use crate::messages::Signer;

const PREFIX: &str = "ah";
const SECRET_BYTES: usize = 24;

/// A key that a request presents and that was issued here. Whether it is still valid is for the gate
/// to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentedKey {
    /// Its tenant.
    pub tenant: TenantId,
    /// Its stable name.
    pub key_id: KeyId,
    /// SHA-256 of its versioned secret, in hexadecimal.
    pub secret_hash: String,
}

impl PresentedKey {
    /// Reads a key and checks its signature: `None` when either is wrong.
    pub fn parse(text: &str, signer: &Signer) -> Option<Self> {
        let (claims, signature) = text.rsplit_once('_')?;
        // One key has one spelling: whoever looks for a leaked one finds it.
        if signature.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let signature = hex::decode(signature).ok()?;
        if !signer.verify_api_key(claims, &signature) {
            return None;
        }
        let mut parts = claims.split('_');
        if parts.next()? != PREFIX {
            return None;
        }
        let tenant = parts.next()?.parse().ok()?;
        let key_id = parts.next()?.parse().ok()?;
        let secret = parts.next()?;
        parts.next().is_none().then(|| Self {
            tenant,
            key_id,
            secret_hash: hash(secret),
        })
    }
}

/// A fresh key. It is shown once; only its hash is kept.
#[derive(Clone)]
pub struct IssuedKey {
    /// The whole key, for its holder.
    pub text: String,
    /// SHA-256 of its versioned secret, in hexadecimal.
    pub secret_hash: String,
}

impl std::fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IssuedKey(…)")
    }
}

impl IssuedKey {
    /// Makes version `version` of a key.
    pub(super) fn generate(
        signer: &Signer,
        tenant: &TenantId,
        key_id: &KeyId,
        version: u32,
    ) -> Self {
        let mut secret = [0_u8; SECRET_BYTES];
        rand::rng().fill_bytes(&mut secret);
        let secret = format!("{version}s{}", hex::encode(secret));
        let claims = format!("{PREFIX}_{tenant}_{key_id}_{secret}");
        let signature = hex::encode(signer.sign_api_key(&claims));
        Self {
            text: format!("{claims}_{signature}"),
            secret_hash: hash(&secret),
        }
    }
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    fn signer(id: &str) -> Signer {
        Signer::parse(&format!("{id}:{}", STANDARD.encode(id.repeat(32)))).unwrap()
    }

    fn issue(signer: &Signer) -> (TenantId, KeyId, IssuedKey) {
        let (tenant, key_id) = ("acme-1".parse().unwrap(), KeyId::generate());
        let key = IssuedKey::generate(signer, &tenant, &key_id, 3);
        (tenant, key_id, key)
    }

    #[test]
    fn a_key_is_written_in_one_way_alone() {
        let signer = signer("a");
        let (_, _, key) = issue(&signer);
        let (claims, signature) = key.text.rsplit_once('_').unwrap();
        let upper = format!("{claims}_{}", signature.to_uppercase());
        assert_ne!(upper, key.text);
        assert_eq!(PresentedKey::parse(&upper, &signer), None);
    }

    #[test]
    fn an_issued_key_is_recognised() {
        let signer = signer("a");
        let (tenant, key_id, key) = issue(&signer);
        let expected = PresentedKey {
            tenant,
            key_id,
            secret_hash: key.secret_hash.clone(),
        };
        assert_eq!(PresentedKey::parse(&key.text, &signer), Some(expected));
        assert_eq!(PresentedKey::parse(&key.text, &self::signer("b")), None);
    }

    proptest! {
        #[test]
        fn no_other_text_is_recognised(text in "\\PC*") {
            prop_assert_eq!(PresentedKey::parse(&text, &signer("a")), None);
        }

        #[test]
        fn a_changed_key_is_not_recognised(position: usize, replacement in "[a-z0-9_-]") {
            let signer = signer("a");
            let (_, _, key) = issue(&signer);
            let position = position % key.text.len();
            let mut changed = key.text.clone();
            changed.replace_range(position..=position, &replacement);
            prop_assume!(changed != key.text);
            prop_assert_eq!(PresentedKey::parse(&changed, &signer), None);
        }
    }
}
