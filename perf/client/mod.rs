//! The load generator's side of HTTP: as little work per request as possible, since it shares the cores
//! with what it measures.

mod connection;
mod events;

pub use connection::{Connection, Response, request};
pub use events::EventStream;

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

/// Where the API is, and as whom to speak to it.
#[derive(Debug, Clone)]
pub struct Api {
    pub address: SocketAddr,
    pub key: String,
}

/// A session of the API with a connection of its own.
#[derive(Debug)]
pub struct Session {
    pub id: String,
    connection: Connection,
    plan: Vec<u8>,
    run: Vec<u8>,
}

/// A goal that takes one model call and one tool.
pub const GOAL: &str = "Get ROAS for advertiser 123 over 7 days";

impl Api {
    /// From a URL such as `http://127.0.0.1:8080`.
    pub fn new(url: &str, key: String) -> Result<Self> {
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let address = address
            .parse()
            .with_context(|| format!("expected http://<ip>:<port>, not {url}"))?;
        Ok(Self { address, key })
    }

    /// The bytes of a request to the API.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
        request(self.address, method, path, Some(&self.key), body)
    }

    /// A new session, for the usual goal.
    pub async fn session(&self) -> Result<Session> {
        self.session_for(GOAL).await
    }

    /// A new session, for a goal of one's own.
    pub async fn session_for(&self, goal: &str) -> Result<Session> {
        let mut connection = Connection::open(self.address).await?;
        let new = self.request("POST", "/v1/sessions", Some(&json!({})));
        let answer = connection.exchange(&new).await?;
        let id = answer.expect(201)?.text("session_id")?;
        let body = json!({ "session_id": id, "goal": goal });
        Ok(Session {
            plan: self.request("POST", "/v1/plan", Some(&body)),
            run: self.request("POST", "/v1/runs", Some(&body)),
            id,
            connection,
        })
    }

    /// The events of a session from now on.
    pub async fn events(&self, session: &str) -> Result<EventStream> {
        let path = format!("/v1/stream?session_id={session}");
        EventStream::open(self.address, &self.request("GET", &path, None)).await
    }
}

impl Session {
    /// Submits the goal to be planned; the run's id.
    pub async fn plan(&mut self) -> Result<String> {
        let answer = self.connection.exchange(&self.plan).await?;
        answer.expect(202)?.text("run_id")
    }

    /// Submits the goal to be planned and executed; the run's id.
    pub async fn run(&mut self) -> Result<String> {
        let refused = |answer: Response| anyhow!("refused: {}", answer.describe());
        self.try_run().await?.map_err(refused)
    }

    /// Submits a request of the caller's own that starts a run; the run's id.
    pub async fn start(&mut self, request: &[u8]) -> Result<String> {
        let answer = self.connection.exchange(request).await?;
        answer.expect(202)?.text("run_id")
    }

    /// As [`Session::run`]; an answer other than 202 is no error.
    pub async fn try_run(&mut self) -> Result<Result<String, Response>> {
        let answer = self.connection.exchange(&self.run).await?;
        if answer.status == 202 {
            Ok(Ok(answer.text("run_id")?))
        } else {
            Ok(Err(answer))
        }
    }
}

impl Response {
    fn expect(&self, status: u16) -> Result<&Self> {
        ensure!(
            self.status == status,
            "expected {status}, got {}",
            self.describe()
        );
        Ok(self)
    }

    /// Status and body.
    pub fn describe(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(&self.body))
    }

    fn text(&self, name: &str) -> Result<String> {
        let body: Value = serde_json::from_slice(&self.body)?;
        let text = body.get(name).and_then(Value::as_str);
        Ok(text.with_context(|| format!("no {name}"))?.to_owned())
    }
}
