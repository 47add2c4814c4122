//! Posts to an address that the operator chose. It is not outside data, so its address is not guarded;
//! but no redirect is followed: who answers does not choose where the message goes.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use url::Url;

use super::client::SetUpError;
use super::retry_after;

const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A client for one address.
#[derive(Debug, Clone)]
pub struct WebhookClient {
    http: reqwest::Client,
    url: Url,
}

/// Why a message was not taken. The text holds neither the address, which may be a secret, nor the
/// answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The answer was no success.
    #[error("HTTP {status}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// How long the other side wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no answer within ten seconds.
    #[error("no answer in time")]
    Timeout,
    /// No connection was made, or it was lost.
    #[error("the connection failed")]
    Connection,
}

impl WebhookClient {
    /// Sets the client up; nothing is sent.
    pub fn new(url: Url) -> Result<Self, SetUpError> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("agenthub/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT);
        if url.scheme() == "http" {
            // Machines without a certificate store can use plain HTTP all the same.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.build().map_err(SetUpError::new)?;
        Ok(Self { http, url })
    }

    /// Posts JSON text with these further headers.
    pub async fn post(
        &self,
        headers: &[(&'static str, String)],
        body: &str,
    ) -> Result<(), WebhookError> {
        let mut request = self
            .http
            .post(self.url.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body.to_owned());
        for (name, value) in headers {
            request = request.header(HeaderName::from_static(name), value);
        }
        let response = request.send().await.map_err(|error| {
            if error.is_timeout() {
                WebhookError::Timeout
            } else {
                WebhookError::Connection
            }
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let asked = response.headers().get(RETRY_AFTER);
        let asked = asked.and_then(|value| value.to_str().ok());
        Err(WebhookError::Status {
            status: status.as_u16(),
            retry_after: asked.and_then(|value| retry_after::parse(value, jiff::Timestamp::now())),
        })
    }
}
