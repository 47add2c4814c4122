//! The topics as `topics/topics.toml` declares them. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::messages::Topic;

const DECLARATION: &str = include_str!("../../../topics/topics.toml");

/// Every topic, with its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    /// In the order of the file.
    pub topics: Vec<TopicSpec>,
}

/// What a topic is and how it is to be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Which one.
    pub topic: Topic,
    /// What it is for.
    pub purpose: String,
    /// What its records are keyed by.
    pub key: String,
    /// The schema of its values, by the name of the message type; none where values differ by kind.
    pub schema: Option<String>,
    /// The services that write to it.
    pub producers: Vec<String>,
    /// The consumer groups that read it.
    pub consumers: Vec<String>,
    /// Where records go that its consumers cannot handle.
    pub dead_letter: Option<Topic>,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition.
    pub replication: i32,
    /// Topic configuration, by Kafka's names.
    pub config: BTreeMap<String, String>,
}

/// What is wrong with the declaration.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// It is not TOML of the expected form.
    #[error("topics.toml: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A topic is declared that the code does not know.
    #[error("topics.toml: {0}")]
    Unknown(#[from] crate::messages::UnknownTopic),
    /// A topic is declared twice, or not at all.
    #[error("topics.toml: {0} is declared {1} times")]
    Count(Topic, usize),
    /// Two values do not fit together.
    #[error("topics.toml: {0}")]
    Invalid(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    defaults: Defaults,
    dev: Defaults,
    topic: Vec<Declared>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Defaults {
    partitions: i32,
    replication: i32,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declared {
    name: String,
    purpose: String,
    key: String,
    schema: Option<String>,
    producers: Vec<String>,
    consumers: Vec<String>,
    dead_letter: Option<String>,
    partitions: Option<i32>,
    replication: Option<i32>,
    #[serde(default)]
    config: BTreeMap<String, String>,
}

impl Catalogue {
    /// The catalogue that this build embeds; with `dev`, as one broker on a developer's machine can
    /// hold it.
    pub fn embedded(dev: bool) -> Result<Self, CatalogueError> {
        Self::parse(DECLARATION, dev)
    }

    fn parse(text: &str, dev: bool) -> Result<Self, CatalogueError> {
        let file: File = toml::from_str(text)?;
        let mut topics = Vec::with_capacity(file.topic.len());
        for declared in file.topic {
            let mut config = file.defaults.config.clone();
            config.extend(declared.config);
            let mut partitions = declared.partitions.unwrap_or(file.defaults.partitions);
            let mut replication = declared.replication.unwrap_or(file.defaults.replication);
            if dev {
                config.extend(file.dev.config.clone());
                partitions = partitions.min(file.dev.partitions);
                replication = replication.min(file.dev.replication);
            }
            topics.push(TopicSpec {
                topic: declared.name.parse()?,
                purpose: declared.purpose,
                key: declared.key,
                schema: declared.schema,
                producers: declared.producers,
                consumers: declared.consumers,
                dead_letter: declared.dead_letter.map(|t| t.parse()).transpose()?,
                partitions,
                replication,
                config,
            });
        }
        let catalogue = Self { topics };
        catalogue.check()?;
        Ok(catalogue)
    }

    fn check(&self) -> Result<(), CatalogueError> {
        for topic in Topic::ALL {
            let count = self.topics.iter().filter(|t| t.topic == topic).count();
            if count != 1 {
                return Err(CatalogueError::Count(topic, count));
            }
        }
        for spec in &self.topics {
            if spec.partitions < 1 || spec.replication < 1 {
                let text = format!("{}: at least one partition and replica", spec.topic);
                return Err(CatalogueError::Invalid(text));
            }
            let Some(target) = spec.dead_letter.and_then(|t| self.get(t)) else {
                continue;
            };
            if target.max_message_bytes() <= spec.max_message_bytes() * 4 / 3 {
                let text = format!(
                    "{}: max.message.bytes leaves no room for the records of {} in base64",
                    target.topic, spec.topic
                );
                return Err(CatalogueError::Invalid(text));
            }
        }
        Ok(())
    }

    /// The declaration of a topic.
    pub fn get(&self, topic: Topic) -> Option<&TopicSpec> {
        self.topics.iter().find(|t| t.topic == topic)
    }

    /// The largest `max.message.bytes` of all topics.
    pub fn max_message_bytes(&self) -> u64 {
        let sizes = self.topics.iter().map(TopicSpec::max_message_bytes);
        sizes.max().unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
    }

    /// Every consumer group that reads a topic, without the namespace, sorted.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = self
            .topics
            .iter()
            .flat_map(|t| &t.consumers)
            .map(String::as_str)
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

/// Kafka's default of `max.message.bytes`.
const DEFAULT_MAX_MESSAGE_BYTES: u64 = 1_048_588;

impl TopicSpec {
    /// The largest record batch that the topic takes, in bytes.
    pub fn max_message_bytes(&self) -> u64 {
        let value = self.config.get("max.message.bytes");
        value
            .and_then(|v| v.parse().ok())
            .unwrap_or(DEFAULT_MAX_MESSAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_catalogue_declares_every_topic_once() {
        for dev in [false, true] {
            let catalogue = Catalogue::embedded(dev).unwrap();
            assert_eq!(catalogue.topics.len(), Topic::ALL.len());
        }
    }

    #[test]
    fn development_takes_one_broker() {
        for spec in Catalogue::embedded(true).unwrap().topics {
            assert_eq!((spec.partitions, spec.replication), (3, 1));
            assert_eq!(spec.config["min.insync.replicas"], "1");
        }
        for spec in Catalogue::embedded(false).unwrap().topics {
            assert_eq!((spec.partitions, spec.replication), (6, 3));
            assert_eq!(spec.config["min.insync.replicas"], "2");
        }
    }

    #[test]
    fn state_is_compacted_within_a_bound() {
        let catalogue = Catalogue::embedded(false).unwrap();
        let config = &catalogue.get(Topic::AgentState).unwrap().config;
        assert_eq!(config["cleanup.policy"], "compact");
        let lag: u64 = config["max.compaction.lag.ms"].parse().unwrap();
        let segment: u64 = config["segment.ms"].parse().unwrap();
        assert!(segment <= lag);
    }

    #[test]
    fn a_missing_a_double_and_a_foreign_topic_are_refused() {
        let without = DECLARATION.replacen("audit.logs", "agent.events", 1);
        let error = Catalogue::parse(&without, false).unwrap_err();
        assert!(matches!(error, CatalogueError::Count(..)), "{error}");
        let foreign = DECLARATION.replacen("audit.logs", "audit.log", 1);
        let error = Catalogue::parse(&foreign, false).unwrap_err();
        assert!(matches!(error, CatalogueError::Unknown(_)), "{error}");
        let misspelt = DECLARATION.replacen("purpose", "purpse", 1);
        let error = Catalogue::parse(&misspelt, false).unwrap_err();
        assert!(matches!(error, CatalogueError::Syntax(_)), "{error}");
    }

    #[test]
    fn a_dead_letter_holds_the_largest_record_of_its_sources() {
        let small = DECLARATION.replace("2097152", "1100000");
        let error = Catalogue::parse(&small, false).unwrap_err();
        assert!(matches!(error, CatalogueError::Invalid(_)), "{error}");
    }

    #[test]
    fn groups_are_named_once() {
        let catalogue = Catalogue::embedded(false).unwrap();
        assert_eq!(
            catalogue.groups(),
            ["audit-rollup", "dlq", "executor", "planner"]
        );
    }
}
