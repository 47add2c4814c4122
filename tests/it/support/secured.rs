//! Redis as it is run in earnest: TLS only, an ACL user with no more than it needs; alone, under
//! sentinels, or as a cluster.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::certs::Certs;
use super::{eventually_within, reaper};
use std::time::Duration;

/// What docs/clusters.md gives AgentHub's user, word for word.
pub const ACL: &str = "~ah:* &ah:* -@all +@read +@write +@pubsub +@scripting +@connection \
    +@transaction -@dangerous -function +time +wait +role +info +config|get +cluster|slots \
    +cluster|shards +cluster|nodes +cluster|myid";

const PASSWORD: &str = "p@ss/word";
/// The same in a URL.
const IN_URL: &str = "p%40ss%2Fword";
const OPERATOR: &str = "operators-secret";
const START: Duration = Duration::from_secs(60);

/// Several servers that belong together. They end, and their data goes, when this is dropped.
pub struct Servers {
    folder: TempDir,
    pub certs: Certs,
    children: BTreeMap<u16, Child>,
    pub url: String,
}

pub fn free_ports(count: usize) -> Vec<u16> {
    // All are taken before any is let go, so that they differ.
    let taken: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let port = |socket: &TcpListener| socket.local_addr().unwrap().port();
    taken.iter().map(port).collect()
}

