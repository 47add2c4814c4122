//! TLS of the API, and what its errors tell.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::{Certificate, Client, Method, StatusCode, tls};
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::raw::Raw;
use crate::support::stack::{Stack, body};

/// A folder with a certificate for `localhost` and its key.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces both files by fresh ones; the certificate.
    fn renew(&self) -> Certificate {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.path("key.pem"), signing_key.serialize_pem()).unwrap();
        fs::write(self.path("cert.pem"), cert.pem()).unwrap();
        Certificate::from_pem(cert.pem().as_bytes()).unwrap()
    }

    async fn api(&self) -> Stack {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        let settings = [
            ("AGENTHUB_TLS_CERT", cert.to_str().unwrap()),
            ("AGENTHUB_TLS_KEY", key.to_str().unwrap()),
            ("AGENTHUB_HEAD_TIMEOUT_MS", "1500"),
        ];
        let mut stack = Stack::bare(&settings).await;
        stack.begin("api");
        stack.until_listening("api").await;
        stack
    }
}

/// A client that trusts one certificate and keeps no connection.
fn trusting(certificate: &Certificate) -> reqwest::ClientBuilder {
    Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .tls_certs_only([certificate.clone()])
}

fn health(stack: &Stack) -> String {
    let port = stack.processes["api"].addr.rsplit(':').next().unwrap();
    format!("https://localhost:{port}/healthz")
}

