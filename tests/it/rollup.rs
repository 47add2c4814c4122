//! The audit roll-up against a real broker and a folder: each record is in the listed files once,
//! whatever dies when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agenthub::config::RedisSettings;
use agenthub::ids::TenantId;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::consumer::ConsumerState;
use agenthub::kafka::{Ack, Consumer, ConsumerOptions, Handler, Incoming, KafkaSettings, Producer};
use agenthub::messages::{DeadLetter, FailureClass, Outgoing, Signer, Topic};
use agenthub::privacy::mask::Masker;
use agenthub::rollup::{
    AuditSigner, Chain, Head, Limits, Manifest, PublicKeys, Rollup, RollupError, Verified,
    VerifyError, VerifyOptions, Writer, WriterParts, verify,
};
use agenthub::runtime::Health;
use agenthub::store::Redis;
use async_trait::async_trait;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::record::RowAccessor;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(40);
const PARTITIONS: i32 = 3;
pub const GROUP: &str = "audit-rollup";
const OTHER_GROUP: &str = "other-rollup";
/// 2026-02-03T04:00:00Z.
const HOUR: u64 = 1_770_091_200_000;

fn signer(secret: &str) -> Signer {
    Signer::parse(&format!("k1:{secret}")).unwrap()
}

const OURS: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
const FOREIGN: &str = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=";

/// Topics, a signing key and a storage folder of a test's own.
pub struct Fixture {
    pub kafka: KafkaSettings,
    pub producer: Producer,
    pub redis: Redis,
    pub folder: tempfile::TempDir,
    pub store: Arc<dyn ObjectStore>,
    pub signer: AuditSigner,
    /// Keys of before that the roll-ups accept.
    pub accepted: PublicKeys,
    pub head_interval: Duration,
}

impl Fixture {
    pub async fn new() -> Self {
        let kafka = KafkaSettings {
            brokers: std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker"),
            namespace: format!("it-{:016x}", rand::random::<u64>()),
            properties: vec!["heartbeat.interval.ms=200".to_owned()],
            consumer_protocol: false,
            produce_timeout: Duration::from_secs(10),
        };
        let mut catalogue = Catalogue::embedded(true).unwrap();
        let wanted = [Topic::AuditLogs, Topic::DeadLetter];
        catalogue.topics.retain(|spec| wanted.contains(&spec.topic));
        let admin = Admin::new(&kafka).unwrap();
        admin.apply(&catalogue, false).await.unwrap();
        let producer = Producer::new(&kafka, signer(OURS), "it").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let url = std::env::var("REDIS_URL").unwrap_or("redis://127.0.0.1:6379/".to_owned());
        let redis = Redis::open(
            &RedisSettings::of_url(&url.into()).unwrap(),
            &kafka.namespace,
            Duration::from_secs(5),
        )
        .unwrap();
        Self {
            kafka,
            producer,
            redis,
            folder,
            store,
            signer: AuditSigner::generate(None).unwrap(),
            accepted: PublicKeys::default(),
            head_interval: Duration::from_hours(1),
        }
    }

    /// Verifies what is in the store, against the heads that the API would show.
    pub async fn verify(&self) -> Result<Verified, VerifyError> {
        let keys = self.accepted.clone().and(self.signer.public()).unwrap();
        let heads = self.redis.audit_heads().await.unwrap();
        let heads = heads
            .values()
            .flat_map(|head| Head::read(head.as_bytes(), &keys).unwrap());
        let options = VerifyOptions {
            heads: heads.collect(),
            keys,
            explain: false,
        };
        verify(self.store.clone(), &options).await
    }

    /// Produces records `from..to`, of two tenants, nobody, and two hours.
    pub async fn produce(&self, numbers: std::ops::Range<u64>) {
        let records: Vec<Outgoing> = numbers.map(record).collect();
        for result in self.producer.publish_all(&records).await {
            result.unwrap();
        }
    }

