//! The tool `http_fetch`: reads one web page for a plan.

mod readable;
mod tokens;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
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
/// Characters of a title that are returned.
const MAX_TITLE_CHARS: usize = 1000;

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
    /// For how long it may be used again; `None` when its server does not say.
    #[serde(skip)]
    pub fresh_for: Option<Duration>,
}

impl FetchedPage {
    /// Cuts the text to a number of characters.
    pub fn limit_chars(&mut self, max_chars: usize) {
        if let Some((end, _)) = self.text.char_indices().nth(max_chars) {
            self.text.truncate(end);
            self.truncated = true;
        }
    }

    /// Cuts the text so that the page as JSON has at most so many bytes: what is escaped is longer
    /// than what it stands for.
    pub fn limit_json(&mut self, max_bytes: usize) {
        let length = |text: &str| serde_json::to_string(text).map_or(usize::MAX, |t| t.len());
        let title = self.title.as_mut();
        if let Some(title) = title.filter(|title| title.chars().count() > MAX_TITLE_CHARS) {
            *title = title.chars().take(MAX_TITLE_CHARS).collect();
            self.truncated = true;
        }
        let whole = serde_json::to_string(&*self).map_or(usize::MAX, |json| json.len());
        if whole <= max_bytes {
            return;
        }
        let room = max_bytes.saturating_sub(whole.saturating_sub(length(&self.text)));
        let mut used = 2; // quotes
        let end = self.text.char_indices().find(|(_, c)| {
            used += length(c.encode_utf8(&mut [0; 4])) - 2;
            used > room
        });
        if let Some((end, _)) = end {
            self.text.truncate(end);
        }
        self.truncated = true;
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
    max_output_bytes: usize,
    conversions: Arc<Semaphore>,
}

impl HttpFetch {
    /// A tool that fetches through the guarded client, whose limits should accept
    /// [`CONTENT_TYPES`], keeps at most `max_bytes` bytes of a page's text, and gives at most
    /// `max_output_bytes` of JSON.
    pub fn new(client: SafeClient, max_bytes: usize, max_output_bytes: usize) -> Self {
        Self {
            client,
            max_text_bytes: max_bytes,
            max_output_bytes,
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
            fresh_for: fetched.fresh_for,
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

    /// The host: that one does not answer says nothing of the others.
    fn target(&self, args: &Value) -> Option<String> {
        let url = url::Url::parse(args.get("url")?.as_str()?).ok()?;
        let port = url.port_or_known_default()?;
        Some(format!("{}:{port}", url.host_str()?))
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
        page.limit_json(self.max_output_bytes);
        let fresh_for = page.fresh_for;
        let value = serde_json::to_value(page)
            .map_err(|error| ToolError::permanent("unreadable_page", error.to_string()))?;
        Ok(ToolOutput {
            value,
            usage: None,
            fresh_for,
        })
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
        HttpFetch::new(SafeClient::new(policy, limits).unwrap(), max_bytes, 4096)
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
                fresh_for: None,
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

    #[test]
    fn a_page_is_cut_to_what_its_json_may_have() {
        let page = |text: String, title: &str| FetchedPage {
            url: "http://a/".into(),
            status: 200,
            content_type: "text/plain".into(),
            title: Some(title.into()),
            text,
            truncated: false,
            bytes: 0,
            fresh_for: None,
        };
        for piece in ["a", "\u{1}", "\"", "\u{e9}", "\u{1f600}", "a\u{1}\u{e9}"] {
            for (count, max) in [
                (10_usize, 4096_usize),
                (2000, 1000),
                (2000, 1001),
                (2000, 1007),
            ] {
                let mut cut = page(piece.repeat(count), "T");
                let before = serde_json::to_string(&cut).unwrap().len();
                cut.limit_json(max);
                let after = serde_json::to_string(&cut).unwrap().len();
                assert!(after <= max, "{piece:?} {count} {max}: {after}");
                assert_eq!(cut.truncated, before > max);
                // No more than one character and its escapes too short ("false" became "true").
                assert!(before <= max || after + 13 > max, "{piece:?}: {after}");
                assert!(piece.repeat(count).starts_with(&cut.text));
            }
        }
        let mut titled = page("text".into(), &"t".repeat(5000));
        titled.limit_json(4096);
        assert_eq!(titled.title.unwrap().len(), MAX_TITLE_CHARS);
        assert_eq!((titled.text.as_str(), titled.truncated), ("text", true));
    }

    #[test]
    fn a_call_is_for_a_host() {
        let tool = tool(&[], 100);
        let target = |url: &str| tool.target(&serde_json::json!({ "url": url }));
        assert_eq!(
            target("https://Example.org/a?b#c").as_deref(),
            Some("example.org:443")
        );
        assert_eq!(target("http://[::1]:81/").as_deref(), Some("[::1]:81"));
        assert_eq!(target("data:x"), None);
        assert_eq!(tool.target(&serde_json::json!({})), None);
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
