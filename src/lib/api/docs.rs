//! The reference: the `OpenAPI` document, a page that shows it, and a page for each error code.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};

use super::openapi;
use super::params::PathId;
use crate::error::{ApiError, ErrorCode};

const REFERENCE: &str = include_str!("docs/reference.html");
const SCRIPT: &str = include_str!("docs/reference.js");
const STYLE: &str = include_str!("docs/style.css");
/// Everything comes from here, and nothing is inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The reference page.
#[utoipa::path(get, path = "/", tag = "reference", security(()),
    responses((status = 303, description = "To `/docs`.")))]
pub(super) async fn root() -> Redirect {
    Redirect::to("/docs")
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "reference", security(()),
    responses((status = 200, description = "OpenAPI 3.1.", content_type = "application/json", body = Object)))]
pub(super) async fn document() -> Response {
    serve("application/json", openapi::text().to_owned())
}

/// A page that shows this document.
#[utoipa::path(get, path = "/docs", tag = "reference", security(()),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String)))]
pub(super) async fn reference() -> Response {
    serve("text/html; charset=utf-8", REFERENCE.to_owned())
}

/// What the reference page is made of.
#[utoipa::path(get, path = "/docs/assets/{file}", tag = "reference", security(()),
    params(("file" = String, Path, description = "`reference.js` or `style.css`.")),
    responses((status = 200, description = "The file.", body = String, content_type = "text/plain")))]
pub(super) async fn asset(file: PathId<String>) -> Result<Response, ApiError> {
    match file.0.as_deref() {
        Some("reference.js") => Ok(serve("text/javascript; charset=utf-8", SCRIPT.to_owned())),
        Some("style.css") => Ok(serve("text/css; charset=utf-8", STYLE.to_owned())),
        _ => Err(ApiError::new(ErrorCode::NotFound)),
    }
}

/// What an error code means and what to do about it.
#[utoipa::path(get, path = "/docs/errors/{code}", tag = "reference", security(()),
    params(("code" = String, Path, description = "The error's `code`.")),
    responses((status = 200, description = "The page.", content_type = "text/html", body = String)))]
pub(super) async fn error(code: PathId<String>) -> Result<Response, ApiError> {
    let code = code.0.and_then(|code| ErrorCode::find(&code));
    let code = code.ok_or_else(|| ApiError::new(ErrorCode::NotFound))?;
    Ok(serve("text/html; charset=utf-8", error_page(code)))
}

fn error_page(code: ErrorCode) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title} · AgentHub</title>\n\
         <link rel=\"stylesheet\" href=\"/docs/assets/style.css\">\n\
         <main><p><a href=\"/docs\">AgentHub API</a></p>\n<h1>{title}</h1>\n\
         <p><code>{name}</code>, HTTP status {status}</p>\n<p>{why}</p>\n\
         <h2>What to do</h2>\n<p>{remedy}</p></main>\n</html>\n",
        title = html(code.title()),
        name = code.as_str(),
        status = code.status(),
        why = html(code.explanation()),
        remedy = html(code.remedy()),
    )
}

/// Escapes text for HTML and shows what stands between backquotes as code.
fn html(text: &str) -> String {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let parts = text.split('`').enumerate();
    parts
        .map(|(index, part)| match index % 2 {
            0 => part.to_owned(),
            _ => format!("<code>{part}</code>"),
        })
        .collect()
}

fn serve(content_type: &'static str, text: String) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_becomes_html() {
        assert_eq!(
            html("a <b> `c & d`."),
            "a &lt;b&gt; <code>c &amp; d</code>."
        );
    }

    #[test]
    fn every_error_page_says_what_to_do() {
        for code in ErrorCode::ALL {
            let page = error_page(*code);
            assert!(page.contains(code.as_str()) && page.contains("What to do"));
            assert_eq!(
                page.matches("<code>").count(),
                page.matches("</code>").count()
            );
        }
    }

    #[test]
    fn the_reference_page_needs_nothing_from_elsewhere() {
        for text in [REFERENCE, SCRIPT, STYLE] {
            assert!(!text.contains("http://") && !text.contains("https://"));
        }
        assert!(!REFERENCE.contains("<style") && !REFERENCE.contains("style=\""));
    }
}
