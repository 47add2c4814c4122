//! The wall clock, read at the edges only: decisions take the time as data.

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}
