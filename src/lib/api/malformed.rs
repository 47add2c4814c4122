//! The answer to what is no HTTP.
//!
//! hyper answers it by itself, with a bare status, before any service is asked, and closes the connection.
//! What it writes then has one form, by which it is known and replaced.

use std::time::Instant;

use axum::http::response::Parts;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use super::client_ip::ClientIp;
use super::observe;
use super::scope::{Facts, Scope};
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::runtime::clock;
use crate::telemetry::TraceContext;

/// Longer than any answer that hyper makes by itself.
const LONGEST_BARE: usize = 256;

/// Where in `bytes` an answer begins that hyper made by itself, and its status. It is always the last one.
pub(super) fn bare_answer(bytes: &[u8]) -> Option<(usize, u16)> {
    const BEGIN: &[u8] = b"HTTP/1.1 ";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let tail = bytes.len().saturating_sub(LONGEST_BARE);
    let mut windows = bytes[tail..].windows(BEGIN.len());
    let begins = tail + windows.rposition(|window| window == BEGIN)?;
    let head = std::str::from_utf8(&bytes[begins..]).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    // Ours have a trace id, and hyper's nothing but these.
    let bare = |line: &str| {
        let name = line.split(':').next().unwrap_or_default();
        ["connection", "content-length", "date"].contains(&name)
    };
    (matches!(status, 400 | 414 | 431) && lines.all(bare)).then_some((begins, status))
}

/// What an answer that hyper makes by itself means.
pub(super) fn meaning(status: u16) -> ErrorCode {
    match status {
        414 => ErrorCode::UriTooLong,
        431 => ErrorCode::HeadersTooLarge,
        _ => ErrorCode::MalformedRequest,
    }
}

/// The bytes that tell `error` on a connection of which no request was read, before it is closed.
pub(super) fn answer(state: &ApiState, client_ip: Option<ClientIp>, error: ApiError) -> Vec<u8> {
    let facts = Facts {
        trace: TraceContext::generate(),
        method: "OTHER",
        route: "malformed".to_owned(),
        query: String::new(),
        client_ip,
        began: Instant::now(),
        began_ms: clock::now_ms(),
    };
    let response = observe::finish(state, error.into_response(), &Scope::new(facts, None));
    let (parts, body) = response.into_parts();
    // It is there already.
    let body = axum::body::to_bytes(body, usize::MAX).now_or_never();
    let body = body.and_then(Result::ok).unwrap_or_default();
    let mut answer = head(&parts, body.len()).into_bytes();
    answer.extend_from_slice(&body);
    answer
}

fn head(parts: &Parts, length: usize) -> String {
    let mut head = format!("HTTP/1.1 {}\r\n", parts.status);
    for (name, value) in &parts.headers {
        if let Ok(value) = value.to_str() {
            head.extend([name.as_str(), ": ", value, "\r\n"]);
        }
    }
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()) {
        head.extend(["date: ", &date, "\r\n"]);
    }
    let length = length.to_string();
    head.extend(["content-length: ", &length, "\r\nconnection: close\r\n\r\n"]);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\
        date: Tue, 24 Nov 2026 14:00:00 GMT\r\n\r\n";

    #[test]
    fn what_hyper_answers_by_itself_is_known() {
        assert_eq!(bare_answer(BARE.as_bytes()), Some((0, 400)));
        let before = "HTTP/1.1 200 OK\r\nx-trace-id: 1\r\ncontent-length: 2\r\n\r\nok";
        let both = format!("{before}{BARE}");
        assert_eq!(bare_answer(both.as_bytes()), Some((before.len(), 400)));
    }

    #[test]
    fn what_we_answer_is_left_alone() {
        for text in [
            "",
            "\r\n\r\n",
            "0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\nx-trace-id: 1\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "data: HTTP/1.1 400 \r\n0\r\n\r\n",
        ] {
            assert_eq!(bare_answer(text.as_bytes()), None, "{text}");
        }
    }
}
