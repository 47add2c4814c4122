//! What a failed call means for the worker. Pure.
//!
//! | what happened | class | code |
//! |---|---|---|
//! | 429 | transient | `llm_rate_limited` |
//! | 429 with `insufficient_quota` | permanent | `llm_quota_exhausted` |
//! | 408, 409, 5xx | transient | `llm_unavailable` |
//! | 401, 403 | permanent | `llm_unauthorized` |
//! | 404 | permanent | `llm_not_found` |
//! | any other status | permanent | `llm_bad_request` |
//! | no connection | transient | `llm_unreachable` |
//! | connection lost on the way | transient | `llm_connection_lost` |
//! | no answer within the timeout | transient | `llm_timeout` |
//! | answer that does not decode, or is empty | transient | `llm_malformed_answer` |
//! | an error within a streamed answer | transient | `llm_stream_failed` |
//! | answer beyond the cap | permanent | `llm_answer_too_large` |
//! | answer withheld by the provider's filter | permanent | `llm_content_filtered` |
//!
//! An answer that does not decode is transient because its usual makers are gateways on a bad day
//! (error pages with status 200, bodies cut short), and attempts are few. One that is too large is not:
//! another would cost as much and end alike.

use std::error::Error as _;

use jiff::Timestamp;
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::retry_after;
use crate::llm::{LlmError, LlmErrorClass};

/// Characters of a provider's message that are passed on.
const MAX_MESSAGE_CHARS: usize = 300;

/// A failure that another attempt would repeat.
pub(super) fn permanent(code: &'static str, message: &str) -> LlmError {
    LlmError {
        class: LlmErrorClass::Permanent,
        code,
        message: cut(message),
    }
}

/// An answer beyond the cap.
pub(super) fn too_large() -> LlmError {
    permanent("llm_answer_too_large", "the answer is larger than 32 MiB")
}

/// A streamed answer that ended before it was whole.
pub(super) fn cut_short() -> LlmError {
    LlmError {
        class: LlmErrorClass::Transient { retry_after: None },
        code: "llm_connection_lost",
        message: "the answer ended before it was whole".to_owned(),
    }
}

/// An error in the middle of a streamed answer.
pub(super) fn of_stream(error: &Value) -> LlmError {
    let message = error["message"].as_str().or(error.as_str());
    LlmError {
        class: LlmErrorClass::Transient { retry_after: None },
        code: "llm_stream_failed",
        message: cut(message.unwrap_or("the provider broke the answer off")),
    }
}

/// An answer that cannot be read as one.
pub(super) fn malformed(reason: &impl ToString) -> LlmError {
    LlmError {
        class: LlmErrorClass::Transient { retry_after: None },
        code: "llm_malformed_answer",
        message: cut(&reason.to_string()),
    }
}

/// An answer with a status other than 2xx.
pub(super) fn of_status(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    api_key: &str,
    now: Timestamp,
) -> LlmError {
    let provider = ProviderError::read(body);
    let transient = LlmErrorClass::Transient {
        retry_after: retry_after::parse(headers, now),
    };
    let (class, code) = match status.as_u16() {
        429 if provider.is("insufficient_quota") => {
            (LlmErrorClass::Permanent, "llm_quota_exhausted")
        }
        429 => (transient, "llm_rate_limited"),
        408 | 409 | 500..=599 => (transient, "llm_unavailable"),
        401 | 403 => (LlmErrorClass::Permanent, "llm_unauthorized"),
        404 => (LlmErrorClass::Permanent, "llm_not_found"),
        _ => (LlmErrorClass::Permanent, "llm_bad_request"),
    };
    let message = format!("HTTP {}: {}", status.as_u16(), provider.message);
    LlmError {
        class,
        code,
        message: cut(&redact(&message, api_key)),
    }
}

/// A request that got no whole answer.
pub(super) fn of_transport(error: reqwest::Error) -> LlmError {
    let code = if error.is_timeout() {
        "llm_timeout"
    } else if error.is_connect() {
        "llm_unreachable"
    } else if error.is_builder() {
        return permanent("llm_bad_request", &error.without_url().to_string());
    } else {
        "llm_connection_lost"
    };
    // The base URL may hold a password; the causes say what went wrong.
    let error = error.without_url();
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    LlmError {
        class: LlmErrorClass::Transient { retry_after: None },
        code,
        message: cut(&message),
    }
}

