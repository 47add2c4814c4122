//! Audit records of what a worker does that spends money or touches the outside. They ride in the
//! outbox of the transition that records it.

use uuid::Uuid;

use super::owned::Owned;
use super::spending::Cost;
use crate::messages::{AuditDecision, AuditRecord, SCHEMA_VERSION, Topic};
use crate::runs::NewRecord;

/// One call of a model or a tool.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// `model_call`, `tool_call`, or `tool_cached` where a kept result was used instead.
    pub(super) action: &'a str,
    /// The model or the tool.
    pub(super) target: &'a str,
    /// What it cost.
    pub(super) cost: Cost,
    /// Milliseconds that it took.
    pub(super) duration_ms: u64,
    /// The rule that refused it.
    pub(super) refused_by: Option<&'a str>,
}

impl Owned {
    /// The record of a call that a settlement does not tell.
    pub(super) fn audit(&self, call: &Call<'_>) -> Option<NewRecord> {
        let record = self.audit_record(call);
        Some(NewRecord {
            topic: Topic::AuditLogs,
            key: self.command.spec.tenant.to_string(),
            id: record.id.clone(),
            kind: "agenthub.audit".to_owned(),
            value: serde_json::to_string(&record).ok()?,
        })
    }

    /// JSON text of the record of a call.
    pub(super) fn audit_text(&self, call: &Call<'_>) -> Option<String> {
        serde_json::to_string(&self.audit_record(call)).ok()
    }

    fn audit_record(&self, call: &Call<'_>) -> AuditRecord {
        let spec = &self.command.spec;
        AuditRecord {
            v: SCHEMA_VERSION,
            id: Uuid::now_v7().to_string(),
            ts: self.context.now_ms(),
            action: call.action.to_owned(),
            count: 1,
            tenant: Some(spec.tenant.clone()),
            key_id: Some(spec.key_id.clone()),
            role: None,
            method: None,
            route: None,
            status: None,
            session_id: Some(spec.session_id.clone()),
            run_id: Some(spec.run_id.clone()),
            target: Some(call.target.to_owned()),
            input_hash: None,
            input_tokens: call.cost.input_tokens,
            output_tokens: call.cost.output_tokens,
            cost_micro_usd: call.cost.micro_usd,
            call: None,
            settlement: None,
            delta_micro_usd: None,
            month: None,
            ip: None,
            trace_id: spec
                .traceparent
                .as_ref()
                .and_then(|t| Some(t.split('-').nth(1)?.to_owned())),
            duration_ms: call.duration_ms,
            decision: if call.refused_by.is_some() {
                AuditDecision::Refused
            } else {
                AuditDecision::Allowed
            },
            rule: call.refused_by.map(str::to_owned),
            resolved: None,
        }
    }
}
