//! For how long an answer may be used again (RFC 9111), as far as a cache of results needs it. Pure.

use std::time::Duration;

use http::header::{AGE, CACHE_CONTROL, HeaderMap, VARY};

/// For how long an answer may be kept for others: nothing when its server forbids it, `None` when it
/// does not say. `Expires` is left to servers that say nothing else, and taken for saying nothing.
pub fn fresh_for(headers: &HeaderMap) -> Option<Duration> {
    let values = |name| {
        let all = headers.get_all(name).iter();
        all.filter_map(|value: &http::HeaderValue| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|part| part.trim().to_ascii_lowercase())
    };
    if values(VARY).any(|name| name == "*") {
        return Some(Duration::ZERO);
    }
    let (mut own, mut shared) = (None, None);
    for directive in values(CACHE_CONTROL) {
        let (name, argument) = directive.split_once('=').unwrap_or((&directive, ""));
        // A time that is not one is taken for none left (RFC 9111, 4.2.1).
        let seconds = || argument.trim_matches('"').parse().unwrap_or(0);
        match name.trim() {
            "no-store" | "no-cache" | "private" => return Some(Duration::ZERO),
            "max-age" => own = Some(seconds()),
            "s-maxage" => shared = Some(seconds()),
            _ => {}
        }
    }
    let lifetime: u64 = shared.or(own)?;
    let age = headers.get(AGE).and_then(|age| age.to_str().ok());
    let age: u64 = age.and_then(|age| age.trim().parse().ok()).unwrap_or(0);
    Some(Duration::from_secs(lifetime.saturating_sub(age)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_heard() {
        let fresh = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            fresh_for(&headers).map(|time| time.as_secs())
        };
        for (lines, expected) in [
            (&[][..], None),
            (&[("cache-control", "public")], None),
            (&[("cache-control", "max-age=60")], Some(60)),
            (&[("cache-control", "Public, Max-Age=\"60\"")], Some(60)),
            (&[("cache-control", "max-age=60, s-maxage=5")], Some(5)),
            (&[("cache-control", "max-age=60"), ("age", "50")], Some(10)),
            (&[("cache-control", "max-age=60"), ("age", "70")], Some(0)),
            (&[("cache-control", "max-age=-1")], Some(0)),
            (
                &[
                    ("cache-control", "max-age=60"),
                    ("cache-control", "no-store"),
                ],
                Some(0),
            ),
            (&[("cache-control", "private")], Some(0)),
            (&[("cache-control", "no-cache=\"set-cookie\"")], Some(0)),
            (&[("vary", "accept, *")], Some(0)),
            (&[("vary", "accept")], None),
        ] {
            assert_eq!(fresh(lines), expected, "{lines:?}");
        }
    }
}
