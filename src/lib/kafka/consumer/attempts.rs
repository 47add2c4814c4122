//! The attempts at one record: handle, retry, give up to the dead letters.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::record::{Ack, AckSlot, Incoming};
use crate::messages::Topic;

/// What a consumer does with its records. Called for many records at once.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Handles a record and calls [`Ack::done`] when its offset may be committed, at the latest
    /// before it returns. A call that returns without, or panics, is made again a few times; then
    /// the record is poisoned.
    async fn handle(&self, record: Arc<Incoming>, ack: Ack);

    /// Puts aside a record that cannot be handled. Returns once that is safe (the dead letter was
    /// acknowledged): the offset moves after it. A panic here is a failure, and is tried again
    /// until the consumer stops.
    async fn poisoned(&self, record: Arc<Incoming>, error: String);
}

/// What a consumer does with records that are many, small, and to be gathered in the order of their
/// partitions. It has no tasks and no attempts: what it takes is its own until it acknowledges it.
pub trait Sink: Send + Sync + 'static {
    /// Takes a record in. Called for each partition in the order of its offsets, on the consumer's
    /// loop: it must not block, and must not panic. The acknowledgement may come at any time later;
    /// until then the record counts as in flight.
    fn take(&self, record: Incoming, ack: Ack);

    /// Says that these partitions are to be given back soon: what was taken of them and is
    /// acknowledged within the revocation's deadline need not be read again by their next owner.
    fn revoking(&self, places: &[(Topic, i32)]);
}

/// Who takes the records.
#[derive(Clone)]
pub(super) enum Recipient {
    /// A task for each record.
    Tasks(Arc<dyn Handler>),
    /// All in order.
    Sink(Arc<dyn Sink>),
}

/// How often a record is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    pub max: u32,
    pub backoff: Duration,
}

/// Longest pause between two tries to put a record aside.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Handles one record to its end. When `shutdown` is cancelled between two tries, the record stays
/// unacknowledged, and so uncommitted.
pub(super) async fn run(
    handler: Arc<dyn Handler>,
    record: Arc<Incoming>,
    slot: Arc<AckSlot>,
    attempts: Attempts,
    shutdown: CancellationToken,
) {
    let mut backoff = attempts.backoff;
    let mut error = String::new();
    for attempt in 1..=attempts.max {
        let call = handler.handle(Arc::clone(&record), slot.ack());
        let outcome = AssertUnwindSafe(call).catch_unwind().await;
        error = match outcome {
            Ok(()) => "the handler returned without acknowledging the record".to_owned(),
            Err(panic) => {
                metrics::counter!("agenthub_consumer_panics_total",
                    "topic" => record.topic.as_str())
                .increment(1);
                format!("the handler panicked: {}", panic_text(&*panic))
            }
        };
        if slot.is_given() {
            return;
        }
        let place = (&*record.full_topic, record.partition, record.offset);
        tracing::warn!(?place, attempt, "record not handled");
        if attempt < attempts.max && !pause(&mut backoff, &shutdown).await {
            return;
        }
    }
    metrics::counter!("agenthub_consumer_poisoned_total", "topic" => record.topic.as_str())
        .increment(1);
    loop {
        let put_aside = handler.poisoned(Arc::clone(&record), error.clone());
        if AssertUnwindSafe(put_aside).catch_unwind().await.is_ok() {
            slot.give();
            return;
        }
        let place = (&*record.full_topic, record.partition, record.offset);
        tracing::error!(?place, "poisoned record could not be put aside");
        if !pause(&mut backoff, &shutdown).await {
            return;
        }
    }
}

/// Sleeps and doubles the pause. Returns false when the consumer stops meanwhile.
async fn pause(backoff: &mut Duration, shutdown: &CancellationToken) -> bool {
    let time = *backoff;
    *backoff = (time * 2).min(MAX_BACKOFF);
    let slept = tokio::time::sleep(time);
    shutdown.run_until_cancelled(slept).await.is_some()
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::messages::Headers;

    /// Panics, returns or acknowledges, by the number of the call.
    struct Scripted {
        handle: fn(u32) -> bool,
        poison: fn(u32),
        calls: AtomicU32,
        poisoned: AtomicU32,
    }

    #[async_trait]
    impl Handler for Scripted {
        async fn handle(&self, _: Arc<Incoming>, ack: Ack) {
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            if (self.handle)(call) {
                ack.done();
            }
        }

        async fn poisoned(&self, _: Arc<Incoming>, _: String) {
            (self.poison)(self.poisoned.fetch_add(1, Ordering::SeqCst) + 1);
        }
    }

    async fn outcome(handle: fn(u32) -> bool, poison: fn(u32), stopped: bool) -> (u32, u32, bool) {
        let record = Arc::new(Incoming {
            topic: Topic::AuditLogs,
            full_topic: "audit.logs".into(),
            partition: 0,
            offset: 7,
            timestamp_ms: 0,
            key: None,
            value: None,
            headers: Headers::new(),
            generation: 1,
        });
        let handler = Arc::new(Scripted {
            handle,
            poison,
            calls: AtomicU32::new(0),
            poisoned: AtomicU32::new(0),
        });
        let (to, mut done) = mpsc::unbounded_channel();
        let slot = AckSlot::new(&record, to);
        let attempts = Attempts {
            max: 3,
            backoff: Duration::from_millis(1),
        };
        let shutdown = CancellationToken::new();
        if stopped {
            shutdown.cancel();
        }
        run(handler.clone(), record, slot, attempts, shutdown).await;
        (
            handler.calls.load(Ordering::SeqCst),
            handler.poisoned.load(Ordering::SeqCst),
            done.try_recv().is_ok_and(|d| d.offset == 7),
        )
    }

    #[tokio::test]
    async fn acknowledged_at_the_second_attempt() {
        assert_eq!(outcome(|n| n == 2, |_| (), false).await, (2, 0, true));
    }

    #[tokio::test]
    async fn poisoned_after_the_last_attempt() {
        assert_eq!(outcome(|_| false, |_| (), false).await, (3, 1, true));
        let panics = |_| panic!("by intent");
        assert_eq!(outcome(panics, |_| (), false).await, (3, 1, true));
    }

    #[tokio::test]
    async fn putting_aside_is_tried_until_it_works() {
        let poison = |n| assert!(n > 2, "by intent");
        assert_eq!(outcome(|_| false, poison, false).await, (3, 3, true));
    }

    #[tokio::test]
    async fn a_stop_leaves_the_record_unacknowledged() {
        assert_eq!(outcome(|_| false, |_| (), true).await, (1, 0, false));
    }
}
