//! The edges of the API, from outside: raw bytes to the real process, and what it does with them.

use std::time::{Duration, Instant};

use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::support::eventually;
use crate::support::raw::{Raw, Reply};
use crate::support::stack::{Stack, shared};

/// An API whose caps are so small that each is easily met. The times leave room for a busy machine.
async fn tight() -> &'static Stack {
    static STACK: OnceCell<Stack> = OnceCell::const_new();
    let settings = [
        ("AGENTHUB_HEAD_TIMEOUT_MS", "1500"),
        ("AGENTHUB_IDLE_TIMEOUT_MS", "3000"),
        ("AGENTHUB_BODY_TIMEOUT_MS", "1500"),
        ("AGENTHUB_WRITE_TIMEOUT_MS", "1500"),
        ("AGENTHUB_MAX_HEAD_BYTES", "8192"),
        ("AGENTHUB_MAX_HEADERS", "16"),
        ("AGENTHUB_MAX_URI_BYTES", "512"),
        ("AGENTHUB_MAX_BODY_BYTES", "2048"),
        ("AGENTHUB_MAX_JSON_DEPTH", "4"),
    ];
    let start = || async {
        let mut stack = Stack::bare(&settings).await;
        stack.spawn_all(&["api"]).await;
        stack
    };
    STACK.get_or_init(start).await
}

async fn connect(stack: &Stack) -> Raw {
    Raw::connect(&stack.processes["api"].addr).await
}

/// Asks on a connection of its own.
async fn ask(stack: &Stack, request: impl AsRef<[u8]>) -> Reply {
    connect(stack).await.ask(request).await
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api\r\n{headers}\r\n")
}

fn post(stack: &Stack, path: &str, headers: &str, body: &str) -> String {
    let key = &stack.api_key;
    format!(
        "POST {path} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\n{headers}\r\n{body}"
    )
}

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: api\r\n\r\n";

