//! How far a job still has to read. Pure.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::assignment::Place;

/// Between two looks at what other members of the group have committed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The ends that a job reads up to, and those that were reached.
#[derive(Debug)]
pub(super) struct CatchUp {
    /// The offset after the last record that is to be read, by partition.
    ends: HashMap<Place, i64>,
    reached: HashSet<Place>,
    looked: Option<Instant>,
    ended: bool,
}

impl CatchUp {
    pub(super) fn new(ends: HashMap<Place, i64>) -> Self {
        Self {
            ends,
            reached: HashSet::new(),
            looked: None,
            ended: false,
        }
    }

    /// A record was taken in.
    pub(super) fn received(&mut self, place: Place, offset: i64) {
        if self.ends.get(&place).is_some_and(|end| offset + 1 >= *end) {
            self.reached.insert(place);
        }
    }

    /// There was nothing more to read. Records may be missing before the end: topics are compacted,
    /// and retention goes on.
    pub(super) fn at_end(&mut self, place: Place) {
        self.reached.insert(place);
    }

    /// Offsets that the group has committed.
    pub(super) fn committed(&mut self, place: Place, next: i64) {
        if self.ends.get(&place).is_some_and(|end| next >= *end) {
            self.reached.insert(place);
        }
    }

    /// Partitions that are given back: what was taken in of them may not be done.
    pub(super) fn lost(&mut self, places: &[Place]) {
        for place in places {
            self.reached.remove(place);
        }
    }

    /// Partitions whose end was not reached.
    pub(super) fn missing(&self) -> Vec<Place> {
        let missing = self.ends.keys().filter(|p| !self.reached.contains(p));
        missing.copied().collect()
    }

    /// Whether it is time to look at what others have committed.
    pub(super) fn is_time_to_look(&mut self, now: Instant) -> bool {
        let due = self
            .looked
            .is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// Nothing more is to be taken in.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Topic;

    const A: Place = (Topic::DeadLetter, 0);
    const B: Place = (Topic::DeadLetter, 1);

    #[test]
    fn every_partition_is_read_to_its_end() {
        let mut job = CatchUp::new([(A, 5), (B, 2)].into());
        job.received(A, 3);
        job.received(B, 1);
        assert_eq!(job.missing(), [A]);
        job.received(A, 4);
        assert!(job.missing().is_empty());
        // What another member takes over, that one has to commit.
        job.lost(&[A]);
        job.committed(A, 4);
        assert_eq!(job.missing(), [A]);
        job.committed(A, 7);
        assert!(job.missing().is_empty());
    }

    #[test]
    fn the_end_may_be_reached_without_its_last_record() {
        let mut job = CatchUp::new([(A, 5)].into());
        job.at_end(B);
        assert_eq!(job.missing(), [A]);
        job.at_end(A);
        assert!(job.missing().is_empty() && !job.has_ended());
    }
}
