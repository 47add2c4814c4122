//! The audit chain as its users meet it: the roll-up's process, the API, the command line, an S3 server,
//! and the libraries that read its files.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use agenthub::config::{Source, StorageSettings};
use agenthub::kafka::Producer;
use agenthub::messages::{Outgoing, Signer, Topic};
use agenthub::rollup::Head;
use agenthub::tools::retrieval::storage::Storage;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
use reqwest::Method;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use crate::rollup::{Fixture, GROUP, limits};
use crate::support::stack::{Stack, shared};
use crate::support::{SIGNING, eventually};

const HOUR: &str = "2026-02-03T04:00:00Z";

/// Runs `agenthub audit` with nothing in its environment but `env`.
async fn audit(env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agenthub"));
    command
        .arg("audit")
        .args(args)
        .env_clear()
        .envs(env.iter().copied());
    tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap()
}

/// Its exit code and what it printed.
async fn told(env: &[(&str, &str)], args: &[&str]) -> (i32, String) {
    let output = audit(env, args).await;
    let text = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

/// The Python with the tests' packages; without it the test that asks says that it is skipped.
fn python(test: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".agenthub/tools/python/bin/python");
    if python.exists() {
        return Some(python);
    }
    // Past the harness, which keeps what passing tests print to itself.
    let told = format!(
        "\nSKIPPED {test}: no Python tools; `infra/local/stack install tests` installs them\n"
    );
    std::io::stderr().write_all(told.as_bytes()).unwrap();
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_proves_reads_and_names_what_was_changed() {
    let mut fixture = Fixture::new().await;
    // Heads come to be records, which have heads in their turn.
    fixture.head_interval = Duration::from_millis(300);
    fixture.produce(0..200).await;
    let rollup = fixture.start(GROUP, limits(1_000, 20));
    let verified = eventually("a head is among the records", async || {
        let verified = fixture.verify().await.ok()?;
        // Three are those of Redis.
        (verified.heads > 3 && verified.rows > 200).then_some(verified)
    });
    verified.await;
    rollup.stop().await;
    let verified = fixture.verify().await.unwrap();

    let folder = fixture.folder.path().to_str().unwrap();
    let keys = fixture.folder.path().join("keys");
    std::fs::write(&keys, fixture.signer.public_text()).unwrap();
    let keys = keys.to_str().unwrap();
    let heads = fixture.redis.audit_heads().await.unwrap();
    let heads: Vec<Value> = heads
        .values()
        .map(|h| serde_json::from_str(h).unwrap())
        .collect();
    let head = fixture.folder.path().join("head.json");
    // As a person's tools lay it out.
    std::fs::write(
        &head,
        serde_json::to_string_pretty(&json!({ "data": heads })).unwrap(),
    )
    .unwrap();
    let head = head.to_str().unwrap();

    let (code, text) = told(
        &[],
        &["verify", folder, "--public-key", keys, "--head", head],
    )
    .await;
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains(&format!("verified: {} rows in ", verified.rows)),
        "{text}"
    );
    let key = fixture.signer.public_text();
    let env = [
        ("AGENTHUB_AUDIT_PUBLIC_KEYS", key.as_str()),
        ("AGENTHUB_STORAGE_URL", folder),
    ];
    let (code, text) = told(&env, &["verify", "--json"]).await;
    let proven: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &proven["proven"]["rows"]),
        (0, &json!(verified.rows))
    );

    // Reading: a tenant's records of an hour, each once and in order.
    let range = [
        "--tenant",
        "acme",
        "--from",
        HOUR,
        "--to",
        "2026-02-03T05:00:00Z",
    ];
    let (code, text) = told(&env, &[&["export"], &range[..]].concat()).await;
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // Every third is acme's, and of those every second is of the first hour.
    let expected: Vec<String> = (0..200).step_by(6).map(|n| n.to_string()).collect();
    let mut ids: Vec<&str> = records.iter().map(|r| r["id"].as_str().unwrap()).collect();
    ids.sort_by_key(|id| id.parse::<u32>().unwrap());
    assert_eq!(
        (code, ids),
        (0, expected.iter().map(String::as_str).collect())
    );
    assert_eq!(
        (&records[0]["ts"], &records[0]["status"]),
        (&json!(HOUR), &json!(202))
    );
    assert!(
        records
            .iter()
            .all(|r| r["tenant"] == "acme" && r["row_hash"].is_string())
    );
    let (_, csv) = told(
        &env,
        &[&["query", "--csv", "--limit", "3"], &range[..]].concat(),
    )
    .await;
    assert!(
        csv.starts_with("ts,id,action,tenant,") && csv.lines().count() == 4,
        "{csv}"
    );
    let (_, text) = told(&env, &[&["query"], &range[..]].concat()).await;
    assert_eq!(text.lines().count(), 1 + expected.len(), "{text}");
    let (_, text) = told(
        &env,
        &[&["query", "--totals", "--json"], &range[..]].concat(),
    )
    .await;
    let totals: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&totals["hour"], &totals["requests"]),
        (&json!(HOUR), &json!(expected.len()))
    );
    let nobody = [
        "export",
        "--unauthenticated",
        "--from",
        "2026-02-03",
        "--to",
        "2026-02-04",
    ];
    assert_eq!(told(&env, &nobody).await.1.lines().count(), 66);

    // One bit.
    let manifests = fixture.manifests().await;
    let path = &manifests[0].files[0].path;
    let place = fixture.folder.path().join(path);
    let good = std::fs::read(&place).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    std::fs::write(&place, &bad).unwrap();
    let (code, text) = told(&env, &["verify"]).await;
    assert_eq!(code, 1);
    assert!(
        text.starts_with(&format!("NOT VERIFIED: {path}: it was changed")),
        "{text}"
    );
    let (_, text) = told(&env, &["verify", "--json"]).await;
    let misfit: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(misfit["misfit"]["object"], json!(path));
    // Nor are its rows read.
    let (code, text) = told(
        &env,
        &[
            "export",
            "--tenant",
            "acme",
            "--from",
            "2026-02-03",
            "--to",
            "2026-02-04",
        ],
    )
    .await;
    let (nobody, other) = (
        told(&env, &nobody).await.0,
        told(
            &env,
            &[
                "export",
                "--tenant",
                "globex",
                "--from",
                "2026-02-03",
                "--to",
                "2026-02-04",
            ],
        )
        .await
        .0,
    );
    assert_eq!(code + nobody + other, 1, "{text}");
    std::fs::write(&place, &good).unwrap();

    // A tail is missed by whoever kept a head.
    let (partition, last) = (manifests[0].partition, &manifests);
    let last = last.iter().rfind(|m| m.partition == partition).unwrap();
    let name = format!(
        "audit/_manifests/{}/{partition}/{:020}.json",
        last.topic, last.start
    );
    std::fs::remove_file(fixture.folder.path().join(&name)).unwrap();
    let (code, text) = told(&env, &["verify", "--head", head]).await;
    assert_eq!(code, 1);
    assert!(
        text.starts_with(&format!("NOT VERIFIED: {name}: it is gone: a head of ")),
        "{text}"
    );
}

