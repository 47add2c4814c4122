//! Whether the brokers answer, for readiness probes: cached, and never on a runtime thread.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::producer::Producer;

/// How long an answer is taken for true.
const FRESH: Duration = Duration::from_secs(1);
/// How long the brokers may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The health of the brokers as one process sees it.
#[derive(Debug)]
pub struct BrokerHealth {
    producer: Producer,
    last: Mutex<Option<Answer>>,
    /// Held by the one caller that asks, so that many probes make one request.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct Answer {
    at: Instant,
    result: Result<(), String>,
}

impl BrokerHealth {
    /// Watches the brokers through the connection of `producer`.
    pub fn new(producer: Producer) -> Self {
        Self {
            producer,
            last: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    /// Whether the brokers answered within the last second, or answer now. Returns within about a
    /// second; the error says what was wrong.
    pub async fn check(&self) -> Result<(), String> {
        if let Some(result) = self.fresh() {
            return result;
        }
        let _asking = self.asking.lock().await;
        if let Some(result) = self.fresh() {
            return result;
        }
        let producer = self.producer.clone();
        let probe = tokio::task::spawn_blocking(move || producer.probe(PROBE_TIMEOUT));
        let result = match probe.await {
            Ok(result) => result,
            Err(_) => Err("the probe did not end".to_owned()),
        };
        metrics::gauge!("agenthub_kafka_up").set(if result.is_ok() { 1.0 } else { 0.0 });
        *self.last() = Some(Answer {
            at: Instant::now(),
            result: result.clone(),
        });
        result
    }

    /// The last answer while it is fresh, and no client has lost all brokers since.
    fn fresh(&self) -> Option<Result<(), String>> {
        let answer = self.last().clone()?;
        let lost = answer.result.is_ok() && self.producer.connection().take_all_down();
        (!lost && answer.at.elapsed() < FRESH).then_some(answer.result)
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Option<Answer>> {
        self.last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
