//! Supervised tasks: the only place that spawns.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A task that ran this long without failing is taken to be well, and its next delay is short again.
const WELL_AFTER: Duration = Duration::from_mins(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// Runs the tasks of a process.
#[derive(Debug, Clone)]
pub struct Supervisor {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Supervisor {
    /// Tasks are not started again once `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            tracker: TaskTracker::new(),
            stop,
        }
    }

    /// Runs what `task` makes until it returns. When it panics it is made and run again, after a
    /// delay that grows to 30 seconds.
    pub fn run<F, T>(&self, name: &'static str, task: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = ()> + Send,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let mut delay = Duration::from_millis(100);
            loop {
                let started = tokio::time::Instant::now();
                if AssertUnwindSafe(task()).catch_unwind().await.is_ok() {
                    return;
                }
                metrics::counter!("agenthub_task_restarts_total", "task" => name).increment(1);
                tracing::error!(
                    task = name,
                    delay_ms = delay.as_millis(),
                    "a task panicked and is started again"
                );
                if started.elapsed() > WELL_AFTER {
                    delay = Duration::from_millis(100);
                }
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.cancelled() => return,
                }
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        });
    }

    /// Runs one piece of work that is not started again: what it is for is kept elsewhere, so that
    /// losing it loses nothing. A panic in it is logged and counted.
    pub fn run_once(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                metrics::counter!("agenthub_task_panics_total", "task" => name).increment(1);
                tracing::error!(task = name, "a task panicked");
            }
        });
    }

    /// Waits until every task has ended, at most for `deadline`; whether all did.
    pub async fn join(&self, deadline: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_started_again() {
        let supervisor = Supervisor::new(CancellationToken::new());
        let starts = Arc::new(AtomicU32::new(0));
        let counter = starts.clone();
        supervisor.run("test", move || {
            let start = counter.fetch_add(1, Ordering::SeqCst);
            async move { assert!(start == 2, "the first two starts fail") }
        });
        assert!(supervisor.join(Duration::from_secs(10)).await);
        assert_eq!(starts.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn join_does_not_wait_beyond_its_deadline() {
        let supervisor = Supervisor::new(CancellationToken::new());
        supervisor.run_once("test", std::future::pending());
        assert!(!supervisor.join(Duration::from_millis(20)).await);
    }
}
