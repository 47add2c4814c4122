//! The storm: runs are submitted while workers and API processes are killed, Redis and the broker are
//! restarted and connections are cut. A checker that knows nothing of the product but what a client knows
//! says whether every promise was kept, and shows that it would have noticed.
//!
//! `STORM_RUNS` and `STORM_KILLS` make it longer, as `make faults` does; `STORM_SEED` makes the same blows fall again.

mod chaos;
mod checker;
mod history;
mod load;
mod tool_server;
mod witness;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agenthub::messages::{Event, EventBatch, EventType, SCHEMA_VERSION, Topic};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use redis::AsyncCommands;
use reqwest::{Client, Method};
use serde_json::json;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use self::chaos::{Scene, blows};
use self::checker::{Verdict, check};
use self::history::{History, Submission, Told};
use self::load::Clients;
use self::witness::Tail;
use crate::support::broker::Broker;
use crate::support::redis::OwnRedis;
use crate::support::stack::Stack;

/// What a takeover waits for, made short.
const SETTINGS: [(&str, &str); 6] = [
    ("AGENTHUB_LEASE_MS", "2000"),
    ("AGENTHUB_OUTBOX_RETRY_MS", "500"),
    ("AGENTHUB_FETCH_ALLOW", "127.0.0.1"),
    // What no worker survives is given up after five; here, no run is to blame.
    ("AGENTHUB_MAX_DELIVERIES", "1000"),
    // Of the hundreds of calls that are cut off, none says anything of the tool.
    ("AGENTHUB_BREAKER_FAILURES", "1000000"),
    (
        "AGENTHUB_KAFKA_PROPERTIES",
        "session.timeout.ms=2000,heartbeat.interval.ms=300,reconnect.backoff.max.ms=500",
    ),
];

fn given(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).unwrap_or_default();
    if text.is_empty() {
        default
    } else {
        text.parse().unwrap()
    }
}

/// A session and what the client of its stream is told.
type Followed = BTreeMap<String, Arc<Mutex<Vec<Told>>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_breaks_no_invariant_and_the_checker_finds_seeded_faults() {
    let runs = usize::try_from(given("STORM_RUNS", 60)).unwrap();
    let kills = usize::try_from(given("STORM_KILLS", 7)).unwrap();
    let seed = given("STORM_SEED", rand::random_range(0..1_000_000));
    eprintln!("storm: STORM_SEED={seed}, {runs} runs, {kills} kills of workers");
    let began = Instant::now();

    let (broker, redis) = (Broker::start().await, OwnRedis::start().await);
    let mut settings = SETTINGS.to_vec();
    settings.extend([
        ("KAFKA_BROKERS", broker.brokers.as_str()),
        ("REDIS_URL", redis.url.as_str()),
    ]);
    let stack = Stack::bare(&settings).await;
    let mut scene = Scene::set(stack, redis, broker, seed).await;
    let clients = Clients {
        http: Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .build()
            .unwrap(),
        fronts: scene.fronts.iter().map(|front| front.addr).collect(),
        api_key: scene.stack.api_key.clone(),
        admin_key: scene.stack.admin_key.clone(),
    };
    let limit = json!({ "limit_micro_usd": 1_000_000_000, "window": "month" });
    clients
        .govern(Method::PUT, "/v1/admin/tenants/acme/budget", &limit)
        .await;

    let (streams, topic) = (broadcast::Sender::new(4096), broadcast::Sender::new(4096));
    let tail = Tail::of(&scene.stack, topic.clone());
    let (mut followed, mut followers) = (Followed::new(), JoinSet::new());
    for _ in 0..(runs / 10).clamp(6, 60) {
        followed.insert(clients.session().await, Arc::default());
    }
    for (session, told) in &followed {
        followers.spawn(
            clients
                .clone()
                .follow(session.clone(), told.clone(), streams.clone()),
        );
    }
    // Runs come for as long as blows fall: there is always something under way.
    let blows = blows(seed, kills);
    let (allow, allowed) = watch::channel(0);
    let mut submitting = JoinSet::new();
    for (first, session) in followed.keys().enumerate() {
        let share = (first, followed.len(), runs);
        submitting.spawn(
            clients
                .clone()
                .submit_all(session.clone(), share, allowed.clone()),
        );
    }
    for (n, blow) in blows.iter().enumerate() {
        allow.send_replace(runs * (n + 1) / blows.len());
        scene.strike(*blow, &streams, &topic).await;
    }
    allow.send_replace(runs);
    let blown = began.elapsed();

    let submissions: Vec<_> = submitting.join_all().await.into_iter().flatten().collect();
    let mut history = settle(&scene, &clients, submissions, &followed).await;
    followers.shutdown().await;
    drop(tail);

    let verdict = check(&history);
    let report = report(seed, &scene, &history, &verdict, (blown, began.elapsed()));
    eprintln!("{report}");
    let name = keep(&report);
    assert!(verdict.holds(), "{}\n{verdict}", name.display());
    assert_eq!(history.submissions.len(), runs);
    nothing_is_left(&scene.stack, &followed).await;
    seeded_faults(&scene, &mut history).await;
}