/// What a provider says of an error: OpenAI's form, or what is nearest to it.
struct ProviderError {
    message: String,
    code: Option<String>,
    kind: Option<String>,
}

impl ProviderError {
    fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: Value,
        }
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let (message, code, kind) = match serde_json::from_slice(body) {
            Ok(Body { error }) => (
                text(&error["message"]).or_else(|| text(&error)),
                text(&error["code"]),
                text(&error["type"]),
            ),
            Err(_) => (None, None, None),
        };
        Self {
            message: message.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned()),
            code,
            kind,
        }
    }

    fn is(&self, name: &str) -> bool {
        self.code.as_deref() == Some(name) || self.kind.as_deref() == Some(name)
    }
}

/// Takes out the key, and words that begin like it (OpenAI shows a wrong key with its middle masked).
fn redact(text: &str, api_key: &str) -> String {
    const SHOWN: &str = "***";
    if api_key.is_empty() {
        return text.to_owned();
    }
    let text = text.replace(api_key, SHOWN);
    let Some(beginning) = api_key.get(..6).filter(|_| api_key.len() >= 12) else {
        return text;
    };
    let words = text.split_inclusive(char::is_whitespace);
    words
        .map(|word| match word.find(beginning) {
            Some(at) => {
                let space = &word[word.trim_end().len()..];
                format!("{}{SHOWN}{space}", &word[..at])
            }
            None => word.to_owned(),
        })
        .collect()
}

fn cut(message: &str) -> String {
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn failure(status: u16, body: &str) -> LlmError {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().unwrap());
        of_status(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
            "sk-proj-0123456789",
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn statuses_are_classified() {
        let again = LlmErrorClass::Transient {
            retry_after: Some(Duration::from_secs(7)),
        };
        let quota = r#"{"error":{"message":"no","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
        for (status, body, class, code) in [
            (429, "", again, "llm_rate_limited"),
            (429, quota, LlmErrorClass::Permanent, "llm_quota_exhausted"),
            (408, "", again, "llm_unavailable"),
            (409, "", again, "llm_unavailable"),
            (500, "", again, "llm_unavailable"),
            (503, quota, again, "llm_unavailable"),
            (599, "", again, "llm_unavailable"),
            (400, "", LlmErrorClass::Permanent, "llm_bad_request"),
            (401, "", LlmErrorClass::Permanent, "llm_unauthorized"),
            (403, "", LlmErrorClass::Permanent, "llm_unauthorized"),
            (404, "", LlmErrorClass::Permanent, "llm_not_found"),
            (422, "", LlmErrorClass::Permanent, "llm_bad_request"),
            (302, "", LlmErrorClass::Permanent, "llm_bad_request"),
        ] {
            let error = failure(status, body);
            assert_eq!((error.class, error.code), (class, code), "{status} {body}");
        }
    }

    #[test]
    fn the_providers_words_are_found_in_every_form() {
        for (body, expected) in [
            (
                r#"{"error":{"message":"Slow down","code":null}}"#,
                "HTTP 500: Slow down",
            ),
            (r#"{"error":"model missing"}"#, "HTTP 500: model missing"),
            ("<h1>Bad gateway</h1>\n", "HTTP 500: <h1>Bad gateway</h1>"),
            (r#"{"detail":"x"}"#, r#"HTTP 500: {"detail":"x"}"#),
        ] {
            assert_eq!(failure(500, body).message, expected);
        }
    }

    #[test]
    fn the_key_is_never_quoted() {
        let body = r#"{"error":{"message":"Incorrect API key provided: sk-proj-***6789, not sk-proj-0123456789."}}"#;
        assert_eq!(
            failure(401, body).message,
            "HTTP 401: Incorrect API key provided: *** not ***."
        );
    }

    proptest! {
        #[test]
        fn messages_are_short_and_without_the_key(before in ".{0,400}", after in ".{0,400}") {
            let message = failure(400, &format!("{before}sk-proj-0123456789{after}")).message;
            prop_assert!(message.chars().count() <= MAX_MESSAGE_CHARS + 1);
            prop_assert!(!message.contains("sk-proj"));
        }
    }
}
