//! A client of the HTTP API, for the commands that use it.

mod bodies;
mod error;
mod events;
mod sse;

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use url::{Host, Url};

pub use bodies::{Breaker, Event, Failure, Run, Step, Tool, Usage, is_terminal};
pub use error::ClientError;
pub use events::Events;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for an answer to begin and, where it is not a stream, to be there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Items that the API gives at once at most.
const PAGE: usize = 100;

/// Where the API is, and the key for it.
#[derive(Debug, clap::Args)]
pub struct Connection {
    /// Address of the API.
    #[arg(
        long,
        env = "AGENTHUB_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        value_parser = http_url
    )]
    url: Url,
    /// API key; better given by the environment, where other users of the machine do not see it.
    #[arg(
        long,
        env = "AGENTHUB_API_KEY",
        value_name = "AGENTHUB_API_KEY",
        hide_env_values = true,
        value_parser = api_key
    )]
    api_key: SecretString,
}

fn http_url(text: &str) -> Result<Url, String> {
    let url: Url = text
        .trim()
        .parse()
        .map_err(|e: url::ParseError| e.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        _ => Err("expected http:// or https://".to_owned()),
    }
}

fn api_key(text: &str) -> Result<SecretString, String> {
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("expected the text that `agenthub keys create` prints".to_owned());
    }
    Ok(key.to_owned().into())
}

/// Reads an id from the command line: what stays one part of a path.
pub fn id(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    if (1..=128).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    Err("expected letters, digits, _ and -".to_owned())
}

/// A goal to be planned and executed.
#[derive(Debug, serde::Serialize)]
pub struct NewRun<'a> {
    /// The session.
    pub session_id: &'a str,
    /// What is to be reached.
    pub goal: &'a str,
    /// How.
    pub mode: &'a str,
    /// The model that plans.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<&'a str>,
    /// The most that it may cost, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<f64>,
    /// Seconds that it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
}

#[derive(Deserialize)]
struct SessionCreated {
    session_id: String,
}

