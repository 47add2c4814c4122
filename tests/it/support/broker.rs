//! A Kafka of a test's own, which it may kill.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{eventually_within, namespace, reaper};

/// Nobody connects from this address, so that no connection takes the port of a broker that is down: one
/// from `127.0.0.1` may, to itself even.
const HOST: &str = "127.0.0.4";

/// One broker. It is killed, and its data removed, when this is dropped.
pub struct Broker {
    pub brokers: String,
    folder: PathBuf,
    child: Child,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(super) fn java() -> Command {
    let libs = root().join(".agenthub/kafka/libs");
    assert!(
        libs.exists(),
        "no Kafka: infra/local/stack install services"
    );
    let log = root().join("infra/local/kafka/log4j2.properties");
    let mut command = Command::new("java");
    command
        .arg("-cp")
        .arg(libs.join("*"))
        .arg(format!("-Dlog4j2.configurationFile={}", log.display()))
        .args(["-Xms128m", "-Xmx384m", "-Djava.awt.headless=true"])
        .stdin(Stdio::null());
    command
}

impl Broker {
    /// Formats a data folder and starts a broker on it.
    pub async fn start() -> Self {
        let folder = std::env::temp_dir().join(namespace());
        std::fs::create_dir_all(&folder).unwrap();
        let ports = [(); 2].map(|()| TcpListener::bind((HOST, 0)).unwrap());
        let [port, controller] = ports.map(|socket| socket.local_addr().unwrap().port());
        let properties = root().join("infra/local/kafka/server.properties");
        let properties = std::fs::read_to_string(properties)
            .unwrap()
            .replace("127.0.0.1", HOST)
            .replace("@KAFKA_PORT@", &port.to_string())
            .replace("@CONTROLLER_PORT@", &controller.to_string())
            .replace("@DATA@", folder.join("data").to_str().unwrap());
        let config = folder.join("server.properties");
        std::fs::write(&config, properties).unwrap();
        let mut format = java();
        format
            .args(["kafka.tools.StorageTool", "format", "--cluster-id"])
            .args(["AAAAAAAAAAAAAAAAAAAAAA", "--config"])
            .arg(&config);
        let formatted = tokio::task::spawn_blocking(move || format.output()).await;
        let formatted = formatted.unwrap().unwrap();
        assert!(formatted.status.success(), "{formatted:?}");
        let child = spawn(&folder);
        let mut broker = Self {
            brokers: format!("{HOST}:{port}"),
            folder,
            child,
        };
        broker.until_up().await;
        broker
    }

    /// Where its data is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        reaper::ended(&self.child);
    }

    /// Starts it again, on the same port and the same data.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.folder);
        self.until_up().await;
    }

    async fn until_up(&mut self) {
        let (log, child) = (self.folder.join("log"), &mut self.child);
        eventually_within(Duration::from_mins(2), "Kafka is up", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(matches!(child.try_wait(), Ok(None)), "{text}");
            let up = text.contains("Kafka Server started").then_some(());
            std::future::ready(up)
        })
        .await;
    }
}

pub(super) fn spawn(folder: &Path) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    let child = java()
        .arg("kafka.Kafka")
        .arg(folder.join("server.properties"))
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    reaper::started(&child);
    child
}

impl Drop for Broker {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
