//! What the API says of itself, and its limits.

use std::time::{Duration, Instant};

use agenthub::error::ErrorCode;
use reqwest::{Response, StatusCode};

use crate::support::stack::{Stack, body, shared};

async fn get(stack: &Stack, path: &str) -> Response {
    stack.http.get(stack.url(path)).send().await.unwrap()
}

fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    let value = value.unwrap_or_else(|| panic!("no {name}: {:?}", response.headers()));
    value.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn the_document_lists_every_route() {
    let stack = shared().await;
    let (status, document) = body(get(stack, "/openapi.json").await).await;
    assert_eq!(status, StatusCode::OK);
    let version = document["openapi"].as_str().unwrap();
    assert!(version.starts_with("3.1"), "{version}");
    let routes = [
        ("/v1/sessions", &["get", "post"][..]),
        ("/v1/sessions/{session_id}", &["get", "delete"]),
        ("/v1/plan", &["post"]),
        ("/v1/execute", &["post"]),
        ("/v1/runs", &["get", "post"]),
        ("/v1/runs/{run_id}", &["get"]),
        ("/v1/runs/{run_id}/cancel", &["post"]),
        ("/v1/stream", &["get"]),
        ("/v1/tools", &["get"]),
        ("/v1/admin/api-keys", &["get", "post"]),
        ("/v1/admin/api-keys/{key_id}", &["get"]),
        ("/v1/admin/api-keys/{key_id}/rotate", &["post"]),
        ("/v1/admin/api-keys/{key_id}/revoke", &["post"]),
        ("/v1/admin/tenants/{tenant}/limits", &["get", "put"]),
        ("/v1/admin/audit/head", &["get"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/metrics", &["get"]),
        ("/openapi.json", &["get"]),
        ("/docs", &["get"]),
    ];
    for (path, methods) in routes {
        for method in methods {
            let operation = &document["paths"][path][method];
            assert!(operation["responses"].is_object(), "{method} {path}");
        }
    }
    // It lists nothing that is not there.
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            let method = method.to_uppercase().parse().unwrap();
            let path = path
                .replace("{session_id}", "x")
                .replace("{run_id}", "x")
                .replace("{key_id}", "x")
                .replace("{tenant}", "x")
                .replace("{file}", "style.css")
                .replace("{code}", "internal");
            let response = stack.http.request(method, stack.url(&path));
            let status = response.send().await.unwrap().status();
            let there = [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED];
            assert!(!there.contains(&status), "{path}: {status}");
        }
    }
}

#[tokio::test]
async fn the_pages_are_served() {
    let stack = shared().await;
    let page = get(stack, "/docs").await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(header(&page, "content-type").starts_with("text/html"));
    assert!(header(&page, "content-security-policy").contains("default-src 'none'"));
    for code in ErrorCode::ALL {
        let page = get(stack, &code.page_path()).await;
        assert_eq!(page.status(), StatusCode::OK, "{}", code.as_str());
        let text = page.text().await.unwrap();
        assert!(text.contains(code.as_str()), "{text}");
    }
    assert_eq!(get(stack, "/docs/errors/no_such_code").await.status(), 404);
    let health = get(stack, "/healthz").await;
    assert_eq!(health.status(), StatusCode::OK);
    assert_eq!(health.text().await.unwrap(), "ok\n");
    let (status, ready) = body(get(stack, "/readyz").await).await;
    assert_eq!(status, StatusCode::OK, "{ready}");
    assert_eq!(ready["dependencies"]["kafka"], "up", "{ready}");
    assert_eq!(ready["dependencies"]["redis"], "up", "{ready}");
    let (status, tools) = stack.get("/v1/tools").await;
    assert_eq!(status, StatusCode::OK);
    let names = tools["data"].as_array().unwrap().iter();
    let names: Vec<&str> = names.filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(
        names,
        ["ads_metrics_mock", "retrieval", "http_fetch", "summarize"]
    );
}

