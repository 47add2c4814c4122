//! What can go wrong for a client: stable codes, each with its status and its page.
//!
//! Invariant: an error's text is written here or by the code that refuses; it never holds a
//! dependency's text, a path, an address or a secret.

use serde_json::Value;

macro_rules! error_codes {
    ($( $variant:ident = $code:literal, $status:literal, $title:literal;
        $why:literal
        $remedy:literal )+) => {
        /// The kinds of errors, by their stable names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $( #[doc = $why] $variant, )+
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable name, in snake case.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $code, )+ }
            }

            /// The HTTP status.
            pub fn status(self) -> u16 {
                match self { $( Self::$variant => $status, )+ }
            }

            /// The short text that is the same for every error of this code.
            pub fn title(self) -> &'static str {
                match self { $( Self::$variant => $title, )+ }
            }

            /// When it is answered.
            pub fn explanation(self) -> &'static str {
                match self { $( Self::$variant => $why, )+ }
            }

            /// What the client can do about it.
            pub fn remedy(self) -> &'static str {
                match self { $( Self::$variant => $remedy, )+ }
            }
        }
    };
}

error_codes! {
    InvalidJson = "invalid_json", 400, "The body is not JSON";
        "The request body is empty, is not valid UTF-8, or is not one JSON value as RFC 8259 defines it."
        "Send one JSON object. Look for trailing commas, single quotes, comments and bytes after the closing brace."
    MalformedRequest = "malformed_request", 400, "The request is not HTTP";
        "What arrived cannot be read as an HTTP/1.1 request: the request line or a header line is not well-formed, the version is unknown, or the length of the body is told in two ways. The connection is closed, because what follows cannot be told apart."
        "Use an HTTP/1.1 client library; look for control characters and spaces in the path and in header names."
    BodyTooDeep = "body_too_deep", 400, "The body is nested too deeply";
        "Arrays and objects of the request body are nested more deeply than the installation allows (32 levels by default)."
        "Flatten the value, or send it as a string."
    InvalidHeader = "invalid_header", 400, "A header is not valid";
        "A request header does not have the form that its specification demands: `details.header` names it. A request needs exactly one `Host`; a `Transfer-Encoding` is `chunked`; an `Idempotency-Key` has 1 to 255 visible ASCII characters; a `Last-Event-ID` is an event id such as `1-42`."
        "Correct the header, or leave it out where it is optional."
    Unauthenticated = "unauthenticated", 401, "A valid API key is required";
        "The request carries no API key, more than one, or one that is malformed, unknown, expired, replaced or revoked. The answer is the same for all of these, so that it tells nothing about a key that somebody guesses."
        "Send `Authorization: Bearer <key>` or `X-API-Key: <key>`, once, with a key that is in force. An admin of your tenant can list, rotate and create keys."
    BudgetExhausted = "budget_exhausted", 402, "A budget is used up";
        "What was spent and what calls under way may still spend reach the limit of a budget: `details.rule` names it (`tenant_budget`, `key_budget` or `session_budget`). Nothing was started. Within an hour of the month's end, when budgets of a tenant or key begin anew, the status is 429 with `Retry-After`."
        "Wait for calls under way to end, use another session, or ask an admin to raise the budget. Budgets of tenants and keys begin anew each month (UTC)."
    Forbidden = "forbidden", 403, "The key may not do this";
        "The key is valid, but a rule forbids the request: `details.rule` names it. `role` means that the key's role lacks the permission; `tenant` that the key governs another tenant than the one that was named."
        "Use a key whose role allows the request."
    NotFound = "not_found", 404, "There is no such thing";
        "The id in the request names nothing that the key's tenant has. The answer is the same whether the thing never existed, has expired, was deleted or belongs to another tenant."
        "Check the id, and that the key is of the tenant that created the thing."
    RouteNotFound = "route_not_found", 404, "There is no such route";
        "No route has the path of the request. Paths have no trailing slash and are case-sensitive."
        "Look the path up in `/docs` or `/openapi.json`."
    MethodNotAllowed = "method_not_allowed", 405, "The route does not know this method";
        "The path exists, but not with the method of the request. The `Allow` header lists the methods that it has."
        "Use one of the methods in `Allow`."
    BodyTimeout = "body_timeout", 408, "The body did not arrive in time";
        "The request body did not arrive within the time that the installation allows (10 seconds by default)."
        "Send the request again; a slow connection may need a smaller body."
    SessionBusy = "session_busy", 409, "The session has a live run";
        "The request said `\"on_conflict\": \"reject\"`, and its session has a run that has not ended."
        "Wait for the run to end, cancel it, or use `enqueue` (wait in line) or `parallel`."
    RequestInFlight = "request_in_flight", 409, "The same request is being carried out";
        "Another request with the same `Idempotency-Key`, on the same route and with the same content, has not been answered yet."
        "Repeat the request after the seconds that `Retry-After` gives: the answer is then the one that the other request gets."
    RunEnded = "run_ended", 409, "The run has ended";
        "The request would change a run that has already ended in another way: `details.status` says how."
        "Read the run; nothing can change it any more."
    NotRetryable = "not_retryable", 409, "The run cannot be retried";
        "Only a run that failed, was cancelled or timed out is retried: `details.status` says where the run is. With `details.steps`, those steps have an unknown outcome: whether their effect happened has to be said before a retry could repeat it."
        "Wait for the run's end; resolve the steps with `POST /v1/runs/{run_id}/steps/{step_id}/resolve`; start a new run instead of retrying one that succeeded."
    NotRedrivable = "not_redrivable", 409, "The dead letter cannot be redriven";
        "A redrive goes on after the run that the letter is about. `details.rule` says what is missing: with `no_run` the record could not be decoded or verified, so that nobody knows its run; with `run_gone` the run is no longer kept (seven days by default), or its session was erased."
        "Look at the letter's bytes, and have the client submit the work again where it is still wanted."
    OutcomeKnown = "outcome_known", 409, "The step's outcome is not unknown";
        "Only a step whose status is `outcome_unknown`, of a run that has ended, is resolved; it may have been resolved in the meantime."
        "Read the run."
    PlanNotReady = "plan_not_ready", 409, "The run has no finished plan";
        "`plan_id` names a run that has not made a plan yet, or that ended without one."
        "Wait until the planning run has succeeded, or plan again."
    BodyTooLarge = "body_too_large", 413, "The body is too large";
        "The request body has more bytes than the installation allows (262144 by default)."
        "Send less; refer to large data by an address or a document instead of quoting it."
    UriTooLong = "uri_too_long", 414, "The address is too long";
        "The request's path and query together have more bytes than the installation allows (8192 by default)."
        "Shorten the query."
    UnsupportedMediaType = "unsupported_media_type", 415, "The body must be plain JSON";
        "A request body must come with `Content-Type: application/json` (a `charset=utf-8` is accepted) and without a `Content-Encoding`."
        "Set the header, and do not compress the body."
    InvalidRequest = "invalid_request", 422, "The request does not fit its schema";
        "A field of the body or a parameter of the query is missing, unknown, of the wrong type or out of range: `details.field` names it, as a JSON pointer (RFC 6901) into the body or as the name of the parameter. Unknown fields are refused, so that a misspelt limit is never ignored."
        "Correct the field; `/openapi.json` holds every schema."
    InvalidPlan = "invalid_plan", 422, "The plan cannot be executed";
        "The plan names an unknown tool, its arguments do not fit the tool's schema, its references or dependencies do not resolve, or it breaks a limit. `details.problems` lists everything that was found, each with a code, a JSON pointer into the plan and a message."
        "Correct what `details.problems` lists; `GET /v1/tools` gives the tools and their schemas."
    IdempotencyMismatch = "idempotency_mismatch", 422, "The Idempotency-Key was used for another request";
        "The same `Idempotency-Key` came before, on the same route, with another body, query or id in the path. Nothing was done."
        "Use a fresh key for every new request, and the old one only to repeat the same request unchanged."
    RateLimited = "rate_limited", 429, "Too many requests";
        "A rate limit of the key or of its tenant is used up: `details.rule` names it. The refused request consumed nothing. `unauthenticated_address` means that too many requests without a valid key came from the client's address: requests with a valid key are not refused for it."
        "Wait for the seconds that `Retry-After` gives, then repeat the request. `RateLimit` and `RateLimit-Policy` show where the limits stand."
    HeadersTooLarge = "headers_too_large", 431, "Too many headers";
        "The request has more header lines, or more bytes in its request line and headers, than the installation allows (64 lines and 32768 bytes by default)."
        "Send fewer headers."
    Internal = "internal", 500, "Something went wrong here";
        "The request met a fault of the service. It was logged under the trace id of this answer."
        "Repeat the request, with the same `Idempotency-Key` where it has one. Give the trace id to the operator when the fault stays."
    DependencyUnavailable = "dependency_unavailable", 503, "Something that the service needs is down";
        "Kafka or Redis cannot be reached: `details.dependency` says which. Where the answer holds a `details.run_id`, the run is in the ledger and starts by itself once the dependency is back."
        "Repeat the request after the seconds that `Retry-After` gives, with the same `Idempotency-Key` where it has one."
    Overloaded = "overloaded", 503, "The service has too much to do";
        "The process handles as many requests as it may at once. The request was refused before anything happened."
        "Repeat the request after the seconds that `Retry-After` gives."
}

