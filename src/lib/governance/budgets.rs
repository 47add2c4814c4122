//! Tenants' budgets: on `agent.state` before they are in Redis, so that a lost Redis forgets no limit.

use jiff::Timestamp;

use super::KeyError;
use super::state_topic::publish;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{BudgetRecord, State};
use crate::runs::{Runs, Spending};

/// Manages budgets.
#[derive(Debug, Clone)]
pub struct Budgets {
    runs: Runs,
    producer: Producer,
}

impl Budgets {
    /// Budgets on the given ledger and Kafka.
    pub fn new(runs: Runs, producer: Producer) -> Self {
        Self { runs, producer }
    }

    /// What the tenant has spent in the current month.
    pub async fn get(&self, tenant: &TenantId) -> Result<Spending, KeyError> {
        Ok(self.runs.spending(tenant, &month()).await?)
    }

    /// Sets what the tenant may spend in each calendar month; no limit when `None`.
    pub async fn set(
        &self,
        tenant: &TenantId,
        limit_micro_usd: Option<u64>,
    ) -> Result<Spending, KeyError> {
        let record = BudgetRecord {
            tenant: tenant.clone(),
            limit_micro_usd,
        };
        let state = State::Budget(record);
        publish(&self.producer, tenant, "agenthub.state.budget", state).await?;
        let month = month();
        self.runs
            .set_budget(tenant, limit_micro_usd, &month)
            .await?;
        Ok(self.runs.spending(tenant, &month).await?)
    }
}

fn month() -> String {
    Timestamp::now().strftime("%Y%m").to_string()
}
