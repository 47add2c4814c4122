//! Headers that change how a request is carried out: `Idempotency-Key`, `Prefer`, `Last-Event-ID`.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;

use super::state::ApiState;
use crate::error::ApiError;
use crate::governance::IdempotencyKey;
use crate::messages::EventId;

/// The longest that a client may ask to wait, in seconds.
const MAX_WAIT_S: u64 = 60;

/// How a submitted request is to be carried out.
#[derive(Debug)]
pub(super) struct Submitting {
    /// The client's name for the request.
    pub(super) idempotency: Option<IdempotencyKey>,
    /// How long the client wants to wait for the outcome.
    pub(super) wait: Option<Duration>,
}

impl FromRequestParts<ApiState> for Submitting {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        Ok(Self {
            idempotency: idempotency_key(&parts.headers)?,
            wait: wait(&parts.headers),
        })
    }
}

/// The client's name for the request.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(first) = given.next() else {
        return Ok(None);
    };
    if given.next().is_some() {
        return Err(ApiError::header("Idempotency-Key", "it occurs twice"));
    }
    IdempotencyKey::parse(first.as_bytes())
        .map(Some)
        .map_err(|_| ApiError::header("Idempotency-Key", "1 to 255 visible ASCII characters"))
}

/// The `wait` preference (RFC 7240, section 4.3), at most [`MAX_WAIT_S`]. What is not understood is
/// not a preference, as the RFC wants it; the first of several counts.
fn wait(headers: &HeaderMap) -> Option<Duration> {
    let given = headers.get_all("prefer").iter();
    let preference = given
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|preference| {
            let preference = preference.split(';').next()?;
            let (name, value) = preference.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then_some(value)
        })?;
    let seconds: u64 = preference.trim().trim_matches('"').parse().ok()?;
    (seconds > 0).then(|| Duration::from_secs(seconds.min(MAX_WAIT_S)))
}

/// The event after which a client wants to go on, from `Last-Event-ID`.
pub(super) fn last_event_id(headers: &HeaderMap) -> Result<Option<EventId>, ApiError> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None); // what a browser sends that has seen no id
    }
    text.parse()
        .map(Some)
        .map_err(|_| ApiError::header("Last-Event-ID", "an event id such as 1-42"))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn wait_is_read_as_a_preference() {
        let read = |value| wait(&headers(&[("prefer", value)])).map(|d| d.as_secs());
        assert_eq!(read("wait=5"), Some(5));
        assert_eq!(read("respond-async, WAIT = \"7\" ; x=y"), Some(7));
        assert_eq!(read("wait=3600"), Some(60));
        for ignored in [
            "wait",
            "wait=0",
            "wait=-1",
            "wait=soon",
            "wait=1.5",
            "return=minimal",
            "",
        ] {
            assert_eq!(read(ignored), None, "{ignored}");
        }
        let twice = headers(&[("prefer", "return=minimal"), ("prefer", "wait=2, wait=9")]);
        assert_eq!(wait(&twice), Some(Duration::from_secs(2)));
    }

    #[test]
    fn an_idempotency_key_is_one_and_valid() {
        let read = |pairs| idempotency_key(&headers(pairs));
        assert_eq!(read(&[]).unwrap(), None);
        assert!(read(&[("idempotency-key", "k-1")]).unwrap().is_some());
        assert!(read(&[("idempotency-key", "")]).is_err());
        assert!(read(&[("idempotency-key", "a"), ("idempotency-key", "a")]).is_err());
    }

    #[test]
    fn an_event_id_is_read() {
        let read = |value| last_event_id(&headers(&[("last-event-id", value)]));
        assert_eq!(read("1-42").unwrap().unwrap().seq, 42);
        assert_eq!(read("").unwrap(), None);
        assert!(read("42").is_err());
        assert!(read("1-x").is_err());
    }
}
