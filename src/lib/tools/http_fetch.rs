//! The tool `http_fetch`: reads one web page for a plan.

mod readable;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::net::{self, Class, Fetched, SafeClient};

use super::{Tool, ToolCall, ToolError, ToolErrorClass, ToolOutput, ToolSpec, catalogue};

use self::readable::Readable;

/// Content types that are read.
pub const CONTENT_TYPES: &[&str] = &[
    "text/html",
    "application/xhtml+xml",
    "application/json",
    "application/*+json",
    "application/xml",
    "application/*+xml",
    "text/*",
];

/// Conversions of HTML that run at once. One cannot be stopped once it runs, so that this bounds
/// the threads which hostile pages can keep busy.
const MAX_CONVERSIONS: usize = 4;
/// Longest time that a page's conversion is waited for, its turn included.
const CONVERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Characters of text that are returned when the call does not say.
const DEFAULT_CHARS: usize = 20_000;

/// Arguments of the tool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The URL to fetch.
    pub url: String,
    /// Characters of text that are returned at most.
    pub max_chars: Option<usize>,
}

/// A page as a plan's step sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchedPage {
    /// The URL that answered, after redirects.
    pub url: String,
    /// The HTTP status, a success.
    pub status: u16,
    /// The content type in lower case, without parameters.
    pub content_type: String,
    /// The title of an HTML page.
    pub title: Option<String>,
    /// The readable text. Bytes that are not UTF-8 show as U+FFFD.
    pub text: String,
    /// Whether the body or the text is cut off.
    pub truncated: bool,
    /// Bytes of the body that were read.
    pub bytes: usize,
}

impl FetchedPage {
    /// Cuts the text to a number of characters.
    pub fn limit_chars(&mut self, max_chars: usize) {
        if let Some((end, _)) = self.text.char_indices().nth(max_chars) {
            self.text.truncate(end);
            self.truncated = true;
        }
    }
}

/// Why there is no page. The texts are safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The fetch failed.
    #[error(transparent)]
    Net(#[from] net::FetchError),
    /// The page's HTML cannot be turned to text, or not in time.
    #[error("the page's HTML is too complex to be read")]
    TooComplex,
}

impl FetchError {
    /// What the caller may do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Net(error) => error.class(),
            Self::TooComplex => Class::Permanent,
        }
    }

    /// The stable code, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Net(error) => error.code(),
            Self::TooComplex => "page_too_complex",
        }
    }

    /// How long the server asked to wait before the next try.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Net(error) => error.retry_after(),
            Self::TooComplex => None,
        }
    }
}

/// The tool. Clones share the bound on conversions.
#[derive(Debug, Clone)]
pub struct HttpFetch {
    client: SafeClient,
    max_text_bytes: usize,
    conversions: Arc<Semaphore>,
}

impl HttpFetch {
    /// A tool that fetches through the guarded client, whose limits should accept
    /// [`CONTENT_TYPES`], and keeps at most `max_bytes` bytes of a page's text.
    pub fn new(client: SafeClient, max_bytes: usize) -> Self {
        Self {
            client,
            max_text_bytes: max_bytes,
            conversions: Arc::new(Semaphore::new(MAX_CONVERSIONS)),
        }
    }

    /// Fetches a page.
    pub async fn fetch(&self, url: &str) -> Result<FetchedPage, FetchError> {
        let fetched = self.client.get(url).await?;
        let is_html = matches!(
            fetched.content_type.as_str(),
            "text/html" | "application/xhtml+xml"
        );
        let readable = if is_html {
            self.convert(&fetched).await?
        } else {
            Readable {
                title: None,
                text: String::from_utf8_lossy(&fetched.body).into_owned(),
                truncated: false,
            }
        };
        let Readable {
            title,
            mut text,
            truncated,
        } = readable;
        let truncated = truncated || fetched.truncated || text.len() > self.max_text_bytes;
        text.truncate(text.floor_char_boundary(self.max_text_bytes));
        Ok(FetchedPage {
            url: fetched.url.into(),
            status: fetched.status,
            content_type: fetched.content_type,
            title,
            text,
            truncated,
            bytes: fetched.body.len(),
        })
    }

    /// Turns HTML to text on a thread of its own: it takes a core for as long as the page is large.
    async fn convert(&self, fetched: &Fetched) -> Result<Readable, FetchError> {
        let body = fetched.body.clone();
        let turn = self.conversions.clone();
        let conversion = async move {
            let permit = turn.acquire_owned().await.ok()?;
            let work = move || {
                // Held until the work ends, even when nobody waits for it any more.
                let _permit = permit;
                readable::read(&String::from_utf8_lossy(&body))
            };
            // A panic of the renderer is a page that cannot be read.
            tokio::task::spawn_blocking(work).await.ok().flatten()
        };
        let converted = tokio::time::timeout(CONVERSION_TIMEOUT, conversion).await;
        converted.ok().flatten().ok_or(FetchError::TooComplex)
    }
}

#[async_trait]
impl Tool for HttpFetch {
    fn spec(&self) -> &ToolSpec {
        &catalogue::HTTP_FETCH
    }