impl ErrorCode {
    /// The code with this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// Where its page is served.
    pub fn page_path(self) -> String {
        format!("/docs/errors/{}", self.as_str())
    }

    /// Its page, Markdown.
    pub fn page(self) -> String {
        format!(
            "# {}\n\n`{}`, HTTP status {}\n\n{}\n\n## What to do\n\n{}\n",
            self.title(),
            self.as_str(),
            self.status(),
            self.explanation(),
            self.remedy()
        )
    }
}

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct ApiError {
    /// What kind of error.
    pub code: ErrorCode,
    /// What was wrong with this request.
    pub detail: String,
    /// More for programs.
    pub details: Option<Value>,
    /// Milliseconds before which a repeat cannot succeed.
    pub retry_after_ms: Option<u64>,
}

impl ApiError {
    /// An error whose detail is its code's title.
    pub fn new(code: ErrorCode) -> Self {
        Self {
            code,
            detail: code.title().to_owned(),
            details: None,
            retry_after_ms: None,
        }
    }

    /// With a text of its own.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }

    /// With more for programs.
    pub fn details(self, details: Value) -> Self {
        Self {
            details: Some(details),
            ..self
        }
    }

    /// A field of the body (a JSON pointer) or a parameter of the query (its name) that is wrong.
    pub fn field(field: impl Into<String>, problem: impl AsRef<str>) -> Self {
        let field = field.into();
        let place = if field.is_empty() { "the body" } else { &field };
        Self::new(ErrorCode::InvalidRequest)
            .detail(format!("{place}: {}", problem.as_ref()))
            .details(serde_json::json!({ "field": field }))
    }

