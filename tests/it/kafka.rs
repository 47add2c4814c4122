//! The producer, the consumer loop and the topics against a real broker.
//!
//! Each test has topics and groups of its own by a random namespace, so that they share a broker.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use agenthub::ids::RunId;
use agenthub::kafka::admin::{Action, Admin, AdminError, Difference};
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::consumer::ConsumerState;
use agenthub::kafka::{
    Ack, BrokerHealth, Consumer, ConsumerOptions, Handler, Incoming, KafkaSettings, ProduceError,
    Producer, StartFrom,
};
use agenthub::messages::{Outgoing, Signer, Topic, header};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TOPIC: Topic = Topic::AuditLogs;
const GROUP: &str = "audit-rollup";
const PARTITIONS: i32 = 3;

fn settings(protocol: Protocol) -> KafkaSettings {
    KafkaSettings {
        brokers: std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker"),
        namespace: format!("it-{:016x}", rand::random::<u64>()),
        properties: match protocol {
            // A rebalance is told with a heartbeat.
            Protocol::Classic => vec!["heartbeat.interval.ms=200".to_owned()],
            Protocol::Consumer => Vec::new(),
        },
        consumer_protocol: protocol == Protocol::Consumer,
        produce_timeout: Duration::from_secs(10),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Classic,
    Consumer,
}

fn signer() -> Signer {
    Signer::parse("k1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=").unwrap()
}

/// The declaration of the one topic that these tests use.
fn catalogue() -> Catalogue {
    let mut catalogue = Catalogue::embedded(true).unwrap();
    catalogue.topics.retain(|spec| spec.topic == TOPIC);
    catalogue
}

/// A namespace with its topic.
struct Fixture {
    settings: KafkaSettings,
    producer: Producer,
}

impl Fixture {
    async fn new(protocol: Protocol) -> Self {
        let settings = settings(protocol);
        let admin = Admin::new(&settings).unwrap();
        admin.apply(&catalogue(), false).await.unwrap();
        let producer = Producer::new(&settings, signer(), "it").unwrap();
        Self { settings, producer }
    }

    /// Produces records with these keys, all acknowledged.
    async fn produce(&self, keys: impl IntoIterator<Item = usize>) {
        let records: Vec<Outgoing> = keys.into_iter().map(record).collect();
        for chunk in records.chunks(5_000) {
            for result in self.producer.publish_all(chunk).await {
                result.unwrap();
            }
        }
    }

    fn start(&self, handler: &Arc<Recorder>, options: ConsumerOptions) -> Member {
        let consumer = Consumer::new(
            &self.settings,
            GROUP,
            &[TOPIC],
            Arc::clone(handler) as Arc<dyn Handler>,
            options,
        );
        let consumer = consumer.unwrap();
        let state = consumer.state();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            consumer.run(token).await.unwrap();
        });
        Member { state, stop, task }
    }

    /// The group's committed offsets and those of the topic's end, by partition.
    async fn offsets(&self) -> (Vec<Option<i64>>, Vec<i64>) {
        let admin = Admin::new(&self.settings).unwrap();
        let cluster = admin.describe(&catalogue()).await.unwrap();
        let topic = &cluster.topics[0];
        let ends = topic.partitions.iter().map(|p| p.end).collect();
        (topic.groups[0].committed.clone(), ends)
    }

    /// Waits until the group has committed everything.
    async fn caught_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let (committed, ends) = self.offsets().await;
            if committed.iter().flatten().eq(ends.iter()) {
                return;
            }
            assert!(Instant::now() < deadline, "{committed:?} of {ends:?}");
        }
    }

    /// Records that the group has committed.
    async fn committed(&self) -> i64 {
        let (committed, _) = self.offsets().await;
        committed.into_iter().flatten().sum()
    }
}

struct Member {
    state: Arc<ConsumerState>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Member {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// Ends the member without a drain or a last commit of what its records do.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    async fn assigned(&self, partitions: usize) {
        eventually("the partitions are assigned", || {
            self.state.snapshot().assigned == partitions
        })
        .await;
    }
}

