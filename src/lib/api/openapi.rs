//! The `OpenAPI` 3.1 document: what the handlers declare, and what is the same for all of them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{
    admin_budget, admin_cache, admin_dlq, admin_keys, admin_tenants, audit_head, docs, probes,
    problem, retry, runs, sessions, stream, submit, tools,
};
use crate::error::ErrorCode;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "AgentHub",
        version = env!("CARGO_PKG_VERSION"),
        license(name = "MIT", identifier = "MIT"),
        description = "Runs LLM agents: a goal becomes a plan, a plan becomes tool calls, and every \
            step is told as it happens. Errors are `application/problem+json`, with a stable `code` and \
            a page for each at `/docs/errors/<code>`. Unknown fields and parameters are refused."
    ),
    paths(
        sessions::create, sessions::list, sessions::read, sessions::delete,
        submit::plan, submit::execute, submit::run,
        runs::list, runs::read, runs::cancel, retry::retry, retry::resolve,
        stream::follow,
        tools::list,
        admin_keys::create, admin_keys::list, admin_keys::read, admin_keys::rotate, admin_keys::revoke,
        admin_tenants::set_limits, admin_tenants::read_limits,
        admin_cache::drop_kept,
        audit_head::read,
        admin_budget::set, admin_budget::read, admin_budget::usage,
        admin_dlq::list, admin_dlq::groups, admin_dlq::read, admin_dlq::redrive,
        probes::healthz, probes::readyz, probes::metrics,
        docs::root, docs::document, docs::reference, docs::asset, docs::error,
    ),
    components(schemas(problem::Problem)),
    tags(
        (name = "sessions", description = "What runs share: context, history, and the key that seals their data."),
        (name = "runs", description = "Goals planned and executed."),
        (name = "streams", description = "Events as they happen."),
        (name = "tools", description = "What plans may use."),
        (name = "admin", description = "API keys, limits, budgets, dead letters, kept results of tools, audit. Needs the role `admin`."),
        (name = "operations", description = "For those who run the service."),
        (name = "reference", description = "This document and its pages."),
    ),
)]
struct Declared;

static TEXT: LazyLock<String> = LazyLock::new(|| build().to_string());

/// The document, JSON text.
pub(super) fn text() -> &'static str {
    &TEXT
}

fn build() -> Value {
    let mut document = serde_json::to_value(Declared::openapi()).unwrap_or_default();
    document["security"] = json!([{ "bearer": [] }, { "api_key": [] }]);
    document["components"]["securitySchemes"] = json!({
        "bearer": { "type": "http", "scheme": "bearer" },
        "api_key": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
    });
    document["components"]["headers"] = headers();
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, item) in paths {
            let operations = item.as_object_mut().into_iter().flatten();
            for (method, operation) in operations {
                complete(method, path, operation);
                refine(operation);
            }
        }
    }
    document
}

