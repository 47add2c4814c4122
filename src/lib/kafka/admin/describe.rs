//! What `topics describe` shows: leaders, offsets, and how far each group is behind.

use std::collections::HashMap;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::Offset;
use serde::Serialize;

use super::{Admin, AdminError, CONNECT_TIMEOUT, REQUEST_TIMEOUT};
use crate::kafka::catalogue::{Catalogue, TopicSpec};
use crate::kafka::client::Observer;
use crate::messages::Topic;

/// The cluster and the declared topics that exist on it.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterInfo {
    /// `id host:port` of each broker.
    pub brokers: Vec<String>,
    /// In the order of the catalogue.
    pub topics: Vec<TopicInfo>,
}

/// A topic.
#[derive(Debug, Clone, Serialize)]
pub struct TopicInfo {
    /// Its name on the broker.
    pub name: String,
    /// What it is for.
    pub purpose: String,
    /// Whether it exists; where it does not, it has no partitions here.
    pub exists: bool,
    /// Its partitions.
    pub partitions: Vec<PartitionInfo>,
    /// The groups that read it.
    pub groups: Vec<GroupInfo>,
}

/// A partition.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: i32,
    /// The broker that leads it; -1 for none.
    pub leader: i32,
    /// How many replicas it has.
    pub replicas: usize,
    /// How many of them are in sync.
    pub in_sync: usize,
    /// The earliest offset.
    pub start: i64,
    /// The offset that the next record gets.
    pub end: i64,
}

/// How far a group is on a topic.
#[derive(Debug, Clone, Serialize)]
pub struct GroupInfo {
    /// Its name on the broker.
    pub group: String,
    /// The committed offset of each partition, in their order; absent where it committed none.
    pub committed: Vec<Option<i64>>,
    /// Records that it has still to read; those before its first commit count from the start.
    pub lag: i64,
}

impl Admin {
    /// Describes the cluster and the topics of the catalogue.
    pub async fn describe(&self, catalogue: &Catalogue) -> Result<ClusterInfo, AdminError> {
        let metadata = self.metadata(CONNECT_TIMEOUT).await?;
        let brokers = metadata.brokers().iter();
        let mut cluster = ClusterInfo {
            brokers: brokers
                .map(|b| format!("{} {}:{}", b.id(), b.host(), b.port()))
                .collect(),
            topics: Vec::with_capacity(catalogue.topics.len()),
        };
        for spec in &catalogue.topics {
            let name = self.settings.topic(spec.topic);
            let found = metadata.topics().iter().find(|t| t.name() == name);
            let partitions = found.filter(|t| t.error().is_none()).map(|topic| {
                let of = |p: &rdkafka::metadata::MetadataPartition| PartitionInfo {
                    partition: p.id(),
                    leader: p.leader(),
                    replicas: p.replicas().len(),
                    in_sync: p.isr().len(),
                    start: 0,
                    end: 0,
                };
                topic.partitions().iter().map(of).collect::<Vec<_>>()
            });
            let topic = self.topic_info(spec, name, partitions).await?;
            cluster.topics.push(topic);
        }
        Ok(cluster)
    }

    /// The partitions of a topic that hold records, each with the offset that its next one gets.
    pub async fn ends(&self, topic: Topic) -> Result<HashMap<(Topic, i32), i64>, AdminError> {
        let name = self.settings.topic(topic);
        let metadata = self.metadata(CONNECT_TIMEOUT).await?;
        let found = metadata.topics().iter().find(|t| t.name() == name);
        let found = found.filter(|t| t.error().is_none());
        let Some(found) = found else {
            return Err(AdminError::Refused {
                what: format!("the topic {name}"),
                reason: "it does not exist".to_owned(),
            });
        };
        let partitions: Vec<i32> = found
            .partitions()
            .iter()
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect();
        let ends = self
            .blocking(move |client| {
                let mut ends = HashMap::new();
                for partition in partitions {
                    let (start, end) =
                        client
                            .inner()
                            .fetch_watermarks(&name, partition, REQUEST_TIMEOUT)?;
                    if start < end {
                        ends.insert((topic, partition), end);
                    }
                }
                Ok(ends)
            })
            .await?;
        Ok(ends)
    }

    /// Members that a group has at this moment; 0 for one that nobody is in. `group` is without the
    /// namespace. Groups of the `consumer` protocol show none to this request of the classic one.
    pub async fn members(&self, group: &str) -> Result<usize, AdminError> {
        let group = self.settings.group(group);
        let members = self
            .blocking(move |client| {
                let list = client
                    .inner()
                    .fetch_group_list(Some(&group), REQUEST_TIMEOUT)?;
                Ok(list.groups().iter().map(|g| g.members().len()).sum())
            })
            .await?;
        Ok(members)
    }

    async fn topic_info(
        &self,
        spec: &TopicSpec,
        name: String,
        partitions: Option<Vec<PartitionInfo>>,
    ) -> Result<TopicInfo, AdminError> {
        let mut info = TopicInfo {
            name: name.clone(),
            purpose: spec.purpose.clone(),
            exists: partitions.is_some(),
            partitions: Vec::new(),
            groups: Vec::new(),
        };
        let Some(mut partitions) = partitions else {
            return Ok(info);
        };
        partitions.sort_by_key(|p| p.partition);
        info.partitions = self
            .blocking(move |client| {
                for p in &mut partitions {
                    let offsets =
                        client
                            .inner()
                            .fetch_watermarks(&name, p.partition, REQUEST_TIMEOUT)?;
                    (p.start, p.end) = offsets;
                }
                Ok(partitions)
            })
            .await?;
        for group in &spec.consumers {
            let group = self.settings.group(group);
            info.groups.push(self.group_info(group, &info).await?);
        }
        Ok(info)
    }

    async fn group_info(&self, group: String, topic: &TopicInfo) -> Result<GroupInfo, AdminError> {
        let own = [("group.id", &*group), ("enable.auto.commit", "false")];
        let config = self.settings.client("agenthub-admin", &own);
        let mut asked = TopicPartitionList::new();
        for p in &topic.partitions {
            asked.add_partition(&topic.name, p.partition);
        }
        let found = self
            .blocking(move |_| -> KafkaResult<TopicPartitionList> {
                // It asks for the group's offsets and never joins the group.
                let consumer: BaseConsumer<Observer> =
                    config.create_with_context(Observer::default())?;
                consumer.committed_offsets(asked, REQUEST_TIMEOUT)
            })
            .await?;
        let committed: Vec<Option<i64>> = topic
            .partitions
            .iter()
            .map(|p| {
                let element = found.find_partition(&topic.name, p.partition)?;
                match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                }
            })
            .collect();
        Ok(GroupInfo {
            group,
            lag: lag(&topic.partitions, &committed),
            committed,
        })
    }
}

fn lag(partitions: &[PartitionInfo], committed: &[Option<i64>]) -> i64 {
    let behind = |(p, committed): (&PartitionInfo, &Option<i64>)| {
        let at = committed.unwrap_or(p.start).max(p.start);
        (p.end - at).max(0)
    };
    partitions.iter().zip(committed).map(behind).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_counts_what_is_left_to_read() {
        let partition = |start, end| PartitionInfo {
            partition: 0,
            leader: 0,
            replicas: 1,
            in_sync: 1,
            start,
            end,
        };
        let partitions = [partition(5, 10), partition(5, 10), partition(5, 10)];
        // In the middle, never, and before what retention has left.
        assert_eq!(lag(&partitions, &[Some(7), None, Some(2)]), 3 + 5 + 5);
    }
}
