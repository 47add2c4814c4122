use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap as Headers, StatusCode, header};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::resolver::Script;
use super::*;
use crate::net::{AllowList, Class};

const MAX: usize = 1024;

fn limits() -> Limits {
    Limits {
        total: Duration::from_secs(20),
        max_bytes: MAX,
        content_types: &["text/*", "application/json", "application/*+json"],
    }
}

fn client(allow: &[&str]) -> SafeClient {
    SafeClient::new(Policy::new(AllowList::parse(allow).unwrap()), limits()).unwrap()
}

/// A client whose names resolve to what the script says, one answer a look-up.
fn scripted(allow: &[&str], answers: &[(&str, &[&[&str]])]) -> (SafeClient, Arc<Script>) {
    let script = Arc::new(Script::default());
    for (name, sequence) in answers {
        let sequence = sequence
            .iter()
            .map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect())
            .collect::<Vec<Vec<IpAddr>>>();
        script
            .answers
            .lock()
            .unwrap()
            .insert((*name).to_owned(), sequence);
    }
    let policy = Policy::new(AllowList::parse(allow).unwrap());
    let lookup = Lookup::Scripted(script.clone());
    (
        SafeClient::with_lookup(policy, limits(), &lookup).unwrap(),
        script,
    )
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A server that reads one request head on each connection, answers with these bytes, and closes.
async fn serve_raw(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // The client may hang up before it has read everything.
            let _ = stream.write_all(&answer).await;
        }
    });
    address
}

fn blocked(result: Result<Fetched, FetchError>) -> BlockReason {
    match result {
        Err(error @ FetchError::Blocked(_)) if error.class() != Class::Refused => {
            panic!("{error:?}")
        }
        Err(FetchError::Blocked(block)) => block.reason,
        other => panic!("not blocked: {other:?}"),
    }
}

#[tokio::test]
async fn loopback_is_refused_unless_it_is_listed() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = hits.clone();
    let handler = move || async move {
        counter.fetch_add(1, Ordering::SeqCst);
        "hello"
    };
    let at = serve(Router::new().route("/", get(handler))).await;
    let url = format!("http://{at}/");
    let port = at.port();

    assert_eq!(
        blocked(client(&[]).get(&url).await),
        BlockReason::AddressNotGlobal
    );
    let other_port = format!("127.0.0.1:{}", port.wrapping_add(1).max(1));
    blocked(client(&[&other_port]).get(&url).await);
    assert_eq!(
        blocked(client(&[]).get(&format!("http://localhost:{port}/")).await),
        BlockReason::LocalName
    );
    assert_eq!(hits.load(Ordering::SeqCst), 0);

    for allow in ["127.0.0.1".to_owned(), at.to_string()] {
        let fetched = client(&[&allow]).get(&url).await.unwrap();
        assert_eq!(fetched.body, "hello");
        assert_eq!((fetched.status, fetched.truncated), (200, false));
        assert_eq!(fetched.content_type, "text/plain");
    }
    assert_eq!(hits.load(Ordering::SeqCst), 2);
    // The resolver of the operating system, too.
    let url = format!("http://localhost:{port}/");
    let by_name = client(&["localhost"]).get(&url).await;
    assert_eq!(by_name.unwrap().body, "hello");
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_its_answer_is_what_is_connected_to() {
    let at = serve(Router::new().route("/", get(|| async { "pinned" }))).await;
    let name = "rebind.example";
    let url = format!("http://{name}:{}/", at.port());
    // The second answer would not connect anywhere near the server.
    let (client, script) = scripted(&[name], &[(name, &[&["127.0.0.1"], &["192.0.2.1"]])]);
    assert_eq!(client.get(&url).await.unwrap().body, "pinned");
    assert_eq!(*script.asked.lock().unwrap(), [name]);
}

#[tokio::test]
async fn the_resolver_refuses_a_name_with_one_bad_address() {
    let name = "a.example";
    for answers in [
        &["127.0.0.1"][..],
        &["8.8.8.8", "127.0.0.1"],
        &["::ffff:10.0.0.1", "8.8.8.8"],
    ] {
        let (client, script) = scripted(&[], &[(name, &[answers])]);
        let reason = blocked(client.get("http://a.example/").await);
        assert_eq!(reason, BlockReason::AddressNotGlobal);
        assert_eq!(script.asked.lock().unwrap().len(), 1);
    }
    let (client, _) = scripted(&[name], &[(name, &[&["127.0.0.1", "169.254.169.254"]])]);
    let reason = blocked(client.get("http://a.example/").await);
    assert_eq!(reason, BlockReason::MetadataEndpoint);
}

#[tokio::test]
async fn a_name_without_addresses_is_unresolved() {
    let (client, _) = scripted(&[], &[("empty.example", &[&[]])]);
    for url in ["http://empty.example/", "http://unknown.example/"] {
        let error = client.get(url).await.unwrap_err();
        assert_eq!(error, FetchError::Unresolved, "{url}");
        assert_eq!(error.class(), Class::Transient);
    }
}

