//! Audit records of requests. Those that start or cancel a run ride in the run's outbox; the others take
//! their place in the trail when they are answered.

use super::caller::Caller;
use super::problem::internal;
use super::scope::Scope;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::Governance;
use crate::ids::{RunId, SessionId};
use crate::messages::{AuditDecision, AuditRecord, ResolvedStep, SCHEMA_VERSION};

/// The status of a request whose client went away before it was answered.
const CLIENT_CLOSED: u16 = 499;

/// Whether requests for a route are recorded: what touches a tenant's things, and what finds no route.
/// Probes and the reference pages are not.
fn is_recorded(route: &str) -> bool {
    route.starts_with("/v1/") || route == "unmatched"
}

/// Reserves the place of a request's record, before anything else happens.
pub(super) fn reserve(state: &ApiState, scope: &Scope) -> Result<(), ApiError> {
    if !is_recorded(&scope.facts().route) {
        return Ok(());
    }
    if let Ok(place) = state.parts.trail.reserve() {
        scope.notes().place = place;
        return Ok(());
    }
    scope.notes().rule = Some("audit_buffer".to_owned());
    Err(ApiError {
        retry_after_ms: Some(1000),
        ..ApiError::new(ErrorCode::Overloaded)
            .detail("the request cannot be recorded at the moment")
            .details(serde_json::json!({ "rule": "audit_buffer" }))
    })
}

/// Records an answered request, unless its record rides in an outbox.
pub(super) fn answered(state: &ApiState, scope: &Scope, status: u16, error: Option<ErrorCode>) {
    if !is_recorded(&scope.facts().route) {
        return;
    }
    let (place, recorded) = {
        let mut notes = scope.notes();
        let recorded = std::mem::replace(&mut notes.recorded, true);
        (notes.place.take(), recorded)
    };
    if recorded {
        return;
    }
    let mut record = record(scope, &state.parts.governance, status);
    if status >= 400 {
        record.decision = AuditDecision::Refused;
        let code = error.map(|code| code.as_str().to_owned());
        record.rule = scope.notes().rule.clone().or(code);
    }
    state.parts.trail.record(place, record);
}

/// Records a request whose client went away before it was answered. What it had asked for may have
/// happened: it counts as allowed when it had passed the gate.
pub(super) fn abandoned(state: &ApiState, scope: &Scope) {
    let passed = {
        let notes = scope.notes();
        notes.role.is_some() && notes.rule.is_none()
    };
    if passed {
        let recorded = std::mem::replace(&mut scope.notes().recorded, true);
        if !recorded && is_recorded(&scope.facts().route) {
            let place = scope.notes().place.take();
            let mut record = record(scope, &state.parts.governance, CLIENT_CLOSED);
            record.rule = Some("client_closed".to_owned());
            state.parts.trail.record(place, record);
        }
    } else {
        answered(state, scope, CLIENT_CLOSED, None);
    }
}

/// JSON text of the record of a request that is allowed, for a run's outbox; the script adds the role,
/// and the status where only it knows. `id` names the record.
pub(super) fn allowed(
    state: &ApiState,
    caller: &Caller,
    id: &str,
    status: Option<u16>,
    session: Option<&SessionId>,
    run: Option<&RunId>,
) -> Result<String, ApiError> {
    allowed_with(state, caller, id, status, session, run, None)
}

/// As [`allowed`], of a request that says what became of a step.
pub(super) fn allowed_with(
    state: &ApiState,
    caller: &Caller,
    id: &str,
    status: Option<u16>,
    session: Option<&SessionId>,
    run: Option<&RunId>,
    resolved: Option<ResolvedStep>,
) -> Result<String, ApiError> {
    let record = AuditRecord {
        id: id.to_owned(),
        status,
        role: None,
        session_id: session.cloned(),
        run_id: run.cloned(),
        resolved,
        ..record(&caller.scope, &state.parts.governance, 0)
    };
    serde_json::to_string(&record).map_err(|error| internal(&error))
}

/// What the scope knows of a request, as a record of an allowed one.
fn record(scope: &Scope, governance: &Governance, status: u16) -> AuditRecord {
    let facts = scope.facts();
    let notes = scope.notes();
    let query = (!facts.query.is_empty())
        .then(|| governance.hash_input(notes.tenant.as_ref(), facts.query.as_bytes()));
    AuditRecord {
        v: SCHEMA_VERSION,
        id: String::new(), // the trail names it
        ts: facts.began_ms,
        action: "request".to_owned(),
        count: 1,
        tenant: notes.tenant.clone(),
        key_id: notes.key_id.clone(),
        role: notes.role.clone(),
        method: Some(facts.method.to_owned()),
        route: Some(facts.route.clone()),
        status: Some(status),
        session_id: notes.session.clone(),
        run_id: notes.run.clone(),
        target: notes.target.clone(),
        input_hash: notes.input_hash.clone().or(query),
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
        resolved: None,
    }
}

/// Records the request when it is dropped before its answer.
pub(super) struct Unanswered {
    pub(super) state: ApiState,
    pub(super) scope: Scope,
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // An answered request is recorded, and this does nothing.
        if !self.scope.notes().answered {
            abandoned(&self.state, &self.scope);
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::api::scope;
    use crate::config::{Settings, Source};
    use crate::ids::KeyId;
    use crate::messages::Signer;

    #[test]
    fn a_record_says_who_did_what_and_holds_no_secret() {
        let secret = format!("k:{}", STANDARD.encode([1; 32]));
        let env = [
            ("AGENTHUB_SIGNING_SECRETS".to_owned(), secret.clone()),
            ("AGENTHUB_MASTER_KEYS".to_owned(), secret.clone()),
        ];
        let settings = Settings::load(&Source::from_env(env.into()).unwrap()).unwrap();
        let governance = Governance::new(Signer::parse(&secret).unwrap(), &settings);
        let scope = scope::sample();
        {
            let mut notes = scope.notes();
            notes.tenant = Some("acme".parse().unwrap());
            notes.key_id = Some(KeyId::generate());
            notes.run = Some(RunId::generate());
        }
        let record = record(&scope, &governance, 202);
        assert_eq!(record.route.as_deref(), Some("/v1/runs"));
        assert_eq!(record.ip.as_deref(), Some("192.0.2.0/24"));
        assert_eq!(record.run_id, scope.notes().run);
        assert_eq!((record.status, record.input_hash), (Some(202), None));
    }
}
