//! Where each sequence is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Keys that are remembered.
const MAX_KEYS: usize = 10_000;

/// A counter per key; the oldest keys are forgotten first.
#[derive(Debug, Default)]
pub(super) struct Positions(Mutex<Counters>);

#[derive(Debug, Default)]
struct Counters {
    by_key: HashMap<u64, usize>,
    in_order: VecDeque<u64>,
}

impl Positions {
    /// The position of `key`, which moves on by one.
    pub(super) fn take(&self, key: u64) -> usize {
        // Counters are whole after every statement, so that a panic elsewhere left them usable.
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(position) = counters.by_key.get_mut(&key) {
            *position += 1;
            return *position - 1;
        }
        if counters.in_order.len() >= MAX_KEYS
            && let Some(oldest) = counters.in_order.pop_front()
        {
            counters.by_key.remove(&oldest);
        }
        counters.in_order.push_back(key);
        counters.by_key.insert(key, 1);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_count_apart_and_the_oldest_is_forgotten() {
        let positions = Positions::default();
        assert_eq!([1, 1, 2, 1].map(|k| positions.take(k)), [0, 1, 0, 2]);
        for key in 3..=10_001 {
            positions.take(key);
        }
        assert_eq!(positions.take(2), 1);
        assert_eq!(positions.take(1), 0);
        assert_eq!(positions.0.lock().unwrap().by_key.len(), MAX_KEYS);
    }
}
