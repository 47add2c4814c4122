//! What a worker works with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Leases;
use crate::config::Settings;
use crate::kafka::OutboxProducer;
use crate::messages::Signer;
use crate::pricing::Prices;
use crate::privacy::KeyCache;
use crate::privacy::mask::Masker;
use crate::runs::Runs;
use crate::runtime::{Supervisor, clock};

/// What the parts of a worker share.
#[derive(Debug)]
pub struct WorkerContext {
    /// Name of this process in dead letters, logs and headers.
    pub worker: String,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// The ledger.
    pub runs: Runs,
    /// Empties outboxes.
    pub outbox: OutboxProducer,
    /// Verifies commands.
    pub signer: Signer,
    /// Opens payloads.
    pub keys: KeyCache,
    /// Masks what is told.
    pub masker: Arc<Masker>,
    /// Prices of models.
    pub prices: Arc<Prices>,
    /// The runs that this worker owns.
    pub leases: Arc<Leases>,
    /// Runs what need not be waited for.
    pub supervisor: Supervisor,
    /// Cancelled when the process is told to stop.
    pub stopping: CancellationToken,
}

impl WorkerContext {
    /// Milliseconds since the epoch.
    #[allow(clippy::unused_self)] // read like the rest of what a worker works with
    pub(super) fn now_ms(&self) -> u64 {
        clock::now_ms()
    }
}
