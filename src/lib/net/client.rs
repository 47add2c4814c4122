//! The HTTP client that applies the policy: every hop checked, everything bounded.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    RETRY_AFTER,
};
use reqwest::{RequestBuilder, Response, StatusCode};
use url::Url;

use super::error::FetchError;
use super::freshness;
use super::hops::Hops;
use super::policy::{Block, BlockReason, Policy, Reach, Target};
use super::resolver::{Guarded, Lookup};
use super::retry_after;

/// Bytes that the names and values of an answer's headers may have together.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Headers that an answer may have.
const MAX_HEADERS: usize = 100;
/// Longest time for one connection, look-up and TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What one fetch may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for the whole fetch: look-ups, redirects and body.
    pub total: Duration,
    /// Bytes of the body that are kept; the rest is not read.
    pub max_bytes: usize,
    /// Content types that are accepted, as in an `Accept` header: `type/subtype`, `type/*`, or
    /// `type/*+suffix` (RFC 6839).
    pub content_types: &'static [&'static str],
}

/// What a fetch gave.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The URL that answered, after redirects.
    pub url: Url,
    /// The HTTP status, a success.
    pub status: u16,
    /// The content type in lower case, without parameters.
    pub content_type: String,
    /// The body, or its beginning.
    pub body: Bytes,
    /// Whether the body went on after what was read.
    pub truncated: bool,
    /// For how long the servers on the way let the answer be used again; `None` when none says.
    pub fresh_for: Option<Duration>,
}

/// A client that fetches what the policy lets it.
///
/// It keeps no connection between two hops, so that each hop looks its host up once, and an
/// exception that holds for one `host:port` cannot lend its connection to another. It has one
/// inner client per kind of host, since the resolver hears only the name: which of them is used is
/// decided from the whole URL, and the one for public hosts can reach nothing but global addresses.
#[derive(Debug, Clone)]
pub struct SafeClient {
    policy: Policy,
    limits: Limits,
    accept: HeaderValue,
    global: reqwest::Client,
    listed: reqwest::Client,
    metadata: reqwest::Client,
}

/// The client could not be set up: no usable TLS roots, or a limit that is no header value.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client could not be set up")]
pub struct SetUpError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl SetUpError {
    pub(super) fn new(error: reqwest::Error) -> Self {
        Self(error.into())
    }
}

impl SafeClient {
    /// Sets the client up; nothing is sent.
    pub fn new(policy: Policy, limits: Limits) -> Result<Self, SetUpError> {
        Self::with_lookup(policy, limits, &Lookup::System)
    }

    fn with_lookup(policy: Policy, limits: Limits, lookup: &Lookup) -> Result<Self, SetUpError> {
        let build = |reach| {
            let lookup = lookup.clone();
            inner(Guarded { lookup, reach }).map_err(|error| SetUpError(error.into()))
        };
        let accept = HeaderValue::from_str(&accept_header(limits.content_types))
            .map_err(|error| SetUpError(error.into()))?;
        Ok(Self {
            global: build(Reach::Global)?,
            listed: build(Reach::Listed)?,
            metadata: build(Reach::Metadata)?,
            policy,
            limits,
            accept,
        })
    }

