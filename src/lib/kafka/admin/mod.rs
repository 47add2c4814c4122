//! Creates, checks and describes the topics. Only adds: nothing here removes a topic, a partition or
//! a setting.

mod broker;
mod describe;
mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigResource, ConfigSource, NewPartitions, NewTopic,
    OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::catalogue::{Catalogue, TopicSpec};
use super::client::{KafkaSettings, Observer};
use super::producer::ClientError;
use crate::messages::Topic;

pub use broker::Expectations;
pub use describe::{ClusterInfo, GroupInfo, PartitionInfo, TopicInfo};
pub use plan::{Action, Difference, Observed, ObservedTopics, Plan, differences, plan};

/// How long the brokers may take for the first answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(6);
/// How long they may take for any other one.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the topics could not be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No broker answers.
    #[error("no Kafka broker answers at {brokers}: {reason}")]
    Unreachable {
        /// The bootstrap servers.
        brokers: String,
        /// What librdkafka says.
        reason: String,
    },
    /// The cluster refused a change.
    #[error("{what}: {reason}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A request failed.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<KafkaError> for AdminError {
    fn from(error: KafkaError) -> Self {
        Self::Client(error.into())
    }
}

/// What is not as it is declared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    /// By topic.
    pub topics: Vec<(Topic, Difference)>,
    /// Settings of brokers that the runtime relies on, one text each.
    pub brokers: Vec<String>,
}

impl Findings {
    /// Whether everything is as declared.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.brokers.is_empty()
    }
}

/// The operator's access to the cluster.
pub struct Admin {
    client: Arc<AdminClient<Observer>>,
    settings: KafkaSettings,
}

impl Admin {
    /// Connects in the background; the first call finds out whether brokers answer.
    pub fn new(settings: &KafkaSettings) -> Result<Self, AdminError> {
        let config = settings.client("agenthub-admin", &[]);
        let client = config.create_with_context(Observer::default())?;
        Ok(Self {
            client: Arc::new(client),
            settings: settings.clone(),
        })
    }

    /// The topics that exist, of those that the catalogue declares.
    pub async fn observe(&self, catalogue: &Catalogue) -> Result<ObservedTopics, AdminError> {
        let metadata = self.metadata(CONNECT_TIMEOUT).await?;
        let mut observed = ObservedTopics::new();
        for spec in &catalogue.topics {
            let name = self.settings.topic(spec.topic);
            let found = metadata.topics().iter().find(|t| t.name() == name);
            let Some(found) = found.filter(|t| t.error().is_none()) else {
                continue;
            };
            let replicas = found.partitions().first().map_or(0, |p| p.replicas().len());
            let topic = Observed {
                partitions: int(found.partitions().len()),
                replication: int(replicas),
                ..Observed::default()
            };
            observed.insert(spec.topic, topic);
        }
        let names: Vec<(Topic, String)> = observed
            .keys()
            .map(|topic| (*topic, self.settings.topic(*topic)))
            .collect();
        let resources = names
            .iter()
            .map(|(_, name)| ResourceSpecifier::Topic(name))
            .collect();
        for resource in self.describe_configs(resources).await? {
            let OwnedResourceSpecifier::Topic(name) = &resource.specifier else {
                continue;
            };
            let topic = names.iter().find(|(_, n)| n == name).map(|(t, _)| t);
            if let Some(topic) = topic.and_then(|t| observed.get_mut(t)) {
                topic.overridden = overridden(&resource);
                topic.config = values(resource);
            }
        }
        Ok(observed)
    }

    /// Does what [`plan`] says and returns it; nothing when anything in it is refused. Returns once
    /// every created topic can be used.
    pub async fn apply(
        &self,
        catalogue: &Catalogue,
        allow_repartition: bool,
    ) -> Result<Plan, AdminError> {
        let observed = self.observe(catalogue).await?;
        let plan = plan(catalogue, &observed, allow_repartition);
        if !plan.refused.is_empty() {
            return Ok(plan);
        }
        for action in &plan.actions {
            match action {
                Action::Create(topic) => {
                    if let Some(spec) = catalogue.get(*topic) {
                        self.create(spec).await?;
                    }
                }
                Action::Grow(topic, partitions) => self.grow(*topic, *partitions).await?,
                Action::Configure(topic, config) => {
                    let before = observed.get(topic).cloned().unwrap_or_default();
                    self.configure(*topic, &before, config).await?;
                }
            }
        }
        self.await_leaders(catalogue).await?;
        Ok(plan)
    }

