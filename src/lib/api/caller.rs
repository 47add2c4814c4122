//! Who asks: the API key of a request, and how the gate's answers to it are read.

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::json;

use super::scope::Scope;
use super::state::ApiState;
use super::time::month_end;
use crate::error::{ApiError, ErrorCode};
use crate::governance::{Permission, PresentedKey};
use crate::ids::TenantId;
use crate::runs::{Gate, LimitRow, Read, Refusal};
use crate::runtime::clock;
use crate::telemetry::labels;

/// A request whose key was issued here. Whether the key is in force is for the gate to say, in the
/// script that acts on the request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) key: PresentedKey,
    pub(super) scope: Scope,
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let scope = parts
            .extensions
            .get::<Scope>()
            .cloned()
            .ok_or_else(|| ApiError::new(ErrorCode::Internal))?;
        if state.parts.health.is_closed() {
            // The keys are the last thing that a rebuild restores: nobody is told that his is wrong.
            return Err(ApiError::unavailable("redis"));
        }
        let key = presented(&parts.headers)
            .and_then(|text| state.parts.governance.recognise(text))
            .ok_or_else(unauthenticated)?;
        {
            let mut notes = scope.notes();
            notes.tenant = Some(key.tenant.clone());
            notes.key_id = Some(key.key_id.clone());
        }
        Ok(Self { key, scope })
    }
}

/// The same for every cause.
fn unauthenticated() -> ApiError {
    ApiError::new(ErrorCode::Unauthenticated)
}

/// The one key that a request presents: in `Authorization` with the scheme `Bearer` (whose case does
/// not matter, RFC 9110), or in `X-API-Key`. Two keys are as good as none: which one counts would be a
/// guess.
fn presented(headers: &HeaderMap) -> Option<&str> {
    let authorization = headers.get_all(AUTHORIZATION).iter().map(bearer);
    let api_key = headers.get_all("x-api-key").iter().map(text);
    let mut all = authorization.chain(api_key);
    let only = all.next()?;
    if all.next().is_some() { None } else { only }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().map(str::trim)
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, key) = text(value)?.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| key.trim_start())
}

impl Caller {
    pub(super) fn tenant(&self) -> &TenantId {
        &self.key.tenant
    }

    /// The gate of a request that counts against the limits.
    pub(super) fn gate(&self, state: &ApiState, permission: Permission) -> Gate {
        let ip = self.scope.address();
        state.parts.governance.gate(&self.key, ip, permission)
    }

    /// The gate of a further look within a request that was counted.
    pub(super) fn look(&self, state: &ApiState, permission: Permission) -> Gate {
        let ip = self.scope.address();
        state.parts.governance.look(&self.key, ip, permission)
    }

    /// Keeps the role of the key, which the gate has looked up.
    pub(super) fn note_role(&self, role: String) {
        self.scope.notes().role = Some(role);
    }

    /// Keeps where the limits stand for the answer's headers. A look does not check them.
    pub(super) fn note_limits(&self, limits: Vec<LimitRow>) {
        if !limits.is_empty() {
            self.scope.notes().limits = limits;
        }
    }

    /// What was read and the time by Redis' clock, or why not.
    pub(super) fn found<T>(&self, read: Read<T>) -> Result<(T, u64), ApiError> {
        match read {
            Read::Refused(refusal) => Err(self.refused(refusal)),
            Read::Found {
                limits,
                role,
                now_ms,
                value,
            } => {
                self.note_role(role);
                self.note_limits(limits);
                Ok((value, now_ms))
            }
        }
    }

    /// The error that tells a refusal.
    pub(super) fn refused(&self, refusal: Refusal) -> ApiError {
        let error = refusal_error(&refusal);
        if error.code == ErrorCode::RateLimited {
            metrics::counter!("agenthub_rate_limited_total",
                "tenant" => labels::tenant(self.tenant().as_str()), "rule" => refusal.rule.clone())
            .increment(1);
        }
        {
            let mut notes = self.scope.notes();
            notes.rule = Some(refusal.rule);
            if refusal.role.is_some() {
                notes.role = refusal.role;
            }
        }
        self.note_limits(refusal.limits);
        error
    }

    /// Passes the gate for a request that needs nothing else of the ledger.
    pub(super) async fn pass(
        &self,
        state: &ApiState,
        permission: Permission,
    ) -> Result<(), ApiError> {
        let gate = self.gate(state, permission);
        let read = state.runs().look(self.tenant(), gate).await?;
        self.found(read).map(|_| ())
    }

    /// An error that is found before the script that counts the request: counted like any other.
    pub(super) async fn counted(
        &self,
        state: &ApiState,
        permission: Permission,
        error: ApiError,
    ) -> ApiError {
        match self.pass(state, permission).await {
            Ok(()) => error,
            Err(refused) => refused,
        }
    }

    /// The answer to a request for a thing whose id cannot be one: what an unknown one gets, and
    /// counted like it.
    pub(super) async fn not_found(&self, state: &ApiState, permission: Permission) -> ApiError {
        let error = ApiError::new(ErrorCode::NotFound);
        self.counted(state, permission, error).await
    }
}

