//! Tenants' budgets: on `agent.state` before they are in Redis, so that a lost Redis forgets no limit.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::KeyError;
use crate::ids::TenantId;
use crate::kafka::Producer;
use crate::messages::{BudgetRecord, Outgoing, SCHEMA_VERSION, State, StateRecord, Topic};
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
        let value = StateRecord {
            v: SCHEMA_VERSION,
            state: State::Budget(record),
        };
        let key = value.state.record_key();
        self.producer
            .publish(&Outgoing {
                topic: Topic::AgentState,
                ce_id: format!("{key}/{}", Uuid::now_v7().simple()),
                key,
                ce_type: "agenthub.state.budget".to_owned(),
                tenant: tenant.clone(),
                run_id: None,
                not_after_ms: None,
                traceparent: None,
                value: Bytes::from(serde_json::to_vec(&value)?),
            })
            .await?;
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
