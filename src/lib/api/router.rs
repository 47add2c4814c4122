//! The routes, in one table.

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post, put};

use super::observe::observe;
use super::state::ApiState;
use super::{
    admin_budget, admin_cache, admin_dlq, admin_keys, admin_tenants, audit_head, cors, docs,
    probes, retry, runs, sessions, stream, submit, tools,
};
use crate::error::{ApiError, ErrorCode};
use crate::governance::Permission;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Anybody.
    Open,
    /// Keys whose role has the permission.
    Needs(Permission),
}

/// One route.
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) access: Access,
    handler: MethodRouter<ApiState>,
}

/// Every route.
#[allow(clippy::too_many_lines)] // one table
pub(super) fn routes() -> Vec<Route> {
    use Access::{Needs, Open};
    use Permission as P;
    let route = |method, path, access, handler| Route {
        method,
        path,
        access,
        handler,
    };
    let (g, p, d) = (Method::GET, Method::POST, Method::DELETE);
    let rows = [
        (
            &p,
            "/v1/sessions",
            Needs(P::Sessions),
            post(sessions::create),
        ),
        (&g, "/v1/sessions", Needs(P::Sessions), get(sessions::list)),
        (
            &g,
            "/v1/sessions/{session_id}",
            Needs(P::Sessions),
            get(sessions::read),
        ),
        (
            &d,
            "/v1/sessions/{session_id}",
            Needs(P::Sessions),
            delete(sessions::delete),
        ),
        (&p, "/v1/plan", Needs(P::Runs), post(submit::plan)),
        (&p, "/v1/execute", Needs(P::Runs), post(submit::execute)),
        (&p, "/v1/runs", Needs(P::Runs), post(submit::run)),
        (&g, "/v1/runs", Needs(P::Runs), get(runs::list)),
        (&g, "/v1/runs/{run_id}", Needs(P::Runs), get(runs::read)),
        (
            &p,
            "/v1/runs/{run_id}/cancel",
            Needs(P::Runs),
            post(runs::cancel),
        ),
        (
            &p,
            "/v1/runs/{run_id}/retry",
            Needs(P::Runs),
            post(retry::retry),
        ),
        (
            &p,
            "/v1/runs/{run_id}/steps/{step_id}/resolve",
            Needs(P::Runs),
            post(retry::resolve),
        ),
        (&g, "/v1/stream", Needs(P::Runs), get(stream::follow)),
        (&g, "/v1/tools", Needs(P::Tools), get(tools::list)),
        (
            &p,
            "/v1/admin/api-keys",
            Needs(P::Keys),
            post(admin_keys::create),
        ),
        (
            &g,
            "/v1/admin/api-keys",
            Needs(P::Keys),
            get(admin_keys::list),
        ),
        (
            &g,
            "/v1/admin/api-keys/{key_id}",
            Needs(P::Keys),
            get(admin_keys::read),
        ),
        (
            &p,
            "/v1/admin/api-keys/{key_id}/rotate",
            Needs(P::Keys),
            post(admin_keys::rotate),
        ),
        (
            &p,
            "/v1/admin/api-keys/{key_id}/revoke",
            Needs(P::Keys),
            post(admin_keys::revoke),
        ),
        (
            &g,
            "/v1/admin/audit/head",
            Needs(P::Audit),
            get(audit_head::read),
        ),
        (
            &d,
            "/v1/admin/cache/{tool}",
            Needs(P::Cache),
            delete(admin_cache::drop_kept),
        ),
        (
            &Method::PUT,
            "/v1/admin/tenants/{tenant}/limits",
            Needs(P::Tenants),
            put(admin_tenants::set_limits),
        ),
        (
            &g,
            "/v1/admin/tenants/{tenant}/limits",
            Needs(P::Tenants),
            get(admin_tenants::read_limits),
        ),
        (
            &Method::PUT,
            "/v1/admin/tenants/{tenant}/budget",
            Needs(P::Budgets),
            put(admin_budget::set),
        ),
        (
            &g,
            "/v1/admin/tenants/{tenant}/budget",
            Needs(P::Budgets),
            get(admin_budget::read),
        ),
        (
            &g,
            "/v1/admin/tenants/{tenant}/usage",
            Needs(P::Budgets),
            get(admin_budget::usage),
        ),
        (
            &g,
            "/v1/admin/dlq",
            Needs(P::DeadLetters),
            get(admin_dlq::list),
        ),
        (
            &g,
            "/v1/admin/dlq/groups",
            Needs(P::DeadLetters),
            get(admin_dlq::groups),
        ),
        (
            &g,
            "/v1/admin/dlq/{letter_id}",
            Needs(P::DeadLetters),
            get(admin_dlq::read),
        ),
        (
            &p,
            "/v1/admin/dlq/{letter_id}/redrive",
            Needs(P::DeadLetters),
            post(admin_dlq::redrive),
        ),
        (&g, "/healthz", Open, get(probes::healthz)),
        (&g, "/readyz", Open, get(probes::readyz)),
        (&g, "/metrics", Open, get(probes::metrics)),
        (&g, "/", Open, get(docs::root)),
        (&g, "/openapi.json", Open, get(docs::document)),
        (&g, "/docs", Open, get(docs::reference)),
        (&g, "/docs/assets/{file}", Open, get(docs::asset)),
        (&g, "/docs/errors/{code}", Open, get(docs::error)),
    ];
    rows.map(|(method, path, access, handler)| route(method.clone(), path, access, handler))
        .into()
}

/// A route and who may use it.
#[derive(Debug, Clone)]
pub struct RouteAccess {
    /// The HTTP method.
    pub method: String,
    /// The path's template.
    pub path: &'static str,
    /// The permission that it needs; `None` when anybody may use it.
    pub permission: Option<Permission>,
}

/// Every route with the permission that it needs.
pub fn access() -> Vec<RouteAccess> {
    let of = |route: Route| RouteAccess {
        method: route.method.to_string(),
        path: route.path,
        permission: match route.access {
            Access::Open => None,
            Access::Needs(permission) => Some(permission),
        },
    };
    routes().into_iter().map(of).collect()
}

/// The API.
pub fn router(state: ApiState) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, route| {
        router.route(route.path, route.handler)
    });
    let mut router = router
        .fallback(async || ApiError::new(ErrorCode::RouteNotFound))
        .method_not_allowed_fallback(other_method);
    if let Some(cors) = cors::layer(&state.settings().cors_origins) {
        router = router.layer(cors);
    }
    router
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// A method that the path lacks; `Allow` is added to either answer.
async fn other_method(method: Method) -> Response {
    if method == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        ApiError::new(ErrorCode::MethodNotAllowed).into_response()
    }
}
