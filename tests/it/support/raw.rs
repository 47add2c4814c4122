//! A client that sends bytes as they are, and reads answers one by one.

use std::fmt;
use std::io::ErrorKind;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Long beyond every deadline of the server.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was answered.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{} {:?} {body:.500}", self.status, self.headers)
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let first = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} occurs twice: {self:?}");
        first
    }

    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The error's code, after checking what every error has.
    pub fn code(&self) -> String {
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status, "{problem}");
        assert_eq!(
            problem["trace_id"].as_str(),
            self.header("x-trace-id"),
            "{problem}"
        );
        problem["code"].as_str().unwrap().to_owned()
    }

    /// Checks the headers that every answer has.
    pub fn assert_guarded(&self) {
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(self.header(name), Some(value), "{self:?}");
        }
        for name in [
            "content-security-policy",
            "cache-control",
            "x-trace-id",
            "date",
        ] {
            assert!(self.header(name).is_some(), "{name}: {self:?}");
        }
        assert_eq!(self.header("server"), None, "{self:?}");
    }
}

/// A connection.
pub struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    pub async fn connect(addr: &str) -> Self {
        Self {
            stream: TcpStream::connect(addr).await.unwrap(),
            read: Vec::new(),
        }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).await.unwrap();
    }

    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Sends some bytes now and then, as far as there is room for them, until the server has answered or
    /// closed the connection.
    pub async fn trickle(&mut self, bytes: &str) {
        self.now_and_then(bytes, async |stream| {
            let answered = timeout(Duration::from_millis(1), stream.readable());
            answered.await.is_ok()
        })
        .await;
    }

    /// Sends some bytes now and then, as far as there is room for them, and takes nothing, until the server
    /// has given the connection up.
    pub async fn until_cut_off(&mut self, bytes: &str) {
        self.now_and_then(bytes, async |_| false).await;
    }

    async fn now_and_then(&mut self, bytes: &str, is_over: impl AsyncFn(&TcpStream) -> bool) {
        let sending = async {
            loop {
                match self.stream.try_write(bytes.as_bytes()) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                    _ if is_over(&self.stream).await => return,
                    _ => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(PATIENCE, sending)
            .await
            .expect("the server goes on waiting");
    }

    /// The next answer; `None` when the server closes the connection without one.
    pub async fn reply(&mut self) -> Option<Reply> {
        self.reply_to(true).await
    }

    /// As [`Raw::reply`]; an answer to HEAD has no body, whatever it says.
    pub async fn reply_to(&mut self, with_body: bool) -> Option<Reply> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.more().await {
                assert!(
                    self.read.is_empty(),
                    "{:?}",
                    String::from_utf8_lossy(&self.read)
                );
                return None;
            }
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let status: u16 = status.parse().unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        });
        let mut reply = Reply {
            status,
            headers: headers.collect(),
            body: Vec::new(),
        };
        let length = reply
            .header("content-length")
            .map_or(0, |l| l.parse().unwrap());
        if with_body && status >= 200 {
            while self.read.len() < length {
                assert!(self.more().await, "the answer is cut off: {reply:?}");
            }
            reply.body = self.read.drain(..length).collect();
        }
        Some(reply)
    }

    /// Sends a request and gives its answer.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Reply {
        self.send(request).await;
        self.reply().await.expect("an answer")
    }

    /// Waits until the server has closed the connection without sending anything more.
    pub async fn closed(&mut self) {
        let more = self.more().await;
        assert!(!more, "{:?}", String::from_utf8_lossy(&self.read));
    }

    async fn more(&mut self) -> bool {
        let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
        // A reset is an end too.
        matches!(read.expect("the server goes on waiting"), Ok(1..))
    }
}
