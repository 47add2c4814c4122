//! Floor (a): an axum handler that does one Redis round trip, in a process of its own as the API is.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use redis::AsyncCommands;
use redis::aio::ConnectionManager;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

const KEY: &str = "perf:floor";

/// The floor's process; it ends with this value.
#[derive(Debug)]
pub struct HttpFloor {
    pub address: SocketAddr,
    pub pid: u32,
    _process: Child,
}

impl HttpFloor {
    /// Starts this program again as the floor.
    pub async fn start(redis_url: &str) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--serve-floor")
            .env("REDIS_URL", redis_url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = process.stdout.take().context("the floor's output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        let address = line.trim().parse().context("the floor's address")?;
        Ok(Self {
            address,
            pid: process.id().context("the floor ended")?,
            _process: process,
        })
    }
}

/// What the floor's process does until its input ends.
pub async fn serve(redis_url: &str) -> Result<()> {
    let client = redis::Client::open(redis_url)?;
    let mut redis = ConnectionManager::new(client).await?;
    redis.set::<_, _, ()>(KEY, "x".repeat(512)).await?;
    let app = Router::new().route("/", get(read)).with_state(redis);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    // The parent holds the other end, so that this process never outlives it.
    let parent_is_gone = async {
        let mut rest = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut rest).await;
    };
    let serving = axum::serve(listener, app);
    tokio::select! {
        result = async move { serving.await } => Ok(result?),
        () = parent_is_gone => Ok(()),
    }
}

async fn read(State(mut redis): State<ConnectionManager>) -> Result<String, StatusCode> {
    let value = redis.get(KEY).await;
    value.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
}
