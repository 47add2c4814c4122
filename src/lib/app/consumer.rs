//! What every process has that consumes a topic: probes, a consumer that is replaced when it fails,
//! and an end in order.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::sync::oneshot;

use super::base::Base;
use crate::kafka::{Consumer, ConsumerError};
use crate::runtime::{ProbeServer, bind};

const REPLACE_AFTER: Duration = Duration::from_secs(1);

/// Serves `/healthz`, `/readyz` and `/metrics` until the end.
pub(super) async fn serve_probes(base: &Base, addr: SocketAddr) -> anyhow::Result<()> {
    let listener = bind(addr).await.map_err(|e| anyhow!(e))?;
    tracing::info!(addr = %listener.local_addr()?, "probes");
    let probe = ProbeServer::new(base.health.clone(), base.telemetry.metrics());
    base.supervisor
        .run_once("probes", probe.serve(listener, base.shutdown.end()));
    Ok(())
}

/// A consumer that runs until the process is told to stop.
#[derive(Debug)]
pub(super) struct RunningConsumer {
    ended: oneshot::Receiver<()>,
}

/// Starts a consumer. One that failed for good is replaced by a new one: its records were not
/// committed and come again.
pub(super) fn start(
    base: &Base,
    make: impl Fn() -> Result<Consumer, ConsumerError> + Send + 'static,
) -> RunningConsumer {
    let (to_ended, ended) = oneshot::channel();
    let intake = base.shutdown.intake();
    base.supervisor.run_once("consumer", async move {
        while !intake.is_cancelled() {
            let outcome = match make() {
                Ok(consumer) => consumer.run(intake.clone()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = outcome {
                tracing::error!(%error, "the consumer failed and is replaced");
                tokio::select! {
                    () = intake.cancelled() => {}
                    () = tokio::time::sleep(REPLACE_AFTER) => {}
                }
            }
        }
        let _ = to_ended.send(());
    });
    RunningConsumer { ended }
}

impl RunningConsumer {
    /// Runs the process to its end: until it is told to stop, the consumer panics, or `failed` says
    /// why it cannot go on.
    pub(super) async fn run(
        self,
        base: Base,
        failed: impl Future<Output = anyhow::Error>,
    ) -> anyhow::Result<()> {
        let mut has_ended = self.ended;
        let failed = async {
            tokio::select! {
                _ = &mut has_ended => anyhow!("the consumer ended"),
                error = failed => error,
            }
        };
        let outcome = base.until_told(failed).await;
        if outcome.is_ok() {
            // It drains to its own deadline, commits and leaves the group.
            has_ended.await.context("the consumer")?;
        }
        base.finish().await;
        outcome
    }
}