/// A run that was admitted.
#[derive(Debug, Deserialize)]
pub struct Submitted {
    /// The run.
    pub run_id: String,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

/// Speaks to one API with one key.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client; nothing is sent yet.
    pub fn new(connection: &Connection) -> Result<Self, ClientError> {
        let setup = |what: &str| ClientError::Setup(what.to_owned());
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", connection.api_key.expose_secret()))
                .map_err(|_| setup("AGENTHUB_API_KEY cannot be a header"))?;
        value.set_sensitive(true);
        let mut http = reqwest::Client::builder()
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)]))
            .user_agent(concat!("agenthub/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            // The key goes where its owner sent it.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if is_loopback(&connection.url) {
            http = http.no_proxy(); // no proxy could reach it
        }
        if connection.url.scheme() == "http" {
            // Machines without a certificate store can use plain HTTP all the same.
            http = http.tls_certs_only([]);
        }
        let http = http
            .build()
            .map_err(|error| ClientError::Setup(error.to_string()))?;
        Ok(Self {
            http,
            base: connection.url.clone(),
        })
    }

    /// Creates a session with the installation's defaults; its id.
    pub async fn create_session(&self) -> Result<String, ClientError> {
        let request = self.request(Method::POST, &["sessions"]).json(&json!({}));
        let created: SessionCreated = self.answer(request).await?;
        Ok(created.session_id)
    }

    /// Submits a run.
    pub async fn submit(
        &self,
        run: &NewRun<'_>,
        idempotency_key: Option<&str>,
    ) -> Result<Submitted, ClientError> {
        let mut request = self.request(Method::POST, &["runs"]).json(run);
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        self.answer(request).await
    }

    /// A run, as the API wrote it.
    pub async fn run(&self, id: &str) -> Result<Box<RawValue>, ClientError> {
        self.answer(self.request(Method::GET, &["runs", id])).await
    }

    /// The newest runs, at most `limit`.
    pub async fn runs(
        &self,
        session: Option<&str>,
        status: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let mut runs: Vec<Box<RawValue>> = Vec::new();
        let mut cursor: Option<String> = None;
        while runs.len() < limit {
            let size = (limit - runs.len()).min(PAGE).to_string();
            let query = [
                ("session_id", session),
                ("status", status),
                ("cursor", cursor.as_deref()),
                ("limit", Some(size.as_str())),
            ];
            let url = with_query(self.url(&["runs"]), &query);
            let page: Page = self.answer(self.http.get(url)).await?;
            runs.extend(page.data);
            // A filtered page may be empty and still have a next one.
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        Ok(runs)
    }

    /// Cancels a run; the status in which that leaves it.
    pub async fn cancel(&self, id: &str, force: bool) -> Result<String, ClientError> {
        let mode = if force { "force" } else { "graceful" };
        let request = self.request(Method::POST, &["runs", id, "cancel"]);
        let body: Value = self.answer(request.json(&json!({ "mode": mode }))).await?;
        let status = body.get("status").and_then(Value::as_str);
        Ok(status.unwrap_or("cancelling").to_owned())
    }

    /// Starts a new run that goes on after one that did not succeed; its id.
    pub async fn retry(
        &self,
        id: &str,
        idempotency_key: Option<&str>,
    ) -> Result<String, ClientError> {
        let mut request = self.request(Method::POST, &["runs", id, "retry"]);
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        let body: Value = self.answer(request.json(&json!({}))).await?;
        let run = body.get("run_id").and_then(Value::as_str);
        Ok(run.unwrap_or_default().to_owned())
    }

    /// Says what became of a step whose outcome is unknown.
    pub async fn resolve(
        &self,
        id: &str,
        step: &str,
        outcome: &str,
        output: Option<&Value>,
    ) -> Result<(), ClientError> {
        let request = self.request(Method::POST, &["runs", id, "steps", step, "resolve"]);
        let mut json = json!({ "outcome": outcome });
        if let Some(output) = output {
            json["output"] = output.clone();
        }
        let _: Value = self.answer(request.json(&json)).await?;
        Ok(())
    }

    /// Every dead letter that fits, the latest first, as the API wrote them.
    pub async fn letters(
        &self,
        query: &[(&str, String)],
    ) -> Result<Vec<Box<RawValue>>, ClientError> {
        let mut letters: Vec<Box<RawValue>> = Vec::new();
        let mut cursor: Option<String> = None;
        let size = PAGE.to_string();
        loop {
            let fixed = [
                ("cursor", cursor.as_deref()),
                ("limit", Some(size.as_str())),
            ];
            let asked = query
                .iter()
                .map(|(name, value)| (*name, Some(value.as_str())));
            let all: Vec<_> = asked.chain(fixed).collect();
            let url = with_query(self.url(&["admin", "dlq"]), &all);
            let page: Page = self.answer(self.http.get(url)).await?;
            letters.extend(page.data);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(letters),
            }
        }
    }

    /// Redrives a dead letter; what the API answered.
    pub async fn redrive(
        &self,
        id: &str,
        tenant: Option<&str>,
        force: bool,
        idempotency_key: &str,
    ) -> Result<Value, ClientError> {
        let url = self.url(&["admin", "dlq", id, "redrive"]);
        let request = self.http.post(match tenant {
            Some(_) => with_query(url, &[("tenant", tenant)]),
            None => url,
        });
        let request = request.header("Idempotency-Key", idempotency_key);
        self.answer(request.json(&json!({ "force": force }))).await
    }

    /// The tools, as the API wrote them.
    pub async fn tools(&self) -> Result<Vec<Box<RawValue>>, ClientError> {
        let page: Page = self.answer(self.request(Method::GET, &["tools"])).await?;
        Ok(page.data)
    }

    /// Follows a run from the event after `after`, or else from its first.
    pub fn follow(&self, run: &str, after: Option<String>) -> Events {
        Events::new(self.clone(), run.to_owned(), after)
    }

    /// Opens the stream of a run; `None` when the run has ended and nothing follows `after`.
    async fn stream(
        &self,
        run: &str,
        after: Option<&str>,
    ) -> Result<Option<Response>, ClientError> {
        let url = with_query(self.url(&["stream"]), &[("run_id", Some(run))]);
        let mut request = self.http.get(url).header("Accept", "text/event-stream");
        if let Some(after) = after {
            request = request.header("Last-Event-ID", after);
        }
        let response = self.send(request).await?;
        Ok((response.status() != StatusCode::NO_CONTENT).then_some(response))
    }

    fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.url(path))
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        url
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request.timeout(ANSWER_TIMEOUT)).await?;
        let (url, status) = (response.url().to_string(), response.status());
        let body = response
            .bytes()
            .await
            .map_err(|error| self.failed(&error))?;
        serde_json::from_slice(&body).map_err(|_| ClientError::Foreign { url, status })
    }

    /// Sends a request and waits until a good answer begins.
    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let begun = tokio::time::timeout(ANSWER_TIMEOUT, request.send()).await;
        let response = begun
            .map_err(|_| ClientError::Broken {
                url: self.base.to_string(),
                reason: "no answer in time".to_owned(),
            })?
            .map_err(|error| self.failed(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (url, status) = (response.url().to_string(), response.status());
        let headers = response.headers().clone();
        let body = response
            .bytes()
            .await
            .map_err(|error| self.failed(&error))?;
        Err(ClientError::from_answer(&url, status, &headers, &body))
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        ClientError::from_transport(self.base.as_str(), error)
    }
}

fn with_query(mut url: Url, query: &[(&str, Option<&str>)]) -> Url {
    let given = query
        .iter()
        .filter_map(|(name, value)| Some((name, (*value)?)));
    url.query_pairs_mut().extend_pairs(given);
    url
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(url: &str) -> Client {
        let connection = Connection {
            url: http_url(url).unwrap(),
            api_key: api_key("ah_key").unwrap(),
        };
        Client::new(&connection).unwrap()
    }

    #[test]
    fn what_users_give_stays_within_its_part_of_the_url() {
        let client = client("https://hub.example/behind/");
        let url = client.url(&["runs", "x/y?z"]);
        assert_eq!(url.as_str(), "https://hub.example/behind/v1/runs/x%2Fy%3Fz");
        assert!(id("..").is_err() && id("a/b").is_err() && id("run_0f-1").is_ok());
        let url = with_query(
            client.url(&["stream"]),
            &[("run_id", Some("a&b=c")), ("x", None)],
        );
        assert_eq!(url.query(), Some("run_id=a%26b%3Dc"));
    }

    #[test]
    fn addresses_and_keys_are_checked() {
        assert!(http_url("127.0.0.1:8080").is_err());
        assert!(http_url("ftp://a/").is_err());
        assert!(api_key(" ").is_err());
        assert!(api_key("a\nb").is_err());
        assert_eq!(api_key(" ah_x\n").unwrap().expose_secret(), "ah_x");
    }

    #[tokio::test]
    async fn where_nothing_listens_the_address_is_named() {
        // Bound and closed again: a port on which nothing listens.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        drop(listener);
        let text = client(&url).run("run_x").await.unwrap_err().to_string();
        assert!(
            text.starts_with(&format!("cannot reach {url}: Connection refused")),
            "{text}"
        );
        assert!(
            text.contains("AGENTHUB_URL") && !text.contains('\n'),
            "{text}"
        );
    }
}
