//! The partitions that a consumer holds, and how far each is done. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::record::Done;
use crate::kafka::frontier::Frontier;
use crate::messages::Topic;

/// A partition, by its topic and number.
pub(super) type Place = (Topic, i32);

/// The partitions that are assigned.
#[derive(Debug, Default)]
pub(super) struct Assignment {
    generation: u64,
    partitions: HashMap<Place, Partition>,
}

#[derive(Debug)]
struct Partition {
    /// Under which it was assigned; what other generations report of it is dropped.
    generation: u64,
    frontier: Frontier,
    /// The next offset to read after what is done, and whether librdkafka was told.
    next: Option<i64>,
    told: bool,
}

impl Assignment {
    /// Adds partitions under a new generation. One that is held already begins anew.
    pub(super) fn assign(&mut self, places: &[Place]) {
        self.generation += 1;
        for &place in places {
            self.partitions.insert(
                place,
                Partition {
                    generation: self.generation,
                    frontier: Frontier::new(),
                    next: None,
                    told: true,
                },
            );
        }
    }

    /// Removes partitions; what is reported of them from here on is dropped.
    pub(super) fn revoke(&mut self, places: &[Place]) {
        for place in places {
            self.partitions.remove(place);
        }
    }

    /// The number of the last assignment.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn len(&self) -> usize {
        self.partitions.len()
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.partitions.keys().copied().collect()
    }

    /// Begins to track a record and returns the generation under which it is handled; `None` when
    /// it is to be dropped, because its partition is not held or it was received before.
    pub(super) fn track(
        &mut self,
        place: Place,
        offset: i64,
        now: Instant,
        made_ms: i64,
    ) -> Option<u64> {
        let partition = self.partitions.get_mut(&place)?;
        let fresh = partition.frontier.track(offset, now, made_ms);
        fresh.then_some(partition.generation)
    }

    /// Marks a record as done, when its generation still holds its partition.
    pub(super) fn done(&mut self, done: Done) {
        let partition = self.partitions.get_mut(&(done.topic, done.partition));
        let Some(partition) = partition.filter(|p| p.generation == done.generation) else {
            return;
        };
        if let Some(next) = partition.frontier.done(done.offset) {
            partition.next = Some(next);
            partition.told = false;
        }
    }

    /// Records of these partitions that are not done.
    pub(super) fn undone(&self, places: &[Place]) -> usize {
        let held = places.iter().filter_map(|p| self.partitions.get(p));
        held.map(|p| p.frontier.in_flight()).sum()
    }

    /// Records of all partitions that are not done.
    pub(super) fn in_flight(&self) -> usize {
        self.partitions
            .values()
            .map(|p| p.frontier.in_flight())
            .sum()
    }

    /// Records that are remembered over all partitions, done behind an undone one or undone.
    pub(super) fn window(&self) -> usize {
        self.partitions.values().map(|p| p.frontier.window()).sum()
    }

    /// The age of the oldest record that holds a partition's offset back.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let ages = self.partitions.values().map(|p| p.frontier.age(now));
        ages.max().unwrap_or_default()
    }

    /// For each partition, when the oldest record that holds its offset back was made, in milliseconds
    /// since the epoch; `None` where nothing does.
    pub(super) fn oldest_made_ms(&self) -> impl Iterator<Item = (Place, Option<i64>)> + '_ {
        let partitions = self.partitions.iter();
        partitions.map(|(place, p)| (*place, p.frontier.oldest_made_ms()))
    }

    /// The offsets that moved since the last call.
    pub(super) fn take_moved(&mut self) -> Vec<(Place, i64)> {
        let mut moved = Vec::new();
        for (place, partition) in &mut self.partitions {
            if let (Some(next), false) = (partition.next, partition.told) {
                partition.told = true;
                moved.push((*place, next));
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Place = (Topic::AuditLogs, 0);
    const B: Place = (Topic::AuditLogs, 1);

    fn done(place: Place, offset: i64, generation: u64) -> Done {
        Done {
            topic: place.0,
            partition: place.1,
            offset,
            generation,
        }
    }

    #[test]
    fn a_report_of_an_earlier_generation_moves_nothing() {
        let mut assignment = Assignment::default();
        let now = Instant::now();
        assignment.assign(&[A]);
        assert_eq!(assignment.track(A, 5, now, 0), Some(1));
        assignment.revoke(&[A]);
        assignment.assign(&[A]);
        assert_eq!(assignment.track(A, 5, now, 0), Some(2));
        assignment.done(done(A, 5, 1));
        assert_eq!(assignment.take_moved(), []);
        assignment.done(done(A, 5, 2));
        assert_eq!(assignment.take_moved(), [(A, 6)]);
        assert_eq!(assignment.take_moved(), []);
    }

    #[test]
    fn a_new_assignment_leaves_the_partitions_that_stay_alone() {
        let mut assignment = Assignment::default();
        let now = Instant::now();
        assignment.assign(&[A]);
        assignment.track(A, 1, now, 0);
        assignment.assign(&[B]);
        assert_eq!(assignment.track(B, 1, now, 0), Some(2));
        assignment.done(done(A, 1, 1));
        assert_eq!(assignment.take_moved(), [(A, 2)]);
        assert_eq!(
            (assignment.undone(&[A]), assignment.undone(&[A, B])),
            (0, 1)
        );
    }

    #[test]
    fn records_of_partitions_that_are_not_held_are_dropped() {
        let mut assignment = Assignment::default();
        assert_eq!(assignment.track(A, 1, Instant::now(), 0), None);
    }
}
