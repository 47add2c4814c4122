//! The indexer of dead letters against a real broker and Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agenthub::config::RedisSettings;
use agenthub::dlq::Indexer;
use agenthub::ids::TenantId;
use agenthub::kafka::admin::Admin;
use agenthub::kafka::catalogue::Catalogue;
use agenthub::kafka::{Consumer, ConsumerOptions, KafkaSettings, Producer};
use agenthub::messages::{DeadLetter, FailureClass, Outgoing, RunEnd, Signer, Topic};
use agenthub::privacy::mask::Masker;
use agenthub::store::{IndexedLetter, LetterFilter, Redis};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(40);

fn signer(letter: char) -> Signer {
    use base64::Engine;
    let secret = letter.to_string().repeat(32);
    let secret = base64::engine::general_purpose::STANDARD.encode(secret);
    Signer::parse(&format!("k1:{secret}")).unwrap()
}

fn redis(namespace: &str) -> Redis {
    let url = std::env::var("REDIS_URL").expect("REDIS_URL names the test Redis");
    Redis::open(
        &RedisSettings::of_url(&url.into()).unwrap(),
        namespace,
        Duration::from_secs(5),
    )
    .unwrap()
}

fn namespace() -> String {
    format!("it-{:016x}", rand::random::<u64>())
}

fn letter(offset: i64, tenant: Option<&str>, class: FailureClass) -> DeadLetter {
    DeadLetter {
        v: 1,
        topic: "execute.commands".to_owned(),
        partition: 0,
        offset,
        key: None,
        value: Some("AAAA".repeat(10_000)),
        headers: Vec::new(),
        class,
        error: "by intent".to_owned(),
        attempts: 1,
        first_ms: 1_700_000_000_000,
        last_ms: 1_700_000_000_000 + u64::try_from(offset).unwrap(),
        worker: "it".to_owned(),
        tenant: tenant.map(|t| t.parse().unwrap()),
        run_id: None,
        traceparent: None,
        end: RunEnd::default(),
    }
}

fn outgoing(value: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        topic: Topic::DeadLetter,
        key: "k".to_owned(),
        ce_id: "id".to_owned(),
        ce_type: "agenthub.dead_letter".to_owned(),
        tenant: TenantId::system(),
        run_id: None,
        not_after_ms: None,
        traceparent: None,
        value: value.into(),
    }
}

