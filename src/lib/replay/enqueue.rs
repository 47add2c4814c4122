//! Puts commands onto their topic once more: in order, within a rate, with a bounded number under way.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use tokio::time::Instant;

use crate::kafka::{Delivery, ProduceError, Producer, Verified};

/// Records that wait for their acknowledgement at most.
const UNDER_WAY: usize = 2_000;
/// Bytes of them at most.
const BYTES_UNDER_WAY: usize = 32 * 1024 * 1024;

/// Spreads work evenly: never more than `rate` pieces in a second. Pure.
#[derive(Debug)]
pub struct Pace {
    rate: Option<u32>,
    begun: Option<Instant>,
    done: u32,
}

impl Pace {
    /// As fast as it goes when `rate` is absent.
    pub fn new(rate: Option<u32>) -> Self {
        Self {
            rate: rate.map(|rate| rate.max(1)),
            begun: None,
            done: 0,
        }
    }

    /// When the next piece of work may be done, given that it is `now`.
    pub fn next(&mut self, now: Instant) -> Instant {
        let Some(rate) = self.rate else { return now };
        if self.done == rate {
            // A new second. What was late is not made up for in a burst.
            self.begun = self.begun.map(|begun| begun + Duration::from_secs(1));
            self.begun = self.begun.max(Some(now));
            self.done = 0;
        }
        let begun = *self.begun.get_or_insert(now);
        let due = begun + Duration::from_secs(1) * self.done / rate;
        self.done += 1;
        due
    }
}

/// Commands on their way.
pub struct Enqueue {
    producer: Producer,
    pace: Pace,
    under_way: FuturesOrdered<BoxFuture<'static, (usize, Result<Delivery, ProduceError>)>>,
    bytes: usize,
    produced: u64,
}

impl std::fmt::Debug for Enqueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enqueue")
            .field("produced", &self.produced)
            .finish_non_exhaustive()
    }
}

impl Enqueue {
    /// At most `rate` commands a second.
    pub fn new(producer: Producer, rate: Option<u32>) -> Self {
        Self {
            producer,
            pace: Pace::new(rate),
            under_way: FuturesOrdered::new(),
            bytes: 0,
            produced: 0,
        }
    }

    /// Commands that Kafka has acknowledged.
    pub fn produced(&self) -> u64 {
        self.produced
    }

    /// Hands a command over, as soon as there is room and its time has come.
    ///
    /// # Errors
    /// When a command before it was not acknowledged: nothing further is sent.
    pub async fn send(&mut self, command: &Verified) -> Result<(), ProduceError> {
        let due = self.pace.next(Instant::now());
        if due > Instant::now() {
            tokio::time::sleep_until(due).await;
        }
        let size = command.record().size();
        while self.under_way.len() >= UNDER_WAY
            || (self.bytes + size > BYTES_UNDER_WAY && !self.under_way.is_empty())
        {
            self.await_one().await?;
        }
        let acknowledged = self.producer.forward(command);
        self.bytes += size;
        self.under_way
            .push_back(Box::pin(async move { (size, acknowledged.await) }));
        Ok(())
    }

    /// Waits for every acknowledgement.
    pub async fn finish(&mut self) -> Result<(), ProduceError> {
        while !self.under_way.is_empty() {
            self.await_one().await?;
        }
        Ok(())
    }

    async fn await_one(&mut self) -> Result<(), ProduceError> {
        if let Some((size, outcome)) = self.under_way.next().await {
            self.bytes -= size;
            outcome?;
            self.produced += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_in_every_second() {
        let mut pace = Pace::new(Some(4));
        let begun = Instant::now();
        let mut now = begun;
        let mut times = Vec::new();
        for _ in 0..9 {
            now = now.max(pace.next(now));
            times.push((now - begun).as_millis());
        }
        assert_eq!(times, [0, 250, 500, 750, 1000, 1250, 1500, 1750, 2000]);
        // After a minute's pause, at most the rest of a second comes at once.
        let again = now + Duration::from_mins(1);
        let due: Vec<Instant> = (0..12).map(|_| pace.next(again)).collect();
        let at_once = due.iter().filter(|due| **due <= again).count();
        assert!(at_once <= 4, "{at_once}");
        assert!(due[11] >= again + Duration::from_secs(1));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let now = Instant::now();
        let mut pace = Pace::new(None);
        assert!((0..10_000).all(|_| pace.next(now) == now));
        assert_eq!(Pace::new(Some(0)).rate, Some(1));
    }
}
