//! Three brokers that copy everything to each other, over TLS, and let in who can show who they are.

use std::path::Path;

use tempfile::TempDir;

use super::broker::{java, spawn};
use super::certs::Certs;
use super::secured::free_ports;
use super::{eventually_within, reaper};
use std::process::Child;
use std::time::Duration;

/// How clients show who they are.
#[derive(Clone, Copy, PartialEq)]
pub enum Shown {
    /// User and password, by SCRAM-SHA-512.
    Scram,
    /// A certificate (mTLS).
    Certificate,
}

/// The brokers. They are killed, and their data removed, when this is dropped.
pub struct Brokers {
    folder: TempDir,
    certs: Certs,
    shown: Shown,
    ports: Vec<u16>,
    children: Vec<Option<Child>>,
}

const PASSWORD: &str = "brokers-secret";

impl Brokers {
    pub async fn start(shown: Shown) -> Self {
        let folder = TempDir::new().unwrap();
        let certs = Certs::make(&folder.path().join("certs"), "agenthub");
        let all = free_ports(6);
        let (ports, controllers) = all.split_at(3);
        let mut brokers = Self {
            folder,
            certs,
            shown,
            ports: ports.to_vec(),
            children: Vec::new(),
        };
        for index in 0..3 {
            let data = brokers.folder.path().join(index.to_string());
            std::fs::create_dir_all(&data).unwrap();
            let config = data.join("server.properties");
            std::fs::write(&config, brokers.properties(index, controllers, &data)).unwrap();
            let mut format = java();
            format
                .args(["kafka.tools.StorageTool", "format", "--cluster-id"])
                .args(["AAAAAAAAAAAAAAAAAAAAAA", "--config"])
                .arg(&config);
            if shown == Shown::Scram {
                let user = format!("SCRAM-SHA-512=[name=agenthub,password={PASSWORD}]");
                format.args(["--add-scram", &user]);
            }
            let formatted = tokio::task::spawn_blocking(move || format.output()).await;
            let formatted = formatted.unwrap().unwrap();
            assert!(formatted.status.success(), "{formatted:?}");
            brokers.children.push(Some(spawn(&data)));
        }
        for index in 0..3 {
            let log = brokers.folder.path().join(index.to_string()).join("log");
            eventually_within(Duration::from_secs(180), "Kafka is up", async || {
                let text = std::fs::read_to_string(&log).ok()?;
                text.contains("Kafka Server started").then_some(())
            })
            .await;
        }
        brokers
    }

    fn properties(&self, index: usize, controllers: &[u16], data: &Path) -> String {
        let voters: Vec<String> = controllers
            .iter()
            .enumerate()
            .map(|(at, port)| format!("{}@127.0.0.1:{port}", at + 1))
            .collect();
        let (port, controller) = (self.ports[index], controllers[index]);
        let protocol = match self.shown {
            Shown::Scram => "SASL_SSL",
            Shown::Certificate => "SSL",
        };
        let base = std::fs::read_to_string(
            super::tools::root().join("infra/local/kafka/server.properties"),
        );
        // What is said of one broker and of plain connections is said anew below.
        let kept: Vec<String> = base
            .unwrap()
            .lines()
            .filter(|line| {
                let name = line.split('=').next().unwrap_or_default();
                !(name.contains("listener")
                    || name.contains("replication.factor")
                    || name.contains(".min.isr")
                    || matches!(
                        name,
                        "node.id" | "controller.quorum.voters" | "log.dirs" | "min.insync.replicas"
                    ))
            })
            .map(str::to_owned)
            .collect();
        let client_auth = match self.shown {
            Shown::Scram => "none",
            Shown::Certificate => "required",
        };
        let mut text = format!(
            "{}\nnode.id={}\ncontroller.quorum.voters={}\nlog.dirs={}\n\
             listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=BROKER://127.0.0.1:{port}\n\
             listener.security.protocol.map=BROKER:{protocol},CONTROLLER:SSL\n\
             inter.broker.listener.name=BROKER\ncontroller.listener.names=CONTROLLER\n\
             default.replication.factor=3\nmin.insync.replicas=2\noffsets.topic.replication.factor=3\n\
             transaction.state.log.replication.factor=3\ntransaction.state.log.min.isr=2\n\
             share.coordinator.state.topic.replication.factor=3\nshare.coordinator.state.topic.min.isr=2\n\
             broker.session.timeout.ms=6000\n\
             ssl.keystore.type=PEM\nssl.keystore.location={}\nssl.truststore.type=PEM\n\
             ssl.truststore.location={}\nssl.client.auth={client_auth}\n\
             listener.name.controller.ssl.client.auth=required\n",
            kept.join("\n"),
            index + 1,
            voters.join(","),
            data.join("data").display(),
            self.certs.both(),
            self.certs.ca(),
        );
        if self.shown == Shown::Scram {
            text += &format!(
                "sasl.enabled.mechanisms=SCRAM-SHA-512\nsasl.mechanism.inter.broker.protocol=SCRAM-SHA-512\n\
                 listener.name.broker.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required \
                 username=\"agenthub\" password=\"{PASSWORD}\";\n"
            );
        }
        text
    }

    /// The environment of processes that use them.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let brokers: Vec<String> = self
            .ports
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let mut all = vec![
            ("KAFKA_BROKERS", brokers.join(",")),
            ("AGENTHUB_KAFKA_TLS_CA", self.certs.ca()),
        ];
        let more = match self.shown {
            Shown::Scram => vec![
                ("AGENTHUB_KAFKA_SECURITY_PROTOCOL", "sasl_ssl".to_owned()),
                ("AGENTHUB_KAFKA_SASL_USERNAME", "agenthub".to_owned()),
                ("AGENTHUB_KAFKA_SASL_PASSWORD", PASSWORD.to_owned()),
            ],
            Shown::Certificate => vec![
                ("AGENTHUB_KAFKA_SECURITY_PROTOCOL", "ssl".to_owned()),
                ("AGENTHUB_KAFKA_TLS_CERT", self.certs.cert()),
                ("AGENTHUB_KAFKA_TLS_KEY", self.certs.key()),
            ],
        };
        all.extend(more);
        all
    }

    /// Ends one at once.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.children[index].take() {
            child.kill().unwrap();
            child.wait().unwrap();
            reaper::ended(&child);
        }
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        for index in 0..self.children.len() {
            self.kill(index);
        }
    }
}