impl Servers {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let certs = Certs::make(&folder.path().join("certs"), "redis");
        Self {
            folder,
            certs,
            children: BTreeMap::new(),
            url: String::new(),
        }
    }

    /// The environment of processes that use it.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("REDIS_URL", self.url.clone()),
            ("AGENTHUB_REDIS_TLS_CA", self.certs.ca()),
        ]
    }

    /// One Redis.
    pub async fn one() -> Self {
        let mut servers = Self::new();
        let port = free_ports(1)[0];
        servers.redis(port, "");
        servers.until_up(port).await;
        servers.url = format!("rediss://agenthub:{IN_URL}@127.0.0.1:{port}/");
        servers
    }

    /// A master, two replicas and three sentinels.
    pub async fn sentinel() -> Self {
        let mut servers = Self::new();
        let ports = free_ports(6);
        let (redis, sentinels) = ports.split_at(3);
        let master = redis[0];
        for port in redis {
            let more = format!(
                "min-replicas-to-write 1\nmin-replicas-max-lag 10\n{}",
                if *port == master {
                    String::new()
                } else {
                    format!("replicaof 127.0.0.1 {master}\n")
                }
            );
            servers.redis(*port, &more);
        }
        for port in redis {
            servers.until_up(*port).await;
        }
        for port in sentinels {
            let more = format!(
                "user default off\nuser agenthub on >{PASSWORD} -@all +auth +client|setname \
                 +client|id +hello +ping +info +role +sentinel|masters +sentinel|get-master-addr-by-name \
                 +sentinel|sentinels +sentinel|replicas +sentinel|slaves\n\
                 user operator on >{OPERATOR} allcommands allchannels\n\
                 sentinel sentinel-user operator\nsentinel sentinel-pass {OPERATOR}\n\
                 sentinel monitor main 127.0.0.1 {master} 2\n\
                 sentinel auth-user main operator\nsentinel auth-pass main {OPERATOR}\n\
                 sentinel down-after-milliseconds main 3000\nsentinel failover-timeout main 10000\n"
            );
            servers.server(*port, &more, &["--sentinel"]);
        }
        for port in sentinels {
            servers.until_up(*port).await;
            eventually_within(START, "the sentinels know everything", async || {
                let told = servers.ask(*port, &["sentinel", "master", "main"]).await?;
                let lines: Vec<&str> = told.lines().collect();
                let value = |name| {
                    lines
                        .iter()
                        .position(|line| *line == name)
                        .map(|at| lines[at + 1])
                };
                (value("num-slaves") == Some("2") && value("num-other-sentinels") == Some("2"))
                    .then_some(())
            })
            .await;
        }
        servers.url = format!(
            "rediss-sentinel://agenthub:{IN_URL}@127.0.0.1:{}?node=127.0.0.1:{}&node=127.0.0.1:{}\
             &sentinelServiceName=main&sentinelUsername=agenthub&sentinelPassword={IN_URL}",
            sentinels[0], sentinels[1], sentinels[2]
        );
        servers
    }

    /// Three masters and a replica of each.
    pub async fn cluster() -> Self {
        let mut servers = Self::new();
        let ports = free_ports(12);
        let (redis, buses) = ports.split_at(6);
        for (port, bus) in redis.iter().zip(buses) {
            let more = format!(
                "cluster-enabled yes\ncluster-port {bus}\ntls-cluster yes\ncluster-node-timeout 3000\n"
            );
            servers.redis(*port, &more);
        }
        for port in redis {
            servers.until_up(*port).await;
        }
        let nodes: Vec<String> = redis
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let mut create = vec!["--cluster", "create"];
        create.extend(nodes.iter().map(String::as_str));
        create.extend(["--cluster-replicas", "1", "--cluster-yes"]);
        servers
            .ask(redis[0], &create)
            .await
            .expect("the cluster is made");
        for port in redis {
            eventually_within(START, "the cluster is whole", async || {
                let info = servers.ask(*port, &["cluster", "info"]).await?;
                let nodes = servers.ask(*port, &["cluster", "nodes"]).await?;
                let replicas = nodes.lines().filter(|line| line.contains("slave")).count();
                (info.contains("cluster_state:ok")
                    && info.contains("cluster_known_nodes:6")
                    && replicas == 3)
                    .then_some(())
            })
            .await;
        }
        servers.url = format!(
            "rediss-cluster://agenthub:{IN_URL}@{}?node={}&node={}",
            nodes[0], nodes[1], nodes[2]
        );
        servers
    }

    /// Starts a Redis with the ACL users and TLS.
    fn redis(&mut self, port: u16, more: &str) {
        let config = format!(
            "user default off ~* &* +@all\nuser agenthub on >{PASSWORD} {ACL}\n\
             user operator on >{OPERATOR} allkeys allchannels allcommands\n\
             masteruser operator\nmasterauth {OPERATOR}\n\
             appendonly yes\nsave \"\"\nmaxmemory-policy noeviction\nrepl-diskless-sync-delay 0\n{more}"
        );
        self.server(port, &config, &[]);
    }

    fn server(&mut self, port: u16, config: &str, args: &[&str]) {
        let folder = self.folder.path().join(port.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let certs = &self.certs;
        let config = format!(
            "bind 127.0.0.1\nport 0\ntls-port {port}\ntls-replication yes\ntls-auth-clients no\n\
             tls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\ndir {}\n{config}",
            certs.ca(),
            certs.cert(),
            certs.key(),
            folder.display(),
        );
        std::fs::write(folder.join("redis.conf"), config).unwrap();
        let child = start(&folder, args);
        self.children.insert(port, child);
    }

    /// Starts a Redis again that was killed, on its data.
    pub async fn restart(&mut self, port: u16) {
        let folder = self.folder.path().join(port.to_string());
        self.children.insert(port, start(&folder, &[]));
        self.until_up(port).await;
    }

    async fn until_up(&self, port: u16) {
        eventually_within(START, "Redis answers", async || {
            self.ask(port, &["ping"])
                .await
                .filter(|told| told.contains("PONG"))
        })
        .await;
    }

    /// What `redis-cli` is answered as the operator.
    pub async fn ask(&self, port: u16, args: &[&str]) -> Option<String> {
        let mut cli = Command::new("redis-cli");
        cli.args([
            "-h",
            "127.0.0.1",
            "-p",
            &port.to_string(),
            "--tls",
            "--cacert",
            &self.certs.ca(),
        ])
        .args(["--user", "operator", "--no-auth-warning", "-e"])
        .args(args)
        .env("REDISCLI_AUTH", OPERATOR)
        .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || cli.output());
        let output = output.await.unwrap().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(told)
    }

    /// The Redis that takes the writes to `key`, where there is one.
    pub async fn master_of(&self, key: &str) -> Option<u16> {
        for port in self.children.keys() {
            let Some(role) = self.ask(*port, &["role"]).await else {
                continue;
            };
            if !role.starts_with("master") {
                continue;
            }
            // A node of a cluster that does not have the slot says so.
            let answer = self.ask(*port, &["exists", key]).await;
            if answer.is_some_and(|told| !told.contains("MOVED")) {
                return Some(*port);
            }
        }
        None
    }

    /// The one of a [`Servers::one`].
    pub fn only(&self) -> u16 {
        *self.children.keys().next().unwrap()
    }

    /// Ends one at once.
    pub fn kill(&mut self, port: u16) {
        let mut child = self.children.remove(&port).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        reaper::ended(&child);
    }
}

fn start(folder: &Path, args: &[&str]) -> Child {
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))
        .unwrap();
    let config: PathBuf = folder.join("redis.conf");
    let child = Command::new("redis-server")
        .arg(config)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .unwrap();
    reaper::started(&child);
    child
}

impl Drop for Servers {
    fn drop(&mut self) {
        let ports: Vec<u16> = self.children.keys().copied().collect();
        for port in ports {
            self.kill(port);
        }
    }
}
