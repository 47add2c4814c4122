//! Clusters as they are run in earnest: TLS everywhere, credentials, copies, and nodes that die under load.
//!
//! What takes minutes is ignored in `make test` and run by `make test-clusters`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::messages::{EventBatch, Topic};
use agenthub::store::Redis;
use futures_util::future::join_all;
use redis::AsyncCommands;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::brokers::{Brokers, Shown};
use crate::support::certs::Certs;
use crate::support::secured::Servers;
use crate::support::stack::{Stack, body};
use crate::support::web::{Reply, Web};
use crate::support::{eventually_within, namespace, settings};

const RUNS: usize = 200;
const SESSIONS: usize = 20;
/// All of it, from the first submission to the last check.
const WITHIN: Duration = Duration::from_secs(300);

fn texts<'a>(pairs: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    pairs
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect()
}

#[tokio::test]
async fn the_main_job_passes_over_tls_as_a_user_with_few_rights() {
    let mut redis = Servers::one().await;
    let environment = redis.environment();
    let stack = Stack::start(&texts(&environment)).await;
    let plan = json!({ "steps": [
        { "id": "ads", "tool": "ads_metrics_mock", "args": { "advertiser_id": "123", "metric": "roas" } }
    ] });
    let session = stack.session().await;
    let run = stack.execute(&session, &plan).await;
    assert_eq!(stack.ended(&run).await["status"], "succeeded");
    // The stream is the subscriber's, on a connection of its own.
    let run = stack.execute(&session, &plan).await;
    let events = stack.events(&run).await;
    assert!(!events.is_empty());
    stack.assert_settled(&run).await;
    // The settings of a Redis that may lose data are read with these rights, too.
    stack.redis().check_durability().await.unwrap();
    // What these users may do is enough to read the append-only file again.
    let port = redis.only();
    redis.kill(port);
    redis.restart(port).await;
    let again = stack.ended(&run).await;
    assert_eq!(again["status"], "succeeded");
}

#[tokio::test]
async fn an_authority_that_did_not_sign_is_refused() {
    let redis = Servers::one().await;
    let folder = tempfile::tempdir().unwrap();
    let other = Certs::make(folder.path(), "other");
    let (url, ca) = (redis.url.clone(), other.ca());
    let settings = settings(
        &namespace(),
        &[("REDIS_URL", &url), ("AGENTHUB_REDIS_TLS_CA", &ca)],
    );
    let refused = Redis::connect(&settings, Duration::from_secs(5)).unwrap();
    let error = refused.ping().await.unwrap_err().to_string();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    assert!(
        !error.contains("p@ss") && !error.contains("p%40ss"),
        "{error}"
    );
}

#[tokio::test]
#[ignore = "minutes: make test-clusters"]
async fn nothing_is_lost_with_scram_and_sentinels() {
    let redis = Servers::sentinel().await;
    let kafka = Brokers::start(Shown::Scram).await;
    under_load(kafka, redis, false).await;
}

#[tokio::test]
#[ignore = "minutes: make test-clusters"]
async fn nothing_is_lost_with_certificates_and_a_redis_cluster() {
    let redis = Servers::cluster().await;
    let kafka = Brokers::start(Shown::Certificate).await;
    under_load(kafka, redis, true).await;
}