fn refusal_error(refusal: &Refusal) -> ApiError {
    match refusal.code.as_str() {
        "unauthenticated" => unauthenticated(),
        "forbidden" => ApiError::new(ErrorCode::Forbidden)
            .detail(match refusal.rule.as_str() {
                "ips_allowed" => "the key may not be used from this address",
                "models_allowed" => "the key does not allow this model",
                "tools_allowed" => "the key does not allow the tools of this request",
                _ => "the key's role does not allow this request",
            })
            .details(json!({ "rule": refusal.rule })),
        "not_found" => ApiError::new(ErrorCode::NotFound),
        "budget_exhausted" => budget_exhausted(&refusal.rule, clock::now_ms()),
        "not_retryable" => {
            ApiError::new(ErrorCode::NotRetryable).details(json!({ "status": refusal.rule }))
        }
        "not_unknown" => ApiError::new(ErrorCode::OutcomeKnown),
        "session_busy" => {
            ApiError::new(ErrorCode::SessionBusy).details(json!({ "rule": refusal.rule }))
        }
        "request_in_flight" => super::once::in_flight(),
        "idempotency_mismatch" => {
            ApiError::new(ErrorCode::IdempotencyMismatch).details(json!({ "rule": refusal.rule }))
        }
        "rate_limited" => {
            let wait = refusing(refusal).map_or(1000, |row| row.reset_ms);
            ApiError {
                retry_after_ms: Some(wait),
                ..ApiError::new(ErrorCode::RateLimited)
                    .detail(format!("the limit {} is used up", refusal.rule))
                    .details(json!({ "rule": refusal.rule, "retry_after_ms": wait }))
            }
        }
        other => {
            tracing::error!(code = other, "a script refused with an unknown code");
            ApiError::new(ErrorCode::Internal)
        }
    }
}

/// A budget of a month that ends soon is a limit that one waits for; any other asks for more money.
fn budget_exhausted(rule: &str, now_ms: u64) -> ApiError {
    const SOON_MS: u64 = 3_600_000;
    let detail = format!("the {} is used up", rule.replace('_', " "));
    let resets_in = month_end(now_ms).saturating_sub(now_ms);
    if rule != "session_budget" && resets_in <= SOON_MS {
        return ApiError {
            retry_after_ms: Some(resets_in),
            ..ApiError::new(ErrorCode::RateLimited)
                .detail(detail)
                .details(json!({ "rule": rule, "retry_after_ms": resets_in }))
        };
    }
    ApiError::new(ErrorCode::BudgetExhausted)
        .detail(detail)
        .details(json!({ "rule": rule }))
}

/// The used-up limit that takes longest to give a place back.
fn refusing(refusal: &Refusal) -> Option<&LimitRow> {
    let used_up = refusal.limits.iter().filter(|row| row.remaining == 0);
    used_up.max_by_key(|row| row.reset_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_scheme_may_have_any_case() {
        for value in ["Bearer k", "bearer k", "BEARER  k"] {
            assert_eq!(presented(&headers(&[("authorization", value)])), Some("k"));
        }
        assert_eq!(presented(&headers(&[("x-api-key", "k")])), Some("k"));
    }

    #[test]
    fn two_keys_other_schemes_and_none_are_no_key() {
        for pairs in [
            &[][..],
            &[("authorization", "k")],
            &[("authorization", "Basic k")],
            &[("authorization", "Bearer k"), ("authorization", "Bearer k")],
            &[("authorization", "Bearer k"), ("x-api-key", "k")],
            &[("x-api-key", "k"), ("x-api-key", "k")],
            &[("authorization", "Basic k"), ("x-api-key", "k")],
        ] {
            assert_eq!(presented(&headers(pairs)), None, "{pairs:?}");
        }
    }

    #[test]
    fn a_budget_that_resets_within_the_hour_is_waited_for() {
        let at = |text: &str| {
            let time: jiff::Timestamp = text.parse().unwrap();
            u64::try_from(time.as_millisecond()).unwrap()
        };
        let late = at("2026-12-31T23:30:00Z");
        let error = budget_exhausted("tenant_budget", late);
        assert_eq!(
            (error.code, error.retry_after_s()),
            (ErrorCode::RateLimited, Some(1800))
        );
        let error = budget_exhausted("session_budget", late);
        assert_eq!(error.code, ErrorCode::BudgetExhausted);
        let error = budget_exhausted("key_budget", at("2026-12-31T22:30:00Z"));
        assert_eq!(error.code, ErrorCode::BudgetExhausted);
    }

    #[test]
    fn refusals_become_errors() {
        let refusal = |code: &str, limits| Refusal {
            code: code.to_owned(),
            rule: "key_rate_limit".to_owned(),
            limits,
            role: None,
        };
        assert!(matches!(
            refusal_error(&refusal("budget_exhausted", vec![])).code,
            ErrorCode::BudgetExhausted | ErrorCode::RateLimited
        ));
        for (code, status) in [
            ("unauthenticated", 401),
            ("forbidden", 403),
            ("not_found", 404),
            ("session_busy", 409),
            ("request_in_flight", 409),
            ("idempotency_mismatch", 422),
            ("rate_limited", 429),
            ("anything else", 500),
        ] {
            let error = refusal_error(&refusal(code, vec![]));
            assert_eq!(error.code.status(), status, "{code}");
        }
        let row = |remaining, reset_ms| LimitRow {
            scope: "key".to_owned(),
            limit: 5,
            window_ms: 60_000,
            remaining,
            reset_ms,
        };
        let limits = vec![row(0, 1_001), row(3, 59_000)];
        let error = refusal_error(&refusal("rate_limited", limits));
        assert_eq!(error.retry_after_s(), Some(2));
    }
}
