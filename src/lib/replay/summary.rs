//! What a replay did.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::Skipped;

/// What a replay did, or would have done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Records read.
    pub read: u64,
    /// Records that were wanted.
    pub matched: u64,
    /// Records that were passed over, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Commands among the wanted whose time is over: workers acknowledge them and do nothing.
    pub past_their_time: u64,
    /// Records that Kafka acknowledged, or lines that were written.
    pub produced: u64,
    /// Bytes of the wanted records: key, value and headers.
    pub bytes: u64,
    /// Milliseconds that it took.
    pub duration_ms: u64,
    /// Whether nothing was done because nobody said so.
    pub dry_run: bool,
}

impl Summary {
    /// Counts a record that was passed over.
    pub fn skip(&mut self, reason: Skipped) {
        *self.skipped.entry(reason.as_str()).or_default() += 1;
    }

    /// Counts a wanted record of so many bytes.
    pub fn matched(&mut self, bytes: usize) {
        self.matched += 1;
        self.bytes += u64::try_from(bytes).unwrap_or(0);
    }

    /// Says how long it took.
    pub fn took(&mut self, time: Duration) {
        self.duration_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    }

    /// Records read in a second.
    pub fn per_second(&self) -> u64 {
        self.read.saturating_mul(1000) / self.duration_ms.max(1)
    }
}
