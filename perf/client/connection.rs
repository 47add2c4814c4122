//! One keep-alive HTTP/1.1 connection, one request at a time.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The bytes of a request.
pub fn request(
    host: SocketAddr,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Vec<u8> {
    let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n"));
    let authorization = authorization.unwrap_or_default();
    let content = body.map_or_else(
        || "\r\n".to_owned(),
        |body| {
            let body = body.to_string();
            let length = body.len();
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        },
    );
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}{content}").into_bytes()
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

/// How the end of a body is known (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("{address} cannot be reached"))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(16 * 1024, stream),
            line: Vec::with_capacity(256),
        })
    }

    /// Sends a request and reads its answer.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Response> {
        let (status, framing) = self.send(request).await?;
        let mut body = Vec::new();
        match framing {
            Framing::Length(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body).await?;
            }
            Framing::Chunked => while self.chunk(&mut body).await? {},
        }
        Ok(Response { status, body })
    }

    /// Sends a request whose answer has no known end; its status.
    pub(super) async fn begin_stream(&mut self, request: &[u8]) -> Result<u16> {
        let (status, framing) = self.send(request).await?;
        ensure!(
            framing == Framing::Chunked,
            "expected a stream, got {status}"
        );
        Ok(status)
    }

    /// Appends the next chunk to `body`; false after the last.
    pub(super) async fn chunk(&mut self, body: &mut Vec<u8>) -> Result<bool> {
        self.read_line().await?;
        let size = std::str::from_utf8(self.line.trim_ascii())?;
        let size = size.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).context("a chunk's size")?;
        let start = body.len();
        body.resize(start + size, 0);
        self.stream.read_exact(&mut body[start..]).await?;
        self.read_line().await?;
        Ok(size > 0)
    }

    async fn send(&mut self, request: &[u8]) -> Result<(u16, Framing)> {
        self.stream.get_mut().write_all(request).await?;
        self.read_line().await?;
        let status = self.line.get(9..12).and_then(|s| s.try_into().ok());
        let status: [u8; 3] = status.context("a status line")?;
        let status = std::str::from_utf8(&status)?.parse()?;
        let mut framing = Framing::Length(0);
        loop {
            self.read_line().await?;
            let line = self.line.trim_ascii();
            if line.is_empty() {
                return Ok((status, framing));
            }
            let Some(colon) = line.iter().position(|b| *b == b':') else {
                bail!("a header without a colon");
            };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                framing = Framing::Length(std::str::from_utf8(value)?.parse()?);
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                framing = Framing::Chunked;
            }
        }
    }

    async fn read_line(&mut self) -> Result<()> {
        self.line.clear();
        let read = self.stream.read_until(b'\n', &mut self.line).await?;
        ensure!(read > 0, "the server closed the connection");
        Ok(())
    }
}