#[tokio::test]
async fn an_exception_for_one_port_is_no_exception_for_another() {
    let at = serve(Router::new().route("/", get(|| async { "private" }))).await;
    let name = "a.example";
    let listed = format!("{name}:{}", at.port());
    let (client, _) = scripted(&[&listed], &[(name, &[&["127.0.0.1"], &["127.0.0.1"]])]);
    assert!(client.get(&format!("http://{listed}/")).await.is_ok());
    let reason = blocked(client.get("http://a.example/").await);
    assert_eq!(reason, BlockReason::AddressNotGlobal);
}

#[tokio::test]
async fn every_hop_of_a_redirect_is_checked() {
    for (location, reason) in [
        (
            "http://169.254.169.254/latest/meta-data/",
            BlockReason::MetadataEndpoint,
        ),
        ("http://127.0.0.2/", BlockReason::AddressNotGlobal),
        ("//localhost/", BlockReason::LocalName),
        ("file:///etc/passwd", BlockReason::SchemeNotAllowed),
        ("http://b.example/", BlockReason::AddressNotGlobal),
    ] {
        let to = move || async move { Redirect::temporary(location) };
        let at = serve(Router::new().route("/", get(to))).await;
        let (client, script) = scripted(&["127.0.0.1"], &[("b.example", &[&["10.0.0.1"]])]);
        assert_eq!(
            blocked(client.get(&format!("http://{at}/")).await),
            reason,
            "{location}"
        );
        let looked_up = location.contains("b.example");
        assert_eq!(script.asked.lock().unwrap().len(), usize::from(looked_up));
    }
}

#[tokio::test]
async fn a_host_that_rebinds_between_hops_is_refused() {
    let at = serve(Router::new().route("/", get(|| async { Redirect::to("/again") }))).await;
    let name = "rebind.example";
    let answers: &[&[&str]] = &[&["127.0.0.1"], &["169.254.169.254"]];
    let (client, script) = scripted(&[name], &[(name, answers)]);
    let reason = blocked(client.get(&format!("http://{name}:{}/", at.port())).await);
    assert_eq!(reason, BlockReason::MetadataEndpoint);
    assert_eq!(*script.asked.lock().unwrap(), [name, name]);
}

#[tokio::test]
async fn redirects_are_followed_to_a_limit() {
    let router = Router::new()
        .route("/loop", get(|| async { Redirect::to("/loop") }))
        .route("/a", get(|| async { Redirect::permanent("b?x=1") }))
        .route("/b", get(|| async { "end" }))
        .route("/nowhere", get(|| async { StatusCode::FOUND }));
    let at = serve(router).await;
    let client = client(&["127.0.0.1"]);
    let reason = blocked(client.get(&format!("http://{at}/loop")).await);
    assert_eq!(reason, BlockReason::TooManyRedirects);
    let fetched = client.get(&format!("http://{at}/a#f")).await.unwrap();
    assert_eq!(fetched.url.as_str(), format!("http://{at}/b?x=1"));
    let error = client
        .get(&format!("http://{at}/nowhere"))
        .await
        .unwrap_err();
    assert_eq!(error, FetchError::NoLocation);
}

#[tokio::test]
async fn a_body_is_read_up_to_the_limit() {
    let router = Router::new()
        .route("/exact", get(|| async { "x".repeat(MAX) }))
        .route("/more", get(|| async { "x".repeat(MAX + 1) }))
        .route(
            "/endless",
            get(|| async {
                let piece = || Ok::<_, std::io::Error>(bytes::Bytes::from(vec![b'x'; 700]));
                let stream = futures_util::stream::repeat_with(piece);
                (
                    [(header::CONTENT_TYPE, "text/plain")],
                    Body::from_stream(stream),
                )
            }),
        );
    let at = serve(router).await;
    let client = client(&["127.0.0.1"]);
    for (path, truncated) in [("exact", false), ("more", true), ("endless", true)] {
        let fetched = client.get(&format!("http://{at}/{path}")).await.unwrap();
        assert_eq!(
            (fetched.body.len(), fetched.truncated),
            (MAX, truncated),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_body_that_never_ends_meets_the_time_limit() {
    let never = || async {
        let stream = futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        (
            [(header::CONTENT_TYPE, "text/plain")],
            Body::from_stream(stream),
        )
    };
    let at = serve(Router::new().route("/", get(never))).await;
    let mut client = client(&["127.0.0.1"]);
    client.limits.total = Duration::from_millis(200);
    let error = client.get(&format!("http://{at}/")).await.unwrap_err();
    assert_eq!(
        (&error, error.class()),
        (&FetchError::Timeout, Class::Transient)
    );
}

#[tokio::test]
async fn only_accepted_content_is_read() {
    let typed = |content_type: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, content_type)], "{}") })
    };
    let router = Router::new()
        .route("/image", typed("image/png"))
        .route("/binary", typed("application/octet-stream"))
        .route("/none", get(|| async { Body::from("x").into_response() }))
        .route("/json", typed("Application/JSON; charset=utf-8"))
        .route("/problem", typed("application/problem+json"));
    let at = serve(router).await;
    let client = client(&["127.0.0.1"]);
    for path in ["image", "binary", "none"] {
        let error = client
            .get(&format!("http://{at}/{path}"))
            .await
            .unwrap_err();
        assert_eq!(
            (&error, error.class()),
            (&FetchError::ContentType, Class::Permanent),
            "{path}"
        );
    }
    for (path, essence) in [
        ("json", "application/json"),
        ("problem", "application/problem+json"),
    ] {
        let fetched = client.get(&format!("http://{at}/{path}")).await.unwrap();
        assert_eq!(fetched.content_type, essence);
    }
}