    async fn call(&self, call: ToolCall) -> Result<ToolOutput, ToolError> {
        let args: Args = serde_json::from_value(call.args)
            .map_err(|error| ToolError::permanent("invalid_arguments", error.to_string()))?;
        let mut page = self.fetch(&args.url).await.map_err(|error| ToolError {
            class: match error.class() {
                Class::Refused => ToolErrorClass::Refused,
                Class::Transient => ToolErrorClass::Transient {
                    retry_after: error.retry_after(),
                },
                Class::Permanent => ToolErrorClass::Permanent,
            },
            code: error.code(),
            message: error.to_string(),
        })?;
        page.limit_chars(args.max_chars.unwrap_or(DEFAULT_CHARS));
        let value = serde_json::to_value(page)
            .map_err(|error| ToolError::permanent("unreadable_page", error.to_string()))?;
        Ok(value.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::Router;
    use axum::http::{StatusCode, header};
    use axum::routing::get;

    use super::*;
    use crate::net::{AllowList, Limits, Policy};

    async fn serve(router: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        address
    }

    fn tool(allow: &[&str], max_bytes: usize) -> HttpFetch {
        let limits = Limits {
            total: Duration::from_secs(20),
            max_bytes,
            content_types: CONTENT_TYPES,
        };
        let policy = Policy::new(AllowList::parse(allow).unwrap());
        HttpFetch::new(SafeClient::new(policy, limits).unwrap(), max_bytes)
    }

    fn page(content_type: &'static str, body: &'static str) -> axum::routing::MethodRouter {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], body) })
    }

    #[tokio::test]
    async fn html_becomes_a_title_and_text() {
        let html = "<title>Fish &amp; chips</title><h1>Menu</h1><p>Cod \u{e9}</p>";
        let at = serve(Router::new().route("/page", page("text/html; charset=utf-8", html))).await;
        let url = format!("http://{at}/page");

        let refused = tool(&[], 1000).fetch(&url).await.unwrap_err();
        assert_eq!(refused.class(), Class::Refused);

        let fetched = tool(&["127.0.0.1"], 1000).fetch(&url).await.unwrap();
        assert_eq!(
            fetched,
            FetchedPage {
                url,
                status: 200,
                content_type: "text/html".into(),
                title: Some("Fish & chips".into()),
                text: "# Menu\n\nCod \u{e9}".into(),
                truncated: false,
                bytes: html.len(),
            }
        );
    }

    #[tokio::test]
    async fn other_text_stays_as_it_is() {
        let router = Router::new()
            .route("/json", page("application/json", "{\"a\": \"<b>\"}\n"))
            .route("/text", page("text/plain", "<b> & \n\n x"))
            .route(
                "/latin",
                get(|| async {
                    (
                        [(header::CONTENT_TYPE, "text/plain")],
                        b"caf\xe9".as_slice(),
                    )
                }),
            );
        let at = serve(router).await;
        let tool = tool(&["127.0.0.1"], 1000);
        for (path, text) in [
            ("json", "{\"a\": \"<b>\"}\n"),
            ("text", "<b> & \n\n x"),
            ("latin", "caf\u{fffd}"),
        ] {
            let fetched = tool.fetch(&format!("http://{at}/{path}")).await.unwrap();
            assert_eq!(
                (fetched.text.as_str(), fetched.title),
                (text, None),
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn text_is_cut_between_characters() {
        let router = Router::new()
            .route(
                "/body",
                page("text/plain", "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"),
            )
            .route("/swells", page("text/plain", "\u{e9}\u{e9}\u{e9}"));
        let at = serve(router).await;
        // Seven bytes are three and a half characters, and half a character shows as U+FFFD.
        let mut fetched = tool(&["127.0.0.1"], 7)
            .fetch(&format!("http://{at}/body"))
            .await
            .unwrap();
        assert_eq!(fetched.text, "\u{e9}\u{e9}\u{e9}");
        assert!(fetched.truncated);
        assert_eq!(fetched.bytes, 7);
        fetched.limit_chars(2);
        assert_eq!(fetched.text, "\u{e9}\u{e9}");

        let mut whole = tool(&["127.0.0.1"], 100)
            .fetch(&format!("http://{at}/swells"))
            .await
            .unwrap();
        whole.limit_chars(3);
        assert_eq!(
            (whole.text.as_str(), whole.truncated),
            ("\u{e9}\u{e9}\u{e9}", false)
        );
    }

    #[tokio::test]
    async fn failures_keep_their_class() {
        let busy = || async {
            (
                StatusCode::SERVICE_UNAVAILABLE,
                [(header::RETRY_AFTER, "3")],
            )
        };
        let router = Router::new()
            .route("/busy", get(busy))
            .route("/gone", get(|| async { StatusCode::GONE }));
        let at = serve(router).await;
        let tool = tool(&["127.0.0.1"], 100);
        let error = tool.fetch(&format!("http://{at}/busy")).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        let error = tool.fetch(&format!("http://{at}/gone")).await.unwrap_err();
        assert_eq!(
            (error.class(), error.code()),
            (Class::Permanent, "http_status")
        );
    }
}
