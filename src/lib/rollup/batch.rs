//! What was taken of each partition and is not written yet. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Which assignment of which consumer a record was taken under.
pub(super) type Epoch = (u64, u64);

/// When a batch is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Records, over all partitions.
    pub(super) records: usize,
    /// Bytes, over all partitions.
    pub(super) bytes: usize,
    /// The age of a batch's first record.
    pub(super) age: Duration,
}

/// Entries of one partition, in the order of their offsets and without a gap but those that the topic
/// has itself.
#[derive(Debug)]
pub(super) struct Batch<E> {
    pub(super) partition: i32,
    pub(super) epoch: Epoch,
    pub(super) entries: Vec<E>,
}

#[derive(Debug)]
struct Gathering<E> {
    epoch: Epoch,
    entries: Vec<E>,
    bytes: usize,
    since: Instant,
    /// To be given back soon.
    urgent: bool,
}

/// The batches of all partitions.
#[derive(Debug)]
pub(super) struct Batches<E> {
    bounds: Bounds,
    partitions: HashMap<i32, Gathering<E>>,
}

impl<E> Batches<E> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            partitions: HashMap::new(),
        }
    }

    /// Adds an entry of `bytes`. What was gathered of its partition under another epoch is dropped: it
    /// was not acknowledged, so it comes again. Returns whether the writer needs to look.
    pub(super) fn push(
        &mut self,
        partition: i32,
        epoch: Epoch,
        entry: E,
        bytes: usize,
        now: Instant,
    ) -> bool {
        let fresh = || Gathering {
            epoch,
            entries: Vec::new(),
            bytes: 0,
            since: now,
            urgent: false,
        };
        let gathering = self.partitions.entry(partition).or_insert_with(fresh);
        if gathering.epoch != epoch {
            *gathering = fresh();
        }
        let first = gathering.entries.is_empty();
        if first {
            gathering.since = now;
        }
        gathering.entries.push(entry);
        gathering.bytes += bytes;
        first || self.is_full()
    }

    /// Has the batches of these partitions closed as soon as there is something in them, until they
    /// are assigned anew.
    pub(super) fn hurry(&mut self, partitions: impl Iterator<Item = i32>) {
        for partition in partitions {
            if let Some(gathering) = self.partitions.get_mut(&partition) {
                gathering.urgent = true;
            }
        }
    }

    /// Takes the batches that are to be written now; with `all`, every one.
    pub(super) fn take_due(&mut self, now: Instant, all: bool) -> Vec<Batch<E>> {
        let largest = if self.is_full() { self.largest() } else { None };
        let age = self.bounds.age;
        let mut due = Vec::new();
        for (&partition, gathering) in &mut self.partitions {
            let old = now.saturating_duration_since(gathering.since) >= age;
            let close = all || old || gathering.urgent || largest == Some(partition);
            if close && !gathering.entries.is_empty() {
                gathering.bytes = 0;
                due.push(Batch {
                    partition,
                    epoch: gathering.epoch,
                    entries: std::mem::take(&mut gathering.entries),
                });
            }
        }
        due
    }

    /// When the oldest batch is due by its age.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let waiting = self.partitions.values().filter(|g| !g.entries.is_empty());
        waiting.map(|g| g.since + self.bounds.age).min()
    }

    fn is_full(&self) -> bool {
        let (mut records, mut bytes) = (0, 0);
        for gathering in self.partitions.values() {
            records += gathering.entries.len();
            bytes += gathering.bytes;
        }
        records >= self.bounds.records || bytes >= self.bounds.bytes
    }

    fn largest(&self) -> Option<i32> {
        let bounds = self.bounds;
        // By its share of whichever bound it takes most of.
        let share = |g: &Gathering<E>| {
            let records = g.entries.len().saturating_mul(1000) / bounds.records.max(1);
            records.max(g.bytes.saturating_mul(1000) / bounds.bytes.max(1))
        };
        let largest = self.partitions.iter().max_by_key(|(_, g)| share(g));
        largest.map(|(partition, _)| *partition)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: Epoch = (0, 1);

    fn batches() -> Batches<i64> {
        Batches::new(Bounds {
            records: 4,
            bytes: 100,
            age: Duration::from_mins(1),
        })
    }

    fn taken(batches: Vec<Batch<i64>>) -> Vec<(i32, Vec<i64>)> {
        let mut taken: Vec<_> = batches
            .into_iter()
            .map(|b| (b.partition, b.entries))
            .collect();
        taken.sort();
        taken
    }

    #[test]
    fn the_largest_is_closed_when_all_are_full() {
        let now = Instant::now();
        let mut batches = batches();
        assert!(batches.push(0, EPOCH, 1, 1, now)); // the first: its age begins
        assert!(batches.push(1, EPOCH, 1, 1, now));
        assert!(!batches.push(1, EPOCH, 2, 1, now));
        assert_eq!(taken(batches.take_due(now, false)), []);
        assert!(batches.push(1, EPOCH, 3, 1, now));
        assert_eq!(taken(batches.take_due(now, false)), [(1, vec![1, 2, 3])]);
        // Few but large ones.
        assert!(batches.push(0, EPOCH, 2, 100, now));
        assert_eq!(taken(batches.take_due(now, false)), [(0, vec![1, 2])]);
    }

    #[test]
    fn age_and_urgency_and_the_end_close_too() {
        let now = Instant::now();
        let mut batches = batches();
        assert_eq!(batches.next_due(), None);
        batches.push(0, EPOCH, 1, 1, now);
        batches.push(1, EPOCH, 5, 1, now + Duration::from_secs(1));
        let due = now + Duration::from_mins(1);
        assert_eq!(batches.next_due(), Some(due));
        assert_eq!(taken(batches.take_due(due, false)), [(0, vec![1])]);

        batches.hurry([0, 1, 7].into_iter());
        assert_eq!(taken(batches.take_due(now, false)), [(1, vec![5])]);
        batches.push(1, EPOCH, 6, 1, now);
        assert_eq!(taken(batches.take_due(now, false)), [(1, vec![6])]);
        // Assigned anew, it is in no hurry.
        batches.push(1, (0, 2), 6, 1, now);
        assert_eq!(taken(batches.take_due(now, false)), []);
        assert_eq!(taken(batches.take_due(now, true)), [(1, vec![6])]);
    }

    #[test]
    fn a_new_epoch_drops_what_comes_again() {
        let now = Instant::now();
        let mut batches = batches();
        batches.push(0, EPOCH, 1, 1, now);
        batches.push(0, (1, 1), 1, 1, now);
        batches.push(0, (1, 1), 2, 1, now);
        let all = batches.take_due(now, true);
        assert_eq!((all[0].epoch, &all[0].entries), ((1, 1), &vec![1, 2]));
    }

    proptest! {
        /// Whatever is pushed and taken when, each partition's entries come out once and in order.
        #[test]
        fn nothing_is_lost_or_out_of_order(steps in proptest::collection::vec((0i32..3, 0u64..90, any::<bool>()), 0..200)) {
            let mut now = Instant::now();
            let mut batches = batches();
            let mut pushed: HashMap<i32, Vec<i64>> = HashMap::new();
            let mut out: HashMap<i32, Vec<i64>> = HashMap::new();
            let mut take = |batches: &mut Batches<i64>, now, all| {
                for batch in batches.take_due(now, all) {
                    out.entry(batch.partition).or_default().extend(batch.entries);
                }
            };
            for (number, (partition, seconds, look)) in (0..).zip(steps) {
                batches.push(partition, EPOCH, number, 1, now);
                pushed.entry(partition).or_default().push(number);
                now += Duration::from_secs(seconds);
                if look {
                    take(&mut batches, now, false);
                }
            }
            take(&mut batches, now, true);
            prop_assert_eq!(batches.next_due(), None);
            prop_assert_eq!(out, pushed);
        }
    }
}
