//! Rate-limit headers: `RateLimit-Policy` and `RateLimit` as structured fields
//! (draft-ietf-httpapi-ratelimit-headers-10), and the older `X-RateLimit-*`.

use axum::http::{HeaderMap, HeaderValue};

use crate::runs::LimitRow;

/// Writes where the limits stand; nothing when they were not checked.
pub(super) fn write(rows: &[LimitRow], headers: &mut HeaderMap) {
    let Some(tightest) = tightest(rows) else {
        return;
    };
    let mut insert = |name: &'static str, text: String| {
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name, value);
        }
    };
    insert("ratelimit-policy", list(rows, policy));
    insert("ratelimit", list(rows, state));
    insert("x-ratelimit-limit", tightest.limit.to_string());
    insert("x-ratelimit-remaining", tightest.remaining.to_string());
    insert("x-ratelimit-reset", seconds(tightest.reset_ms).to_string());
}

/// The limit that will refuse first: the one with the fewest requests left, and among equals the one
/// that takes longest to give a place back.
pub(super) fn tightest(rows: &[LimitRow]) -> Option<&LimitRow> {
    rows.iter()
        .min_by_key(|row| (row.remaining, u64::MAX - row.reset_ms))
}

fn list(rows: &[LimitRow], item: impl Fn(&LimitRow) -> String) -> String {
    rows.iter().map(item).collect::<Vec<_>>().join(", ")
}

fn policy(row: &LimitRow) -> String {
    format!(
        "\"{}\";q={};w={}",
        name(row),
        row.limit,
        seconds(row.window_ms)
    )
}

fn state(row: &LimitRow) -> String {
    format!(
        "\"{}\";r={};t={}",
        name(row),
        row.remaining,
        seconds(row.reset_ms)
    )
}

/// The policy's name, such as `key-1000ms`: the window in full, because `w` has whole seconds only.
fn name(row: &LimitRow) -> String {
    format!("{}-{}ms", row.scope, row.window_ms)
}

/// Whole seconds, never fewer than what they stand for.
fn seconds(ms: u64) -> u64 {
    ms.div_ceil(1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(scope: &str, limit: u32, window_ms: u64, remaining: u32, reset_ms: u64) -> LimitRow {
        LimitRow {
            scope: scope.to_owned(),
            limit,
            window_ms,
            remaining,
            reset_ms,
        }
    }

    #[test]
    fn every_policy_is_listed_and_the_tightest_is_summed_up() {
        let rows = [
            row("key", 100, 1000, 99, 1000),
            row("key", 3000, 60_000, 7, 59_001),
            row("tenant", 1000, 500, 998, 500),
        ];
        let mut headers = HeaderMap::new();
        write(&rows, &mut headers);
        let get = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(
            get("RateLimit-Policy"),
            "\"key-1000ms\";q=100;w=1, \"key-60000ms\";q=3000;w=60, \"tenant-500ms\";q=1000;w=1"
        );
        assert_eq!(
            get("RateLimit"),
            "\"key-1000ms\";r=99;t=1, \"key-60000ms\";r=7;t=60, \"tenant-500ms\";r=998;t=1"
        );
        assert_eq!(get("X-RateLimit-Limit"), "3000");
        assert_eq!(get("X-RateLimit-Remaining"), "7");
        assert_eq!(get("X-RateLimit-Reset"), "60");
    }

    #[test]
    fn among_equals_the_longest_wait_counts() {
        let rows = [row("key", 1, 1000, 0, 10), row("key", 9, 60_000, 0, 900)];
        assert_eq!(tightest(&rows).unwrap().reset_ms, 900);
    }

    #[test]
    fn nothing_is_written_of_limits_that_were_not_checked() {
        let mut headers = HeaderMap::new();
        write(&[], &mut headers);
        assert!(headers.is_empty());
    }
}
