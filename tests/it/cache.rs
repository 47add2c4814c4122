//! Kept results of tools: calls that are made once for many, whoever dies meanwhile.

use std::time::Duration;

use agenthub::governance::Role;
use agenthub::ids::TenantId;
use agenthub::messages::{AuditRecord, Topic};
use agenthub::privacy::{KeyRing, Sealed};
use agenthub::store::{Kept, Look, Redis, ResultName};
use redis::AsyncCommands;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::stack::{Stack, body, mint};
use crate::support::web::{Reply, Web};
use crate::support::{MASTER, eventually, namespace, settings};

const EXECUTORS: [&str; 2] = ["executor", "executor-2"];

/// A step that may wait long for another's call.
fn plan(url: &str) -> Value {
    json!({ "steps": [
        { "id": "s", "tool": "http_fetch", "args": { "url": url }, "timeout_s": 60 }
    ] })
}

async fn stack(extra: &[(&str, &str)]) -> Stack {
    let mut all = vec![
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2"),
        ("AGENTHUB_FETCH_TIMEOUT_MS", "60000"),
    ];
    all.extend(extra);
    let mut stack = Stack::bare(&all).await;
    stack.spawn_all(&["api", "executor", "executor-2"]).await;
    eventually("both have partitions", async || {
        for executor in EXECUTORS {
            let assigned = "agenthub_consumer_assigned_partitions";
            if stack.metric(executor, assigned).await < 0.5 {
                return None;
            }
        }
        Some(())
    })
    .await;
    stack
}

/// Starts a run in a session of its own.
async fn start(stack: &Stack, url: &str) -> String {
    stack.execute(&stack.session().await, &plan(url)).await
}

/// Whether the run's one step was answered by what was kept.
async fn was_kept(stack: &Stack, run: &str) -> bool {
    let ended = stack.ended(run).await;
    assert_eq!(ended["status"], "succeeded", "{ended}");
    let events = stack.events(run).await;
    let done = events
        .iter()
        .find(|e| e.event.as_deref() == Some("step.completed"));
    done.unwrap().data["data"]["cached"] == true
}

async fn lookups(stack: &Stack, process: &str, outcome: &str) -> f64 {
    let labels = format!("tool=\"http_fetch\",outcome=\"{outcome}\"");
    let metric = format!("agenthub_cache_lookups_total{{{labels}}}");
    stack.metric(process, &metric).await
}

fn to_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

async fn drop_results(stack: &Stack, key: &str, tool: &str) -> (StatusCode, Value) {
    let url = stack.url(&format!("/v1/admin/cache/{tool}"));
    let request = stack.http.request(Method::DELETE, url).bearer_auth(key);
    body(request.send().await.unwrap()).await
}

#[tokio::test]
async fn of_fifty_identical_calls_one_goes_out_and_its_result_is_kept() {
    let stack = stack(&[]).await;
    let web = Web::start(|_, nth| match nth {
        1 => Reply::Held("<title>Kept page</title>"),
        _ => Reply::Page("<title>Another page</title>"),
    })
    .await;
    let url = web.url("/page");
    let mut runs = Vec::new();
    for _ in 0..50 {
        runs.push(start(&stack, &url).await);
    }
    eventually("all are under way", async || {
        let mut leases = 0.0;
        for executor in EXECUTORS {
            leases += stack.metric(executor, "agenthub_leases").await;
        }
        (leases > 49.5).then_some(())
    })
    .await;
    web.until_hit("/page", 1).await;
    web.release();
    let mut kept = 0;
    for run in &runs {
        kept += usize::from(was_kept(&stack, run).await);
        let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
        assert_eq!(run["steps"][0]["output"]["title"], "Kept page", "{run}");
    }
    assert_eq!((kept, web.hits("/page")), (49, 1));
    let mut hits = 0.0;
    for executor in EXECUTORS {
        hits += stack
            .metric(executor, "agenthub_cache_hits_total{tool=\"http_fetch\"}")
            .await;
    }
    assert!((hits - 49.0).abs() < f64::EPSILON, "{hits}");
    eventually("every use is audited", async || {
        let records = stack.records(Topic::AuditLogs).await;
        let mut ids: Vec<String> = records
            .iter()
            .map(|r| serde_json::from_slice::<AuditRecord>(&r.value).unwrap())
            .filter(|r| r.action == "tool_cached" && r.target.as_deref() == Some("http_fetch"))
            .map(|r| r.id)
            .collect();
        ids.sort();
        ids.dedup();
        (ids.len() == 49).then_some(())
    })
    .await;

    // At rest it is sealed, and its name tells nothing of the arguments.
    let mut redis = stack.redis().connection();
    let pattern = format!("{}:res:*", stack.redis().base(&stack.tenant));
    let keys: Vec<String> = redis.keys(pattern).await.unwrap();
    assert!(!keys.is_empty());
    for key in &keys {
        assert!(!key.contains("127.0.0.2"), "{key}");
        let value: Result<String, _> = redis.get(key).await;
        assert!(!value.unwrap_or_default().contains("Kept page"), "{key}");
    }

    // Another tenant's calls are its own.
    let tenant = "other".parse().unwrap();
    stack.redis().add_tenant(&tenant).await.unwrap();
    let key = mint(&stack.keys(), &tenant, Role::Client).await;
    let post = async |path: &str, json: Value| {
        let request = stack
            .http
            .post(stack.url(path))
            .bearer_auth(&key)
            .json(&json);
        body(request.send().await.unwrap()).await.1
    };
    let session = post("/v1/sessions", json!({})).await;
    let execute = json!({ "session_id": session["session_id"], "plan": plan(&url) });
    post("/v1/execute", execute).await;
    web.until_hit("/page", 2).await;

    // An admin drops what is kept, and nobody else does.
    let (status, _) = drop_results(&stack, &stack.api_key, "http_fetch").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = drop_results(&stack, &stack.admin_key, "no_such_tool").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(was_kept(&stack, &start(&stack, &url).await).await);
    let (status, dropped) = drop_results(&stack, &stack.admin_key, "http_fetch").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(dropped, json!({ "tool": "http_fetch", "dropped": 1 }));
    assert!(!was_kept(&stack, &start(&stack, &url).await).await);
    assert_eq!(web.hits("/page"), 3);
}

