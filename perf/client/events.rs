//! The server-sent events of a session.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::connection::Connection;

/// The events of a session, as they arrive.
#[derive(Debug)]
pub struct EventStream {
    connection: Connection,
    /// What has arrived and was not looked at.
    bytes: Vec<u8>,
    read: usize,
}

/// The end of a run.
#[derive(Debug)]
pub struct Terminal {
    pub run_id: String,
    pub succeeded: bool,
}

#[derive(Deserialize)]
struct Data {
    run_id: String,
}

impl EventStream {
    pub(super) async fn open(address: SocketAddr, request: &[u8]) -> Result<Self> {
        let mut connection = Connection::open(address).await?;
        let status = connection.begin_stream(request).await?;
        ensure!(status == 200, "the stream was refused: {status}");
        let mut stream = Self {
            connection,
            bytes: Vec::with_capacity(4096),
            read: 0,
        };
        // Its first bytes say that the server has subscribed.
        stream.receive().await?;
        Ok(stream)
    }

    /// The next terminal event of any run.
    pub async fn terminal(&mut self) -> Result<Terminal> {
        loop {
            while let Some(block) = self.block()? {
                if let Some(terminal) = parse(block)? {
                    return Ok(terminal);
                }
            }
            self.receive().await?;
        }
    }

    /// Waits for the terminal event of a run, and says whether it succeeded.
    pub async fn end_of(&mut self, run: &str) -> Result<bool> {
        loop {
            let terminal = self.terminal().await?;
            if terminal.run_id == run {
                return Ok(terminal.succeeded);
            }
        }
    }

    /// The next event, up to its empty line.
    fn block(&mut self) -> Result<Option<&str>> {
        let rest = &self.bytes[self.read..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") else {
            return Ok(None);
        };
        let start = self.read;
        self.read += end + 2;
        Ok(Some(std::str::from_utf8(&self.bytes[start..start + end])?))
    }

    async fn receive(&mut self) -> Result<()> {
        self.bytes.drain(..self.read);
        self.read = 0;
        if !self.connection.chunk(&mut self.bytes).await? {
            bail!("the stream ended");
        }
        Ok(())
    }
}

fn parse(block: &str) -> Result<Option<Terminal>> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
    let succeeded = match field("event: ") {
        Some("run.succeeded") => true,
        Some("run.failed" | "run.cancelled" | "run.timed_out") => false,
        _ => return Ok(None),
    };
    let data = field("data: ").context("an event without data")?;
    let data: Data = serde_json::from_str(data)?;
    Ok(Some(Terminal {
        run_id: data.run_id,
        succeeded,
    }))
}
