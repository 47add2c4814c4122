//! Durations and what is said of them.

use std::time::Duration;

/// Durations of one kind of act.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which `percent` of the samples are, in milliseconds; 0 without samples.
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
    }

    pub fn p50(&self) -> f64 {
        self.percentile_ms(50)
    }

    pub fn p95(&self) -> f64 {
        self.percentile_ms(95)
    }

    pub fn p99(&self) -> f64 {
        self.percentile_ms(99)
    }

    /// Median and 95th percentile for a table.
    pub fn p50_p95(&self) -> String {
        format!("p50 {:.2} / p95 {:.2} ms", self.p50(), self.p95())
    }
}
