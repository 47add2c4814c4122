//! Settings of a broker that the runtime relies on. Pure.

use std::collections::BTreeMap;

/// What the brokers are checked against.
#[derive(Debug, Clone, Copy)]
pub struct Expectations {
    /// Whether groups use the `consumer` protocol (KIP-848).
    pub consumer_protocol: bool,
    /// Replicas that committed offsets should have.
    pub replication: i32,
}

/// The session timeout that members of classic groups ask for.
const SESSION_TIMEOUT_MS: i64 = 10_000;
/// Kafka's default of the session timeout of `consumer` groups.
const CONSUMER_SESSION_TIMEOUT_MS: i64 = 45_000;
/// The offsets of a group that is away for less must be there when it is back: the retention of the
/// command topics.
const OFFSETS_RETENTION_MINUTES: i64 = 7 * 24 * 60;

/// What is wrong with a broker's settings, a text for each. A setting that the broker does not
/// report is not judged.
pub fn check(config: &BTreeMap<String, String>, expect: Expectations) -> Vec<String> {
    let mut wrong = Vec::new();
    let text = |name: &str| config.get(name).map(String::as_str);
    let number = |name: &str| text(name).and_then(|v| v.parse::<i64>().ok());
    let mut must = |holds: bool, name: &str, why: &str| {
        if !holds {
            let have = text(name).unwrap_or_default();
            wrong.push(format!("{name} is {have}: {why}"));
        }
    };
    let name = "auto.create.topics.enable";
    must(
        text(name) != Some("true"),
        name,
        "a topic that was not applied would be created with other settings",
    );
    let name = "offsets.retention.minutes";
    must(
        number(name).is_none_or(|n| n >= OFFSETS_RETENTION_MINUTES),
        name,
        "a group that was away for longer would begin at the earliest record again",
    );
    let name = "offsets.topic.replication.factor";
    must(
        number(name).is_none_or(|n| n >= i64::from(expect.replication)),
        name,
        "committed offsets would have fewer replicas than the topics",
    );
    if expect.consumer_protocol {
        let name = "group.coordinator.rebalance.protocols";
        must(
            text(name).is_none_or(|v| v.split(',').any(|p| p.trim() == "consumer")),
            name,
            "the `consumer` protocol is off",
        );
        let name = "group.consumer.session.timeout.ms";
        must(
            number(name).is_none_or(|n| n <= CONSUMER_SESSION_TIMEOUT_MS),
            name,
            "the partitions of a dead worker would stand still for that long",
        );
    } else {
        let name = "group.min.session.timeout.ms";
        must(
            number(name).is_none_or(|n| n <= SESSION_TIMEOUT_MS),
            name,
            "the workers' session timeout of 10000 would be refused",
        );
        let name = "group.max.session.timeout.ms";
        must(
            number(name).is_none_or(|n| n >= SESSION_TIMEOUT_MS),
            name,
            "the workers' session timeout of 10000 would be refused",
        );
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn defaults_pass_but_for_automatic_creation() {
        let config = config(&[
            ("auto.create.topics.enable", "true"),
            ("offsets.retention.minutes", "10080"),
            ("offsets.topic.replication.factor", "3"),
            ("group.coordinator.rebalance.protocols", "classic,consumer"),
            ("group.consumer.session.timeout.ms", "45000"),
            ("group.min.session.timeout.ms", "6000"),
            ("group.max.session.timeout.ms", "1800000"),
        ]);
        for consumer_protocol in [false, true] {
            let expect = Expectations {
                consumer_protocol,
                replication: 3,
            };
            let wrong = check(&config, expect);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(wrong[0].starts_with("auto.create.topics.enable is true"));
        }
    }

    #[test]
    fn each_protocol_has_its_own_needs() {
        let config = config(&[
            ("group.coordinator.rebalance.protocols", "classic"),
            ("group.max.session.timeout.ms", "9000"),
            ("offsets.topic.replication.factor", "1"),
        ]);
        let wrong = |consumer_protocol, replication| {
            check(
                &config,
                Expectations {
                    consumer_protocol,
                    replication,
                },
            )
        };
        assert!(wrong(true, 1)[0].starts_with("group.coordinator.rebalance.protocols"));
        assert!(wrong(false, 1)[0].starts_with("group.max.session.timeout.ms"));
        assert_eq!(wrong(false, 3).len(), 2);
    }
}