#[tokio::test]
async fn what_cannot_be_checked_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = told(&[], &["keygen", "--id", "k1"]).await;
    assert_eq!(code, 0, "{text}");
    let (_, key) = text.split_once("# public key: ").unwrap();
    let (key, path) = (key.trim(), folder.path().to_str().unwrap());
    let nowhere = folder.path().join("nowhere");
    for (args, expected) in [
        (vec!["verify", path, "--public-key", key], 1), // nothing there
        (
            vec!["verify", nowhere.to_str().unwrap(), "--public-key", key],
            2,
        ),
        (vec!["verify", path], 2),
        (vec!["verify", path, "--public-key", "k1:short"], 2),
        (
            vec![
                "verify",
                path,
                "--public-key",
                key,
                "--head",
                nowhere.to_str().unwrap(),
            ],
            2,
        ),
        (vec!["verify", path, "--frobnicate"], 2),
    ] {
        let (code, text) = told(&[], &args).await;
        assert_eq!(code, expected, "{args:?}: {text}");
    }
    assert!(!nowhere.exists(), "looking makes no folder");

    // Keys in files are for their owner, and stay.
    let (private, public) = (folder.path().join("key"), folder.path().join("key.pub"));
    let (private, public) = (private.to_str().unwrap(), public.to_str().unwrap());
    let args = ["keygen", "--private-key", private, "--public-key", public];
    let (code, shown) = told(&[], &args).await;
    let secret = std::fs::read_to_string(private).unwrap();
    assert!(code == 0 && !shown.contains(secret.trim()), "{shown}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(private).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(told(&[], &args).await.0, 1);
    assert_eq!(std::fs::read_to_string(private).unwrap(), secret);
    let (_, told) = told(
        &[("AGENTHUB_AUDIT_SIGNING_KEY_FILE", private)],
        &["public-key"],
    )
    .await;
    assert_eq!(told, std::fs::read_to_string(public).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_roll_up_removes_what_is_old_enough_and_the_chain_still_verifies() {
    let signer = agenthub::rollup::AuditSigner::generate(None).unwrap();
    let (private, public) = (signer.private_text(), signer.public_text());
    let mut stack = Stack::bare(&[
        ("AGENTHUB_ROLLUP_MAX_AGE_MS", "50"),
        ("AGENTHUB_AUDIT_RETENTION_DAYS", "2"),
        ("AGENTHUB_AUDIT_TENANT_RETENTION_DAYS", "keeps=0,short=1"),
        ("AGENTHUB_AUDIT_RETENTION_INTERVAL_MS", "100"),
        ("AGENTHUB_AUDIT_SIGNING_KEY", private.expose_secret()),
        ("AGENTHUB_AUDIT_PUBLIC_KEYS", &public),
    ])
    .await;
    let producer = Producer::new(&stack.kafka(), Signer::parse(SIGNING).unwrap(), "test").unwrap();
    let hours = |hours: u64| agenthub::runtime::clock::now_ms() - hours * 3_600_000;
    let records = [
        ("acme", hours(80)),
        ("acme", hours(30)),
        ("short", hours(30)),
        ("keeps", hours(80)),
    ];
    for (tenant, ts) in records {
        let value = json!({ "v": 1, "id": format!("{tenant}-{ts}"), "ts": ts, "action": "request",
            "tenant": tenant, "decision": "allowed" });
        let record = Outgoing {
            topic: Topic::AuditLogs,
            key: tenant.to_owned(),
            ce_id: format!("{tenant}-{ts}"),
            ce_type: "agenthub.audit".to_owned(),
            tenant: tenant.parse().unwrap(),
            run_id: None,
            not_after_ms: None,
            traceparent: None,
            value: value.to_string().into(),
        };
        eventually("the record is produced", async || {
            producer.publish(&record).await.ok()
        })
        .await;
    }
    stack.spawn_all(&["audit-rollup"]).await;
    // Before its first manifest there is nothing to verify.
    let written = "agenthub_rollup_records_total";
    eventually("all are in files", async || {
        (stack.metric("audit-rollup", written).await > 3.5).then_some(())
    })
    .await;
    let verified = eventually("two files have expired", async || {
        let text = stack.command(&["audit", "verify"]).await;
        text.contains(" 2 files expired").then_some(text)
    });
    let verified = verified.await;
    assert!(verified.contains("\nverified: "), "{verified}");
    for (tenant, left) in [("acme", 1), ("short", 0), ("keeps", 1)] {
        let query = [
            "audit", "query", "--tenant", tenant, "--from", "100h", "--json",
        ];
        let found = stack.command(&query).await;
        assert_eq!(
            found.matches("\"decision\"").count(),
            left,
            "{tenant}: {found}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_signs_what_the_api_tells_and_the_command_line_verifies() {
    let mut stack = Stack::bare(&[("AGENTHUB_ROLLUP_MAX_AGE_MS", "50")]).await;
    stack.begin("audit-rollup");
    let process = stack.processes.get_mut("audit-rollup").unwrap();
    assert!(!process.stopped().await, "it runs without a key");
    assert!(
        process
            .log()
            .contains("AGENTHUB_AUDIT_SIGNING_KEY is required"),
        "{}",
        process.log()
    );

    let signer = agenthub::rollup::AuditSigner::generate(None).unwrap();
    stack.set(
        "AGENTHUB_AUDIT_SIGNING_KEY",
        signer.private_text().expose_secret(),
    );
    stack.set("AGENTHUB_AUDIT_PUBLIC_KEYS", &signer.public_text());
    stack.spawn_all(&["api", "audit-rollup"]).await;
    let session = stack.session().await;
    let run = stack.submit(&session, "Get ROAS for advertiser 123").await;
    let url = stack.url("/v1/admin/audit/head");
    let head = eventually("the API tells a head", async || {
        let asked = stack
            .http
            .get(&url)
            .bearer_auth(&stack.admin_key)
            .send()
            .await
            .unwrap();
        assert_eq!(asked.status(), 200);
        let text = asked.text().await.unwrap();
        let heads = Head::read(text.as_bytes(), &signer.public()).unwrap();
        (!heads.is_empty()).then_some(text)
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("head.json");
    std::fs::write(&file, head.await).unwrap();
    let verified = stack
        .command(&["audit", "verify", "--head", file.to_str().unwrap()])
        .await;
    assert!(verified.contains("verified: "), "{verified}");
    let records = eventually("the run is read back", async || {
        let query = [
            "audit",
            "query",
            "--tenant",
            stack.tenant.as_str(),
            "--from",
            "1h",
            "--json",
        ];
        let records = stack.command(&query).await;
        records.contains(&run).then_some(records)
    });
    assert!(records.await.contains("\"decision\":\"allowed\""));
    let metrics = format!("http://{}/metrics", stack.processes["audit-rollup"].addr);
    let metrics = stack
        .http
        .get(metrics)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for name in [
        "agenthub_rollup_manifests_total{outcome=\"written\"}",
        "agenthub_rollup_last_manifest_seconds{partition=",
        "agenthub_rollup_manifest_lag_seconds{partition=",
    ] {
        assert!(metrics.contains(name), "{name} in\n{metrics}");
    }
}

#[tokio::test]
async fn of_two_heads_the_later_one_is_told() {
    let stack = shared().await;
    let redis = stack.redis();
    for (partition, sequence) in [(7, 3), (7, 2), (11, 1), (11, 1), (7, 10)] {
        let head = json!({ "sequence": sequence, "partition": partition }).to_string();
        redis
            .show_audit_head(partition, sequence, &head)
            .await
            .unwrap();
    }
    let asked = stack
        .http
        .request(Method::GET, stack.url("/v1/admin/audit/head"));
    let answer = asked.bearer_auth(&stack.admin_key).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let told: Value = answer.json().await.unwrap();
    let expected = json!([{ "partition": 7, "sequence": 10 }, { "partition": 11, "sequence": 1 }]);
    assert_eq!(told["data"], expected);
}

/// An S3 server that ends with this, or with the test's process.
struct S3 {
    process: Child,
    _input: ChildStdin,
    endpoint: String,
}

impl S3 {
    fn start(python: &Path) -> Self {
        const SCRIPT: &str = "
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
print('http://%s:%s' % server.get_host_and_port(), flush=True)
sys.stdin.read()
server.stop()
";
        let mut process = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut endpoint = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut endpoint).unwrap();
        let input = process.stdin.take().unwrap();
        let endpoint = endpoint.trim().to_owned();
        assert!(endpoint.starts_with("http://127.0.0.1:"), "{endpoint}");
        Self {
            process,
            _input: input,
            endpoint,
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_store_holds_the_chain() {
    let Some(python) = python("an_s3_store_holds_the_chain") else {
        return;
    };
    let s3 = tokio::task::spawn_blocking(move || S3::start(&python))
        .await
        .unwrap();
    let endpoint = s3.endpoint.clone();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let made = http
        .put(format!("{}/audit-bucket", s3.endpoint))
        .send()
        .await
        .unwrap();
    assert!(made.status().is_success(), "{made:?}");
    let env = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AGENTHUB_STORAGE_URL", "s3://audit-bucket/a/prefix"),
    ];
    let texts = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let source = Source::from_env(BTreeMap::from(texts)).unwrap();
    let store = Storage::open(&StorageSettings::load(&source).unwrap())
        .unwrap()
        .store;
    // The server keeps the one promise that the chain rests on.
    let path = object_store::path::Path::from("once");
    let create = || store.put_opts(&path, "x".into(), PutMode::Create.into());
    create().await.unwrap();
    let again = create().await.unwrap_err();
    assert!(matches!(again, Error::AlreadyExists { .. }), "{again}");
    store.delete(&path).await.unwrap();

    let mut fixture = Fixture::new().await;
    fixture.store = store.clone();
    fixture.produce(0..120).await;
    let first = fixture.start(GROUP, limits(30, 60_000));
    eventually("something is written", async || {
        (!fixture.manifests().await.is_empty()).then_some(())
    })
    .await;
    first.kill().await;
    let second = fixture.start(GROUP, limits(50, 50));
    fixture.written(120).await;
    second.stop().await;
    assert_eq!(fixture.verify().await.unwrap().rows, 120);

    let key = fixture.signer.public_text();
    let args = ["verify", "s3://audit-bucket/a/prefix", "--public-key", &key];
    let (code, text) = told(&env, &args).await;
    assert_eq!(code, 0, "{text}");
    let file = fixture.manifests().await[0].files[0].path.clone();
    store
        .delete(&object_store::path::Path::from(file.as_str()))
        .await
        .unwrap();
    let (code, text) = told(&env, &args).await;
    assert_eq!(code, 1, "{text}");
    assert!(
        text.starts_with(&format!("NOT VERIFIED: {file}: it is missing")),
        "{text}"
    );
    // A store that is away is not a store that was tampered with.
    drop(s3);
    assert_eq!(told(&env, &args).await.0, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duckdb_and_pyarrow_open_the_files_as_they_are() {
    const SCRIPT: &str = "
import sys, json, duckdb, pyarrow.dataset as ds, pyarrow.compute as pc
files, totals = sys.argv[1] + '/audit/*/*/*/*.parquet', sys.argv[1] + '/audit/_totals/*/*/*.jsonl'
sql = lambda text: duckdb.sql(text).fetchall()
by_hour = sql(f\"select hour, count(*), count(distinct id) from read_parquet('{files}', hive_partitioning=true) group by 1 order by 1\")
by_tenant = sql(f\"select tenant, count(*) from read_parquet('{files}', hive_partitioning=false) group by 1 order by 1 nulls last\")
first = sql(f\"select min(epoch_ms(ts)), typeof(any_value(ts)) from read_parquet('{files}')\")[0]
summed = sql(f\"select sum(requests), count(*) > 0 from read_json('{totals}')\")[0]
table = ds.dataset(sys.argv[1] + '/audit', format='parquet', partitioning=ds.partitioning(flavor='hive')).to_table(columns=['id', 'ts', 'offset', 'row_hash'])
print(json.dumps({
    'by_hour': [[int(h), n, d] for h, n, d in by_hour], 'by_tenant': by_tenant, 'first': first, 'summed': [int(summed[0]), summed[1]],
    'arrow': [table.num_rows, len(set(table['id'].to_pylist())), pc.min(table['ts']).cast('int64').as_py(), len(table['row_hash'][0].as_py())],
}))
";
    let Some(python) = python("duckdb_and_pyarrow_open_the_files_as_they_are") else {
        return;
    };
    let fixture = Fixture::new().await;
    fixture.produce(0..300).await;
    let rollup = fixture.start(GROUP, limits(70, 30));
    fixture.written(300).await;
    rollup.stop().await;

    let folder = fixture.folder.path().to_owned();
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).arg(&folder);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let first = 1_770_091_200_000_u64;
    assert_eq!(read["by_hour"], json!([[4, 150, 150], [5, 150, 150]]));
    assert_eq!(
        read["by_tenant"],
        json!([["acme", 100], ["globex", 100], [null, 100]])
    );
    assert_eq!(read["first"], json!([first, "TIMESTAMP WITH TIME ZONE"]));
    assert_eq!(read["summed"], json!([300, true]));
    assert_eq!(read["arrow"], json!([300, 300, first, 64]));
}
