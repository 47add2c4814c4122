//! Which tenant an admin's request is about: an admin key governs its own tenant, one of the operator's tenant
//! every tenant.

use serde_json::json;

use super::caller::Caller;
use super::params::PathId;
use super::state::ApiState;
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;
use crate::ids::TenantId;

fn governs(own: &TenantId, tenant: &TenantId) -> bool {
    tenant == own || own.is_system()
}

/// The tenant that a request names, or else the caller's own.
pub(super) fn target(own: &TenantId, named: Option<TenantId>) -> Result<TenantId, ApiError> {
    match named {
        None => Ok(own.clone()),
        Some(tenant) if governs(own, &tenant) => Ok(tenant),
        Some(_) => Err(ApiError::new(ErrorCode::Forbidden)
            .detail("the key governs its own tenant alone")
            .details(json!({ "rule": "tenant" }))),
    }
}

/// Passes the gate; the tenant that the path names. Another tenant's admin is told what it would be told of
/// one that does not exist.
pub(super) async fn in_path(
    state: &ApiState,
    caller: &Caller,
    permission: Permission,
    id: PathId<TenantId>,
) -> Result<TenantId, ApiError> {
    caller.scope.notes().target = id.0.as_ref().map(|tenant| format!("tenant/{tenant}"));
    caller.pass(state, permission).await?;
    id.0.filter(|tenant| governs(caller.tenant(), tenant))
        .ok_or_else(|| ApiError::new(ErrorCode::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_operator_governs_other_tenants() {
        let tenant = |name: &str| name.parse::<TenantId>().unwrap();
        let target = |own, named: Option<&str>| target(&tenant(own), named.map(tenant));
        assert_eq!(target("acme", None).unwrap(), tenant("acme"));
        assert_eq!(target("acme", Some("acme")).unwrap(), tenant("acme"));
        assert_eq!(target("system", Some("acme")).unwrap(), tenant("acme"));
        let refused = target("acme", Some("other")).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Forbidden);
        assert_eq!(
            target("acme", Some("system")).unwrap_err().code,
            ErrorCode::Forbidden
        );
    }
}