#[tokio::test]
async fn a_head_that_trickles_in_or_never_comes_is_cut_off() {
    let stack = tight().await;
    let mut silent = connect(stack).await;
    let began = Instant::now();
    silent.closed().await;
    assert!(began.elapsed() >= Duration::from_millis(1400));

    // A byte now and then moves no deadline, on the first request and on a later one.
    for requests_before in [0, 1] {
        let mut slow = connect(stack).await;
        for _ in 0..requests_before {
            assert_eq!(slow.ask(HEALTH).await.status, 200);
        }
        slow.send("GET /healthz HTTP/1.1\r\nHost: api\r\n").await;
        let began = Instant::now();
        slow.until_cut_off("X").await;
        assert!(began.elapsed() >= Duration::from_millis(1400));
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_a_while_between_requests() {
    let stack = tight().await;
    let mut connection = connect(stack).await;
    for _ in 0..3 {
        assert_eq!(connection.ask(HEALTH).await.status, 200);
        // Longer in sum than a head may take, each shorter than an idle connection is kept.
        sleep(Duration::from_millis(800)).await;
    }
    let began = Instant::now();
    connection.closed().await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
}

#[tokio::test]
async fn a_body_that_trickles_in_is_answered_408() {
    let stack = tight().await;
    for headers in ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut slow = connect(stack).await;
        slow.send(post(stack, "/v1/sessions", headers, "")).await;
        let chunk = if headers.contains("chunked") {
            "1\r\n \r\n"
        } else {
            " "
        };
        slow.trickle(chunk).await;
        let reply = slow.reply().await.unwrap();
        assert_eq!((reply.status, reply.code().as_str()), (408, "body_timeout"));
        slow.closed().await;
    }
}

#[tokio::test]
async fn a_body_that_nobody_reads_holds_no_connection() {
    let stack = tight().await;
    // Refused before its body is read, which goes on for ever.
    let mut endless = connect(stack).await;
    let head = "POST /v1/sessions HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\n\r\n";
    endless.send(head).await;
    let reply = endless.reply().await.unwrap();
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (401, "unauthenticated")
    );
    endless.until_cut_off("1\r\n \r\n").await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let stack = tight().await;
    let mut greedy = connect(stack).await;
    let requests = get("/openapi.json", "").repeat(50);
    // What it is owed soon fills every buffer between.
    let began = Instant::now();
    greedy.until_cut_off(&requests).await;
    assert!(began.elapsed() >= Duration::from_millis(1400));
    assert_eq!(ask(stack, HEALTH).await.status, 200);
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let stack = tight().await;
    for (what, request, status, code) in [
        (
            "a path of 600 bytes",
            get(&format!("/{}", "a".repeat(600)), ""),
            414,
            "uri_too_long",
        ),
        (
            "a query of 600 bytes",
            get(&format!("/?{}", "a".repeat(600)), ""),
            414,
            "uri_too_long",
        ),
        (
            "20 headers",
            get("/", &"A: 1\r\n".repeat(20)),
            431,
            "headers_too_large",
        ),
        (
            "200 headers",
            get("/", &"A: 1\r\n".repeat(200)),
            431,
            "headers_too_large",
        ),
        (
            "a header of 9000 bytes",
            get("/", &format!("A: {}\r\n", "a".repeat(9000))),
            431,
            "headers_too_large",
        ),
        (
            "a head of 9000 bytes",
            get("/", &format!("A: {}\r\n", "a".repeat(900)).repeat(10)),
            431,
            "headers_too_large",
        ),
        (
            "70000 bytes of path",
            get(&format!("/{}", "a".repeat(70_000)), ""),
            431,
            "headers_too_large",
        ),
    ] {
        let reply = ask(stack, request).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (status, code),
            "{what}"
        );
        reply.assert_guarded();
    }
    // What just fits is taken.
    assert_eq!(
        ask(stack, get(&format!("/healthz?{}", "a".repeat(500)), ""))
            .await
            .status,
        200
    );
    assert_eq!(
        ask(stack, get("/healthz", &"A: 1\r\n".repeat(15)))
            .await
            .status,
        200
    );
    let large = get("/healthz", &format!("A: {}\r\n", "a".repeat(8000)));
    assert_eq!(ask(stack, large).await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_too_large_or_too_deep_are_refused() {
    let stack = tight().await;
    let sized = |body: &str| {
        let length = format!("Content-Length: {}\r\n", body.len());
        post(stack, "/v1/sessions", &length, body)
    };
    let deep = format!(r#"{{"context":{}{}}}"#, "[".repeat(4), "]".repeat(4));
    let reply = ask(stack, sized(&deep)).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (400, "body_too_deep")
    );
    let large = format!(r#"{{"context":"{}"}}"#, "a".repeat(3000));
    let reply = ask(stack, sized(&large)).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "body_too_large")
    );
    // By what is declared, before any of it is sent.
    let declared = post(stack, "/v1/sessions", "Content-Length: 99999999999\r\n", "");
    let reply = ask(stack, declared).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "body_too_large")
    );
    // By what arrives, when nothing is declared.
    let chunks = format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(3);
    let chunked = post(
        stack,
        "/v1/sessions",
        "Transfer-Encoding: chunked\r\n",
        &chunks,
    );
    let reply = ask(stack, chunked).await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (413, "body_too_large")
    );
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_before_it_sends() {
    let stack = tight().await;
    let body = r#"{"ttl_s":60}"#;
    let expecting = |length: usize| {
        let headers = format!("Expect: 100-continue\r\nContent-Length: {length}\r\n");
        post(stack, "/v1/sessions", &headers, "")
    };
    let mut client = connect(stack).await;
    assert_eq!(client.ask(expecting(body.len())).await.status, 100);
    assert_eq!(client.ask(body).await.status, 201);
    let refused = ask(stack, expecting(1_000_000)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (413, "body_too_large")
    );
}

