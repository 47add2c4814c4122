//! Whether a process is ready: its dependencies are looked at in the background, and probes read what
//! was seen last, so that a probe costs nothing and has no side effects.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_millis(500);

/// Looks at one dependency. The error is for operators; it is logged and never served.
pub type Check =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

#[derive(Debug, Default)]
struct State {
    stopping: bool,
    closed: bool,
    dependencies: BTreeMap<&'static str, bool>,
}

/// The health of a process.
#[derive(Debug, Clone, Default)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

impl Health {
    /// Not ready until each of `dependencies` was seen to be well.
    pub fn new(dependencies: &[&'static str]) -> Self {
        let dependencies = dependencies.iter().map(|name| (*name, false)).collect();
        Self {
            state: Arc::new(Mutex::new(State {
                dependencies,
                ..State::default()
            })),
        }
    }

    /// Says how a dependency is.
    pub fn set(&self, name: &'static str, well: bool) {
        let before = self.lock().dependencies.insert(name, well);
        if before != Some(well) {
            tracing::info!(dependency = name, well, "dependency");
        }
        metrics::gauge!("agenthub_dependency_up", "dependency" => name)
            .set(f64::from(u8::from(well)));
    }

    /// Says whether nothing may be taken in for now, although the dependencies answer.
    pub fn close(&self, closed: bool) {
        let before = std::mem::replace(&mut self.lock().closed, closed);
        if before != closed {
            tracing::warn!(closed, "intake");
        }
    }

    /// Whether nothing may be taken in for now.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Says that the process is about to end: it is not ready from now on.
    pub fn stop(&self) {
        self.lock().stopping = true;
    }

    /// Whether the process is ready, and how each dependency is.
    pub fn report(&self) -> (bool, BTreeMap<&'static str, bool>) {
        let state = self.lock();
        let ready =
            !state.stopping && !state.closed && state.dependencies.values().all(|well| *well);
        (ready, state.dependencies.clone())
    }

    /// Whether a dependency was well when it was last looked at.
    pub fn is_well(&self, name: &str) -> bool {
        self.lock().dependencies.get(name).copied().unwrap_or(false)
    }

    /// Looks at the dependency `name` again and again, until `stop`.
    pub async fn watch(self, name: &'static str, check: Check, stop: CancellationToken) {
        loop {
            let outcome = check().await;
            if let Err(error) = &outcome
                && self.is_well(name)
            {
                tracing::warn!(dependency = name, error, "dependency is down");
            }
            self.set(name, outcome.is_ok());
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_every_dependency_and_not_stopping() {
        let health = Health::new(&["kafka", "redis"]);
        assert!(!health.report().0);
        health.set("kafka", true);
        health.set("redis", true);
        assert!(health.report().0);
        health.close(true);
        assert!(!health.report().0 && health.is_closed());
        health.close(false);
        assert!(health.report().0);
        health.stop();
        assert!(!health.report().0);
    }
}
