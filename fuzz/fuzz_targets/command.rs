//! Commands and their signatures: what decodes is the same after another round, and a record of which a
//! single byte was changed does not verify.
#![no_main]

use std::sync::LazyLock;

use agenthub::ids::TenantId;
use agenthub::messages::{Command, Headers, Outgoing, Signer, Topic, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let secret = |byte: u8| STANDARD.encode([byte; 32]);
    Signer::parse(&format!("b:{},a:{}", secret(2), secret(1))).expect("two secrets")
});

const TOPIC: &str = "ns.plan.commands";
/// The headers that the signature covers.
const COVERED: [&str; 4] = [
    header::TENANT,
    header::CE_ID,
    header::CE_SUBJECT,
    header::NOT_AFTER,
];

fn same_after_another_round(value: &[u8]) -> Option<Command> {
    let command: Command = serde_json::from_slice(value).ok()?;
    let once = serde_json::to_vec(&command).expect("a command is written");
    let back: Command = serde_json::from_slice(&once).expect("what was written is read");
    let tree = |command: &Command| serde_json::to_value(command).expect("a command is a tree");
    assert_eq!(tree(&back), tree(&command), "another command");
    assert_eq!(
        serde_json::to_vec(&back).expect("written"),
        once,
        "another text"
    );
    // What decoding passes over, such as a field that nobody knows, need not be text.
    let kept: Value = serde_json::from_slice(&once).expect("JSON");
    let Ok(given) = serde_json::from_slice::<Value>(value) else {
        return Some(command);
    };
    for name in ["kind", "wake", "v"] {
        assert_eq!(given.get(name), kept.get(name), "{name}");
    }
    Some(command)
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, value)) = data.split_first() else {
        return;
    };
    let command = same_after_another_round(value);
    let spec = command.as_ref().map(|command| &command.spec);
    let tenant: TenantId = spec.map_or_else(
        || "acme".parse().expect("a tenant"),
        |spec| spec.tenant.clone(),
    );
    let record = Outgoing {
        topic: Topic::PlanCommands,
        key: spec.map_or("key", |spec| spec.run_id.as_str()).to_owned(),
        ce_id: format!("id/{choice}"),
        ce_type: "agenthub.command.plan".to_owned(),
        tenant,
        run_id: spec.map(|spec| spec.run_id.clone()),
        not_after_ms: spec.map(|spec| spec.deadline_ms),
        traceparent: None,
        value: Bytes::copy_from_slice(value),
    };
    let headers = SIGNER.headers(TOPIC, &record, "fuzz", "2026-01-01T00:00:00Z");
    let headers: Headers = headers
        .into_iter()
        .map(|(name, text)| (name.to_owned(), Bytes::from(text)))
        .collect();
    let key = record.key.as_bytes();
    assert!(
        SIGNER.verify(TOPIC, key, &headers, value).is_ok(),
        "what was signed does not verify"
    );

    let changed = |bytes: &[u8]| -> Vec<u8> {
        let mut other = bytes.to_vec();
        match other.len() {
            0 => other.push(choice),
            len => other[usize::from(choice) % len] ^= 1 << (choice % 8),
        }
        other
    };
    assert!(
        SIGNER
            .verify(TOPIC, key, &headers, &changed(value))
            .is_err(),
        "another value"
    );
    assert!(
        SIGNER
            .verify(TOPIC, &changed(key), &headers, value)
            .is_err(),
        "another key"
    );
    assert!(
        SIGNER
            .verify("other.plan.commands", key, &headers, value)
            .is_err(),
        "another topic"
    );
    let mut longer = value.to_vec();
    longer.push(choice);
    assert!(
        SIGNER.verify(TOPIC, key, &headers, &longer).is_err(),
        "a longer value"
    );
    if let Some((_, shorter)) = value.split_last() {
        assert!(
            SIGNER.verify(TOPIC, key, &headers, shorter).is_err(),
            "a shorter value"
        );
    }
    for name in COVERED {
        let mut other = headers.clone();
        match headers.get(name) {
            Some(text) => other.insert(name.to_owned(), changed(text).into()),
            None => other.insert(name.to_owned(), Bytes::from(vec![choice])),
        };
        assert!(
            SIGNER.verify(TOPIC, key, &other, value).is_err(),
            "another {name}"
        );
        // Nor does a part move from one header into the next.
        other.remove(name);
        let there = headers.get(name).is_some_and(|text| !text.is_empty());
        assert_eq!(
            SIGNER.verify(TOPIC, key, &other, value).is_err(),
            there,
            "without {name}"
        );
    }
    let mut forged = headers.clone();
    let signature = headers
        .get(header::SIGNATURE)
        .map(|text| changed(text))
        .unwrap_or_default();
    let same = hex::decode(&signature).ok()
        == headers
            .get(header::SIGNATURE)
            .and_then(|s| hex::decode(s).ok());
    forged.insert(header::SIGNATURE.to_owned(), signature.into());
    assert!(
        same || SIGNER.verify(TOPIC, key, &forged, value).is_err(),
        "another signature"
    );
});