/// Every oddity gets an answer that is no fault of the server's, in the form of every other error.
#[tokio::test]
async fn oddities_of_requests() {
    let stack = tight().await;
    let bearer = format!("Authorization: Bearer {}\r\n", stack.api_key);
    let json = |headers: &str, body: &str| post(stack, "/v1/sessions", headers, body);
    let line = |line: &str| format!("{line}\r\nHost: api\r\n\r\n");
    let length = "Content-Length: 2\r\n";
    for (request, status, code) in [
        // Encodings and lengths.
        (
            json(&format!("{length}Content-Encoding: gzip\r\n"), "{}"),
            415,
            "unsupported_media_type",
        ),
        (
            json(&format!("{length}Content-Encoding: identity\r\n"), "{}"),
            201,
            "",
        ),
        (
            json(
                &format!("{length}Content-Encoding: gzip, identity\r\n"),
                "{}",
            ),
            415,
            "unsupported_media_type",
        ),
        (
            json(
                "Transfer-Encoding: gzip, chunked\r\n",
                "2\r\n{}\r\n0\r\n\r\n",
            ),
            400,
            "invalid_header",
        ),
        (
            json(
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                "2\r\n{}\r\n0\r\n\r\n",
            ),
            400,
            "invalid_header",
        ),
        (
            json(
                "Transfer-Encoding: chunked, gzip\r\n",
                "2\r\n{}\r\n0\r\n\r\n",
            ),
            400,
            "malformed_request",
        ),
        (
            json("Transfer-Encoding: xchunked\r\n", "2\r\n{}\r\n0\r\n\r\n"),
            400,
            "malformed_request",
        ),
        (
            json("Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
            400,
            "invalid_json",
        ),
        (
            json(
                "Transfer-Encoding: chunked\r\n",
                "2;ext=1\r\n{}\r\n0\r\nTrailer: 1\r\n\r\n",
            ),
            201,
            "",
        ),
        (
            json("Content-Length: 2\r\nContent-Length: 3\r\n", "{} "),
            400,
            "malformed_request",
        ),
        (
            json("Content-Length: 2, 3\r\n", "{} "),
            400,
            "malformed_request",
        ),
        (
            json("Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),
            201,
            "",
        ),
        (
            json("Content-Length: -2\r\n", "{}"),
            400,
            "malformed_request",
        ),
        (
            json("Content-Length: +2\r\n", "{}"),
            400,
            "malformed_request",
        ),
        (
            json("Content-Length: 0x2\r\n", "{}"),
            400,
            "malformed_request",
        ),
        (
            json("Content-Length: 99999999999999999999999\r\n", "{}"),
            400,
            "malformed_request",
        ),
        (
            json(&format!("{length}Content-Type: text/plain\r\n"), "{}"),
            415,
            "unsupported_media_type",
        ),
        // Host and keys.
        (
            "GET /healthz HTTP/1.1\r\n\r\n".to_owned(),
            400,
            "invalid_header",
        ),
        (get("/healthz", "Host: other\r\n"), 400, "invalid_header"),
        (
            get("/v1/tools", &format!("{bearer}{bearer}")),
            401,
            "unauthenticated",
        ),
        (
            get(
                "/v1/tools",
                &format!("{bearer}X-API-Key: {}\r\n", stack.api_key),
            ),
            401,
            "unauthenticated",
        ),
        (get("/v1/tools", ""), 401, "unauthenticated"),
        (
            get("/v1/tools", "Authorization: \u{e9}\r\n"),
            401,
            "unauthenticated",
        ),
        (get("/v1/tools", &bearer), 200, ""),
        // Where a request goes.
        (get("http://elsewhere.example/healthz", ""), 200, ""),
        (get("//healthz", ""), 404, "route_not_found"),
        (
            get("//elsewhere.example/healthz", ""),
            404,
            "route_not_found",
        ),
        (get("/v1/../healthz", ""), 404, "route_not_found"),
        (get("/v1/%2e%2e/healthz", ""), 404, "route_not_found"),
        (get("/v1//tools", &bearer), 404, "route_not_found"),
        (get("/%76%31/tools", &bearer), 404, "route_not_found"),
        (
            get("/v1/runs/..%2F..%2Fetc%2Fpasswd", &bearer),
            404,
            "not_found",
        ),
        (get("/v1/runs/%00", &bearer), 404, "not_found"),
        (get("/v1/runs/%ff%fe", &bearer), 404, "not_found"),
        (get("/v1/runs/%", &bearer), 404, "not_found"),
        (get("/v1/runs/%zz", &bearer), 404, "not_found"),
        (
            get("/docs/assets/..%2F..%2F..%2Fetc%2Fpasswd", ""),
            404,
            "not_found",
        ),
        (get("/docs/assets/%00", ""), 404, "not_found"),
        (
            get("/v1/runs?cursor=%00&limit=1", &bearer),
            422,
            "invalid_request",
        ),
        (get("/v1/runs?status=%ff", &bearer), 422, "invalid_request"),
        (get("/\0", ""), 400, "malformed_request"),
        (get("/a b", ""), 400, "malformed_request"),
        (get("healthz", ""), 404, "route_not_found"),
        // Methods.
        (line("TRACE /healthz HTTP/1.1"), 405, "method_not_allowed"),
        (line("BREW /v1/tools HTTP/1.1"), 405, "method_not_allowed"),
        (line("get /healthz HTTP/1.1"), 405, "method_not_allowed"),
        (
            line("PATCH /v1/sessions HTTP/1.1"),
            405,
            "method_not_allowed",
        ),
        (line("CONNECT api:443 HTTP/1.1"), 404, "route_not_found"),
        (line("OPTIONS * HTTP/1.1"), 404, "route_not_found"),
        (line("OPTIONS /healthz HTTP/1.1"), 204, ""),
        (line("PRI * HTTP/1.1"), 404, "route_not_found"),
        // What is no HTTP/1.1.
        (
            "GET / HTTP/3.0\r\nHost: api\r\n\r\n".to_owned(),
            400,
            "malformed_request",
        ),
        ("GET /healthz\r\n\r\n".to_owned(), 400, "malformed_request"),
        (
            "\u{16}\u{3}\u{1}\u{2}\0\u{1}\r\n\r\n".to_owned(),
            400,
            "malformed_request",
        ),
        (get("/", "A\u{1}: 1\r\n"), 400, "malformed_request"),
        (get("/", "A : 1\r\n"), 400, "malformed_request"),
        (get("/", "A: 1\r\n folded\r\n"), 400, "malformed_request"),
        (get("/", "A: \0\r\n"), 400, "malformed_request"),
        (get("/", "no colon\r\n"), 400, "malformed_request"),
    ] {
        let reply = ask(stack, &request).await;
        assert_eq!(reply.status, status, "{request:?}: {reply:?}");
        reply.assert_guarded();
        match status {
            200 | 201 => {}
            204 => assert_eq!(reply.header("allow"), Some("GET,HEAD"), "{request:?}"),
            405 => {
                assert_eq!(reply.code(), code, "{request:?}");
                assert!(
                    reply.header("allow").unwrap().contains("GET"),
                    "{request:?}"
                );
            }
            _ => assert_eq!(reply.code(), code, "{request:?}"),
        }
        assert!(!String::from_utf8_lossy(&reply.body).contains(&stack.api_key));
    }
}

#[tokio::test]
async fn what_follows_an_ambiguous_request_is_never_read() {
    let stack = tight().await;
    let smuggled = "POST /v1/sessions HTTP/1.1\r\nHost: api\r\n\r\n";
    // A length and chunks: the chunks count, and the connection ends with the answer.
    for headers in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        let mut both = connect(stack).await;
        let body = format!("2\r\n{{}}\r\n0\r\n\r\n{smuggled}");
        let reply = both.ask(post(stack, "/v1/sessions", headers, &body)).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        both.closed().await;
    }
    let mut malformed = connect(stack).await;
    let two = format!("GET / HTTP/1.1\r\nHost: api\r\nBad Name: 1\r\n\r\n{HEALTH}");
    assert_eq!(malformed.ask(two).await.code(), "malformed_request");
    malformed.closed().await;
}

#[tokio::test]
async fn requests_in_a_row_old_ones_and_those_without_a_body() {
    let stack = tight().await;
    // Pipelined: answered one by one, in order, and a malformed one after them too.
    let mut row = connect(stack).await;
    let nowhere = get("/nowhere", "");
    row.send(format!("{HEALTH}{nowhere}{HEALTH}nonsense\r\n\r\n"))
        .await;
    for status in [200, 404, 200, 400] {
        let reply = row.reply().await.unwrap();
        assert_eq!(reply.status, status);
        reply.assert_guarded();
    }
    row.closed().await;

    // HTTP/1.0 needs no Host, and its connection ends with the answer.
    let mut old = connect(stack).await;
    assert_eq!(old.ask("GET /healthz HTTP/1.0\r\n\r\n").await.status, 200);
    old.closed().await;

    for path in ["/healthz", "/docs", "/nowhere", "/v1/tools"] {
        let whole = ask(stack, get(path, "")).await;
        let mut client = connect(stack).await;
        client.send(get(path, "").replacen("GET", "HEAD", 1)).await;
        let head = client.reply_to(false).await.unwrap();
        assert_eq!(head.status, whole.status, "{path}");
        assert_eq!(
            head.header("content-length"),
            whole.header("content-length"),
            "{path}"
        );
        // No byte of a body stands before the next answer.
        assert_eq!(client.ask(HEALTH).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn pages_have_a_policy_and_answers_are_not_stored() {
    let stack = shared().await;
    for (path, cached) in [
        ("/docs", "no-cache"),
        ("/docs/errors/rate_limited", "no-cache"),
        ("/docs/assets/reference.js", "no-cache"),
        ("/openapi.json", "no-cache"),
        ("/healthz", "no-store"),
        ("/metrics", "no-store"),
        ("/v1/tools", "no-store"),
        ("/nowhere", "no-store"),
    ] {
        let reply = ask(stack, get(path, "")).await;
        reply.assert_guarded();
        assert_eq!(reply.header("cache-control"), Some(cached), "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'"), "{path}: {policy}");
        assert!(
            policy.contains("frame-ancestors 'none'"),
            "{path}: {policy}"
        );
        // A browser on another origin is told nothing.
        let foreign = ask(stack, get(path, "Origin: https://evil.example\r\n")).await;
        assert_eq!(
            foreign.header("access-control-allow-origin"),
            None,
            "{path}"
        );
    }
}

#[tokio::test]
async fn only_listed_origins_may_call_from_a_browser() {
    let settings = [(
        "AGENTHUB_CORS_ORIGINS",
        "https://console.example,http://127.0.0.1:3000",
    )];
    let mut stack = Stack::bare(&settings).await;
    stack.spawn_all(&["api"]).await;
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /v1/runs HTTP/1.1\r\nHost: api\r\nOrigin: {origin}\r\n\
             Access-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: authorization,content-type\r\n\r\n"
        )
    };
    for (origin, allowed) in [
        ("https://console.example", true),
        ("http://127.0.0.1:3000", true),
        ("https://console.example.evil.example", false),
        ("https://evil-console.example", false),
        ("http://console.example", false),
        ("https://console.example:444", false),
        ("null", false),
    ] {
        let expected = allowed.then_some(origin);
        let reply = ask(&stack, preflight(origin)).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("access-control-allow-origin"), expected);
        assert_eq!(reply.header("access-control-allow-credentials"), None);
        reply.assert_guarded();
        // The answer itself, an error's as well.
        for path in ["/v1/tools", "/nowhere"] {
            let reply = ask(&stack, get(path, &format!("Origin: {origin}\r\n"))).await;
            assert_eq!(reply.header("access-control-allow-origin"), expected);
            assert!(
                reply.header("vary").unwrap().contains("origin"),
                "{reply:?}"
            );
            let exposed = reply
                .header("access-control-expose-headers")
                .unwrap_or_default();
            assert!(exposed.contains("x-trace-id"), "{reply:?}");
        }
    }
    let reply = ask(&stack, preflight("https://console.example")).await;
    let methods = reply.header("access-control-allow-methods").unwrap();
    assert!(
        methods.contains("POST") && !methods.contains('*'),
        "{methods}"
    );
    let headers = reply.header("access-control-allow-headers").unwrap();
    assert!(
        headers.contains("authorization") && !headers.contains('*'),
        "{headers}"
    );
}

