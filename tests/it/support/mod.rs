//! What the tests share: settings with a namespace of their own, so that they run side by side on one
//! broker and one Redis.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agenthub::config::{Settings, Source};

pub mod broker;
pub mod brokers;
pub mod certs;
pub mod forwarder;
pub mod ledger;
pub mod otlp;
mod passing;
pub mod raw;
pub mod reaper;
pub mod records;
pub mod redis;
pub mod secured;
mod settled;
pub mod sse;
pub mod stack;
pub mod tools;
pub mod web;

pub use passing::listen;

/// Secrets of the tests' installations.
pub const SIGNING: &str = "t1:dGVzdC1zaWduaW5nLXNlY3JldC10ZXN0LXNpZ25pbmctc2VjcmV0";
pub const MASTER: &str = "m1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";

/// A namespace that no other test has.
pub fn namespace() -> String {
    format!("t{}", &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// The environment of a process in `namespace`, with `extra` on top.
pub fn environment(namespace: &str, extra: &[(&str, &str)]) -> BTreeMap<String, String> {
    let given =
        |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let base = [
        ("KAFKA_BROKERS", given("KAFKA_BROKERS", "127.0.0.1:9092")),
        ("REDIS_URL", given("REDIS_URL", "redis://127.0.0.1:6379/")),
        ("AGENTHUB_NAMESPACE", namespace.to_owned()),
        ("AGENTHUB_SIGNING_SECRETS", SIGNING.to_owned()),
        ("AGENTHUB_MASTER_KEYS", MASTER.to_owned()),
    ];
    let extra = extra.iter().map(|(k, v)| (*k, (*v).to_owned()));
    base.into_iter()
        .chain(extra)
        .map(|(k, v)| (k.to_owned(), v))
        .collect()
}

/// The settings of such a process.
pub fn settings(namespace: &str, extra: &[(&str, &str)]) -> Settings {
    Settings::load(&Source::from_env(environment(namespace, extra)).unwrap()).unwrap()
}

/// Waits until `condition` gives something. Panics, naming `what`, when that takes too long.
pub async fn eventually<T, F>(what: &str, condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    eventually_within(Duration::from_secs(30), what, condition).await
}

/// As [`eventually`], with a deadline of its own.
pub async fn eventually_within<T, F>(
    time: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + time;
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
