//! What health checks and tests may see of a running consumer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use metrics::Gauge;
use serde::Deserialize;

const LAG: &str = "agenthub_consumer_lag";
const DELAY: &str = "agenthub_consumer_lag_seconds";

/// The state of one consumer, written by its loop.
#[derive(Debug)]
pub struct ConsumerState {
    group: String,
    started: Instant,
    assigned: AtomicUsize,
    in_flight: AtomicUsize,
    frontier_age_ms: AtomicU64,
    last_poll_ms: AtomicU64,
    generation: AtomicU64,
    paused: AtomicUsize,
    lag: AtomicI64,
}

/// The state at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerSnapshot {
    /// Partitions that are assigned.
    pub assigned: usize,
    /// Records that are being handled.
    pub in_flight: usize,
    /// Age of the oldest record whose offset cannot move yet.
    pub frontier_age: Duration,
    /// Time since the loop last went round; more than a few seconds means that it hangs.
    pub since_poll: Duration,
    /// Number of the assignment; 0 before the first.
    pub generation: u64,
    /// Whether intake is paused, because all tasks are busy or the consumer stops.
    pub paused: bool,
    /// Records behind the committed offsets, as last reported by librdkafka (every 5 s); `None`
    /// before the first report.
    pub lag: Option<u64>,
}

impl ConsumerState {
    pub(super) fn new(group: String) -> Self {
        Self {
            group,
            started: Instant::now(),
            assigned: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            frontier_age_ms: AtomicU64::new(0),
            last_poll_ms: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            paused: AtomicUsize::new(0),
            lag: AtomicI64::new(-1),
        }
    }

    /// The name of the group on the broker.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The state now.
    pub fn snapshot(&self) -> ConsumerSnapshot {
        let polled = Duration::from_millis(self.last_poll_ms.load(Ordering::Relaxed));
        ConsumerSnapshot {
            assigned: self.assigned.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            frontier_age: Duration::from_millis(self.frontier_age_ms.load(Ordering::Relaxed)),
            since_poll: self.started.elapsed().saturating_sub(polled),
            generation: self.generation.load(Ordering::Relaxed),
            paused: self.paused.load(Ordering::Relaxed) != 0,
            lag: u64::try_from(self.lag.load(Ordering::Relaxed)).ok(),
        }
    }

    pub(super) fn polled(&self, now: Instant) {
        let since = now.saturating_duration_since(self.started);
        self.last_poll_ms.store(millis(since), Ordering::Relaxed);
    }

    pub(super) fn set_in_flight(&self, count: usize) {
        self.in_flight.store(count, Ordering::Relaxed);
    }

    pub(super) fn set_assigned(&self, count: usize, generation: u64) {
        self.assigned.store(count, Ordering::Relaxed);
        self.generation.store(generation, Ordering::Relaxed);
    }

    pub(super) fn set_frontier_age(&self, age: Duration) {
        self.frontier_age_ms.store(millis(age), Ordering::Relaxed);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(usize::from(paused), Ordering::Relaxed);
    }

    /// Shows for how long the oldest undone record of a partition has waited.
    pub(super) fn show_delay(&self, topic: &str, partition: i32, seconds: f64) {
        self.gauge(DELAY, topic, &partition.to_string())
            .set(seconds);
    }

    /// A partition is another member's from here on, and so is its lag.
    pub(super) fn gave_back(&self, topic: &str, partition: i32) {
        let partition = partition.to_string();
        self.gauge(LAG, topic, &partition).set(0.0);
        self.gauge(DELAY, topic, &partition).set(0.0);
    }

    fn gauge(&self, name: &'static str, topic: &str, partition: &str) -> Gauge {
        metrics::gauge!(name, "group" => self.group.clone(), "topic" => topic.to_owned(),
            "partition" => partition.to_owned())
    }

    #[allow(clippy::cast_precision_loss)] // a lag beyond 2^52 records does not occur
    pub(super) fn record_lag(&self, lag: &Lag) {
        let mut total = None;
        for (topic, partitions) in &lag.topics {
            let known = partitions.partitions.iter();
            let known = known.filter(|(partition, values)| *partition != "-1" && !values.unknown);
            let mut leaderless = 0_u32;
            for (partition, values) in known {
                leaderless += u32::from(values.leader < 0);
                if values.consumer_lag >= 0 {
                    *total.get_or_insert(0) += values.consumer_lag;
                    self.gauge(LAG, topic, partition)
                        .set(values.consumer_lag as f64);
                }
            }
            metrics::gauge!("agenthub_kafka_leaderless_partitions", "topic" => topic.clone())
                .set(f64::from(leaderless));
        }
        if let Some(total) = total {
            self.lag.store(total, Ordering::Relaxed);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The part of librdkafka's statistics that is read.
#[derive(Debug, Deserialize)]
pub(super) struct Lag {
    topics: HashMap<String, Partitions>,
}

#[derive(Debug, Deserialize)]
struct Partitions {
    partitions: HashMap<String, PartitionLag>,
}

#[derive(Debug, Deserialize)]
struct PartitionLag {
    consumer_lag: i64,
    /// The broker that leads it; -1 when none does.
    #[serde(default)]
    leader: i64,
    /// Whether the cluster does not know the partition.
    #[serde(default)]
    unknown: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_summed_over_what_is_known() {
        let state = ConsumerState::new("g".to_owned());
        assert_eq!(state.snapshot().lag, None);
        let statistics = r#"{"name":"x","topics":{"t":{"partitions":{
            "0":{"consumer_lag":3,"txmsgs":1},"1":{"consumer_lag":4},
            "2":{"consumer_lag":-1},"-1":{"consumer_lag":9}}}}}"#;
        state.record_lag(&serde_json::from_str(statistics).unwrap());
        assert_eq!(state.snapshot().lag, Some(7));
    }
}
