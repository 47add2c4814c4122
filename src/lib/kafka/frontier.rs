//! The contiguous frontier of handled offsets of one partition. Pure.
//!
//! Records are handled at the same time and end in any order, but a committed offset says that
//! *everything* before it is done. So the offset to commit is the one after the longest run of done
//! records that starts at the oldest record still tracked.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Tracks the records of one partition in one assignment.
///
/// Offsets rise, and may be sparse: compaction and transaction markers leave gaps.
#[derive(Debug, Default)]
pub struct Frontier {
    /// By offset; the first one is not done.
    window: VecDeque<Entry>,
    /// The highest offset that was ever tracked.
    highest: Option<i64>,
    undone: usize,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    since: Instant,
    /// Milliseconds since the epoch at which it was made; 0 when unknown.
    made_ms: i64,
    done: bool,
}

impl Frontier {
    /// A frontier that tracks nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to track the record at `offset`, received at `now` and made at `made_ms`. Returns false, and tracks nothing,
    /// when that offset was received before: a client that resumes a partition may deliver a record
    /// a second time.
    pub fn track(&mut self, offset: i64, now: Instant, made_ms: i64) -> bool {
        if self.highest.is_some_and(|highest| offset <= highest) {
            return false;
        }
        self.highest = Some(offset);
        self.undone += 1;
        self.window.push_back(Entry {
            offset,
            since: now,
            made_ms,
            done: false,
        });
        true
    }

    /// Marks the record at `offset` as done. Returns the offset to commit (that of the next record
    /// to read) when the frontier moved. An offset that is not tracked, or done already, moves
    /// nothing.
    pub fn done(&mut self, offset: i64) -> Option<i64> {
        let at = self.window.binary_search_by_key(&offset, |e| e.offset);
        let entry = self.window.get_mut(at.ok()?)?;
        if entry.done {
            return None;
        }
        entry.done = true;
        self.undone -= 1;
        let mut next = None;
        while let Some(entry) = self.window.front().filter(|e| e.done) {
            next = Some(entry.offset + 1);
            self.window.pop_front();
        }
        next
    }

    /// Records that are tracked and not done.
    pub fn in_flight(&self) -> usize {
        self.undone
    }

    /// Records that are remembered: those in flight, and the done ones behind the oldest of them.
    pub fn window(&self) -> usize {
        self.window.len()
    }

    /// How long the oldest record has been in flight; zero when none is.
    pub fn age(&self, now: Instant) -> Duration {
        let oldest = self.window.front();
        oldest.map_or(Duration::ZERO, |e| now.saturating_duration_since(e.since))
    }

    /// When the oldest record in flight was made, in milliseconds since the epoch.
    pub fn oldest_made_ms(&self) -> Option<i64> {
        self.window.front().map(|e| e.made_ms).filter(|ms| *ms > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moves_only_over_what_is_done_without_a_gap() {
        let now = Instant::now();
        let mut frontier = Frontier::new();
        for offset in [4, 5, 9] {
            assert!(frontier.track(offset, now, 0));
        }
        assert_eq!(frontier.done(5), None);
        assert_eq!(frontier.done(4), Some(6));
        assert_eq!(frontier.done(9), Some(10));
        assert_eq!((frontier.in_flight(), frontier.window()), (0, 0));
    }

    #[test]
    fn a_record_that_comes_again_is_not_tracked() {
        let mut frontier = Frontier::new();
        assert!(frontier.track(3, Instant::now(), 0));
        assert!(!frontier.track(3, Instant::now(), 0));
        assert_eq!(frontier.done(3), Some(4));
        assert!(!frontier.track(2, Instant::now(), 0));
        assert_eq!(frontier.done(3), None);
        assert_eq!(frontier.done(7), None);
    }

    #[test]
    fn the_age_is_that_of_the_oldest_in_flight() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut frontier = Frontier::new();
        assert_eq!(frontier.age(start), Duration::ZERO);
        frontier.track(1, start, 0);
        frontier.track(2, start + second, 0);
        assert_eq!(frontier.age(start + 3 * second), 3 * second);
        frontier.done(1);
        assert_eq!(frontier.age(start + 3 * second), 2 * second);
    }

    proptest! {
        /// Against a model that holds every offset: whatever the order of ends, the offset to commit
        /// is the one after the last done record before the first undone one.
        #[test]
        fn agrees_with_a_model(gaps in proptest::collection::vec(1i64..5, 1..60), order in any::<u64>()) {
            let offsets: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let mut frontier = Frontier::new();
            let mut model: BTreeMap<i64, bool> = BTreeMap::new();
            let mut committed = None;
            let mut seed = order;
            let mut ends: Vec<i64> = Vec::new();
            for &offset in &offsets {
                prop_assert!(frontier.track(offset, Instant::now(), 0));
                model.insert(offset, false);
                ends.push(offset);
                // Ends some of the tracked records, at places that the seed chooses.
                while seed % 3 != 0 && !ends.is_empty() {
                    seed = seed.rotate_right(3).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let done = ends.swap_remove(usize::try_from(seed >> 33).unwrap() % ends.len());
                    committed = frontier.done(done).or(committed);
                    model.insert(done, true);
                    prop_assert_eq!(committed, expected(&model));
                }
                seed = seed.rotate_right(5).wrapping_add(7);
            }
            prop_assert_eq!(frontier.in_flight(), model.values().filter(|d| !**d).count());
            for done in ends {
                committed = frontier.done(done).or(committed);
                model.insert(done, true);
                prop_assert_eq!(committed, expected(&model));
            }
            prop_assert_eq!(committed, offsets.last().map(|last| last + 1));
            prop_assert_eq!(frontier.window(), 0);
        }
    }

    fn expected(model: &BTreeMap<i64, bool>) -> Option<i64> {
        model
            .iter()
            .take_while(|(_, done)| **done)
            .last()
            .map(|(offset, _)| offset + 1)
    }

    #[test]
    fn the_time_of_the_oldest_in_flight() {
        let mut frontier = Frontier::new();
        let now = Instant::now();
        assert_eq!(frontier.oldest_made_ms(), None);
        frontier.track(1, now, 1000);
        frontier.track(2, now, 2000);
        frontier.done(2);
        assert_eq!(frontier.oldest_made_ms(), Some(1000));
        frontier.done(1);
        assert_eq!(frontier.oldest_made_ms(), None);
    }
}
