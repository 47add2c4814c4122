//! The same tests against a Redis Cluster of three masters.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{eventually, namespace, reaper};

const SLOTS: u16 = 16_384;

/// Three masters that share the slots. They end, and their data goes, when this is dropped.
struct Cluster {
    folder: PathBuf,
    nodes: Vec<(Child, u16)>,
}

impl Cluster {
    async fn start() -> Self {
        let mut cluster = Self {
            folder: std::env::temp_dir().join(namespace()),
            nodes: Vec::new(),
        };
        // All are taken before any is let go, so that they differ.
        let free: Vec<TcpListener> = (0..6)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: Vec<u16> = free
            .iter()
            .map(|socket| socket.local_addr().unwrap().port())
            .collect();
        drop(free);
        for pair in ports.chunks(2) {
            let folder = cluster.folder.join(pair[0].to_string());
            std::fs::create_dir_all(&folder).unwrap();
            let child = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &pair[0].to_string()])
                .args([
                    "--cluster-enabled",
                    "yes",
                    "--cluster-port",
                    &pair[1].to_string(),
                ])
                .args(["--appendonly", "yes", "--save", "", "--dir"])
                .arg(&folder)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            reaper::started(&child);
            cluster.nodes.push((child, pair[0]));
        }
        cluster.join(&ports).await;
        cluster
    }

    /// Makes the nodes know each other, and shares the slots out.
    async fn join(&self, ports: &[u16]) {
        let count = u16::try_from(self.nodes.len()).unwrap();
        for (index, (_, port)) in (0..count).zip(&self.nodes) {
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
            let mut node = eventually("a node answers", async || {
                client.get_multiplexed_async_connection().await.ok()
            })
            .await;
            let (first, last) = (index * (SLOTS / count), (index + 1) * (SLOTS / count) - 1);
            let last = if index + 1 == count { SLOTS - 1 } else { last };
            let mut slots = redis::cmd("CLUSTER");
            slots.arg("ADDSLOTSRANGE").arg(first).arg(last);
            slots.exec_async(&mut node).await.unwrap();
            let mut meet = redis::cmd("CLUSTER");
            meet.arg("MEET")
                .arg("127.0.0.1")
                .arg(ports[0])
                .arg(ports[1]);
            meet.exec_async(&mut node).await.unwrap();
        }
        for (_, port) in &self.nodes {
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}/")).unwrap();
            let node = client.get_multiplexed_async_connection().await.unwrap();
            eventually("the cluster is whole", async || {
                let mut node = node.clone();
                let mut info = redis::cmd("CLUSTER");
                let info: String = info.arg("INFO").query_async(&mut node).await.ok()?;
                let whole = info.contains("cluster_state:ok")
                    && info.contains("cluster_known_nodes:3")
                    && info.contains("cluster_slots_assigned:16384");
                whole.then_some(())
            })
            .await;
        }
    }

    fn url(&self) -> String {
        let node = |index: usize| format!("127.0.0.1:{}", self.nodes[index].1);
        format!(
            "redis-cluster://{}?node={}&node={}",
            node(0),
            node(1),
            node(2)
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (child, _) in &mut self.nodes {
            child.kill().unwrap();
            child.wait().unwrap();
            reaper::ended(child);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Runs this very binary's tests of the ledger and of the main job once more, on the cluster.
#[tokio::test]
async fn the_ledger_and_the_main_job_pass_on_a_cluster() {
    let cluster = Cluster::start().await;
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests
        .args([
            "ledger::",
            "budgets::",
            "state_machine::",
            "main_job::",
            "streams::",
        ])
        // Its listener speaks to one Redis.
        .args(["--skip", "only_the_owner_is_heard_in_passing"])
        .args(["--test-threads", "4"])
        .env("REDIS_URL", cluster.url())
        .env("RUST_BACKTRACE", "0");
    let output = tokio::task::spawn_blocking(move || tests.output());
    let output = output.await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The filter did not go stale.
    let passed = text
        .lines()
        .find_map(|line| line.strip_prefix("test result: ok. "));
    let passed = passed.and_then(|line| line.split(' ').next()?.parse::<usize>().ok());
    assert!(passed > Some(40), "{text}");
}