fn record(key: usize) -> Outgoing {
    Outgoing {
        topic: TOPIC,
        key: key.to_string(),
        ce_id: format!("id-{key}"),
        ce_type: "agenthub.test".to_owned(),
        tenant: "acme".parse().unwrap(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: Bytes::from(format!("{{\"n\":{key}}}")),
    }
}

fn key(record: &Incoming) -> usize {
    let key = std::str::from_utf8(record.key.as_deref().unwrap()).unwrap();
    key.parse().unwrap()
}

/// What a handler does with a record.
enum Deed {
    Done,
    Return,
    Panic,
    /// Holds the record until the recorder is released.
    Hold,
}

/// A handler that notes what it is given.
struct Recorder {
    deed: Box<dyn Fn(usize) -> Deed + Send + Sync>,
    handled: Mutex<BTreeMap<usize, usize>>,
    /// The records of each assignment, to see that none comes twice within one.
    offsets: Mutex<HashSet<(u64, i32, i64)>>,
    twice: AtomicBool,
    poisoned: Mutex<Vec<(usize, String)>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    released: CancellationToken,
    first: Mutex<Option<Arc<Incoming>>>,
}

impl Recorder {
    fn new(deed: impl Fn(usize) -> Deed + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            deed: Box::new(deed),
            handled: Mutex::default(),
            offsets: Mutex::default(),
            twice: AtomicBool::new(false),
            poisoned: Mutex::default(),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            released: CancellationToken::new(),
            first: Mutex::default(),
        })
    }

    /// Keys that were handled to the end.
    fn keys(&self) -> usize {
        self.handled.lock().unwrap().len()
    }

    fn times(&self, key: usize) -> usize {
        self.handled.lock().unwrap().get(&key).copied().unwrap_or(0)
    }

    fn total(&self) -> usize {
        self.handled.lock().unwrap().values().sum()
    }
}

#[async_trait]
impl Handler for Recorder {
    async fn handle(&self, record: Arc<Incoming>, ack: Ack) {
        let key = key(&record);
        self.first
            .lock()
            .unwrap()
            .get_or_insert_with(|| Arc::clone(&record));
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        let deed = (self.deed)(key);
        if matches!(deed, Deed::Hold) {
            self.released.cancelled().await;
        }
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        *self.handled.lock().unwrap().entry(key).or_default() += 1;
        match deed {
            Deed::Return => {}
            Deed::Panic => panic!("by intent"),
            Deed::Done | Deed::Hold => {
                let place = (record.generation, record.partition, record.offset);
                if !self.offsets.lock().unwrap().insert(place) {
                    self.twice.store(true, Ordering::SeqCst);
                }
                ack.done();
            }
        }
    }

    async fn poisoned(&self, record: Arc<Incoming>, error: String) {
        let entry = (key(&record), error);
        self.poisoned.lock().unwrap().push(entry);
    }
}