    pub fn start(&self, group: &'static str, limits: Limits) -> Member {
        let rollup = Rollup::new(signer(OURS), limits);
        let (stop, end) = (CancellationToken::new(), CancellationToken::new());
        let parts = WriterParts {
            kafka: &self.kafka,
            group,
            store: self.store.clone(),
            producer: self.producer.clone(),
            masker: Arc::new(Masker::new(&[]).unwrap()),
            health: Health::new(&[]),
            worker: "it".to_owned(),
            signer: self.signer.clone(),
            accepted: self.accepted.clone(),
            redis: self.redis.clone(),
            head_interval: self.head_interval,
        };
        let writer = Writer::new(rollup.clone(), parts);
        let writer = tokio::spawn(writer.unwrap().run(stop.clone(), end.clone()));
        let options = ConsumerOptions {
            max_in_flight: limits.max_in_flight(),
            ..ConsumerOptions::default()
        };
        let topics = [Topic::AuditLogs];
        let consumer = Consumer::in_order(&self.kafka, group, &topics, rollup.sink(), options);
        let consumer = consumer.unwrap();
        let state = consumer.state();
        let token = stop.clone();
        let consumer = tokio::spawn(async move {
            consumer.run(token).await.unwrap();
        });
        Member {
            state,
            consumer,
            writer,
            stop,
            end,
        }
    }

    pub async fn manifests(&self) -> Vec<Manifest> {
        let chain = Chain::new(self.store.clone(), self.kafka.topic(Topic::AuditLogs));
        let keys = self.accepted.clone().and(self.signer.public()).unwrap();
        let mut manifests = Vec::new();
        for partition in 0..PARTITIONS {
            let chain = chain.all(partition, &keys).await.unwrap();
            let mut next = 0;
            for manifest in &chain {
                assert_eq!(manifest.start, next, "{manifest:?}");
                next = manifest.end;
            }
            manifests.extend(chain);
        }
        manifests
    }

