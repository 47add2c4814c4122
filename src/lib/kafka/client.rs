//! The one place that configures clients of the cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::{ConfigError, Millis, Settings, Source};
use crate::config::{
    check_group_protocol, check_namespace, kafka_properties, load_kafka_properties,
};
use crate::messages::Topic;

/// What every client of the cluster needs to know.
#[derive(Clone)]
pub struct KafkaSettings {
    /// Bootstrap servers, comma-separated.
    pub brokers: String,
    /// Prefix of topics and groups; empty for none.
    pub namespace: String,
    /// Further librdkafka properties, `name=value`. They win over what this room sets.
    pub properties: Vec<String>,
    /// Whether groups use the `consumer` protocol (KIP-848) rather than the `classic` one.
    pub consumer_protocol: bool,
    /// Longest time that a record may wait for its acknowledgement.
    pub produce_timeout: Duration,
}

impl std::fmt::Debug for KafkaSettings {
    // The properties may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("namespace", &self.namespace)
            .field("consumer_protocol", &self.consumer_protocol)
            .field("produce_timeout", &self.produce_timeout)
            .finish_non_exhaustive()
    }
}

impl From<&Settings> for KafkaSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            brokers: settings.kafka_brokers.clone(),
            namespace: settings.namespace.clone(),
            properties: kafka_properties(settings),
            consumer_protocol: settings.group_protocol == "consumer",
            produce_timeout: settings.produce_timeout_ms.duration(),
        }
    }
}

impl KafkaSettings {
    /// Reads these settings alone, for commands that need no secrets.
    pub fn load(source: &Source) -> Result<Self, ConfigError> {
        let namespace: String = source.setting("AGENTHUB_NAMESPACE")?;
        let protocol: String = source.setting("AGENTHUB_GROUP_PROTOCOL")?;
        check_namespace(&namespace)?;
        check_group_protocol(&protocol)?;
        let produce_timeout: Millis = source.setting("AGENTHUB_PRODUCE_TIMEOUT_MS")?;
        Ok(Self {
            brokers: source.setting("KAFKA_BROKERS")?,
            namespace,
            properties: load_kafka_properties(source)?,
            consumer_protocol: protocol == "consumer",
            produce_timeout: produce_timeout.duration(),
        })
    }

    /// The name of a topic on the broker.
    pub fn topic(&self, topic: Topic) -> String {
        topic.full_name(&self.namespace)
    }

    /// The name of a consumer group on the broker.
    pub fn group(&self, name: &str) -> String {
        if self.namespace.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.namespace)
        }
    }

    /// The configuration of a client that introduces itself as `client_id`, with `own` properties.
    pub(super) fn client(&self, client_id: &str, own: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", client_id)
            // The default of 10 s would keep a process away long after its broker is back.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("socket.nagle.disable", "true")
            .set("topic.metadata.refresh.interval.ms", "30000")
            .set_log_level(RDKafkaLogLevel::Info);
        for (name, value) in own {
            config.set(*name, *value);
        }
        for property in &self.properties {
            if let Some((name, value)) = property.split_once('=') {
                config.set(name.trim(), value.trim());
            }
        }
        config
    }
}

/// What a client was last told of the brokers. Shared with [`BrokerHealth`](super::BrokerHealth).
#[derive(Debug, Clone, Default)]
pub(super) struct Connection {
    all_down: Arc<AtomicBool>,
}

impl Connection {
    /// Whether every broker was reported down since the last look; the look resets it, since
    /// librdkafka never reports that one is back.
    pub(super) fn take_all_down(&self) -> bool {
        self.all_down.swap(false, Ordering::Relaxed)
    }

    pub(super) fn record(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.all_down.store(true, Ordering::Relaxed);
        }
        let code = error.rdkafka_error_code();
        let code = code.map_or_else(|| "other".to_owned(), |code| format!("{code:?}"));
        metrics::counter!("agenthub_kafka_client_errors_total", "code" => code).increment(1);
    }
}

/// The context of clients that are not consumers of a group.
#[derive(Debug, Clone, Default)]
pub(super) struct Observer {
    pub(super) connection: Connection,
}

impl ClientContext for Observer {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, message: &str) {
        log(level, fac, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.connection.record(&error);
        tracing::debug!(target: "librdkafka", %error, reason, "client error");
    }
}

impl ConsumerContext for Observer {}

/// Sends a line of librdkafka's log to ours.
pub(super) fn log(level: RDKafkaLogLevel, fac: &str, message: &str) {
    use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
    match level {
        Emerg | Alert | Critical | Error => {
            tracing::error!(target: "librdkafka", fac, message);
        }
        Warning => tracing::warn!(target: "librdkafka", fac, message),
        Notice | Info => tracing::info!(target: "librdkafka", fac, message),
        Debug => tracing::debug!(target: "librdkafka", fac, message),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<KafkaSettings, ConfigError> {
        let env: BTreeMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        KafkaSettings::load(&Source::from_env(env)?)
    }

    #[test]
    fn loads_without_secrets_and_checks_all_the_same() {
        let settings = load(&[("AGENTHUB_NAMESPACE", "t1"), ("KAFKA_BROKERS", "b:1")]).unwrap();
        assert_eq!(settings.topic(Topic::AuditLogs), "t1.audit.logs");
        assert_eq!(settings.group("planner"), "t1.planner");
        assert_eq!(settings.brokers, "b:1");
        assert!(load(&[("AGENTHUB_NAMESPACE", "T_1")]).is_err());
        assert!(load(&[("AGENTHUB_GROUP_PROTOCOL", "eager")]).is_err());
    }

    #[test]
    fn the_operators_properties_win_and_stay_out_of_the_debug_form() {
        let settings = load(&[(
            "AGENTHUB_KAFKA_PROPERTIES",
            "sasl.password=sesame, socket.nagle.disable=false",
        )])
        .unwrap();
        let config = settings.client("test", &[]);
        assert_eq!(config.get("socket.nagle.disable"), Some("false"));
        assert_eq!(config.get("sasl.password"), Some("sesame"));
        assert!(!format!("{settings:?}").contains("sesame"));
    }
}