    /// Fetches a URL with GET and follows redirects. Gives the body of an answer that is a success
    /// (2xx) of an accepted content type.
    pub async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        tokio::time::timeout(self.limits.total, self.follow(url))
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    /// Posts JSON text to a URL with these further headers. No redirect is followed: who answers does
    /// not choose who is told. Gives the body of an answer that is a success (2xx) of an accepted
    /// content type, or an empty one where the answer has none (204).
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        json: String,
    ) -> Result<Fetched, FetchError> {
        let target = self.policy.screen(url).map_err(FetchError::Blocked)?;
        let posted = async {
            let mut request = self
                .inner(&target)
                .post(target.url().clone())
                .headers(headers);
            request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let response = self.send(request.body(json)).await?;
            if response.status() == StatusCode::NO_CONTENT {
                return Ok(Fetched {
                    url: target.url().clone(),
                    status: StatusCode::NO_CONTENT.as_u16(),
                    content_type: String::new(),
                    body: Bytes::new(),
                    truncated: false,
                    fresh_for: None,
                });
            }
            self.read(target.url().clone(), response).await
        };
        tokio::time::timeout(self.limits.total, posted)
            .await
            .unwrap_or(Err(FetchError::Timeout))
    }

    async fn follow(&self, url: &str) -> Result<Fetched, FetchError> {
        let mut hops = Hops::start(&self.policy, url).map_err(FetchError::Blocked)?;
        let mut fresh_for = None;
        loop {
            let target = hops.current();
            let response = self
                .send(self.inner(target).get(target.url().clone()))
                .await?;
            let fresh_here = freshness::fresh_for(response.headers());
            fresh_for = fresh_for.into_iter().chain(fresh_here).min();
            if !is_redirect(response.status().as_u16()) {
                let fetched = self.read(hops.current().url().clone(), response).await?;
                return Ok(Fetched {
                    fresh_for,
                    ..fetched
                });
            }
            let location = response.headers().get(LOCATION);
            let location = location.ok_or(FetchError::NoLocation)?;
            // RFC 9110 leaves the octets beyond ASCII open; servers send UTF-8.
            let location = str::from_utf8(location.as_bytes()).map_err(|_| not_utf8())?;
            hops.redirect(location).map_err(FetchError::Blocked)?;
        }
    }

    fn inner(&self, target: &Target) -> &reqwest::Client {
        match target.reach {
            Reach::Global => &self.global,
            Reach::Listed => &self.listed,
            Reach::Metadata => &self.metadata,
        }
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, FetchError> {
        let response = request
            .header(ACCEPT, self.accept.clone())
            .header(ACCEPT_ENCODING, "identity")
            .send()
            .await
            .map_err(|error| classify(&error))?;
        if header_bytes(response.headers()) > MAX_HEADER_BYTES {
            return Err(FetchError::HeadersTooLarge);
        }
        Ok(response)
    }

    async fn read(&self, url: Url, mut response: Response) -> Result<Fetched, FetchError> {
        let status = response.status();
        let headers = response.headers();
        if !status.is_success() {
            return Err(FetchError::Status {
                status: status.as_u16(),
                retry_after: text(headers, &RETRY_AFTER)
                    .and_then(|value| retry_after::parse(value, jiff::Timestamp::now())),
            });
        }
        // What is compressed may expand a thousandfold, and was not asked for.
        let encoded = headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
        if encoded {
            return Err(FetchError::ContentEncoding);
        }
        let content_type = text(headers, &CONTENT_TYPE).map(essence);
        let content_type = content_type
            .filter(|essence| accepts(self.limits.content_types, essence))
            .ok_or(FetchError::ContentType)?;
        let (body, truncated) = self.read_body(&mut response).await?;
        Ok(Fetched {
            url,
            status: status.as_u16(),
            content_type,
            body,
            truncated,
            fresh_for: None,
        })
    }

    async fn read_body(&self, response: &mut Response) -> Result<(Bytes, bool), FetchError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| classify(&error))? {
            let room = self.limits.max_bytes - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            if chunk.len() > room {
                return Ok((body.freeze(), true));
            }
        }
        Ok((body.freeze(), false))
    }
}

fn inner(resolver: Guarded) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("agenthub/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        // A proxy would resolve names itself, out of sight of the guard.
        .no_proxy()
        .referer(false)
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT_TIMEOUT)
        .http1_max_headers(MAX_HEADERS)
        .build()
}

/// Turns the client's error into one that says nothing but its kind.
fn classify(error: &reqwest::Error) -> FetchError {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(block) = inner.downcast_ref::<Block>() {
            return match block.reason {
                BlockReason::NameNotResolved => FetchError::Unresolved,
                _ => FetchError::Blocked(block.clone()),
            };
        }
        source = inner.source();
    }
    if error.is_timeout() {
        FetchError::Timeout
    } else if error.is_dns() {
        FetchError::Unresolved
    } else if error.is_connect() {
        FetchError::Connect
    } else {
        FetchError::Interrupted
    }
}

fn not_utf8() -> FetchError {
    let detail = "the redirect's location is not text";
    FetchError::Blocked(Block::new(BlockReason::InvalidUrl, detail))
}

fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

fn text<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// A content type in lower case without its parameters.
fn essence(content_type: &str) -> String {
    let essence = content_type.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

/// Whether a content type matches one of the patterns of [`Limits::content_types`].
fn accepts(patterns: &[&str], essence: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.split_once('*') {
            None => *pattern == essence,
            Some((head, tail)) => essence
                .strip_prefix(head)
                .and_then(|rest| rest.strip_suffix(tail))
                .is_some_and(|middle| !middle.is_empty()),
        })
}

/// The patterns as an `Accept` header; RFC 9110 knows no wildcard before a suffix.
fn accept_header(patterns: &[&str]) -> String {
    let plain = patterns.iter().filter(|pattern| !pattern.contains("*+"));
    plain.copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