#[tokio::test]
async fn compressed_content_is_neither_asked_for_nor_expanded() {
    // gzip of ten bytes; its first bytes would do as well, since none is looked at.
    let bomb = |encoding: &'static str| {
        get(move |headers: Headers| async move {
            assert_eq!(headers[header::ACCEPT_ENCODING], "identity");
            let headers = [
                (header::CONTENT_ENCODING, encoding),
                (header::CONTENT_TYPE, "text/html"),
            ];
            (headers, [0x1f_u8, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].as_slice())
        })
    };
    let router = Router::new()
        .route("/gzip", bomb("gzip"))
        .route("/br", bomb("br"))
        .route("/identity", bomb("identity"));
    let at = serve(router).await;
    let client = client(&["127.0.0.1"]);
    for path in ["gzip", "br"] {
        let error = client
            .get(&format!("http://{at}/{path}"))
            .await
            .unwrap_err();
        assert_eq!(
            (&error, error.class()),
            (&FetchError::ContentEncoding, Class::Permanent)
        );
    }
    let fetched = client.get(&format!("http://{at}/identity")).await.unwrap();
    assert_eq!(fetched.body.len(), 10);
}

#[tokio::test]
async fn statuses_keep_their_retry_after() {
    let answer = |status: StatusCode, wait: Option<&'static str>| {
        get(move || async move {
            let mut headers = Headers::new();
            if let Some(wait) = wait {
                headers.insert(header::RETRY_AFTER, wait.parse().unwrap());
            }
            (status, headers, "no")
        })
    };
    let router = Router::new()
        .route("/404", answer(StatusCode::NOT_FOUND, None))
        .route("/429", answer(StatusCode::TOO_MANY_REQUESTS, Some("7")))
        .route(
            "/503",
            answer(StatusCode::SERVICE_UNAVAILABLE, Some("tomorrow")),
        );
    let at = serve(router).await;
    let client = client(&["127.0.0.1"]);
    for (status, class, wait) in [
        (404, Class::Permanent, None),
        (429, Class::Transient, Some(Duration::from_secs(7))),
        (503, Class::Transient, None),
    ] {
        let error = client
            .get(&format!("http://{at}/{status}"))
            .await
            .unwrap_err();
        assert_eq!(error.code(), "http_status");
        assert_eq!(
            (error.class(), error.retry_after()),
            (class, wait),
            "{status}"
        );
    }
}

#[tokio::test]
async fn answers_that_lie_or_swell_are_errors() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
    let cases = [
        // Says more than it sends.
        (
            format!("{head}Content-Length: 100\r\n\r\nshort"),
            FetchError::Interrupted,
        ),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
            FetchError::Interrupted,
        ),
        (
            "not HTTP at all\r\n\r\n".to_owned(),
            FetchError::Interrupted,
        ),
        (
            format!("{head}X-Big: {}\r\n\r\n", "x".repeat(100_000)),
            FetchError::HeadersTooLarge,
        ),
        (
            format!("{head}{}\r\n", "X: y\r\n".repeat(200)),
            FetchError::Interrupted,
        ),
    ];
    for (answer, expected) in cases {
        let at = serve_raw(answer.into_bytes()).await;
        let error = client(&["127.0.0.1"])
            .get(&format!("http://{at}/"))
            .await
            .unwrap_err();
        assert_eq!(error, expected);
    }
    // Says less than it sends: what was said is what is read.
    let at = serve_raw(format!("{head}Content-Length: 5\r\n\r\nshort and more").into_bytes()).await;
    let fetched = client(&["127.0.0.1"])
        .get(&format!("http://{at}/"))
        .await
        .unwrap();
    assert_eq!(fetched.body, "short");
}

#[tokio::test]
async fn a_closed_port_is_a_transient_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    drop(listener);
    let error = client(&["127.0.0.1"])
        .get(&format!("http://{at}/"))
        .await
        .unwrap_err();
    assert_eq!(
        (&error, error.class()),
        (&FetchError::Connect, Class::Transient)
    );
}

#[test]
fn patterns_match_whole_content_types() {
    let patterns = limits().content_types;
    for (essence, accepted) in [
        ("text/html", true),
        ("text/", false),
        ("application/json", true),
        ("application/json5", false),
        ("application/ld+json", true),
        ("application/+json", false),
        ("xtext/html", false),
        ("", false),
    ] {
        assert_eq!(accepts(patterns, essence), accepted, "{essence}");
    }
    assert_eq!(accept_header(patterns), "text/*, application/json");
}