#[tokio::test]
async fn connections_beyond_the_most_are_told_so() {
    let mut stack = Stack::bare(&[("AGENTHUB_MAX_CONNECTIONS", "4")]).await;
    stack.spawn_all(&["api"]).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        // A probe's connection may only just be ending.
        let kept = eventually("a place is free", async || {
            let mut connection = connect(&stack).await;
            let reply = connection.ask(HEALTH).await;
            (reply.status == 200).then_some(connection)
        })
        .await;
        open.push(kept);
    }
    let refused = connect(&stack).await.reply().await.unwrap();
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (503, "overloaded")
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.assert_guarded();
    // Those that are there go on, and a place that is given back is taken again.
    for connection in &mut open {
        assert_eq!(connection.ask(HEALTH).await.status, 200);
    }
    drop(open.pop());
    eventually("the place is free again", async || {
        let mut connection = connect(&stack).await;
        connection.try_send(HEALTH).await.ok()?;
        (connection.reply().await?.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn failed_authentication_is_limited_by_the_clients_address() {
    let settings = [
        ("AGENTHUB_UNAUTHENTICATED_LIMIT", "3/600000"),
        ("AGENTHUB_TRUSTED_PROXIES", "127.0.0.0/8"),
        ("AGENTHUB_KEY_LIMITS", "100/600000"),
        ("AGENTHUB_TENANT_LIMITS", "100/600000"),
    ];
    let mut stack = Stack::bare(&settings).await;
    stack.spawn_all(&["api"]).await;
    let from = |client: &str, headers: &str| {
        get(
            "/v1/tools",
            &format!("X-Forwarded-For: {client}\r\n{headers}"),
        )
    };
    let wrong = "Authorization: Bearer wrong\r\n";
    let right = format!("Authorization: Bearer {}\r\n", stack.api_key);
    for headers in [wrong, "", wrong] {
        let reply = ask(&stack, from("192.0.2.1", headers)).await;
        assert_eq!(reply.code(), "unauthenticated");
    }
    for headers in [wrong, ""] {
        let reply = ask(&stack, from("192.0.2.1", headers)).await;
        assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"));
        let problem = reply.json();
        assert_eq!(
            problem["details"]["rule"], "unauthenticated_address",
            "{problem}"
        );
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        let exact = problem["details"]["retry_after_ms"].as_u64().unwrap();
        assert!(wait * 1000 >= exact && wait <= 200, "{problem}");
        assert_eq!(reply.header("ratelimit"), None);
    }
    // What the client itself writes into the header changes nothing.
    let reply = ask(&stack, from("198.51.100.7, 192.0.2.1", wrong)).await;
    assert_eq!(reply.status, 429);
    // Neither a valid key behind the same address nor another address pays for it, nor do probes.
    let reply = ask(&stack, from("192.0.2.1", &right)).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(ask(&stack, from("192.0.2.2", wrong)).await.status, 401);
    for path in ["/healthz", "/readyz", "/metrics"] {
        let probe = get(path, &format!("X-Forwarded-For: 192.0.2.1\r\n{wrong}"));
        assert_eq!(ask(&stack, probe).await.status, 200, "{path}");
    }
    // An IPv6 client is its /64.
    for (host, status) in [(1, 401), (2, 401), (3, 401), (4, 429)] {
        let reply = ask(&stack, from(&format!("2001:db8:0:1::{host}"), wrong)).await;
        assert_eq!(reply.status, status);
    }
    // The requests with the valid key are all that its quota and its tenant's are charged with.
    let reply = ask(&stack, from("192.0.2.1", &right)).await;
    let state = reply.header("ratelimit").unwrap();
    assert_eq!(state.matches(";r=98;").count(), 2, "{state}");
}
