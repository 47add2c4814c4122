//! Times as clients see them.

use jiff::tz::TimeZone;

/// RFC 3339 with milliseconds, in UTC.
pub(super) fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

/// When the calendar month (UTC) of a time ends, in milliseconds since the epoch.
pub(super) fn month_end(ms: u64) -> u64 {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    let day = TimeZone::UTC.to_datetime(time).date();
    let end = day.last_of_month().tomorrow();
    let end = end.and_then(|day| TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0)));
    let end = end.unwrap_or(jiff::Timestamp::MAX);
    u64::try_from(end.as_millisecond()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds() {
        assert_eq!(rfc3339(1_700_000_000_007), "2023-11-14T22:13:20.007Z");
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            rfc3339(month_end(1_700_000_000_007)),
            "2023-12-01T00:00:00.000Z"
        );
        assert!(rfc3339(u64::MAX).ends_with('Z'));
    }
}
