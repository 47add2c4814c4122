//! Why a request had no good answer.

use std::error::Error;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::sse::TooLarge;
use crate::cli::output::one_line;

/// Why the API did not do what was asked. The texts are one line each.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The API refused, and said why (RFC 9457).
    #[error("{}", self.problem_text())]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Why.
        problem: Problem,
        /// How long to wait before it makes sense to ask again.
        retry_after: Option<Duration>,
    },
    /// Nothing that speaks HTTP is there.
    #[error("cannot reach {url}: {reason} (is AGENTHUB_URL right, and the API running?)")]
    Unreachable {
        /// The API's address.
        url: String,
        /// What was wrong.
        reason: String,
    },
    /// Something answered, but not as the API does.
    #[error("{url} answered {status}, not as AgentHub does (is AGENTHUB_URL right?)")]
    Foreign {
        /// The request's address.
        url: String,
        /// The HTTP status.
        status: StatusCode,
    },
    /// The answer did not arrive, or not as a whole.
    #[error("{url}: {reason}")]
    Broken {
        /// The request's address.
        url: String,
        /// What was wrong.
        reason: String,
    },
    /// A setting is not one that a client can be made of.
    #[error("{0}")]
    Setup(String),
    /// The stream has an event that nobody should send.
    #[error(transparent)]
    Stream(#[from] TooLarge),
}

/// A problem document.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Problem {
    title: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    trace_id: String,
}

impl ClientError {
    /// What the answer of an error status says.
    pub fn from_answer(url: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Self {
        let retry_after = headers
            .get("retry-after")
            .and_then(|value| value.to_str().ok());
        match serde_json::from_slice(body) {
            Ok(problem) => Self::Refused {
                status,
                problem,
                retry_after: retry_after
                    .and_then(|s| s.trim().parse().ok())
                    .map(Duration::from_secs),
            },
            Err(_) => Self::Foreign {
                url: url.to_owned(),
                status,
            },
        }
    }

    /// What went wrong below HTTP's meaning.
    pub fn from_transport(base: &str, error: &reqwest::Error) -> Self {
        let url = error
            .url()
            .map_or_else(|| base.to_owned(), ToString::to_string);
        let reason = if error.is_timeout() {
            "no answer in time".to_owned()
        } else {
            innermost(error)
        };
        if error.is_connect() {
            Self::Unreachable {
                url: base.to_owned(),
                reason,
            }
        } else {
            Self::Broken { url, reason }
        }
    }

    /// Whether the same request may go well a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { status, .. } | Self::Foreign { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Setup(_) | Self::Stream(_) => false,
        }
    }

    /// How long the API wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn problem_text(&self) -> String {
        let Self::Refused {
            problem, status, ..
        } = self
        else {
            return String::new();
        };
        let mut text = problem.title.clone();
        if !problem.detail.is_empty() && problem.detail != problem.title {
            text = format!("{text}: {}", problem.detail);
        }
        let mut names = vec![problem.code.clone()];
        if problem.code.is_empty() {
            names = vec![format!("HTTP {}", status.as_u16())];
        }
        if !problem.trace_id.is_empty() {
            names.push(format!("trace {}", problem.trace_id));
        }
        one_line(&format!("{text} ({})", names.join(", ")), usize::MAX)
    }
}

/// The cause that the others wrap: `Connection refused`, where they say that a request failed.
fn innermost(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    one_line(&cause.to_string(), usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: u16, body: &str) -> String {
        let status = StatusCode::from_u16(status).unwrap();
        ClientError::from_answer(
            "http://a/v1/runs",
            status,
            &HeaderMap::new(),
            body.as_bytes(),
        )
        .to_string()
    }

    #[test]
    fn a_problem_is_one_line() {
        let body = r#"{"type":"/docs/errors/not_found","title":"Not found","status":404,
            "detail":"no such\nrun","code":"not_found","trace_id":"abc","later":1}"#;
        assert_eq!(
            text(404, body),
            "Not found: no such run (not_found, trace abc)"
        );
        assert_eq!(text(500, r#"{"title":"Down"}"#), "Down (HTTP 500)");
        let same = r#"{"title":"Down","detail":"Down","code":"c"}"#;
        assert_eq!(text(500, same), "Down (c)");
    }

    #[test]
    fn an_answer_of_something_else_is_said_to_be_one() {
        let expected = "http://a/v1/runs answered 502 Bad Gateway, not as AgentHub does \
            (is AGENTHUB_URL right?)";
        assert_eq!(text(502, "<html>"), expected);
    }

    #[test]
    fn what_may_go_well_later_is_told_apart() {
        let error = |status: u16, wait: &str| {
            let headers =
                HeaderMap::from_iter([("retry-after".parse().unwrap(), wait.parse().unwrap())]);
            let status = StatusCode::from_u16(status).unwrap();
            ClientError::from_answer("http://a/", status, &headers, br#"{"title":"t"}"#)
        };
        assert!(error(503, "7").is_transient());
        assert_eq!(error(503, "7").retry_after(), Some(Duration::from_secs(7)));
        assert!(error(429, "x").is_transient());
        assert!(!error(404, "1").is_transient());
    }
}