/// Waits for a condition, to a deadline.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 40 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn options() -> ConsumerOptions {
    ConsumerOptions {
        client_id: "it".to_owned(),
        retry_backoff: Duration::from_millis(5),
        ..ConsumerOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_arrives_as_it_was_sent_and_verifies() {
    let fixture = Fixture::new(Protocol::Classic).await;
    let sent = Outgoing {
        run_id: Some(RunId::generate()),
        not_after_ms: Some(7),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
        ..record(1)
    };
    let delivery = fixture.producer.publish(&sent).await.unwrap();
    let recorder = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&recorder, options());
    eventually("the record is handled", || recorder.keys() == 1).await;
    let got = recorder.first.lock().unwrap().clone().unwrap();
    assert_eq!((got.topic, got.partition), (TOPIC, delivery.partition));
    assert_eq!(got.offset, delivery.offset);
    assert_eq!(got.value, Some(sent.value.clone()));
    assert_eq!(got.header(header::CE_ID), Some("id-1"));
    assert_eq!(got.header(header::CE_SPECVERSION), Some("1.0"));
    assert_eq!(got.header(header::CE_SOURCE), Some("it"));
    assert_eq!(got.header(header::TRACEPARENT), sent.traceparent.as_deref());
    let time: jiff::Timestamp = got.header(header::CE_TIME).unwrap().parse().unwrap();
    assert!((time.as_millisecond() - got.timestamp_ms).abs() < 60_000);
    let verify = |value: &[u8]| {
        signer().verify(
            &got.full_topic,
            got.key.as_deref().unwrap(),
            &got.headers,
            value,
        )
    };
    assert_eq!(verify(&sent.value), Ok(()));
    assert!(verify(b"{}").is_err());
    member.stop().await;
    assert_eq!(fixture.committed().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_do_not_leave_by_the_open_door() {
    let fixture = Fixture::new(Protocol::Classic).await;
    let command = Outgoing {
        topic: Topic::PlanCommands,
        ..record(1)
    };
    let error = fixture.producer.publish(&command).await.unwrap_err();
    assert!(matches!(error, ProduceError::NotWritten { .. }), "{error}");
    let all = fixture.producer.publish_all(&[record(1), command]).await;
    assert!(all.iter().all(Result::is_err));
    let (_, ends) = fixture.offsets().await;
    assert_eq!(ends.iter().sum::<i64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_done_comes_again_and_what_was_done_does_not() {
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..30).await;
    // Key 7 is never done: the records before it in its partition are committed, those from it on
    // come again.
    let first = Recorder::new(|key| if key == 7 { Deed::Hold } else { Deed::Done });
    let member = fixture.start(&first, options());
    eventually("all but one are done", || first.keys() == 29).await;
    let held = loop {
        let (committed, ends) = fixture.offsets().await;
        let behind = |(at, end): (&Option<i64>, &i64)| at.unwrap_or(0) < *end;
        let mut left = committed.iter().zip(&ends).filter(|pair| behind(*pair));
        if let (Some((at, end)), None) = (left.next(), left.next()) {
            break end - at.unwrap_or(0);
        }
    };
    member.kill().await;
    let second = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&second, options());
    eventually("the held record comes again", || second.times(7) == 1).await;
    member.stop().await;
    let (committed, ends) = fixture.offsets().await;
    let committed: i64 = committed.into_iter().flatten().sum();
    assert_eq!(committed, ends.iter().sum::<i64>());
    // What stands behind key 7 in its partition comes twice, and nothing else.
    assert_eq!(i64::try_from(second.total()).unwrap(), held);
    let third = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&third, options());
    member.assigned(3).await;
    fixture.produce([100]).await;
    eventually("the new record is handled", || third.keys() == 1).await;
    assert_eq!(third.times(100), 1);
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_records_in_flight_and_leaves_the_others_uncommitted() {
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..10).await;
    let recorder = Recorder::new(|_| Deed::Hold);
    let member = fixture.start(&recorder, options());
    eventually("all are in flight", || {
        recorder.at_once.load(Ordering::SeqCst) == 10
    })
    .await;
    member.stop.cancel();
    eventually("intake is off", || member.state.snapshot().paused).await;
    recorder.released.cancel();
    member.task.await.unwrap();
    assert_eq!((recorder.keys(), fixture.committed().await), (10, 10));

    fixture.produce(10..20).await;
    let recorder = Recorder::new(|_| Deed::Hold);
    let impatient = ConsumerOptions {
        drain: Duration::from_millis(200),
        ..options()
    };
    let member = fixture.start(&recorder, impatient);
    eventually("all are in flight", || {
        recorder.at_once.load(Ordering::SeqCst) == 10
    })
    .await;
    member.stop().await;
    assert_eq!((recorder.keys(), fixture.committed().await), (0, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_fails_again_and_again_is_put_aside_and_the_partition_goes_on() {
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..30).await;
    let recorder = Recorder::new(|key| match key {
        7 => Deed::Panic,
        9 => Deed::Return,
        _ => Deed::Done,
    });
    let member = fixture.start(&recorder, options());
    eventually("all are handled", || recorder.keys() == 30).await;
    eventually("two are put aside", || {
        recorder.poisoned.lock().unwrap().len() == 2
    })
    .await;
    member.stop().await;
    assert_eq!((recorder.times(7), recorder.times(9)), (3, 3));
    assert_eq!(recorder.total(), 28 + 3 + 3);
    let mut poisoned = recorder.poisoned.lock().unwrap().clone();
    poisoned.sort();
    assert_eq!((poisoned[0].0, poisoned[1].0), (7, 9));
    assert!(poisoned[0].1.contains("by intent"), "{poisoned:?}");
    assert_eq!(fixture.committed().await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn back_pressure_pauses_intake_and_the_loop_goes_on_polling() {
    let mut fixture = Fixture::new(Protocol::Classic).await;
    // A member that does not poll for so long is put out of the group.
    fixture.settings.properties = vec![
        "session.timeout.ms=1000".to_owned(),
        "heartbeat.interval.ms=200".to_owned(),
        "max.poll.interval.ms=1500".to_owned(),
    ];
    fixture.produce(0..200).await;
    let recorder = Recorder::new(|key| {
        if key % 50 == 0 {
            Deed::Hold
        } else {
            Deed::Done
        }
    });
    let narrow = ConsumerOptions {
        max_in_flight: 2,
        ..options()
    };
    let member = fixture.start(&recorder, narrow);
    eventually("both tasks are held", || {
        recorder.at_once.load(Ordering::SeqCst) == 2 && member.state.snapshot().paused
    })
    .await;
    let held = recorder.keys();
    let since = Instant::now();
    eventually("three poll intervals pass", || {
        assert!(member.state.snapshot().since_poll < Duration::from_secs(1));
        since.elapsed() > Duration::from_millis(4500)
    })
    .await;
    assert_eq!(recorder.keys(), held, "nothing is taken in while paused");
    recorder.released.cancel();
    eventually("all are handled", || recorder.keys() == 200).await;
    let snapshot = member.state.snapshot();
    assert_eq!(snapshot.generation, 1, "the member never left the group");
    member.stop().await;
    assert_eq!(recorder.total(), 200, "each once");
    assert_eq!(recorder.most_at_once.load(Ordering::SeqCst), 2);
    assert_eq!(fixture.committed().await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_group_loses_and_repeats_nothing_while_members_come_and_go() {
    rebalance_storm(Protocol::Classic, Leave::InOrder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_group_loses_and_repeats_nothing_while_members_come_and_go() {
    rebalance_storm(Protocol::Consumer, Leave::InOrder).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_classic_group_loses_nothing_when_members_are_killed() {
    rebalance_storm(Protocol::Classic, Leave::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_group_loses_nothing_when_members_are_killed() {
    rebalance_storm(Protocol::Consumer, Leave::Killed).await;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    InOrder,
    Killed,
}

/// Two members share the partitions while a third comes and goes and records flow.
async fn rebalance_storm(protocol: Protocol, leave: Leave) {
    const ROUNDS: usize = 4;
    const PER_ROUND: usize = 500;
    let fixture = Fixture::new(protocol).await;
    let steady = Recorder::new(|_| Deed::Done);
    let guest = Recorder::new(|_| Deed::Done);
    let first = fixture.start(&steady, options());
    first.assigned(PARTITIONS as usize).await;
    let second = fixture.start(&steady, options());
    eventually("the partitions are shared", || {
        let of = |m: &Member| m.state.snapshot().assigned;
        of(&second) > 0 && of(&first) + of(&second) == PARTITIONS as usize
    })
    .await;
    for round in 0..ROUNDS {
        let third = fixture.start(&guest, options());
        let keys = round * PER_ROUND..(round + 1) * PER_ROUND;
        fixture.produce(keys).await;
        eventually("the guest has a partition", || {
            third.state.snapshot().assigned == 1
        })
        .await;
        fixture.produce([1_000_000 + round]).await;
        match leave {
            Leave::InOrder => third.stop().await,
            Leave::Killed => third.kill().await,
        }
    }
    let all = ROUNDS * PER_ROUND + ROUNDS;
    eventually("every record is handled", || {
        let mut keys: HashSet<usize> = steady.handled.lock().unwrap().keys().copied().collect();
        keys.extend(guest.handled.lock().unwrap().keys());
        keys.len() == all
    })
    .await;
    assert!(first.state.snapshot().generation > 1 || second.state.snapshot().generation > 1);
    // One that was killed may have done what it did not come to commit: the others do it again.
    if leave == Leave::Killed {
        fixture.caught_up().await;
    }
    first.stop().await;
    second.stop().await;
    let (committed, ends) = fixture.offsets().await;
    let committed: Vec<i64> = committed.into_iter().flatten().collect();
    assert_eq!(committed, ends, "all is committed, and nothing beyond");
    let handled = steady.total() + guest.total();
    match leave {
        Leave::InOrder => assert_eq!(handled, all, "each once"),
        Leave::Killed => assert!(handled >= all),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_partitions_are_drained_before_they_are_given_back() {
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..30).await;
    let first = Recorder::new(|_| Deed::Hold);
    let patient = ConsumerOptions {
        revoke_drain: Duration::from_secs(30),
        ..options()
    };
    let member = fixture.start(&first, patient);
    eventually("all are in flight", || {
        first.at_once.load(Ordering::SeqCst) == 30
    })
    .await;
    let second = Recorder::new(|_| Deed::Done);
    let other = fixture.start(&second, options());
    // The second member cannot have a partition before the first one's records are done.
    let since = Instant::now();
    eventually("a second passes", || since.elapsed().as_secs() >= 1).await;
    assert_eq!(other.state.snapshot().assigned, 0);
    first.released.cancel();
    other.assigned(1).await;
    member.stop().await;
    other.assigned(3).await;
    other.stop().await;
    assert_eq!((first.total(), second.total()), (30, 0), "each once");
    assert_eq!(fixture.committed().await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_does_not_wait_beyond_its_deadline_and_late_reports_are_dropped() {
    for protocol in [Protocol::Classic, Protocol::Consumer] {
        let fixture = Fixture::new(protocol).await;
        fixture.produce(0..30).await;
        let first = Recorder::new(|_| Deed::Hold);
        let hasty = ConsumerOptions {
            revoke_drain: Duration::from_millis(100),
            ..options()
        };
        let member = fixture.start(&first, hasty);
        eventually("all are in flight", || {
            first.at_once.load(Ordering::SeqCst) == 30
        })
        .await;
        let second = Recorder::new(|_| Deed::Hold);
        let other = fixture.start(&second, options());
        other.assigned(1).await;
        eventually("its records come again", || {
            second.at_once.load(Ordering::SeqCst) > 0
        })
        .await;
        let again = second.at_once.load(Ordering::SeqCst);
        // The first one's reports of the partition that it gave back must commit nothing.
        first.released.cancel();
        eventually("the first one's are done", || first.keys() == 30).await;
        member.stop().await;
        let committed = fixture.committed().await;
        assert!(
            committed + i64::try_from(again).unwrap() <= 30,
            "{committed} and {again}"
        );
        second.released.cancel();
        other.assigned(3).await;
        eventually("the second one's are done", || {
            second.at_once.load(Ordering::SeqCst) == 0
        })
        .await;
        other.stop().await;
        assert_eq!(fixture.committed().await, 30);
    }
}

/// Blocks its thread at the first record until it is released.
struct Stall {
    stalled: AtomicBool,
    release: Mutex<std::sync::mpsc::Receiver<()>>,
    handled: AtomicUsize,
}

#[async_trait]
impl Handler for Stall {
    async fn handle(&self, _: Arc<Incoming>, ack: Ack) {
        if !self.stalled.swap(true, Ordering::SeqCst) {
            self.release.lock().unwrap().recv().unwrap();
        }
        self.handled.fetch_add(1, Ordering::SeqCst);
        ack.done();
    }

    async fn poisoned(&self, _: Arc<Incoming>, error: String) {
        panic!("{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_put_out_commits_nothing_and_comes_back() {
    for protocol in [Protocol::Classic, Protocol::Consumer] {
        let fixture = Fixture::new(protocol).await;
        fixture.produce(0..10).await;
        let mut short = fixture.settings.clone();
        short
            .properties
            .push("max.poll.interval.ms=1500".to_owned());
        if protocol == Protocol::Classic {
            short.properties.push("session.timeout.ms=1000".to_owned());
        }
        let (release, wait) = std::sync::mpsc::channel();
        let stall = Arc::new(Stall {
            stalled: AtomicBool::new(false),
            release: Mutex::new(wait),
            handled: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let (token, handler) = (stop.clone(), Arc::clone(&stall));
        let states: Arc<Mutex<Vec<Arc<ConsumerState>>>> = Arc::default();
        let of_thread = Arc::clone(&states);
        // A runtime of one thread: while the handler blocks it, the loop does not poll.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                // As a supervisor does: with the `consumer` protocol librdkafka gives up for good
                // when a member is put out while it is to give partitions back.
                loop {
                    let handler = Arc::clone(&handler) as Arc<dyn Handler>;
                    let consumer = Consumer::new(&short, GROUP, &[TOPIC], handler, options());
                    let consumer = consumer.unwrap();
                    of_thread.lock().unwrap().push(consumer.state());
                    if consumer.run(token.clone()).await.is_ok() {
                        break;
                    }
                }
            });
        });
        eventually("it stalls", || stall.stalled.load(Ordering::SeqCst)).await;

        let recorder = Recorder::new(|_| Deed::Done);
        let other = fixture.start(&recorder, options());
        other.assigned(3).await;
        eventually("the other does it all", || recorder.keys() == 10).await;
        fixture.caught_up().await;
        fixture.produce(10..20).await;
        release.send(()).unwrap();
        eventually("it comes back", || {
            let states = states.lock().unwrap();
            let last = states.last().unwrap().snapshot();
            last.assigned > 0 && (last.generation > 1 || states.len() > 1)
        })
        .await;
        fixture.produce(20..40).await;
        fixture.caught_up().await;
        stop.cancel();
        thread.join().unwrap();
        other.stop().await;
        fixture.caught_up().await;
        // What it had taken up before was done twice; the rest once.
        let total = stall.handled.load(Ordering::SeqCst) + recorder.total();
        assert!((40..=50).contains(&total), "{total}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_starts_where_it_is_told() {
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..20).await;
    let from = |from| ConsumerOptions { from, ..options() };
    let recorder = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&recorder, from(StartFrom::Latest));
    member.assigned(3).await;
    // The end is looked up when fetching begins, so records are sent until one arrives.
    for key in 100.. {
        fixture.produce([key]).await;
        if recorder.keys() > 0 {
            break;
        }
    }
    member.stop().await;
    assert!((0..20).all(|key| recorder.times(key) == 0));

    let recorder = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&recorder, from(StartFrom::Earliest));
    eventually("all come again", || {
        (0..20).all(|key| recorder.times(key) == 1)
    })
    .await;
    member.stop().await;

    // Records carry the time in milliseconds, so the next one is made after this.
    let now = jiff::Timestamp::now().as_millisecond() + 1;
    eventually("a millisecond passes", || {
        jiff::Timestamp::now().as_millisecond() > now
    })
    .await;
    fixture.produce(1_000_000..1_000_010).await;
    let recorder = Recorder::new(|_| Deed::Done);
    let member = fixture.start(&recorder, from(StartFrom::Timestamp(now)));
    eventually("the later ones come", || recorder.keys() == 10).await;
    member.stop().await;
    assert!((0..20).all(|key| recorder.times(key) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_records_pass_quickly_and_once() {
    const RECORDS: usize = 60_000;
    let fixture = Fixture::new(Protocol::Classic).await;
    fixture.produce(0..RECORDS).await;
    let counter = Arc::new(Count::default());
    let consumer = Consumer::new(
        &fixture.settings,
        GROUP,
        &[TOPIC],
        Arc::clone(&counter) as Arc<dyn Handler>,
        options(),
    );
    let stop = CancellationToken::new();
    let consumer = consumer.unwrap();
    let state = consumer.state();
    let token = stop.clone();
    let task = tokio::spawn(async move {
        consumer.run(token).await.unwrap();
    });
    eventually("it begins", || state.snapshot().assigned == 3).await;
    let since = Instant::now();
    eventually("all are handled", || {
        counter.0.load(Ordering::SeqCst) >= RECORDS
    })
    .await;
    println!("{RECORDS} records in {:?}", since.elapsed());
    stop.cancel();
    task.await.unwrap();
    assert_eq!(counter.0.load(Ordering::SeqCst), RECORDS);
    assert_eq!(fixture.committed().await, i64::try_from(RECORDS).unwrap());
}

#[derive(Default)]
struct Count(AtomicUsize);

#[async_trait]
impl Handler for Count {
    async fn handle(&self, _: Arc<Incoming>, ack: Ack) {
        self.0.fetch_add(1, Ordering::SeqCst);
        ack.done();
    }

    async fn poisoned(&self, _: Arc<Incoming>, error: String) {
        panic!("{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_broker_every_call_ends_soon() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap().to_string();
    drop(listener);
    let settings = KafkaSettings {
        brokers: nobody.clone(),
        produce_timeout: Duration::from_millis(500),
        ..settings(Protocol::Classic)
    };
    let producer = Producer::new(&settings, signer(), "it").unwrap();
    let since = Instant::now();
    let error = producer.publish(&record(1)).await.unwrap_err();
    assert!(matches!(error, ProduceError::Unknown { .. }), "{error}");
    assert!(since.elapsed() < Duration::from_secs(3));

    let health = BrokerHealth::new(producer.clone());
    let since = Instant::now();
    assert!(health.check().await.is_err());
    assert!(since.elapsed() < Duration::from_secs(2));
    let since = Instant::now();
    assert!(health.check().await.is_err());
    assert!(since.elapsed() < Duration::from_millis(100), "cached");

    let since = Instant::now();
    let error = Admin::new(&settings).unwrap().verify(&catalogue()).await;
    let error = error.unwrap_err();
    assert!(matches!(error, AdminError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&nobody), "{error}");
    assert!(since.elapsed() < Duration::from_secs(10));

    let recorder = Recorder::new(|_| Deed::Done);
    let fixture = Fixture { settings, producer };
    let member = fixture.start(&recorder, options());
    eventually("the loop runs", || {
        member.state.snapshot().since_poll < Duration::from_millis(100)
    })
    .await;
    let since = Instant::now();
    member.stop().await;
    assert!(since.elapsed() < Duration::from_secs(12));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_are_healthy_when_they_are() {
    let fixture = Fixture::new(Protocol::Classic).await;
    let health = BrokerHealth::new(fixture.producer.clone());
    assert_eq!(health.check().await, Ok(()));
    assert!(fixture.producer.flush(Duration::from_secs(5)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_created_verified_and_never_cut() {
    let settings = settings(Protocol::Classic);
    let admin = Admin::new(&settings).unwrap();
    let mut declared = catalogue();
    let missing = admin.verify(&declared).await.unwrap();
    assert_eq!(missing.topics, [(TOPIC, Difference::Missing)]);

    let plan = admin.apply(&declared, false).await.unwrap();
    assert_eq!(plan.actions, [Action::Create(TOPIC)]);
    assert_eq!(admin.verify(&declared).await.unwrap().topics, []);
    assert_eq!(admin.apply(&declared, false).await.unwrap().actions, []);

    // A value that is set is kept when another one is added.
    let spec = &mut declared.topics[0];
    spec.config.insert("retention.ms".into(), "86400000".into());
    admin.apply(&declared, false).await.unwrap();
    let spec = &mut declared.topics[0];
    spec.config.remove("retention.ms");
    spec.config.insert("segment.ms".into(), "3600000".into());
    admin.apply(&declared, false).await.unwrap();
    let observed = admin.observe(&declared).await.unwrap();
    assert_eq!(observed[&TOPIC].config["retention.ms"], "86400000");
    assert_eq!(observed[&TOPIC].config["segment.ms"], "3600000");

    declared.topics[0].partitions = 5;
    let refused = admin.apply(&declared, false).await.unwrap();
    assert_eq!((refused.actions.len(), refused.refused.len()), (0, 1));
    let grown = admin.apply(&declared, true).await.unwrap();
    assert_eq!(grown.actions, [Action::Grow(TOPIC, 5)]);
    assert_eq!(
        admin.observe(&declared).await.unwrap()[&TOPIC].partitions,
        5
    );

    declared.topics[0].partitions = 2;
    let shrink = Difference::Partitions { want: 2, have: 5 };
    let kept = admin.apply(&declared, true).await.unwrap();
    assert_eq!(
        (kept.actions.len(), &kept.left[..]),
        (0, &[(TOPIC, shrink)][..])
    );
    assert_eq!(
        admin.observe(&declared).await.unwrap()[&TOPIC].partitions,
        5
    );
}
