//! The client of OpenAI-compatible endpoints: chat completions with function calling.
//!
//! async-openai makes the requests, through an HTTP service of ours (`attempt`) in place of its own,
//! which would repeat failed calls and sleep as long as `Retry-After` says. `failure` classifies what
//! goes wrong, `wire` translates requests and answers.
//!
//! Invariant: one call of [`OpenAiClient::chat`] sends one request, reads at most 32 MiB, ends within
//! the timeout, and neither its errors nor its log show the API key or the conversation.

mod attempt;
mod failure;
mod retry_after;
mod wire;

#[cfg(test)]
mod tests;

use std::time::Duration;

use async_openai::Client;
use async_openai::config::Config;
use async_openai::error::OpenAIError;
use async_openai::traits::RequestOptionsBuilder;
use async_trait::async_trait;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use super::{ChatAnswer, ChatRequest, LlmClient, LlmError};

/// The longest that a connection may take to come about; the call's timeout applies besides.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a client could not be made. Says nothing of the key.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base URL is not one.
    #[error("base URL of the model endpoint: {0}")]
    BaseUrl(String),
    /// The API key cannot be sent in a header.
    #[error("API key of the model endpoint: not a valid header value")]
    ApiKey,
    /// The HTTP client cannot be set up.
    #[error("HTTP client of the model endpoint: {0}")]
    Http(#[from] reqwest::Error),
}

/// A client of one endpoint. Clones share its connections.
#[derive(Clone)]
pub struct OpenAiClient {
    client: Client<Endpoint>,
}

impl OpenAiClient {
    /// A client of the endpoint at `base_url` (`https://api.openai.com/v1`). An empty key sends none.
    /// `timeout` is that of one call, from the connection to the last byte of the answer.
    ///
    /// Proxies of the environment are used, except for a loopback endpoint, which none can reach.
    pub fn new(
        base_url: &str,
        api_key: SecretString,
        timeout: Duration,
    ) -> Result<Self, SetupError> {
        let url = Url::parse(base_url).map_err(|e| SetupError::BaseUrl(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(SetupError::BaseUrl("expected http or https".to_owned()));
        }
        let mut http = reqwest::Client::builder()
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            // A redirect would carry the key and the conversation to where nobody sent them.
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        if is_loopback(&url) {
            http = http.no_proxy();
        }
        let http = http.build()?;
        let endpoint = Endpoint::new(base_url, api_key)?;
        let service = attempt::service(http.clone(), endpoint.api_key.clone());
        Ok(Self {
            client: Client::build(http, endpoint).with_http_service(service),
        })
    }
}

#[async_trait]
impl LlmClient for OpenAiClient {
    async fn chat(&self, request: ChatRequest) -> Result<ChatAnswer, LlmError> {
        let mut chat = self.client.chat();
        // A malformed trace context loses the trace, not the call.
        if let Some(context) = &request.traceparent
            && HeaderValue::from_str(context).is_ok()
        {
            chat = chat
                .header("traceparent", context.as_str())
                .map_err(unclassified)?;
        }
        let answer = chat.create(wire::request(request)).await;
        wire::answer(answer.map_err(unclassified)?)
    }
}

/// The error that [`attempt`] classified; what the library itself refuses would be refused again.
fn unclassified(error: OpenAIError) -> LlmError {
    let text = match error {
        OpenAIError::Boxed(inner) => match inner.downcast::<LlmError>() {
            Ok(classified) => return *classified,
            Err(other) => other.to_string(),
        },
        // Its text holds the answer.
        OpenAIError::JSONDeserialize(error, _answer) => error.to_string(),
        other => other.to_string(),
    };
    failure::permanent("llm_bad_request", &text)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Where calls go. The library's own configuration would read the environment, and panic on a key
/// that is no header value.
#[derive(Clone)]
struct Endpoint {
    base: String,
    api_key: SecretString,
    headers: HeaderMap,
}

impl Endpoint {
    fn new(base_url: &str, api_key: SecretString) -> Result<Self, SetupError> {
        let mut headers = HeaderMap::new();
        if !api_key.expose_secret().is_empty() {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", api_key.expose_secret()))
                .map_err(|_| SetupError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(Self {
            base: base_url.trim_end_matches('/').to_owned(),
            api_key,
            headers,
        })
    }
}

impl Config for Endpoint {
    fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base
    }

    fn api_key(&self) -> &SecretString {
        &self.api_key
    }
}
