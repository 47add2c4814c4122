//! The `Retry-After` header (RFC 9110, section 10.2.3).

use std::time::Duration;

use jiff::Timestamp;

/// Reads the header as the time to wait from `now`: a number of seconds, or an HTTP date. A date
/// in the past is zero. `None` when it is neither.
pub fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number too large for 64 bits means "never soon", not "at once".
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(at.duration_since(now).try_into().unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
        let s = |n| Some(Duration::from_secs(n));
        assert_eq!(parse("120", now), s(120));
        assert_eq!(parse(" 0 ", now), s(0));
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT", now), s(60));
        assert_eq!(parse("Wed, 21 Oct 2015 07:26:00 GMT", now), s(0));
        assert_eq!(parse("99999999999999999999999", now), s(u64::MAX));
    }

    #[test]
    fn anything_else_is_ignored() {
        let now = Timestamp::UNIX_EPOCH;
        for value in ["", "-1", "1.5", "soon", "2015-10-21", "+5"] {
            assert_eq!(parse(value, now), None, "{value}");
        }
    }
}
