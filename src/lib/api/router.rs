//! The routes, in one table.

use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};

use super::observe::observe;
use super::state::ApiState;
use super::{
    admin_budget, admin_dlq, admin_keys, docs, probes, retry, runs, sessions, stream, submit, tools,
};
use crate::error::{ApiError, ErrorCode};

/// One route.
pub(super) struct Route {
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read by the test of the OpenAPI document")
    )]
    pub(super) method: Method,
    pub(super) path: &'static str,
    handler: MethodRouter<ApiState>,
}

/// Every route.
pub(super) fn routes() -> Vec<Route> {
    let route = |method, path, handler| Route {
        method,
        path,
        handler,
    };
    let (g, p, d) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        route(p.clone(), "/v1/sessions", post(sessions::create)),
        route(g.clone(), "/v1/sessions", get(sessions::list)),
        route(g.clone(), "/v1/sessions/{session_id}", get(sessions::read)),
        route(d, "/v1/sessions/{session_id}", delete(sessions::delete)),
        route(p.clone(), "/v1/plan", post(submit::plan)),
        route(p.clone(), "/v1/execute", post(submit::execute)),
        route(p.clone(), "/v1/runs", post(submit::run)),
        route(g.clone(), "/v1/runs", get(runs::list)),
        route(g.clone(), "/v1/runs/{run_id}", get(runs::read)),
        route(p.clone(), "/v1/runs/{run_id}/cancel", post(runs::cancel)),
        route(p.clone(), "/v1/runs/{run_id}/retry", post(retry::retry)),
        route(
            p.clone(),
            "/v1/runs/{run_id}/steps/{step_id}/resolve",
            post(retry::resolve),
        ),
        route(g.clone(), "/v1/stream", get(stream::follow)),
        route(g.clone(), "/v1/tools", get(tools::list)),
        route(p.clone(), "/v1/admin/api-keys", post(admin_keys::create)),
        route(g.clone(), "/v1/admin/api-keys", get(admin_keys::list)),
        route(
            g.clone(),
            "/v1/admin/api-keys/{key_id}",
            get(admin_keys::read),
        ),
        route(
            p.clone(),
            "/v1/admin/api-keys/{key_id}/rotate",
            post(admin_keys::rotate),
        ),
        route(
            p.clone(),
            "/v1/admin/api-keys/{key_id}/revoke",
            post(admin_keys::revoke),
        ),
        route(
            Method::PUT,
            "/v1/admin/tenants/{tenant}/budget",
            put(admin_budget::set),
        ),
        route(
            g.clone(),
            "/v1/admin/tenants/{tenant}/budget",
            get(admin_budget::read),
        ),
        route(
            g.clone(),
            "/v1/admin/tenants/{tenant}/usage",
            get(admin_budget::usage),
        ),
        route(g.clone(), "/v1/admin/dlq", get(admin_dlq::list)),
        route(g.clone(), "/v1/admin/dlq/groups", get(admin_dlq::groups)),
        route(g.clone(), "/v1/admin/dlq/{letter_id}", get(admin_dlq::read)),
        route(
            p,
            "/v1/admin/dlq/{letter_id}/redrive",
            post(admin_dlq::redrive),
        ),
        route(g.clone(), "/healthz", get(probes::healthz)),
        route(g.clone(), "/readyz", get(probes::readyz)),
        route(g.clone(), "/metrics", get(probes::metrics)),
        route(g.clone(), "/", get(docs::root)),
        route(g.clone(), "/openapi.json", get(docs::document)),
        route(g.clone(), "/docs", get(docs::reference)),
        route(g.clone(), "/docs/assets/{file}", get(docs::asset)),
        route(g, "/docs/errors/{code}", get(docs::error)),
    ]
}

/// The API.
pub fn router(state: ApiState) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, route| {
        router.route(route.path, route.handler)
    });
    router
        .fallback(async || ApiError::new(ErrorCode::RouteNotFound))
        .method_not_allowed_fallback(async || ApiError::new(ErrorCode::MethodNotAllowed))
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}