async fn is_served(client: &Client, stack: &Stack) -> bool {
    let answer = client.get(health(stack)).send().await;
    answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

#[tokio::test]
async fn tls_is_spoken_from_1_2_on_and_nothing_else() {
    let files = Files::new();
    let certificate = files.renew();
    let mut stack = files.api().await;
    let client = trusting(&certificate).build().unwrap();
    eventually("the API answers", async || {
        is_served(&client, &stack).await.then_some(())
    })
    .await;
    for version in [tls::Version::TLS_1_2, tls::Version::TLS_1_3] {
        let client = trusting(&certificate)
            .tls_version_min(version)
            .tls_version_max(version);
        assert!(
            is_served(&client.build().unwrap(), &stack).await,
            "{version:?}"
        );
    }
    let answer = client.get(health(&stack)).send().await.unwrap();
    assert_eq!(
        answer.headers()["strict-transport-security"],
        "max-age=31536000"
    );
    // Whoever does not know the certificate does not connect.
    let stranger = Client::builder().no_proxy().build().unwrap();
    assert!(!is_served(&stranger, &stack).await);

    let addr = stack.processes["api"].addr.clone();
    // Older versions are not offered: TLS 1.1 by OpenSSL is answered with an alert.
    let port = addr.rsplit(':').next().unwrap().to_owned();
    let old = tokio::task::spawn_blocking(move || {
        let connect = format!("127.0.0.1:{port}");
        let args = [
            "s_client",
            "-tls1_1",
            "-cipher",
            "ALL:@SECLEVEL=0",
            "-connect",
            &connect,
        ];
        Command::new("openssl").args(args).output()
    });
    let old = old.await.unwrap().unwrap();
    assert!(!old.status.success(), "{old:?}");
    assert!(
        String::from_utf8_lossy(&old.stderr).contains("SSL alert number"),
        "{old:?}"
    );
    // Plain HTTP gets nothing, and a greeting that does not come is waited for only so long.
    let mut plain = Raw::connect(&addr).await;
    plain
        .send("GET /healthz HTTP/1.1\r\nHost: api\r\n\r\n")
        .await;
    plain.until_cut_off(" ").await;
    let mut silent = Raw::connect(&addr).await;
    silent.closed().await;
    assert!(is_served(&client, &stack).await);
    stack.processes["api"].tell_to_stop();
    assert!(stack.processes.get_mut("api").unwrap().stopped().await);
}

#[tokio::test]
async fn a_certificate_is_replaced_while_connections_go_on() {
    let files = Files::new();
    let first = files.renew();
    let stack = files.api().await;
    let old = trusting(&first).build().unwrap();
    eventually("the API answers", async || {
        is_served(&old, &stack).await.then_some(())
    })
    .await;
    let kept = trusting(&first).pool_max_idle_per_host(1).build().unwrap();
    assert!(is_served(&kept, &stack).await);

    // What cannot be used is not taken.
    for (name, text) in [("cert.pem", "nonsense"), ("key.pem", "")] {
        let good = fs::read(files.path(name)).unwrap();
        fs::write(files.path(name), text).unwrap();
        eventually("the file is refused", async || {
            let log = stack.processes["api"].log();
            log.contains("the certificate in force stays").then_some(())
        })
        .await;
        assert!(is_served(&old, &stack).await, "{name}");
        fs::write(files.path(name), good).unwrap();
    }

    let second = files.renew();
    let new = trusting(&second).build().unwrap();
    eventually("the new certificate is in force", async || {
        is_served(&new, &stack).await.then_some(())
    })
    .await;
    assert!(!is_served(&old, &stack).await);
    assert!(
        is_served(&kept, &stack).await,
        "the connection was made before"
    );

    // At once, when told; and the process lives on.
    let third = files.renew();
    stack.processes["api"].signal("HUP");
    let newest = trusting(&third).build().unwrap();
    eventually("the newest certificate is in force", async || {
        is_served(&newest, &stack).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start() {
    let files = Files::new();
    files.renew();
    let other = Files::new();
    other.renew();
    fs::copy(other.path("key.pem"), files.path("key.pem")).unwrap();
    let settings = |cert: &str, key: &str| {
        let path = |name| files.path(name).to_str().unwrap().to_owned();
        [
            ("AGENTHUB_TLS_CERT", path(cert)),
            ("AGENTHUB_TLS_KEY", path(key)),
        ]
    };
    for (cert, key, named) in [
        (
            "cert.pem",
            "key.pem",
            "AGENTHUB_TLS_CERT and AGENTHUB_TLS_KEY",
        ),
        ("nowhere.pem", "key.pem", "AGENTHUB_TLS_CERT"),
        ("cert.pem", "cert.pem", "AGENTHUB_TLS_KEY"),
    ] {
        let [cert, key] = settings(cert, key);
        let both = [(cert.0, cert.1.as_str()), (key.0, key.1.as_str())];
        let mut stack = Stack::bare(&both).await;
        stack.begin("api");
        let api = stack.processes.get_mut("api").unwrap();
        assert!(!api.stopped().await);
        assert!(api.log().contains(named), "{}", api.log());
    }
}

/// Texts that would tell how the service is made, or what is in its way.
const TELLING: &[&str] = &[
    "panicked",
    "backtrace",
    "src/",
    ".rs:",
    "/root",
    "/work",
    "/tmp",
    "127.0.0.1",
    "localhost",
    "os error",
    "refused",
    "rdkafka",
    "librdkafka",
    "redis::",
    "RedisError",
    "ECONN",
    "BrokerTransport",
    "tokio",
    "hyper",
    "serde",
    "at line 0",
    "redis://",
    "Connection",
];

#[tokio::test]
async fn errors_tell_nothing_of_what_is_behind_the_service() {
    let mut stack = Stack::bare(&[]).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = nobody.local_addr().unwrap();
    drop(nobody);
    stack.set("KAFKA_BROKERS", &closed.to_string());
    stack.set(
        "REDIS_URL",
        &format!("redis://user:hidden-password@{closed}/"),
    );
    stack.begin("api");
    stack.until_listening("api").await;
    let (session, run) = (
        "ses_0190a1b2c3d4e5f60718293a4b5c6d7e",
        "run_0190a1b2c3d4e5f60718293a4b5c6d7e",
    );
    let paths = |method: &str, all: &[&str]| -> Vec<(Method, String)> {
        let method: Method = method.parse().unwrap();
        let filled = all
            .iter()
            .map(|path| path.replace("{s}", session).replace("{r}", run));
        filled.map(|path| (method.clone(), path)).collect()
    };
    let requests = [
        paths(
            "GET",
            &[
                "/v1/sessions",
                "/v1/sessions/{s}",
                "/v1/runs",
                "/v1/runs/{r}",
                "/v1/tools",
                "/v1/stream?run_id={r}",
                "/v1/stream?session_id={s}",
                "/v1/admin/api-keys",
                "/v1/admin/api-keys/0123456789abcdef",
                "/readyz",
                "/nowhere",
                "/v1/runs?limit=x",
                "/docs/errors/../../Cargo.toml",
            ],
        ),
        paths("DELETE", &["/v1/sessions/{s}"]),
        paths(
            "POST",
            &[
                "/v1/sessions",
                "/v1/runs",
                "/v1/plan",
                "/v1/execute",
                "/v1/runs/{r}/cancel",
                "/v1/admin/api-keys",
                "/v1/admin/api-keys/0123456789abcdef/rotate",
                "/v1/admin/api-keys/0123456789abcdef/revoke",
            ],
        ),
        paths("PUT", &["/v1/runs"]),
    ];
    let bodies = [
        "{}",
        "{",
        "[1]",
        r#"{"session_id":7}"#,
        r#"{"name":"n","role":"root"}"#,
    ];
    let mut statuses = std::collections::BTreeSet::new();
    for (method, path) in requests.into_iter().flatten() {
        for text in bodies {
            let mut request = stack.http.request(method.clone(), stack.url(&path));
            request = request.bearer_auth(&stack.admin_key);
            if method == Method::POST {
                request = request
                    .header("content-type", "application/json")
                    .body(text);
            }
            let answer = request.send().await.unwrap();
            let headers = format!("{:?}", answer.headers());
            let (status, problem) = body(answer).await;
            statuses.insert(status.as_u16());
            assert_ne!(
                status,
                StatusCode::INTERNAL_SERVER_ERROR,
                "{path}: {problem}"
            );
            let told = format!("{headers}{problem}");
            for text in TELLING
                .iter()
                .chain(&["hidden-password", stack.admin_key.as_str()])
            {
                assert!(!told.contains(text), "{method} {path} tells {text}: {told}");
            }
            if method != Method::POST {
                break;
            }
        }
    }
    for status in [400, 404, 405, 422, 503] {
        assert!(statuses.contains(&status), "{statuses:?}");
    }
    // Without a key, and what is no HTTP.
    let mut raw = Raw::connect(&stack.processes["api"].addr).await;
    let malformed = raw.ask("GET / HTTP/9.9\r\n\r\n").await;
    let keyless = stack.http.get(stack.url("/v1/runs")).send().await.unwrap();
    for told in [format!("{malformed:?}"), body(keyless).await.1.to_string()] {
        for text in TELLING {
            assert!(!told.contains(text), "{text}: {told}");
        }
    }
}