    /// A header that is wrong.
    pub fn header(name: &'static str, problem: &str) -> Self {
        Self::new(ErrorCode::InvalidHeader)
            .detail(format!("{name}: {problem}"))
            .details(serde_json::json!({ "header": name }))
    }

    /// A dependency, `kafka` or `redis`, that is down.
    pub fn unavailable(dependency: &'static str) -> Self {
        Self {
            retry_after_ms: Some(1000),
            ..Self::new(ErrorCode::DependencyUnavailable)
                .detail(format!("{dependency} is not available"))
                .details(serde_json::json!({ "dependency": dependency }))
        }
    }

    /// `Retry-After` in whole seconds, never earlier than what it stands for.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::*;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors")
    }

    #[test]
    fn codes_are_snake_case_and_found_by_name() {
        for code in ErrorCode::ALL {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            assert_eq!(ErrorCode::find(name), Some(*code));
            assert!((400..=599).contains(&code.status()), "{name}");
        }
    }

    /// `AGENTHUB_UPDATE=1 cargo test` writes the pages anew.
    #[test]
    fn every_code_has_its_page_and_no_other_page_exists() {
        let update = std::env::var_os("AGENTHUB_UPDATE").is_some();
        for code in ErrorCode::ALL {
            let path = folder().join(format!("{}.md", code.as_str()));
            if update {
                std::fs::write(&path, code.page()).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(found, code.page(), "{} is stale", path.display());
        }
        let files: BTreeSet<String> = std::fs::read_dir(folder())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let codes = ErrorCode::ALL.iter().map(|c| format!("{}.md", c.as_str()));
        assert_eq!(files, codes.collect());
    }

    #[test]
    fn retry_after_is_never_early() {
        let after = |ms| ApiError {
            retry_after_ms: Some(ms),
            ..ApiError::new(ErrorCode::RateLimited)
        };
        assert_eq!(after(0).retry_after_s(), Some(1));
        assert_eq!(after(1000).retry_after_s(), Some(1));
        assert_eq!(after(1001).retry_after_s(), Some(2));
        assert_eq!(ApiError::new(ErrorCode::Internal).retry_after_s(), None);
    }
}
