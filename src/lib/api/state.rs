//! What the routes work with.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::auth_failures::AuthFailures;
use super::exit::Exit;
use crate::config::Settings;
use crate::error::ApiError;
use crate::governance::{AuditTrail, Budgets, Governance, Keys, Tenants};
use crate::ids::TenantId;
use crate::kafka::{OutboxProducer, ProduceError};
use crate::pricing::Prices;
use crate::privacy::KeyCache;
use crate::privacy::mask::Masker;
use crate::runs::{OutboxEntry, Runs};
use crate::runtime::{Exposition, Health, Supervisor};
use crate::store::Redis;
use crate::stream::Streams;

/// Requests that one process handles at once; streams and waiting requests are not counted.
const MAX_REQUESTS: usize = 1024;
/// Requests that wait for their run at once; a further one is answered with 202 without waiting.
const MAX_WAITS: usize = 4096;

/// What the API is made of.
#[derive(Clone)]
pub struct ApiParts {
    /// The configuration.
    pub settings: Settings,
    /// What is not a run: circuit breakers, kept results.
    pub redis: Redis,
    /// The ledger of runs.
    pub runs: Runs,
    /// Keys, roles and limits.
    pub governance: Governance,
    /// The life of API keys.
    pub keys: Keys,
    /// Records requests.
    pub trail: AuditTrail,
    /// What is kept of tenants.
    pub tenants: Tenants,
    /// Tenants' budgets.
    pub budgets: Budgets,
    /// Prices of models.
    pub prices: Arc<Prices>,
    /// Data keys of sessions.
    pub data_keys: KeyCache,
    /// Masks what leaves.
    pub masker: Arc<Masker>,
    /// Sends what transitions put into outboxes.
    pub outbox: OutboxProducer,
    /// Follows sessions.
    pub streams: Streams,
    /// How the dependencies are.
    pub health: Health,
    /// Renders the metrics.
    pub metrics: Exposition,
    /// Runs the connections' tasks.
    pub supervisor: Supervisor,
    /// Cancelled when no new work is to be taken in: streams then ask to reconnect.
    pub stopping: CancellationToken,
}

/// The state of the API, shared by all requests. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Shared>);

/// What [`ApiState`] points to.
pub struct Shared {
    pub(super) parts: ApiParts,
    pub(super) exit: Exit,
    pub(super) requests: Arc<Semaphore>,
    pub(super) waits: Arc<Semaphore>,
    pub(super) auth_failures: AuthFailures,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}

impl Deref for ApiState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl ApiState {
    /// Puts the parts together.
    pub fn new(parts: ApiParts) -> Self {
        Self(Arc::new(Shared {
            exit: Exit::new(parts.masker.clone()),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            waits: Arc::new(Semaphore::new(MAX_WAITS)),
            auth_failures: AuthFailures::new(parts.settings.unauthenticated_limit),
            parts,
        }))
    }

    pub(super) fn runs(&self) -> &Runs {
        &self.parts.runs
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.parts.settings
    }

    /// Refuses what changes state while Kafka is known to be down, before anything is changed.
    pub(super) fn require_kafka(&self) -> Result<(), ApiError> {
        if self.parts.health.is_well("kafka") {
            Ok(())
        } else {
            Err(ApiError::unavailable("kafka"))
        }
    }

    /// Produces what a transition put into its run's outbox. Nothing is lost when this fails: the
    /// sweeper produces it again.
    pub(super) async fn deliver(
        &self,
        tenant: &TenantId,
        entries: &[OutboxEntry],
    ) -> Result<(), ProduceError> {
        self.parts.outbox.deliver(tenant, entries).await
    }
}
