//! What is refused of a request before anything else looks at it.

use axum::extract::Request;
use axum::http::Version;
use axum::http::header::{HOST, TRANSFER_ENCODING};

use crate::config::Settings;
use crate::error::{ApiError, ErrorCode};

/// Checks the size of the head, and the headers that say whom and how a request addresses.
pub(super) fn check(request: &Request, settings: &Settings) -> Result<(), ApiError> {
    let (uri, headers) = (request.uri(), request.headers());
    let length = uri.path().len() + uri.query().map_or(0, |query| query.len() + 1);
    let most = settings.max_uri_bytes.0;
    if length > most {
        return Err(ApiError::new(ErrorCode::UriTooLong)
            .detail(format!("the path and query have more than {most} bytes")));
    }
    let most = settings.max_headers;
    if headers.len() > most {
        return Err(ApiError::new(ErrorCode::HeadersTooLarge)
            .detail(format!("the request has more than {most} header lines")));
    }
    // RFC 9112, section 3.2: exactly one, but for HTTP/1.0, which has none.
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Err(ApiError::header("Host", "exactly one is required"));
    }
    // A coding below the chunks, such as gzip, would have to be undone. Codings in several lines are one list.
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coded = codings.next().is_some_and(|first| {
        codings.next().is_some()
            || !first
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"chunked")
    });
    if coded {
        return Err(ApiError::header(
            "Transfer-Encoding",
            "only chunked is taken",
        ));
    }
    Ok(())
}