/// Forms of parameters, which are the same wherever they occur.
const FORMS: &[(&str, &str)] = &[
    ("tenant", "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
    ("Idempotency-Key", "^[!-~]{1,255}$"),
    ("Last-Event-ID", "^[0-9]{1,18}-[0-9]{1,18}$"),
    ("after", "^[0-9]{1,18}-[0-9]{1,18}$"),
];

/// Says the form of the parameters that have one.
fn refine(operation: &mut Value) {
    let parameters = operation.get_mut("parameters");
    let parameters = parameters.and_then(Value::as_array_mut);
    for parameter in parameters.into_iter().flatten() {
        let form = FORMS.iter().find(|(name, _)| parameter["name"] == *name);
        if let Some((_, pattern)) = form {
            parameter["schema"]["pattern"] = json!(pattern);
        }
    }
}

fn headers() -> Value {
    let header =
        |text: &str, kind: &str| json!({ "description": text, "schema": { "type": kind } });
    json!({
        "X-Trace-Id": header("Trace id of the request.", "string"),
        "RateLimit": header("Where each limit stands: requests left, seconds until one more is free.", "string"),
        "RateLimit-Policy": header("The limits in force: requests, seconds.", "string"),
        "Retry-After": header("Seconds before which a repeat cannot succeed.", "integer"),
        "WWW-Authenticate": header("How to authenticate.", "string"),
    })
}

/// Adds what every operation has: a unique name, headers and errors.
fn complete(method: &str, path: &str, operation: &mut Value) {
    let words = path.split(['/', '{', '}', '-', '.', '_']);
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    operation["operationId"] = json!(format!("{method}_{}", words.join("_")));
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in errors(method, path, operation.get("requestBody").is_some()) {
        by_status.entry(code.status()).or_default().push(code);
    }
    let Some(responses) = operation["responses"].as_object_mut() else {
        return;
    };
    let governed = path.starts_with("/v1/");
    for response in responses.values_mut() {
        add_headers(response, governed, &[]);
    }
    for (status, codes) in by_status {
        let mut response = error_response(&codes);
        let more: &[&str] = match status {
            401 => &["WWW-Authenticate"],
            429 | 503 => &["Retry-After"],
            _ => &[],
        };
        add_headers(&mut response, governed && status == 429, more);
        responses.entry(status.to_string()).or_insert(response);
    }
}

fn add_headers(response: &mut Value, limits: bool, more: &[&str]) {
    let headers = response
        .as_object_mut()
        .map(|response| response.entry("headers").or_insert_with(|| json!({})));
    let Some(Value::Object(headers)) = headers else {
        return;
    };
    let limits: &[&str] = if limits {
        &["RateLimit", "RateLimit-Policy"]
    } else {
        &[]
    };
    for name in ["X-Trace-Id"].iter().chain(limits).chain(more) {
        let reference = json!({ "$ref": format!("#/components/headers/{name}") });
        headers.insert((*name).to_owned(), reference);
    }
}

fn error_response(codes: &[ErrorCode]) -> Value {
    let described = |code: &ErrorCode| format!("`{}`: {}.", code.as_str(), code.title());
    let descriptions: Vec<String> = codes.iter().map(described).collect();
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    let content = Map::from_iter([(
        "application/problem+json".to_owned(),
        json!({ "schema": schema }),
    )]);
    json!({ "description": descriptions.join(" "), "content": content })
}

/// Routes whose `POST` starts a run.
const STARTS: [&str; 4] = [
    "/v1/plan",
    "/v1/execute",
    "/v1/runs",
    "/v1/runs/{run_id}/retry",
];

/// The errors that an operation can answer with.
fn errors(method: &str, path: &str, has_body: bool) -> Vec<ErrorCode> {
    use ErrorCode as E;
    let mut codes = vec![
        E::MalformedRequest,
        E::InvalidHeader,
        E::UriTooLong,
        E::HeadersTooLarge,
        E::Internal,
    ];
    if path.starts_with("/docs/") {
        codes.push(E::NotFound);
    }
    if !matches!(path, "/healthz" | "/readyz" | "/metrics") {
        codes.push(E::Overloaded);
    }
    if !path.starts_with("/v1/") {
        return codes;
    }
    codes.extend([
        E::Unauthenticated,
        E::Forbidden,
        E::InvalidRequest,
        E::RateLimited,
        E::DependencyUnavailable,
    ]);
    if has_body {
        codes.extend([
            E::InvalidJson,
            E::BodyTooDeep,
            E::BodyTimeout,
            E::BodyTooLarge,
            E::UnsupportedMediaType,
        ]);
    }
    let submits = method == "post" && STARTS.contains(&path);
    if submits || path.contains('{') || path == "/v1/stream" {
        codes.push(E::NotFound);
    }
    if method == "post" {
        codes.push(E::IdempotencyMismatch);
    }
    if submits {
        codes.extend([E::SessionBusy, E::BudgetExhausted]);
    } else if method == "post" {
        codes.push(E::RequestInFlight);
    }
    match path {
        "/v1/execute" => codes.extend([E::PlanNotReady, E::InvalidPlan]),
        "/v1/runs/{run_id}/cancel" => codes.push(E::RunEnded),
        "/v1/runs/{run_id}/retry" => codes.push(E::NotRetryable),
        "/v1/admin/dlq/{letter_id}/redrive" => codes.extend([
            E::NotRedrivable,
            E::NotRetryable,
            E::IdempotencyMismatch,
            E::BudgetExhausted,
        ]),
        "/v1/runs/{run_id}/steps/{step_id}/resolve" => codes.push(E::OutcomeKnown),
        _ => {}
    }
    codes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::router;

    fn operations() -> Vec<(String, String, Value)> {
        let document = build();
        let paths = document["paths"].as_object().unwrap().clone();
        let mut operations = Vec::new();
        for (path, item) in paths {
            for (method, operation) in item.as_object().unwrap() {
                operations.push((method.to_uppercase(), path.clone(), operation.clone()));
            }
        }
        operations
    }

    #[test]
    fn every_route_is_documented_and_every_documented_route_exists() {
        let documented: BTreeSet<(String, String)> =
            operations().into_iter().map(|(m, p, _)| (m, p)).collect();
        let routed: BTreeSet<(String, String)> = router::routes()
            .iter()
            .map(|route| (route.method.to_string(), route.path.to_owned()))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn the_document_is_3_1_and_its_references_resolve() {
        let text = text();
        let document: Value = serde_json::from_str(text).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        for part in text.split("\"$ref\":\"#").skip(1) {
            let pointer = part.split('"').next().unwrap();
            assert!(document.pointer(pointer).is_some(), "{pointer}");
        }
    }

    #[test]
    fn operations_have_unique_ids_texts_and_errors() {
        let mut ids = BTreeSet::new();
        for (method, path, operation) in operations() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(ids.insert(id), "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("500"), "{method} {path}");
            let governed = path.starts_with("/v1/");
            assert_eq!(responses.contains_key("401"), governed, "{method} {path}");
            assert_eq!(operation.get("security").is_some(), !governed, "{path}");
            let body = operation.get("requestBody").is_some();
            assert_eq!(responses.contains_key("415"), body, "{method} {path}");
        }
    }

    #[test]
    fn request_bodies_refuse_unknown_fields() {
        let document = build();
        for name in [
            "NewSession",
            "PlanRequest",
            "RunRequest",
            "ExecuteRequest",
            "CancelRequest",
            "NewKeyRequest",
            "RotateRequest",
            "TenantLimits",
            "LimitBody",
            "BudgetRequest",
            "RetryRequest",
            "ResolveRequest",
            "RedriveRequest",
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(schema["additionalProperties"], false, "{name}");
        }
    }

    #[test]
    fn every_error_code_is_documented_somewhere() {
        let text = text();
        for code in ErrorCode::ALL {
            // These two answer what no operation matches.
            if !matches!(code, ErrorCode::RouteNotFound | ErrorCode::MethodNotAllowed) {
                assert!(text.contains(&format!("`{}`", code.as_str())), "{code:?}");
            }
        }
    }
}
