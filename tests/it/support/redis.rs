//! A Redis of a test's own, which it may kill.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{eventually, reaper};

/// Nobody connects from this address, so that no connection takes the port of one that is down.
const HOST: &str = "127.0.0.5";

/// One Redis, with its append-only file in a folder of its own. It is killed when this is dropped.
pub struct OwnRedis {
    child: Child,
    folder: tempfile::TempDir,
    /// Host and port.
    pub addr: String,
    pub url: String,
}

impl OwnRedis {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let free = TcpListener::bind((HOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let redis = Self {
            child: spawn(folder.path(), port),
            folder,
            addr: format!("{HOST}:{port}"),
            url: format!("redis://{HOST}:{port}/"),
        };
        redis.until_up().await;
        redis
    }

    /// Where its file is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it at once and starts it again from its file.
    pub async fn restart(&mut self) {
        self.kill();
        let port = self.addr.rsplit_once(':').unwrap().1.parse().unwrap();
        self.child = spawn(self.folder.path(), port);
        self.until_up().await;
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        reaper::ended(&self.child);
    }

    async fn until_up(&self) {
        let client = redis::Client::open(self.url.as_str()).unwrap();
        eventually("Redis answers", async || {
            let mut redis = client.get_multiplexed_async_connection().await.ok()?;
            // It says LOADING while it reads its file.
            redis::cmd("PING").exec_async(&mut redis).await.ok()
        })
        .await;
    }
}

fn spawn(folder: &Path, port: u16) -> Child {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", HOST, "--port", &port.to_string()])
        .args(["--appendonly", "yes", "--appendfsync", "always"])
        .args(["--save", "", "--maxmemory-policy", "noeviction", "--dir"])
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = command.spawn().unwrap();
    reaper::started(&child);
    child
}

impl Drop for OwnRedis {
    fn drop(&mut self) {
        self.kill();
    }
}