/// Runs the load, kills a broker and the tenant's master in its midst, and looks at what Kafka has.
/// `comes_back`: a cluster's killed master is started again, as its supervisor would, since the new one has
/// no replica to wait for until then.
async fn under_load(mut kafka: Brokers, mut redis: Servers, comes_back: bool) {
    let began = Instant::now();
    let mut environment = redis.environment();
    environment.extend(kafka.environment());
    environment.extend([
        ("AGENTHUB_REDIS_WAIT_REPLICAS", "1".to_owned()),
        ("AGENTHUB_FETCH_ALLOW", "127.0.0.2".to_owned()),
    ]);
    let mut stack = Stack::replicated(&texts(&environment)).await;
    let told = stack.command(&["topics", "verify"]).await;
    println!("{}", told.trim());
    let names = ["api", "planner", "planner-2", "executor", "executor-2"];
    stack.spawn_simulator(&[]).await;
    stack.spawn_all(&names).await;
    let web = Web::start(|_, _| Reply::Page("<title>Page</title>")).await;
    let sessions = join_all((0..SESSIONS).map(|_| stack.session())).await;

    let accepted = AtomicUsize::new(0);
    let refused = AtomicUsize::new(0);
    let loading = Instant::now();
    let submit = async |number: usize| {
        let step = |id: &str, after: &[&str]| {
            let url = web.url(&format!("/{number}/{id}"));
            json!({ "id": id, "tool": "http_fetch", "args": { "url": url }, "depends_on": after })
        };
        let plan = json!({ "steps": [step("a", &[]), step("b", &["a"])] });
        let request = json!({ "session_id": sessions[number % SESSIONS], "plan": plan });
        eventually_within(WITHIN, "a run is accepted", async || {
            let answer = stack
                .request(Method::POST, "/v1/execute")
                .header("Idempotency-Key", format!("load-{number}"))
                .json(&request)
                .send()
                .await
                .ok()?;
            let (status, answer) = body(answer).await;
            if status != StatusCode::ACCEPTED {
                refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            accepted.fetch_add(1, Ordering::Relaxed);
            Some(answer["run_id"].as_str()?.to_owned())
        })
        .await
    };
    // Eight clients, each one run after the other.
    let clients = (0..8).map(|client| {
        let submit = &submit;
        async move {
            let mut runs = Vec::new();
            for number in (client..RUNS).step_by(8) {
                runs.push(submit(number).await);
            }
            runs
        }
    });
    let reached = async |count: usize| {
        eventually_within(WITHIN, "the load goes on", async || {
            (accepted.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    };
    let master_key = stack.key("timers");
    let kill = async {
        reached(RUNS / 5).await;
        kafka.kill(0);
        println!(
            "broker killed with {} runs accepted",
            accepted.load(Ordering::Relaxed)
        );
        reached(RUNS / 2).await;
        let master = redis.master_of(&master_key).await.unwrap();
        redis.kill(master);
        println!(
            "master killed with {} runs accepted",
            accepted.load(Ordering::Relaxed)
        );
        let down = Instant::now();
        let new = eventually_within(WITHIN, "a replica takes over", async || {
            let new = redis.master_of(&master_key).await;
            new.filter(|port| *port != master)
        })
        .await;
        assert_ne!(new, master);
        println!(
            "a replica took over after {:.1} s",
            down.elapsed().as_secs_f64()
        );
        if comes_back {
            redis.restart(master).await;
        }
        reached(accepted.load(Ordering::Relaxed) + 1).await;
        println!(
            "runs accepted again after {:.1} s",
            down.elapsed().as_secs_f64()
        );
    };
    let (runs, ()) = tokio::join!(join_all(clients), kill);
    let runs: Vec<String> = runs.into_iter().flatten().collect();
    assert_eq!(runs.len(), RUNS);
    println!(
        "{RUNS} runs accepted in {:.1} s, {} answers other than 202 on the way",
        loading.elapsed().as_secs_f64(),
        refused.load(Ordering::Relaxed)
    );
    for run in &runs {
        let status = eventually_within(WITHIN, "a run ends", async || {
            let (_, run) = stack.get(&format!("/v1/runs/{run}")).await;
            let status = run["status"].as_str()?;
            ["succeeded", "failed", "cancelled", "timed_out"]
                .contains(&status)
                .then(|| status.to_owned())
        })
        .await;
        assert_eq!(status, "succeeded", "{run}");
    }
    println!("all ended after {:.1} s", loading.elapsed().as_secs_f64());
    nothing_is_left(&stack, &runs).await;
    whole_on_kafka(&stack, &runs).await;
    lag_is_gone(&stack).await;
    println!(
        "{} fetches for {} steps; {:.1} s in all",
        (0..RUNS)
            .map(|n| web.hits(&format!("/{n}/a")) + web.hits(&format!("/{n}/b")))
            .sum::<usize>(),
        2 * RUNS,
        began.elapsed().as_secs_f64()
    );
}

/// No record waits in an outbox, no timer runs, no slot is held.
async fn nothing_is_left(stack: &Stack, runs: &[String]) {
    let redis = stack.redis();
    let base = redis.base(&stack.tenant);
    let redis = redis.connection();
    eventually_within(WITHIN, "nothing is left to be done", async || {
        let mut redis = redis.clone();
        let timers: usize = redis.zcard(format!("{base}:timers")).await.ok()?;
        let waiting: usize = redis.zcard(format!("{base}:wait")).await.ok()?;
        let live: usize = redis.scard(format!("{base}:live")).await.ok()?;
        (timers + waiting + live == 0).then_some(())
    })
    .await;
    let mut redis = redis.clone();
    for run in runs {
        let fields: Vec<String> = redis.hkeys(format!("{base}:run:{run}")).await.unwrap();
        let status: Option<String> = redis
            .hget(format!("{base}:run:{run}"), "status")
            .await
            .unwrap();
        assert_eq!(status.as_deref(), Some("succeeded"), "{run}");
        assert!(
            !fields.iter().any(|field| field.starts_with("o:")),
            "{run}: {fields:?}"
        );
    }
}

/// Every run has exactly one terminal event on `agent.events` and each of its steps completed once; one id
/// names one event, however often it was produced.
async fn whole_on_kafka(stack: &Stack, runs: &[String]) {
    let mut events: BTreeMap<(String, String), Value> = BTreeMap::new();
    let mut records = 0;
    for record in stack.records(Topic::AgentEvents).await {
        records += 1;
        let session = String::from_utf8(record.key.clone()).unwrap();
        let batch: EventBatch = serde_json::from_slice(&record.value).unwrap();
        for event in batch.events {
            let told = json!({
                "run": event.run_id.as_str(),
                "type": event.event_type.as_str(),
                "step": event.step_id.as_ref().map(|step| step.as_str().to_owned()),
            });
            let id = event.id.to_string();
            let before = events.insert((session.clone(), id.clone()), told.clone());
            if let Some(before) = before {
                assert_eq!(before, told, "two events have the id {id}");
            }
        }
    }
    let mut terminal: BTreeMap<&str, usize> = BTreeMap::new();
    let mut completed: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for event in events.values() {
        let (run, kind) = (
            event["run"].as_str().unwrap(),
            event["type"].as_str().unwrap(),
        );
        match kind {
            "run.succeeded" | "run.failed" | "run.cancelled" | "run.timed_out" => {
                *terminal.entry(run).or_default() += 1;
            }
            "step.completed" => {
                *completed
                    .entry((run, event["step"].as_str().unwrap()))
                    .or_default() += 1;
            }
            _ => {}
        }
    }
    for run in runs {
        assert_eq!(terminal.get(run.as_str()), Some(&1), "{run}");
        for step in ["a", "b"] {
            assert_eq!(
                completed.get(&(run.as_str(), step)),
                Some(&1),
                "{run} {step}"
            );
        }
    }
    println!(
        "{} events in {records} records, {} terminal",
        events.len(),
        terminal.len()
    );
}

async fn lag_is_gone(stack: &Stack) {
    let admin = Admin::new(&stack.kafka()).unwrap();
    let catalogue = Catalogue::embedded(false).unwrap();
    eventually_within(WITHIN, "the groups have read everything", async || {
        let cluster = admin.describe(&catalogue).await.ok()?;
        let topics = cluster.topics.iter();
        let read = topics.filter(|topic| topic.name.ends_with(".commands"));
        let lags: Vec<i64> = read
            .flat_map(|topic| topic.groups.iter().map(|group| group.lag))
            .collect();
        (lags.len() == 2 && lags.iter().all(|lag| *lag == 0)).then_some(())
    })
    .await;
    println!("no lag");
}