/// Waits until all has come to rest, or gives that up: the checker then says what did not. What there is
/// to see then.
async fn settle(
    scene: &Scene,
    clients: &Clients,
    submissions: Vec<Submission>,
    followed: &Followed,
) -> History {
    let deadline = Instant::now() + Duration::from_mins(2);
    let accepted: Vec<_> = submissions.iter().flat_map(|s| s.answers.clone()).collect();
    let mut history = History {
        submissions,
        ..History::default()
    };
    loop {
        let open = accepted
            .iter()
            .filter(|run| !history.runs.contains_key(*run));
        history
            .runs
            .extend(witness::runs(clients, open.cloned().collect()).await);
        history.events = witness::all_events(&scene.stack).await;
        history.lag = witness::lag(&scene.stack).await;
        history.money = witness::money(clients).await;
        history.settlements = witness::settlements(&scene.stack).await;
        history.calls = scene.tools.calls();
        let told = |told: &Arc<Mutex<Vec<Told>>>| told.lock().unwrap().clone();
        history.streams = followed
            .iter()
            .map(|(s, all)| (s.clone(), told(all)))
            .collect();
        if check(&history).holds() || Instant::now() > deadline {
            return history;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// No invariant that a client could see, but what is left in the ledger would pile up.
async fn nothing_is_left(stack: &Stack, followed: &Followed) {
    let mut redis = stack.redis().connection();
    for (left, count) in [("timers", "ZCARD"), ("wait", "ZCARD"), ("live", "SCARD")] {
        let count: usize = redis::cmd(count)
            .arg(stack.key(left))
            .query_async(&mut redis)
            .await
            .unwrap();
        assert_eq!(count, 0, "{left}");
    }
    for session in followed.keys() {
        let order: usize = redis
            .llen(stack.key(&format!("ord:{session}")))
            .await
            .unwrap();
        assert_eq!(order, 0, "{session}");
    }
}

fn report(
    seed: u64,
    scene: &Scene,
    history: &History,
    verdict: &Verdict,
    (blown, whole): (Duration, Duration),
) -> String {
    let mut text = format!(
        "storm: seed {seed}, {} runs, {} events, {} tool calls, {} settlements; blows for {} s, {} s in all\n",
        history.submissions.len(),
        history.events.len(),
        history.calls.len(),
        history.settlements.len(),
        blown.as_secs(),
        whole.as_secs(),
    );
    for (what, times) in &scene.tally {
        let _ = writeln!(text, "{times:>8} {what}");
    }
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for run in history.runs.values() {
        let code = run
            .code
            .as_ref()
            .map_or(String::new(), |code| format!(", {code}"));
        *ends.entry(format!("{}{code}", run.status)).or_default() += 1;
    }
    for (end, times) in ends {
        let _ = writeln!(text, "{times:>8} runs {end}");
    }
    let calls: std::collections::BTreeSet<_> = history.calls.iter().map(|call| &call.key).collect();
    let _ = writeln!(
        text,
        "{:>8} calls that repeat an Idempotency-Key",
        history.calls.len() - calls.len()
    );
    let _ = write!(text, "{verdict}");
    text
}

/// Where the report is kept.
fn keep(report: &str) -> PathBuf {
    let folder = std::env::var_os("STORM_REPORT").map_or_else(std::env::temp_dir, PathBuf::from);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("storm.txt");
    std::fs::write(&path, report).unwrap();
    path
}

/// Three faults as they could happen, each made for real and then read back: the checker names each.
async fn seeded_faults(scene: &Scene, history: &mut History) {
    let stack = &scene.stack;

    // A worker that calls a tool again after the step has completed.
    let call = history
        .calls
        .iter()
        .find(|call| call.status == Some(200))
        .unwrap();
    let tool = tool_server::TOOLS
        .iter()
        .find(|(_, promise, _)| *promise == call.promise)
        .unwrap()
        .0;
    let again = stack.http.post(format!(
        "http://{}/{}/{tool}",
        scene.tools.addr, call.worker
    ));
    let again = again
        .header("Idempotency-Key", &call.key)
        .header("AgentHub-Attempt", call.attempt);
    assert!(again.body("{}").send().await.unwrap().status().is_success());
    let mut seeded = history.clone();
    seeded.calls = scene.tools.calls();
    names(&seeded, "completed_steps_ran_once", &call.key);

    // A second end of a run, on the topic.
    let end = history
        .events
        .iter()
        .find(|event| event.is_terminal())
        .unwrap()
        .clone();
    let id = |seq| format!("{}-{seq}", end.id.generation).parse().unwrap();
    let forged = Event {
        id: id(1_000_000),
        prev: Some(id(999_999)),
        event_type: EventType::RunCancelled,
        session_id: end.session.parse().unwrap(),
        run_id: end.run.parse().unwrap(),
        step_id: None,
        attempt: None,
        ts: end.ts,
        data: serde_json::from_str("{}").unwrap(),
        state: None,
    };
    let batch = EventBatch {
        v: SCHEMA_VERSION,
        events: vec![forged],
    };
    let kafka = stack.kafka();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.brokers);
    let name = kafka.topic(Topic::AgentEvents);
    let producer: FutureProducer = config.create().unwrap();
    let value = serde_json::to_vec(&batch).unwrap();
    let record = FutureRecord::to(&name).key(&end.session).payload(&value);
    producer
        .send(record, Duration::from_secs(10))
        .await
        .unwrap();
    let mut seeded = history.clone();
    seeded.events = witness::all_events(stack).await;
    names(&seeded, "one_terminal_outcome", &end.run);

    // Records that are gone from the topic.
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let mut places = TopicPartitionList::new();
    for partition in 0..witness::partitions(stack).await {
        places
            .add_partition_offset(&name, partition, Offset::Offset(1))
            .unwrap();
    }
    let deleted = admin.delete_records(&places, &AdminOptions::new()).await;
    deleted.unwrap();
    let mut seeded = history.clone();
    seeded.events = witness::all_events(stack).await;
    assert!(seeded.events.len() < history.events.len());
    names(&seeded, "session_numbers", "is followed by");
}

/// The checker finds a fault, under this name and with this in what it shows of it.
fn names(seeded: &History, invariant: &str, shown: &str) {
    let verdict = check(seeded);
    let found = verdict
        .0
        .iter()
        .find(|checked| checked.invariant == invariant)
        .unwrap();
    let violation = found
        .violations
        .first()
        .unwrap_or_else(|| panic!("{invariant}: {verdict}"));
    assert!(violation.contains(shown), "{violation}");
    eprintln!("seeded fault found: {invariant}");
}
