//! When a provider wants to be asked again. Pure.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::tz::TimeZone;
use reqwest::header::HeaderMap;

/// The wait that the headers ask for: `retry-after-ms` (OpenAI's own, finer), else `Retry-After` in
/// seconds or as an HTTP date (RFC 9110, sections 5.6.7 and 10.2.3). A date that has passed asks for
/// no wait. `None` when there is none that can be read. The value is as large as the provider wrote
/// it: whoever waits caps it.
pub(super) fn parse(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(number) {
        return Some(ms / 1000);
    }
    let value = text("retry-after")?;
    number(value).or_else(|| {
        let until = http_date(value)?.duration_since(now);
        Some(Duration::try_from(until).unwrap_or_default())
    })
}

/// A count that is not negative, as a span in seconds; fractions are no standard but are met.
fn number(text: &str) -> Option<Duration> {
    match text.parse::<u64>() {
        Ok(whole) => Some(Duration::from_secs(whole)),
        Err(_) => Duration::try_from_secs_f64(text.parse().ok()?).ok(),
    }
}

fn http_date(text: &str) -> Option<Timestamp> {
    static RFC_2822: DateTimeParser = DateTimeParser::new();
    // Recipients must read the two obsolete forms as well: RFC 850's and asctime's.
    RFC_2822.parse_timestamp(text).ok().or_else(|| {
        ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
            .iter()
            .find_map(|form| DateTime::strptime(form, text).ok())?
            .to_zoned_datetime(TimeZone::UTC)
            .ok()
            .map(|at| at.timestamp())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().unwrap());
        }
        parse(&headers, "1994-11-06T08:49:00Z".parse().unwrap())
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let seconds = |s| Some(Duration::from_secs(s));
        for (value, expected) in [
            ("0", seconds(0)),
            ("120", seconds(120)),
            (" 3 ", seconds(3)),
            ("1.5", Some(Duration::from_millis(1500))),
            ("18446744073709551615", seconds(u64::MAX)),
            ("-1", None),
            ("NaN", None),
            ("inf", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 GMT", seconds(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", seconds(37)),
            ("Sun Nov  6 08:49:37 1994", seconds(37)),
            ("Sun, 06 Nov 1994 08:48:37 GMT", seconds(0)),
        ] {
            assert_eq!(wait(&[("retry-after", value)]), expected, "{value:?}");
        }
        assert_eq!(wait(&[]), None);
    }

    #[test]
    fn milliseconds_win() {
        let both = [("retry-after", "9"), ("retry-after-ms", "250")];
        assert_eq!(wait(&both), Some(Duration::from_millis(250)));
        let unreadable = [("retry-after", "9"), ("retry-after-ms", "x")];
        assert_eq!(wait(&unreadable), Some(Duration::from_secs(9)));
    }
}