fn ids(letters: &[IndexedLetter]) -> Vec<String> {
    letters.iter().map(|indexed| indexed.letter.id()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_are_indexed_once_each_for_whom_they_belong_to() {
    let kafka = KafkaSettings {
        brokers: std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the test broker"),
        namespace: namespace(),
        properties: vec!["heartbeat.interval.ms=200".to_owned()],
        consumer_protocol: false,
        produce_timeout: Duration::from_secs(10),
    };
    let mut catalogue = Catalogue::embedded(true).unwrap();
    catalogue
        .topics
        .retain(|spec| spec.topic == Topic::DeadLetter);
    let admin = Admin::new(&kafka).unwrap();
    admin.apply(&catalogue, false).await.unwrap();
    let producer = Producer::new(&kafka, signer('a'), "it").unwrap();
    let foreign = Producer::new(&kafka, signer('b'), "it").unwrap();
    let json = |letter: &DeadLetter| serde_json::to_vec(letter).unwrap();

    let of_acme = letter(1, Some("acme"), FailureClass::TooManyDeliveries);
    let of_nobody = letter(2, None, FailureClass::Unsigned);
    let claimed = letter(3, Some("acme"), FailureClass::Panicked);
    // The first one twice: its author did not hear that it was acknowledged.
    for letter in [&of_acme, &of_acme, &of_nobody] {
        producer.publish(&outgoing(json(letter))).await.unwrap();
    }
    let claimed = foreign.publish(&outgoing(json(&claimed))).await.unwrap();
    let broken = producer.publish(&outgoing("{")).await.unwrap();

    let redis = redis(&kafka.namespace);
    let (acme, system) = ("acme".parse().unwrap(), TenantId::system());
    let topic = kafka.topic(Topic::DeadLetter);
    let at = |d: agenthub::kafka::Delivery| format!("{topic}/{}/{}", d.partition, d.offset);
    let expected: BTreeMap<String, FailureClass> = [
        (of_nobody.id(), FailureClass::Unsigned),
        (at(claimed), FailureClass::Unsigned),
        (at(broken), FailureClass::Undecodable),
    ]
    .into();
    // The second group reads all of it again: the index stays as it is.
    for group in ["dlq", "dlq-again"] {
        let stop = CancellationToken::new();
        let masker = Arc::new(Masker::new(&[]).unwrap());
        let worker = "it".to_owned();
        let indexer = Indexer::new(redis.clone(), signer('a'), masker, worker, stop.clone());
        let options = ConsumerOptions::default();
        let topics = [Topic::DeadLetter];
        let consumer = Consumer::new(&kafka, group, &topics, Arc::new(indexer), options).unwrap();
        let consumer = tokio::spawn(consumer.run(stop.clone()));
        let mut read = catalogue.clone();
        read.topics[0].consumers = vec![group.to_owned()];
        let deadline = Instant::now() + DEADLINE;
        while admin.describe(&read).await.unwrap().topics[0].groups[0].lag > 0 {
            assert!(Instant::now() < deadline, "the letters are not read");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stop.cancel();
        consumer.await.unwrap().unwrap();

        let all = LetterFilter::default();
        let letters = redis.letters(&acme, &all, None, 10).await.unwrap();
        assert_eq!(ids(&letters), [of_acme.id()], "{group}");
        assert_eq!(
            (letters[0].value_bytes, letters[0].is_cut()),
            (30_000, true)
        );
        let letters = redis.letters(&system, &all, None, 10).await.unwrap();
        let found = letters.iter().map(|l| (l.letter.id(), l.letter.class));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), expected, "{group}");
    }
    let shown = redis.letter(&acme, &of_acme.id()).await.unwrap().unwrap();
    assert_eq!(shown.letter.error, "by intent");
    assert!(
        redis
            .letter(&system, &of_acme.id())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn the_latest_are_listed_first_by_class_and_the_oldest_leave() {
    let redis = redis(&namespace());
    let tenant: TenantId = "acme".parse().unwrap();
    let class = |n| [FailureClass::Unsigned, FailureClass::Panicked][usize::from(n % 2 == 0)];
    // More than a page.
    for n in 0..250 {
        let indexed = IndexedLetter::new(letter(n, Some("acme"), class(n)), 0, n);
        assert!(
            redis
                .index_letter_within(&tenant, &indexed, 240)
                .await
                .unwrap()
        );
        assert!(
            !redis
                .index_letter_within(&tenant, &indexed, 240)
                .await
                .unwrap()
        );
    }
    let id = |n: i64| format!("execute.commands/0/{n}");
    let any = LetterFilter::default();
    let latest = redis.letters(&tenant, &any, None, 2).await.unwrap();
    assert_eq!(ids(&latest), [id(249), id(248)]);
    let next = latest[1].cursor();
    let next = redis.letters(&tenant, &any, Some(&next), 2).await.unwrap();
    assert_eq!(ids(&next), [id(247), id(246)]);
    let all = redis.letters(&tenant, &any, None, 1_000).await.unwrap();
    assert_eq!(ids(&all), (10..250).rev().map(id).collect::<Vec<_>>());
    let unsigned = LetterFilter {
        class: Some(FailureClass::Unsigned),
        ..any
    };
    let unsigned = redis
        .letters(&tenant, &unsigned, None, 1_000)
        .await
        .unwrap();
    assert_eq!(unsigned.len(), 120);
    assert!(redis.letter(&tenant, &id(9)).await.unwrap().is_none());
    assert_eq!(
        redis
            .letter(&tenant, &id(10))
            .await
            .unwrap()
            .unwrap()
            .offset,
        10
    );
}

#[tokio::test]
async fn equal_failures_are_grouped_and_a_group_leaves_with_its_last_letter() {
    let redis = redis(&namespace());
    let tenant: TenantId = "acme".parse().unwrap();
    let put = async |offset: i64, error: &str, keep: usize| {
        let mut letter = letter(offset, Some("acme"), FailureClass::Permanent);
        letter.error = error.to_owned();
        letter.end.tool = Some("http_fetch".to_owned());
        letter.run_id = Some(agenthub::ids::RunId::generate());
        let indexed = IndexedLetter::new(letter, 0, offset);
        redis
            .index_letter_within(&tenant, &indexed, keep)
            .await
            .unwrap();
        indexed
    };
    let first = put(1, "no answer after 10 ms", 10).await;
    put(2, "no answer after 11 ms", 10).await;
    let other = put(3, "refused", 10).await;
    let groups = redis.letter_groups(&tenant, 10).await.unwrap();
    let found: Vec<_> = groups
        .iter()
        .map(|g| (g.fingerprint.as_str(), g.count, g.latest.offset))
        .collect();
    assert_eq!(found, [(&*other.group, 1, 3), (&*first.group, 2, 2)]);
    assert_eq!(
        (groups[1].first_ms, groups[1].last_ms),
        (1_700_000_000_001, 1_700_000_000_002)
    );
    let filter = |change: &dyn Fn(&mut LetterFilter)| {
        let mut filter = LetterFilter::default();
        change(&mut filter);
        filter
    };
    let count = async |filter: LetterFilter| {
        let letters = redis.letters(&tenant, &filter, None, 10).await.unwrap();
        letters.len()
    };
    let group = first.group.clone();
    assert_eq!(count(filter(&|f| f.group = Some(group.clone()))).await, 2);
    assert_eq!(
        count(filter(&|f| f.tool = Some("http_fetch".into()))).await,
        3
    );
    assert_eq!(
        count(filter(&|f| f.tool = Some("retrieval".into()))).await,
        0
    );
    let run = first.letter.run_id.clone();
    assert_eq!(count(filter(&|f| f.run = run.clone())).await, 1);
    assert_eq!(
        count(filter(&|f| f.since_ms = Some(1_700_000_000_002))).await,
        2
    );
    assert_eq!(
        count(filter(&|f| f.until_ms = Some(1_700_000_000_002))).await,
        1
    );

    // Room for two: the first group goes with its letters, and so do their runs.
    put(4, "refused", 2).await;
    let groups = redis.letter_groups(&tenant, 10).await.unwrap();
    let found: Vec<_> = groups.iter().map(|g| (&*g.fingerprint, g.count)).collect();
    assert_eq!(found, [(&*other.group, 2)]);
    assert_eq!(count(filter(&|f| f.run = run.clone())).await, 0);
}