#[tokio::test]
async fn a_call_whose_worker_is_killed_is_made_by_one_who_waits() {
    let mut stack = stack(&[
        ("AGENTHUB_LEASE_MS", "2000"),
        ("AGENTHUB_OUTBOX_RETRY_MS", "500"),
        (
            "AGENTHUB_KAFKA_PROPERTIES",
            "session.timeout.ms=2000,heartbeat.interval.ms=300",
        ),
    ])
    .await;
    let web = Web::start(|_, nth| match nth {
        1 => Reply::Never,
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    let url = web.url("/page");
    let mut runs = Vec::new();
    // Until both workers have one: who gets which run is Kafka's choice.
    for round in 0.. {
        assert!(round < 50, "one worker gets every run");
        runs.push(start(&stack, &url).await);
        let leases = eventually("the run is taken up", async || {
            let mut leases = Vec::new();
            for executor in EXECUTORS {
                leases.push(stack.metric(executor, "agenthub_leases").await);
            }
            let all = leases.iter().sum::<f64>() + 0.5 > to_f64(runs.len());
            all.then_some(leases)
        })
        .await;
        if leases.iter().all(|leases| *leases > 0.5) {
            break;
        }
    }
    web.until_hit("/page", 1).await;
    let leader = if lookups(&stack, EXECUTORS[0], "miss").await > 0.5 {
        EXECUTORS[0]
    } else {
        assert!(lookups(&stack, EXECUTORS[1], "miss").await > 0.5);
        EXECUTORS[1]
    };
    stack.processes.get_mut(leader).unwrap().kill();
    web.until_hit("/page", 2).await;
    let mut made = 0;
    for run in &runs {
        made += usize::from(!was_kept(&stack, run).await);
    }
    assert_eq!((made, web.hits("/page")), (1, 2), "of {} runs", runs.len());
    for run in &runs {
        stack.assert_settled(run).await;
    }
}

#[tokio::test]
async fn what_may_not_be_kept_is_not_and_failures_are_not_either() {
    let stack = stack(&[("AGENTHUB_MAX_ATTEMPTS", "1")]).await;
    let web = Web::start(|path, nth| match (path, nth) {
        ("/private", _) => Reply::Keepable("private, max-age=600", "<title>Mine</title>"),
        ("/short", _) => Reply::Keepable("max-age=1", "<title>Short</title>"),
        ("/fails", 1) => Reply::Status(503),
        _ => Reply::Page("<title>Page</title>"),
    })
    .await;
    for path in ["/private", "/private", "/fails"] {
        let run = start(&stack, &web.url(path)).await;
        if path == "/fails" {
            assert_eq!(stack.ended(&run).await["status"], "failed");
        } else {
            assert!(!was_kept(&stack, &run).await);
        }
    }
    assert_eq!((web.hits("/private"), web.hits("/fails")), (2, 1));
    // The next call is made, and its success is kept.
    assert!(!was_kept(&stack, &start(&stack, &web.url("/fails")).await).await);
    assert!(was_kept(&stack, &start(&stack, &web.url("/fails")).await).await);
    assert_eq!(web.hits("/fails"), 2);
    // What may be kept for a second is asked for again after it.
    assert!(!was_kept(&stack, &start(&stack, &web.url("/short")).await).await);
    eventually("it is asked for again", async || {
        let run = start(&stack, &web.url("/short")).await;
        stack.ended(&run).await;
        (web.hits("/short") == 2).then_some(())
    })
    .await;
    // Other arguments are other calls.
    let other = json!({ "steps": [
        { "id": "s", "tool": "http_fetch", "args": { "url": web.url("/fails"), "max_chars": 500 } }
    ] });
    let run = stack.execute(&stack.session().await, &other).await;
    assert!(!was_kept(&stack, &run).await);
    assert_eq!(web.hits("/fails"), 3);
}

#[tokio::test]
async fn a_lease_has_one_owner_and_a_drop_ends_it() {
    let redis = Redis::connect(&settings(&namespace(), &[]), Duration::from_secs(5)).unwrap();
    let tenant: TenantId = "acme".parse().unwrap();
    let tool = "http_fetch";
    let name = |digest| ResultName {
        tenant: &tenant,
        tool,
        digest,
    };
    let (short, long) = (Duration::from_millis(300), Duration::from_mins(1));
    let look = async |digest, owner, lease| {
        let look = redis.look_for_result(name(digest), owner, lease).await;
        look.unwrap()
    };
    let key = KeyRing::parse(MASTER).unwrap().tenant_key(&tenant);
    let kept = Kept::Result(key.seal("x", b"1"));
    let keep = async |digest, owner, kept: &Kept| {
        let kept = redis.keep_result(name(digest), owner, kept, long).await;
        kept.unwrap()
    };
    assert_eq!(look("x", "a", long).await, Look::Lead);
    assert_eq!(look("x", "b", long).await, Look::Wait);
    assert!(
        !redis
            .renew_result_lease(name("x"), "b", long)
            .await
            .unwrap()
    );
    assert!(
        redis
            .renew_result_lease(name("x"), "a", short)
            .await
            .unwrap()
    );
    eventually("the lease ends", async || {
        (look("x", "b", long).await == Look::Lead).then_some(())
    })
    .await;
    // Who lost its lease keeps nothing.
    assert!(!keep("x", "a", &kept).await);
    assert!(keep("x", "b", &kept).await);
    assert_eq!(look("x", "c", long).await, Look::Found(kept.clone()));
    // Nor does who began before a drop.
    assert_eq!(look("y", "a", long).await, Look::Lead);
    assert_eq!(redis.drop_results(&tenant, tool).await.unwrap(), 1);
    assert!(!keep("y", "a", &kept).await);
    assert_eq!(look("x", "c", long).await, Look::Lead);
    redis.free_result_lease(name("x"), "c").await.unwrap();
    assert_eq!(look("x", "d", long).await, Look::Lead);
    assert!(keep("x", "d", &Kept::Nothing).await);
    assert_eq!(look("x", "e", long).await, Look::Found(Kept::Nothing));
    assert_eq!(redis.drop_results(&tenant, tool).await.unwrap(), 1);

    // The number is bounded: what would be gone first goes, and leaves no key behind.
    for n in 0..1_010 {
        let digest = format!("d{n}");
        let name = ResultName {
            tenant: &tenant,
            tool,
            digest: &digest,
        };
        let found = redis.look_for_result(name, "a", long).await.unwrap();
        assert_eq!(found, Look::Lead);
        let ttl = long + Duration::from_millis(n);
        let small = Kept::Result(Sealed::from_stored("s"));
        assert!(redis.keep_result(name, "a", &small, ttl).await.unwrap());
    }
    assert_eq!(look("d0", "b", long).await, Look::Lead);
    let last = look("d1009", "b", long).await;
    assert!(matches!(last, Look::Found(_)), "{last:?}");
    assert_eq!(redis.drop_results(&tenant, tool).await.unwrap(), 1_000);
    let left: Vec<String> = redis
        .connection()
        .keys(format!("{}:res:*", redis.base(&tenant)))
        .await
        .unwrap();
    assert_eq!(left, [] as [&str; 0]);
}