    /// Waits until the listed files hold `count` records.
    pub async fn written(&self, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let files = self.manifests().await.into_iter().flat_map(|m| m.files);
            let records = usize::try_from(files.map(|file| file.rows).sum::<u64>()).unwrap();
            if records >= count {
                assert_eq!(records, count);
                return;
            }
            assert!(Instant::now() < deadline, "{records} of {count} records");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Records that a group has not committed.
    async fn lag(&self, group: &str) -> i64 {
        let mut catalogue = Catalogue::embedded(true).unwrap();
        catalogue
            .topics
            .retain(|spec| spec.topic == Topic::AuditLogs);
        catalogue.topics[0].consumers = vec![group.to_owned()];
        let admin = Admin::new(&self.kafka).unwrap();
        admin.describe(&catalogue).await.unwrap().topics[0].groups[0].lag
    }

    async fn caught_up(&self, group: &str, member: &Member) {
        let deadline = Instant::now() + DEADLINE;
        while self.lag(group).await > 0 {
            assert!(!member.writer.is_finished(), "{group}: the writer ended");
            assert!(Instant::now() < deadline, "{group} is behind");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How often each id is in the listed files; each row is checked against its place.
    async fn rows(&self) -> BTreeMap<String, usize> {
        let mut rows = BTreeMap::new();
        for file in self.manifests().await.into_iter().flat_map(|m| m.files) {
            let content = std::fs::read(self.folder.path().join(&file.path)).unwrap();
            let content = Bytes::from(content);
            let reader = ParquetRecordBatchReaderBuilder::try_new(content.clone()).unwrap();
            let records: usize = reader.build().unwrap().map(|b| b.unwrap().num_rows()).sum();
            assert_eq!(records as u64, file.rows);
            let reader = parquet::file::reader::SerializedFileReader::new(content).unwrap();
            for row in parquet::file::reader::FileReader::get_row_iter(&reader, None).unwrap() {
                let row = row.unwrap();
                let id = row.get_string(1).unwrap();
                let number: u64 = id.parse().unwrap();
                let tenant = match tenant(number) {
                    Some(tenant) => format!("tenant={tenant}/"),
                    None => "tenant=__HIVE_DEFAULT_PARTITION__/".to_owned(),
                };
                let hour = format!("audit/date=2026-02-03/hour={:02}/", 4 + number % 2);
                assert!(
                    file.path.starts_with(&format!("{hour}{tenant}")),
                    "{} {id}",
                    file.path
                );
                *rows.entry(id.clone()).or_default() += 1;
            }
        }
        rows
    }

    async fn each_once(&self, count: u64) {
        let rows = self.rows().await;
        let expected: BTreeMap<String, usize> = (0..count).map(|n| (n.to_string(), 1)).collect();
        assert!(rows == expected, "{} ids of {count}", rows.len());
    }
}

fn tenant(number: u64) -> Option<&'static str> {
    [Some("acme"), Some("globex"), None][usize::try_from(number % 3).unwrap()]
}

fn record(number: u64) -> Outgoing {
    let tenant = tenant(number);
    let value = serde_json::json!({
        "v": 1, "id": number.to_string(), "ts": HOUR + (number % 2) * 3_600_000,
        "action": "request", "tenant": tenant, "decision": "allowed", "status": 202,
    });
    Outgoing {
        topic: Topic::AuditLogs,
        // Spread over the partitions, whatever the tenant.
        key: number.to_string(),
        ce_id: number.to_string(),
        ce_type: "agenthub.audit".to_owned(),
        tenant: tenant.map_or_else(TenantId::system, |t| t.parse().unwrap()),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: value.to_string().into(),
    }
}

/// A roll-up process.
pub struct Member {
    state: Arc<ConsumerState>,
    consumer: JoinHandle<()>,
    writer: JoinHandle<Result<(), RollupError>>,
    stop: CancellationToken,
    end: CancellationToken,
}

impl Member {
    /// Waits until it holds `count` records that it has not written.
    pub async fn has_taken(&self, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        while self.state.snapshot().in_flight != count {
            assert!(Instant::now() < deadline, "{:?}", self.state.snapshot());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.consumer.await.unwrap();
        self.end.cancel();
        self.writer.await.unwrap().unwrap();
    }

    /// Ends it wherever it is.
    pub async fn kill(self) {
        self.writer.abort();
        self.consumer.abort();
        assert!(self.consumer.await.unwrap_err().is_cancelled());
    }
}

pub fn limits(max_records: usize, max_age_ms: u64) -> Limits {
    Limits {
        max_records,
        max_age: Duration::from_millis(max_age_ms),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_is_written_once_over_a_crash_and_a_stop() {
    let fixture = Fixture::new().await;
    fixture.produce(0..2_000).await;
    // Small batches, so that the kill comes between two of them.
    let first = fixture.start(GROUP, limits(150, 60_000));
    let deadline = Instant::now() + DEADLINE;
    while fixture.manifests().await.len() < 4 {
        assert!(Instant::now() < deadline, "nothing is written");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    first.kill().await;
    fixture.produce(2_000..2_500).await;
    // Other boundaries than before: what the first one wrote behind its commits is not written again.
    let second = fixture.start(GROUP, limits(700, 100));
    fixture.written(2_500).await;
    fixture.each_once(2_500).await;

    // A stop writes what was gathered, long before its age.
    second.stop().await;
    let third = fixture.start(GROUP, limits(100_000, 3_600_000));
    fixture.produce(2_500..2_600).await;
    let manifests = fixture.manifests().await.len();
    third.has_taken(100).await;
    assert_eq!(fixture.manifests().await.len(), manifests);
    third.stop().await;
    fixture.each_once(2_600).await;
    assert_eq!(fixture.lag(GROUP).await, 0);
    let verified = fixture.verify().await.unwrap();
    assert_eq!((verified.rows, verified.heads), (2_600, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_fight_leave_one_truth() {
    let fixture = Fixture::new().await;
    fixture.produce(0..1_000).await;
    // In groups of their own, so that both read every partition from its start.
    let one = fixture.start(GROUP, limits(90, 30));
    let other = fixture.start(OTHER_GROUP, limits(110, 20));
    fixture.written(1_000).await;
    fixture.produce(1_000..2_000).await;
    fixture.written(2_000).await;
    // Each has found every record written, by itself or by the other.
    fixture.caught_up(GROUP, &one).await;
    fixture.caught_up(OTHER_GROUP, &other).await;
    one.stop().await;
    other.stop().await;
    fixture.each_once(2_000).await;
    // The heads in Redis are of the last manifests, whoever showed his later.
    let verified = fixture.verify().await.unwrap();
    assert_eq!((verified.rows, verified.heads), (2_000, 3));
    for (partition, head) in fixture.redis.audit_heads().await.unwrap() {
        let head = Head::read(head.as_bytes(), &fixture.signer.public())
            .unwrap()
            .remove(0);
        let chain = verified
            .chains
            .iter()
            .find(|chain| chain.partition == partition);
        assert_eq!(head.end, chain.unwrap().end);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_to_be_believed_is_a_dead_letter() {
    let fixture = Fixture::new().await;
    let rollup = fixture.start(GROUP, limits(100, 50));
    fixture.produce(0..10).await;
    let broken = Outgoing {
        value: Bytes::from_static(b"\xff not JSON"),
        ..record(3)
    };
    let broken = fixture.producer.publish(&broken).await.unwrap();
    let foreign = Producer::new(&fixture.kafka, signer(FOREIGN), "foreign").unwrap();
    let foreign = foreign.publish(&record(4)).await.unwrap();

    let (letters, mut received) = mpsc::unbounded_channel();
    let topics = [Topic::DeadLetter];
    let handler = Arc::new(Letters(letters));
    let reader = Consumer::new(
        &fixture.kafka,
        "dlq",
        &topics,
        handler,
        ConsumerOptions::default(),
    );
    let stop = CancellationToken::new();
    let reader = tokio::spawn(reader.unwrap().run(stop.clone()));
    let mut found = BTreeMap::new();
    while found.len() < 2 {
        let letter = tokio::time::timeout(DEADLINE, received.recv())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(letter.topic, fixture.kafka.topic(Topic::AuditLogs));
        let place = (letter.partition, letter.offset);
        found.insert(place, (letter.class, letter.value.unwrap()));
    }
    let (class, value) = &found[&(broken.partition, broken.offset)];
    assert_eq!(
        (*class, value.as_str()),
        (FailureClass::Undecodable, "/yBub3QgSlNPTg==")
    );
    assert_eq!(
        found[&(foreign.partition, foreign.offset)].0,
        FailureClass::Unsigned
    );

    stop.cancel();
    reader.await.unwrap().unwrap();
    fixture.written(10).await;
    rollup.stop().await;
    fixture.each_once(10).await;
    let verified = fixture.verify().await.unwrap();
    assert_eq!(
        verified
            .chains
            .iter()
            .map(|chain| chain.dead_letters)
            .sum::<u64>(),
        2
    );
    assert_eq!(fixture.lag(GROUP).await, 0);
}

struct Letters(mpsc::UnboundedSender<DeadLetter>);

#[async_trait]
impl Handler for Letters {
    async fn handle(&self, record: Arc<Incoming>, ack: Ack) {
        let value = record.value.as_deref().unwrap();
        self.0.send(serde_json::from_slice(value).unwrap()).unwrap();
        ack.done();
    }

    async fn poisoned(&self, _: Arc<Incoming>, error: String) {
        panic!("{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_manifests_are_noticed_and_nothing_is_passed_over() {
    let fixture = Fixture::new().await;
    fixture.produce(0..30).await;
    let rollup = fixture.start(GROUP, limits(100, 20));
    fixture.written(30).await;
    rollup.stop().await;
    std::fs::remove_dir_all(fixture.folder.path().join("audit/_manifests")).unwrap();
    fixture.produce(30..60).await;
    let rollup = fixture.start(GROUP, limits(100, 20));
    let outcome = tokio::time::timeout(DEADLINE, rollup.writer).await.unwrap();
    let error = outcome.unwrap().unwrap_err();
    assert!(
        matches!(error, RollupError::Ahead { written: 0, .. }),
        "{error}"
    );
    assert_eq!(fixture.manifests().await, []);
    rollup.stop.cancel();
    rollup.consumer.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_goes_on_under_a_new_key_and_stops_at_a_foreign_one() {
    let mut fixture = Fixture::new().await;
    fixture.produce(0..30).await;
    let rollup = fixture.start(GROUP, limits(100, 20));
    fixture.written(30).await;
    rollup.stop().await;
    let first = std::mem::replace(&mut fixture.signer, AuditSigner::generate(None).unwrap());

    // Whose manifest is it? Nothing is joined to it.
    fixture.produce(30..60).await;
    let rollup = fixture.start(GROUP, limits(100, 20));
    let outcome = tokio::time::timeout(DEADLINE, rollup.writer).await.unwrap();
    let error = outcome.unwrap().unwrap_err();
    assert!(matches!(error, RollupError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains(first.id()), "{error}");
    rollup.stop.cancel();
    rollup.consumer.abort();

    fixture.accepted = first.public();
    let rollup = fixture.start(GROUP, limits(100, 20));
    fixture.written(60).await;
    rollup.stop().await;
    fixture.each_once(60).await;
    assert_eq!(fixture.verify().await.unwrap().rows, 60);
    // The old key alone does not vouch for what came after it.
    let options = VerifyOptions {
        keys: first.public(),
        ..VerifyOptions::default()
    };
    let error = verify(fixture.store.clone(), &options).await.unwrap_err();
    assert!(error.to_string().contains(fixture.signer.id()), "{error}");
}
