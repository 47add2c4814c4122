//! API keys: what is recognised is written as it was issued, in one way alone.
#![no_main]

use std::sync::LazyLock;

use agenthub::governance::PresentedKey;
use agenthub::messages::Signer;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let secret = |byte: u8| STANDARD.encode([byte; 32]);
    Signer::parse(&format!("b:{},a:{}", secret(2), secret(1))).expect("two secrets")
});

/// The key as it would be issued with these parts.
fn printed(key: &PresentedKey, secret: &str, signature: &str) -> String {
    format!("ah_{}_{}_{secret}_{signature}", key.tenant, key.key_id)
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    // Nobody guesses a signature: as it is, a text is none of ours.
    assert_eq!(PresentedKey::parse(text, &SIGNER), None, "a forged key");

    let signature = hex::encode(SIGNER.sign_api_key(text));
    let signed = format!("{text}_{signature}");
    let Some(key) = PresentedKey::parse(&signed, &SIGNER) else {
        return;
    };
    let secret = text.rsplit('_').next().unwrap_or_default();
    assert_eq!(
        printed(&key, secret, &signature),
        signed,
        "another spelling"
    );
    assert_eq!(key.secret_hash, hex::encode(Sha256::digest(secret)));

    // No other text is the same key.
    let mut other = signed.clone().into_bytes();
    let place = usize::from(choice) % other.len();
    for byte in [
        other[place] ^ 0x20,
        other[place].wrapping_add(1),
        b' ',
        b'_',
    ] {
        let before = std::mem::replace(&mut other[place], byte);
        if byte != before
            && let Ok(other) = std::str::from_utf8(&other)
        {
            assert_eq!(
                PresentedKey::parse(other, &SIGNER),
                None,
                "{other:?} beside {signed:?}"
            );
        }
        other[place] = before;
    }
    for other in [
        format!("{signed} "),
        format!(" {signed}"),
        format!("{signed}0"),
        signed.to_uppercase(),
    ] {
        if other != signed {
            assert_eq!(PresentedKey::parse(&other, &SIGNER), None, "{other:?}");
        }
    }
});
