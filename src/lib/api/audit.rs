//! Audit records of requests that change state: they ride in the outbox of the run that they change.

use super::caller::Caller;
use super::problem::internal;
use crate::error::ApiError;
use crate::ids::{RunId, SessionId, TenantId};
use crate::messages::{AuditDecision, AuditRecord, SCHEMA_VERSION};

/// JSON text of the record of an allowed request. `id` names the record; `status` is what is answered.
pub(super) fn allowed(
    caller: &Caller,
    id: &str,
    status: u16,
    session: Option<&SessionId>,
    run: Option<&RunId>,
) -> Result<String, ApiError> {
    allowed_in(caller.tenant(), caller, id, status, (session, run))
}

/// As [`allowed`], of a request about a tenant that need not be the caller's own.
pub(super) fn allowed_in(
    tenant: &TenantId,
    caller: &Caller,
    id: &str,
    status: u16,
    (session, run): (Option<&SessionId>, Option<&RunId>),
) -> Result<String, ApiError> {
    let scope = &caller.scope;
    let facts = scope.facts();
    let record = AuditRecord {
        v: SCHEMA_VERSION,
        id: id.to_owned(),
        ts: facts.began_ms,
        action: "request".to_owned(),
        tenant: Some(tenant.clone()),
        key_id: Some(caller.key.key_id.clone()),
        role: None, // known to the script alone, which writes this record
        method: Some(facts.method.to_owned()),
        route: Some(facts.route.clone()),
        status: Some(status),
        session_id: session.cloned(),
        run_id: run.cloned(),
        target: None,
        input_hash: None,
        input_tokens: 0,
        output_tokens: 0,
        cost_micro_usd: 0,
        call: None,
        settlement: None,
        delta_micro_usd: None,
        month: None,
        ip: scope.network(),
        trace_id: Some(facts.trace.trace_id()),
        duration_ms: scope.elapsed_ms(),
        decision: AuditDecision::Allowed,
        rule: None,
    };
    serde_json::to_string(&record).map_err(|error| internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::scope;
    use crate::governance::PresentedKey;
    use crate::ids::KeyId;

    #[test]
    fn a_record_says_who_did_what_and_holds_no_secret() {
        let caller = Caller {
            key: PresentedKey {
                tenant: "acme".parse().unwrap(),
                key_id: KeyId::generate(),
                secret_hash: "5ec7e7".to_owned(),
            },
            scope: scope::sample(),
        };
        let run = RunId::generate();
        let text = allowed(&caller, "a/1", 202, None, Some(&run)).unwrap();
        let record: AuditRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(record.route.as_deref(), Some("/v1/runs"));
        assert_eq!(record.ip.as_deref(), Some("192.0.2.0/24"));
        assert_eq!(record.run_id, Some(run));
        assert!(!text.contains("5ec7e7"));
    }
}
