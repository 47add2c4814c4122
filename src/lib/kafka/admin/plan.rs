//! What is to be done to make topics as they are declared. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::kafka::catalogue::{Catalogue, TopicSpec};
use crate::messages::Topic;

/// A topic as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of its first partition.
    pub replication: i32,
    /// Every configuration value in force.
    pub config: BTreeMap<String, String>,
    /// The names in `config` that were set for this topic.
    pub overridden: Vec<String>,
}

/// The topics that exist, of those that are declared.
pub type ObservedTopics = BTreeMap<Topic, Observed>;

/// Something that is not as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The topic does not exist.
    Missing,
    /// It has another number of partitions.
    Partitions {
        /// As declared.
        want: i32,
        /// As found.
        have: i32,
    },
    /// It has another number of replicas.
    Replication {
        /// As declared.
        want: i32,
        /// As found.
        have: i32,
    },
    /// A configuration value is another one.
    Config {
        /// Kafka's name of it.
        name: String,
        /// As declared.
        want: String,
        /// As found; absent when the broker does not know the name.
        have: Option<String>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("does not exist"),
            Self::Partitions { want, have } => {
                write!(f, "has {have} partitions, declared are {want}")
            }
            Self::Replication { want, have } => {
                write!(f, "has {have} replicas, declared are {want}")
            }
            Self::Config { name, want, have } => {
                let have = have.as_deref().unwrap_or("not known to the broker");
                write!(f, "{name} is {have}, declared is {want}")
            }
        }
    }
}

/// How a topic differs from its declaration; empty when it does not.
pub fn differences(spec: &TopicSpec, observed: Option<&Observed>) -> Vec<Difference> {
    let Some(observed) = observed else {
        return vec![Difference::Missing];
    };
    let mut found = Vec::new();
    if observed.partitions != spec.partitions {
        found.push(Difference::Partitions {
            want: spec.partitions,
            have: observed.partitions,
        });
    }
    if observed.replication != spec.replication {
        found.push(Difference::Replication {
            want: spec.replication,
            have: observed.replication,
        });
    }
    for (name, want) in &spec.config {
        let have = observed.config.get(name);
        if have != Some(want) {
            found.push(Difference::Config {
                name: name.clone(),
                want: want.clone(),
                have: have.cloned(),
            });
        }
    }
    found
}

/// One step that adds something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Create the topic as declared.
    Create(Topic),
    /// Add partitions up to this number.
    Grow(Topic, i32),
    /// Set these values, beside what is set already.
    Configure(Topic, BTreeMap<String, String>),
}

/// What `apply` does and what it does not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In the order of the catalogue.
    pub actions: Vec<Action>,
    /// Differences that are left as they are, because nothing is ever taken away.
    pub left: Vec<(Topic, Difference)>,
    /// Why nothing may be done before an operator decides.
    pub refused: Vec<String>,
}

/// The plan that adds what is missing. Growing a topic moves keys to other partitions, so that is
/// refused unless `allow_repartition`.
pub fn plan(catalogue: &Catalogue, observed: &ObservedTopics, allow_repartition: bool) -> Plan {
    let mut plan = Plan::default();
    for spec in &catalogue.topics {
        let topic = spec.topic;
        let mut config = BTreeMap::new();
        for difference in differences(spec, observed.get(&topic)) {
            match difference {
                Difference::Missing => plan.actions.push(Action::Create(topic)),
                Difference::Partitions { want, have } if want > have && allow_repartition => {
                    plan.actions.push(Action::Grow(topic, want));
                }
                Difference::Partitions { want, have } if want > have => {
                    plan.refused.push(format!(
                        "{topic}: growing from {have} to {want} partitions would move keys ({}) to \
                         other partitions; --allow-repartition does it",
                        spec.key
                    ));
                }
                Difference::Config { name, want, .. } => {
                    config.insert(name, want);
                }
                other => plan.left.push((topic, other)),
            }
        }
        if !config.is_empty() {
            plan.actions.push(Action::Configure(topic, config));
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_declared(catalogue: &Catalogue) -> ObservedTopics {
        let of = |spec: &TopicSpec| Observed {
            partitions: spec.partitions,
            replication: spec.replication,
            config: spec.config.clone(),
            overridden: Vec::new(),
        };
        let topics = catalogue.topics.iter();
        topics.map(|spec| (spec.topic, of(spec))).collect()
    }

    #[test]
    fn nothing_is_to_be_done_when_all_is_as_declared() {
        let catalogue = Catalogue::embedded(true).unwrap();
        let observed = as_declared(&catalogue);
        assert_eq!(plan(&catalogue, &observed, true), Plan::default());
    }

    #[test]
    fn missing_topics_are_created_and_values_set() {
        let catalogue = Catalogue::embedded(true).unwrap();
        let mut observed = as_declared(&catalogue);
        observed.remove(&Topic::AuditLogs);
        let events = observed.get_mut(&Topic::AgentEvents).unwrap();
        events.config.insert("retention.ms".into(), "1".into());
        events.config.insert("flush.ms".into(), "7".into());
        let plan = plan(&catalogue, &observed, false);
        let retention = catalogue.get(Topic::AgentEvents).unwrap().config["retention.ms"].clone();
        assert_eq!(
            plan.actions,
            [
                Action::Configure(
                    Topic::AgentEvents,
                    BTreeMap::from([("retention.ms".to_owned(), retention)])
                ),
                Action::Create(Topic::AuditLogs),
            ]
        );
        assert!(plan.refused.is_empty() && plan.left.is_empty());
    }

    #[test]
    fn partitions_grow_only_when_allowed_and_never_shrink() {
        let catalogue = Catalogue::embedded(true).unwrap();
        let mut observed = as_declared(&catalogue);
        observed.get_mut(&Topic::PlanCommands).unwrap().partitions = 2;
        observed.get_mut(&Topic::AuditLogs).unwrap().partitions = 12;
        observed.get_mut(&Topic::AuditLogs).unwrap().replication = 2;
        let refused = plan(&catalogue, &observed, false);
        assert_eq!(refused.actions, []);
        assert_eq!(refused.refused.len(), 1);
        let shrink = Difference::Partitions { want: 3, have: 12 };
        let replicas = Difference::Replication { want: 1, have: 2 };
        let left = [(Topic::AuditLogs, shrink), (Topic::AuditLogs, replicas)];
        assert_eq!(refused.left, left);
        let allowed = plan(&catalogue, &observed, true);
        assert_eq!(allowed.actions, [Action::Grow(Topic::PlanCommands, 3)]);
        assert!(allowed.refused.is_empty());
        assert_eq!(allowed.left, left);
    }
}