    /// Compares the cluster with the declaration, changing nothing.
    pub async fn verify(&self, catalogue: &Catalogue) -> Result<Findings, AdminError> {
        let observed = self.observe(catalogue).await?;
        let mut findings = Findings::default();
        for spec in &catalogue.topics {
            let found = differences(spec, observed.get(&spec.topic));
            findings
                .topics
                .extend(found.into_iter().map(|d| (spec.topic, d)));
        }
        let replication = catalogue.topics.iter().map(|t| t.replication).max();
        let expect = Expectations {
            consumer_protocol: self.settings.consumer_protocol,
            replication: replication.unwrap_or(1),
        };
        let metadata = self.metadata(REQUEST_TIMEOUT).await?;
        for broker in metadata.brokers() {
            // A broker describes itself alone, so each is asked on its own.
            let resources = vec![ResourceSpecifier::Broker(broker.id())];
            for resource in self.describe_configs(resources).await? {
                let wrong = broker::check(&values(resource), expect);
                let named = wrong.into_iter().map(|w| format!("{}: {w}", broker.id()));
                findings.brokers.extend(named);
            }
        }
        Ok(findings)
    }

    async fn create(&self, spec: &TopicSpec) -> Result<(), AdminError> {
        let name = self.settings.topic(spec.topic);
        let replication = TopicReplication::Fixed(spec.replication);
        let mut topic = NewTopic::new(&name, spec.partitions, replication);
        for (key, value) in &spec.config {
            topic = topic.set(key, value);
        }
        match self.client.create_topics([&topic], &options()).await?.pop() {
            // Another process that applies the same declaration was first.
            None | Some(Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, code))) => Err(refused(format!("creating {name}"), code)),
        }
    }

    async fn grow(&self, topic: Topic, partitions: i32) -> Result<(), AdminError> {
        let name = self.settings.topic(topic);
        let count = usize::try_from(partitions).unwrap_or_default();
        let new = NewPartitions::new(&name, count);
        let result = self.client.create_partitions([&new], &options()).await?;
        match result.into_iter().next() {
            Some(Err((_, code))) => Err(refused(format!("growing {name}"), code)),
            _ => Ok(()),
        }
    }

    /// Kafka's call replaces every value that was set for the topic, so those are sent again.
    async fn configure(
        &self,
        topic: Topic,
        before: &Observed,
        config: &BTreeMap<String, String>,
    ) -> Result<(), AdminError> {
        let name = self.settings.topic(topic);
        let kept = before
            .overridden
            .iter()
            .filter_map(|key| before.config.get_key_value(key));
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(&name));
        for (key, value) in kept.chain(config) {
            alter = alter.set(key, value);
        }
        let result = self.client.alter_configs([&alter], &options()).await?;
        match result.into_iter().next() {
            Some(Err((_, code))) => Err(refused(format!("configuring {name}"), code)),
            _ => Ok(()),
        }
    }

    /// A created topic takes a moment to reach every broker and to have leaders.
    async fn await_leaders(&self, catalogue: &Catalogue) -> Result<(), AdminError> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let metadata = self.metadata(REQUEST_TIMEOUT).await?;
            let ready = |spec: &TopicSpec| {
                let name = self.settings.topic(spec.topic);
                metadata.topics().iter().any(|t| {
                    t.name() == name
                        && t.partitions().len() >= usize::try_from(spec.partitions).unwrap_or(0)
                        && t.partitions().iter().all(|p| p.leader() >= 0)
                })
            };
            let Some(waiting) = catalogue.topics.iter().find(|spec| !ready(spec)) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(AdminError::Refused {
                    what: self.settings.topic(waiting.topic),
                    reason: "its partitions have no leaders yet".to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn metadata(&self, timeout: Duration) -> Result<Metadata, AdminError> {
        let brokers = self.settings.brokers.clone();
        let unreachable = |reason: String| AdminError::Unreachable { brokers, reason };
        let fetched = self
            .blocking(move |client| client.inner().fetch_metadata(None, timeout))
            .await;
        match fetched {
            Ok(metadata) if metadata.brokers().is_empty() => {
                Err(unreachable("it knows no broker".to_owned()))
            }
            Ok(metadata) => Ok(metadata),
            Err(error) => Err(unreachable(error.to_string())),
        }
    }

    async fn describe_configs(
        &self,
        resources: Vec<ResourceSpecifier<'_>>,
    ) -> Result<Vec<ConfigResource>, AdminError> {
        if resources.is_empty() {
            return Ok(Vec::new());
        }
        let described = self.client.describe_configs(&resources, &options()).await?;
        described
            .into_iter()
            .map(|resource| resource.map_err(|code| refused("describing".to_owned(), code)))
            .collect()
    }

    /// librdkafka's metadata calls block their thread.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&AdminClient<Observer>) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        let client = Arc::clone(&self.client);
        let called = tokio::task::spawn_blocking(move || call(&client));
        called.await.unwrap_or(Err(KafkaError::Canceled))
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

fn refused(what: String, code: RDKafkaErrorCode) -> AdminError {
    let reason = code.to_string();
    AdminError::Refused { what, reason }
}

fn values(resource: ConfigResource) -> BTreeMap<String, String> {
    let entries = resource.entries.into_iter();
    entries.filter_map(|e| Some((e.name, e.value?))).collect()
}

fn overridden(resource: &ConfigResource) -> Vec<String> {
    let set = |source: &ConfigSource| *source == ConfigSource::DynamicTopic;
    let entries = resource.entries.iter().filter(|e| set(&e.source));
    entries.map(|e| e.name.clone()).collect()
}

fn int(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