#[tokio::test]
async fn requests_are_counted_by_their_route() {
    let stack = shared().await;
    let session = stack.session().await;
    let label = |route: &str, method: &str, status: u16| {
        let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
        format!("agenthub_requests_total{{{labels}}}")
    };
    let read = label("/v1/sessions/{session_id}", "GET", 200);
    let before = stack.metric("api", &read).await;
    stack.get(&format!("/v1/sessions/{session}")).await;
    assert!(stack.metric("api", &read).await >= before + 1.0);
    get(stack, "/made/up/by-a-client").await;
    let unmatched = label("unmatched", "GET", 404);
    assert!(stack.metric("api", &unmatched).await >= 1.0);
    let metrics = get(stack, "/metrics").await;
    assert!(header(&metrics, "content-type").starts_with("text/plain"));
    let text = metrics.text().await.unwrap();
    // Nothing that clients choose becomes a label.
    assert!(!text.contains(&session) && !text.contains("by-a-client"));
    for name in [
        "agenthub_latency_ms",
        "agenthub_build_info",
        "agenthub_dependency_up",
    ] {
        assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
    }
}

#[tokio::test]
async fn a_limit_refuses_and_says_when_it_does_not() {
    let limits = [
        ("AGENTHUB_KEY_LIMITS", "4/1500,100/60000"),
        ("AGENTHUB_TENANT_LIMITS", "50/60000"),
    ];
    let mut stack = Stack::bare(&limits).await;
    stack.spawn_all(&["api"]).await;
    let ask = async || {
        let request = stack.http.get(stack.url("/v1/runs"));
        let response = request.bearer_auth(&stack.api_key).send().await.unwrap();
        (Instant::now(), response)
    };
    for left in [3, 2, 1, 0] {
        let (_, response) = ask().await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "x-ratelimit-limit"), "4");
        assert_eq!(header(&response, "x-ratelimit-remaining"), left.to_string());
        let policy = header(&response, "ratelimit-policy");
        assert_eq!(
            policy,
            "\"key-1500ms\";q=4;w=2, \"key-60000ms\";q=100;w=60, \"tenant-60000ms\";q=50;w=60"
        );
        let state = header(&response, "ratelimit");
        assert!(
            state.starts_with(&format!("\"key-1500ms\";r={left};t=")),
            "{state}"
        );
    }
    let (_, refused) = ask().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((1..=2).contains(&wait), "{wait}");
    let state = header(&refused, "ratelimit");
    // What was refused took nothing of the others.
    assert!(state.contains("\"key-60000ms\";r=96;"), "{state}");
    assert!(state.contains("\"tenant-60000ms\";r=46;"), "{state}");
    let (_, problem) = body(refused).await;
    assert_eq!(problem["code"], "rate_limited", "{problem}");
    assert_eq!(problem["details"]["rule"], "key_rate_limit", "{problem}");
    let exact = problem["details"]["retry_after_ms"].as_u64().unwrap();
    assert!(wait * 1000 >= exact, "{problem}");

    // Another key of the tenant has its own limit.
    let other = stack.http.get(stack.url("/v1/runs"));
    let other = other.bearer_auth(&stack.admin_key).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);

    // What a client does that waits as long as it is told.
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let (_, again) = ask().await;
    assert_eq!(again.status(), StatusCode::OK);
    // Refusals do not push the window on: whoever asks all the time gets the whole limit.
    let deadline = Instant::now() + Duration::from_millis(3200);
    let mut accepted = Vec::new();
    while Instant::now() < deadline {
        let sent = Instant::now();
        let (answered, response) = ask().await;
        match response.status() {
            StatusCode::OK => accepted.push((sent, answered)),
            status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
        }
    }
    assert!(accepted.len() >= 8, "{}", accepted.len());
    // Five within less than the window would be one too many.
    for five in accepted.windows(5) {
        let span = five[4].1 - five[0].0;
        assert!(span >= Duration::from_millis(1500), "{span:?}");
    }
}
