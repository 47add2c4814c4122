//! Verify finds whatever is done to a store, and names the object to which it was done.

use arrow::array::{Array, AsArray, Int64Array, StringArray};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use parquet::arrow::ArrowWriter;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::*;
use crate::rollup::files;
use crate::rollup::keys::AuditSigner;
use crate::rollup::manifest::Link;
use crate::rollup::parquet as form;
use crate::rollup::retention::{Expiry, expire};
use crate::rollup::row::Row;
use crate::rollup::signed::{self, VERSION};
use crate::rollup::table::{ROW_HASH, Table};

/// 2026-02-03T04:00:00Z.
const HOUR: u64 = 1_770_091_200_000;
const TOPIC: &str = "ns-audit.logs";

fn row(number: i64) -> Row {
    let tenant = [Some("acme"), None][usize::try_from(number % 2).unwrap()];
    let audit = json!({
        "v": 1, "id": format!("id-{number}"), "ts": HOUR + number.unsigned_abs(), "action": "request",
        "tenant": tenant, "role": "client", "method": "GET", "route": "/v1/runs", "status": 200,
        "input_tokens": 1, "output_tokens": 2, "cost_micro_usd": 3, "duration_ms": number, "decision": "allowed",
    });
    let audit = serde_json::from_value(audit).unwrap();
    Row { audit, extra: None }
}

/// Writes the ranges of a partition as the roll-up does; returns the head.
async fn write(store: &InMemory, signer: &AuditSigner, partition: i32, ends: &[i64]) -> Head {
    let mut last: Option<Link> = None;
    for end in ends {
        let start = last.as_ref().map_or(0, |link| link.end);
        let range = Range {
            topic: TOPIC,
            partition,
            start,
        };
        let rows: Vec<(i64, Row)> = (start..*end).map(|offset| (offset, row(offset))).collect();
        let rows = rows.iter().map(|(offset, row)| (*offset, row));
        let files = files::encode(&range, rows).unwrap();
        for file in files.objects {
            store
                .put(&file.path, PutPayload::from_bytes(file.content))
                .await
                .unwrap();
        }
        let manifest = Manifest {
            kind: Manifest::kind(),
            v: VERSION,
            key: signer.id().to_owned(),
            topic: TOPIC.to_owned(),
            partition,
            sequence: last.as_ref().map_or(0, |link| link.sequence + 1),
            start,
            end: *end,
            previous: last.map(|link| link.sha256),
            written_ms: HOUR,
            dead_letters: 0,
            files: files.listed,
            totals: files.totals,
        };
        last = Some(put_signed(store, signer, &manifest).await);
    }
    let head = last.unwrap().head(signer, HOUR).unwrap();
    Head::read(head.as_bytes(), &signer.public())
        .unwrap()
        .pop()
        .unwrap()
}

async fn put_signed(store: &InMemory, signer: &AuditSigner, manifest: &Manifest) -> Link {
    let text = Bytes::from(signed::sign(manifest, signer).unwrap());
    let range = Range {
        topic: &manifest.topic,
        partition: manifest.partition,
        start: manifest.start,
    };
    store
        .put(&range.manifest(), text.clone().into())
        .await
        .unwrap();
    Link::of(manifest, &text)
}

struct Installation {
    store: InMemory,
    signer: AuditSigner,
    options: VerifyOptions,
}

impl Installation {
    async fn new() -> Self {
        let store = InMemory::new();
        let signer = AuditSigner::generate(None).unwrap();
        let mut heads = Vec::new();
        for (partition, ends) in [(0, &[5, 8][..]), (1, &[3])] {
            heads.push(write(&store, &signer, partition, ends).await);
        }
        let options = VerifyOptions {
            keys: signer.public(),
            heads,
            explain: false,
        };
        Self {
            store,
            signer,
            options,
        }
    }

    async fn verify(&self, store: InMemory) -> Outcome<Verified> {
        verify(Arc::new(store), &self.options).await
    }

    /// What verify finds in a store.
    async fn misfit(&self, store: &InMemory) -> Misfit {
        match self.verify(store.fork()).await {
            Err(VerifyError::Misfit(misfit)) => misfit,
            other => panic!("{other:?}"),
        }
    }
}

async fn paths(store: &InMemory) -> Vec<Path> {
    let listed = store.list(None).map_ok(|object| object.location);
    let mut paths: Vec<Path> = listed.try_collect().await.unwrap();
    paths.sort();
    paths
}

async fn content(store: &InMemory, path: &Path) -> Bytes {
    store.get(path).await.unwrap().bytes().await.unwrap()
}

async fn put(store: &InMemory, path: &Path, content: impl Into<Bytes>) {
    store
        .put(path, PutPayload::from_bytes(content.into()))
        .await
        .unwrap();
}

fn is_parquet(path: &Path) -> bool {
    path.extension() == Some("parquet")
}

fn is_manifest(path: &Path) -> bool {
    layout::manifest_parts(path).is_some()
}

/// A file with its rows changed by someone who knows the form: with `rehash`, their hashes too.
fn edited(content: Bytes, rehash: bool, edit: impl FnOnce(RecordBatch) -> RecordBatch) -> Bytes {
    let batches = form::decode(content).unwrap();
    let batch = edit(concat_batches(&batches[0].schema(), &batches).unwrap());
    let batch = if rehash {
        let table = Table::new(&batch).unwrap();
        let hash = |row| hex::encode(table.hash(row, &mut Vec::new()));
        let hashes: StringArray = (0..table.rows()).map(|row| Some(hash(row))).collect();
        with_column(&batch, ROW_HASH, Arc::new(hashes))
    } else {
        batch
    };
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap().into()
}

fn with_column(batch: &RecordBatch, name: &str, column: Arc<dyn Array>) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    columns[batch.schema().index_of(name).unwrap()] = column;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// The rows with these numbers, in this order.
fn picked(batch: &RecordBatch, rows: &[i64]) -> RecordBatch {
    let rows = Int64Array::from(rows.to_vec());
    let columns = batch
        .columns()
        .iter()
        .map(|column| take(column, &rows, None).unwrap());
    RecordBatch::try_new(batch.schema(), columns.collect()).unwrap()
}

fn with_cost(batch: &RecordBatch, row: usize, cost: i64) -> RecordBatch {
    let costs = batch["cost_micro_usd"].as_primitive::<Int64Type>();
    let costs: Int64Array = (0..costs.len())
        .map(|n| if n == row { cost } else { costs.value(n) })
        .collect();
    with_column(batch, "cost_micro_usd", Arc::new(costs))
}

#[tokio::test]
async fn what_was_written_is_verified() {
    let there = Installation::new().await;
    there
        .store
        .put(&Path::from("audit/leftover"), "x".into())
        .await
        .unwrap();
    let verified = there.verify(there.store.fork()).await.unwrap();
    let chains = verified
        .chains
        .iter()
        .map(|c| (c.partition, c.manifests, c.end));
    assert_eq!(chains.collect::<Vec<_>>(), [(0, 2, 8), (1, 1, 3)]);
    assert_eq!((verified.files, verified.rows, verified.heads), (6, 11, 2));
    assert_eq!((verified.ignored_objects, verified.expired_files), (1, 0));
}

/// One change at random; returns what was done.
#[allow(clippy::too_many_lines)] // one table
async fn mutate(store: &InMemory, signer: &AuditSigner, random: &mut SmallRng) -> String {
    let all = paths(store).await;
    let pick = |random: &mut SmallRng, which: fn(&Path) -> bool| {
        let some: Vec<&Path> = all.iter().filter(|path| which(path)).collect();
        (*some.choose(random).unwrap()).clone()
    };
    match random.random_range(0..12) {
        0..=3 => {
            let path = all.choose(random).unwrap();
            let mut bytes = content(store, path).await.to_vec();
            let bit = random.random_range(0..bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            put(store, path, bytes).await;
            format!("flip bit {bit} of {path}")
        }
        4 => {
            let path = pick(random, is_parquet);
            let rehash = random.random();
            let before = content(store, &path).await;
            let cost = random.random_range(4..1_000_000);
            let row = random.random::<u32>() as usize;
            let edit = |batch: RecordBatch| with_cost(&batch, row % batch.num_rows(), cost);
            put(store, &path, edited(before, rehash, edit)).await;
            format!("edit a row of {path}, its hash too: {rehash}")
        }
        5 => {
            let path = pick(random, is_parquet);
            let before = content(store, &path).await;
            let edit = |batch: RecordBatch| {
                let mut rows: Vec<i64> = (0..i64::try_from(batch.num_rows()).unwrap()).collect();
                // One that has but one row gets it twice.
                match rows.len() {
                    1 => rows.push(0),
                    _ if random.random() => _ = rows.remove(random.random_range(0..rows.len())),
                    _ => rows.rotate_left(1),
                }
                picked(&batch, &rows)
            };
            put(store, &path, edited(before, false, edit)).await;
            format!("reorder, remove or repeat rows of {path}")
        }
        6 => {
            let path = all.choose(random).unwrap();
            store.delete(path).await.unwrap();
            format!("remove {path}")
        }
        7 => {
            let alike = if random.random() {
                is_parquet
            } else {
                is_manifest
            };
            let (one, mut other) = (pick(random, alike), pick(random, alike));
            while one == other {
                other = pick(random, alike);
            }
            let contents = (content(store, &one).await, content(store, &other).await);
            put(store, &one, contents.1).await;
            put(store, &other, contents.0).await;
            format!("exchange {one} and {other}")
        }
        8 => {
            let path = all.choose(random).unwrap();
            let mut bytes = content(store, path).await.to_vec();
            match random.random_range(0..3) {
                0 => bytes.truncate(random.random_range(0..bytes.len())),
                1 => bytes.push(random.random()),
                _ => bytes.insert(random.random_range(0..bytes.len()), b' '),
            }
            put(store, path, bytes).await;
            format!("cut or lengthen {path}")
        }
        9 => {
            // Signed by somebody else, under the name of the key.
            let path = pick(random, is_manifest);
            let text = content(store, &path).await;
            let mut manifest: Manifest = signed::open(&text, &signer.public(), true).unwrap();
            manifest.dead_letters = 1;
            manifest.files.clear();
            manifest.totals = None;
            let foreign = AuditSigner::generate(Some(signer.id().to_owned())).unwrap();
            put_signed(store, &foreign, &manifest).await;
            format!("forge {path}")
        }
        10 => {
            // Somebody has the key: what came after, and heads, still show it.
            let path = pick(random, is_manifest);
            let text = content(store, &path).await;
            let mut manifest: Manifest = signed::open(&text, &signer.public(), true).unwrap();
            manifest.written_ms += random.random_range(1..1000);
            put_signed(store, signer, &manifest).await;
            format!("sign {path} anew")
        }
        _ => {
            let path = pick(random, is_manifest);
            let (topic, partition, start) = layout::manifest_parts(&path).unwrap();
            let to = match random.random_range(0..3) {
                0 => Range {
                    topic: &topic,
                    partition,
                    start: start + 1,
                }
                .manifest(),
                1 => Range {
                    topic: &topic,
                    partition: partition + 5,
                    start,
                }
                .manifest(),
                _ => Path::from(MANIFESTS).join("x.json"),
            };
            let text = content(store, &path).await;
            put(store, &to, text).await;
            store.delete(&path).await.unwrap();
            format!("rename {path} to {to}")
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_mutations_are_found() {
    let there = Arc::new(Installation::new().await);
    let seed = rand::random::<u64>();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..2 {
        let there = there.clone();
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed.wrapping_add(worker));
            let mut kinds = HashSet::new();
            for number in 0..500 {
                let store = there.store.fork();
                let deed = mutate(&store, &there.signer, &mut random).await;
                kinds.insert(deed.split(' ').next().unwrap().to_owned());
                let found = there.verify(store).await;
                assert!(
                    matches!(found, Err(VerifyError::Misfit(_))),
                    "seed {seed}, number {number} of {worker}: {deed}: {found:?}"
                );
            }
            kinds
        });
    }
    let kinds: HashSet<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!(kinds.len(), 9, "{kinds:?}");
}

#[tokio::test]
async fn the_object_is_named() {
    let there = Installation::new().await;
    for path in paths(&there.store).await {
        let store = there.store.fork();
        let mut bytes = content(&store, &path).await.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        put(&store, &path, bytes).await;
        assert_eq!(there.misfit(&store).await.object, path.to_string());
        // What is gone is named too, a manifest by the one that does not follow any more, or by a head.
        let store = there.store.fork();
        store.delete(&path).await.unwrap();
        let misfit = there.misfit(&store).await;
        let (gone, named) = (
            layout::manifest_parts(&path),
            Path::from(misfit.object.as_str()),
        );
        match (gone, layout::manifest_parts(&named)) {
            (None, _) => assert_eq!(named, path),
            (Some(gone), Some(named)) => {
                assert_eq!((&gone.0, gone.1), (&named.0, named.1));
                assert!(named.2 >= gone.2, "{misfit}");
            }
            (Some(_), None) => panic!("{misfit}"),
        }
    }
}

#[tokio::test]
async fn a_tail_that_was_cut_is_shown_by_a_head() {
    let mut there = Installation::new().await;
    let all = paths(&there.store).await;
    let last = all.iter().rfind(|path| is_manifest(path)).unwrap();
    let store = there.store.fork();
    store.delete(last).await.unwrap();
    let misfit = there.misfit(&store).await;
    assert_eq!(misfit.object, last.to_string());
    assert!(
        misfit
            .what
            .contains("it is gone: a head of 2026-02-03T04:00:00Z"),
        "{misfit}"
    );
    // Without one it cannot be known.
    there.options.heads.clear();
    assert!(there.verify(store).await.is_ok());
}

#[tokio::test]
async fn a_head_among_the_records_vouches_for_another_chain() {
    let mut there = Installation::new().await;
    let [zero, one] = [0, 1].map(|n| there.options.heads[n].clone());
    there.options.heads.clear();
    // Partition 2 has a record with the head of partition 1.
    let mut record = row(0);
    record.audit.action = crate::rollup::heads::ACTION.to_owned();
    record.audit.target = Some(signed::sign(&one, &there.signer).unwrap());
    let range = Range {
        topic: TOPIC,
        partition: 2,
        start: 0,
    };
    let files = files::encode(&range, [(0, &record)].into_iter()).unwrap();
    for file in files.objects {
        put(&there.store, &file.path, file.content).await;
    }
    let manifest = Manifest {
        kind: Manifest::kind(),
        v: VERSION,
        key: there.signer.id().to_owned(),
        topic: TOPIC.to_owned(),
        partition: 2,
        sequence: 0,
        start: 0,
        end: 1,
        previous: None,
        written_ms: HOUR,
        dead_letters: 0,
        files: files.listed,
        totals: files.totals,
    };
    put_signed(&there.store, &there.signer, &manifest).await;
    assert_eq!(there.verify(there.store.fork()).await.unwrap().heads, 1);
    for head in [zero, one] {
        let store = there.store.fork();
        let range = Range {
            topic: TOPIC,
            partition: head.partition,
            start: head.start,
        };
        store.delete(&range.manifest()).await.unwrap();
        let found = there.verify(store).await;
        assert_eq!(found.is_err(), head.partition == 1, "{found:?}");
    }
}

#[tokio::test]
async fn whoever_has_the_key_cannot_contradict_the_rows() {
    let there = Installation::new().await;
    let all = paths(&there.store).await;
    let last = all.iter().rfind(|path| is_manifest(path)).unwrap();
    let text = content(&there.store, last).await;
    let manifest: Manifest = signed::open(&text, &there.options.keys, true).unwrap();
    let options = VerifyOptions {
        heads: Vec::new(),
        ..there.options.clone()
    };
    let path = Path::from(manifest.files[0].path.as_str());
    let before = content(&there.store, &path).await;
    // The file and its hashes in the manifest are made anew, in part.
    for (rehash, rows, told) in [
        (false, false, "its values do not fit its hash"),
        (true, false, "they are not the manifest's"),
        (true, true, "its figures are not those of the records"),
    ] {
        let store = there.store.fork();
        let changed = edited(before.clone(), rehash, |batch| with_cost(&batch, 0, 99));
        let mut manifest = manifest.clone();
        manifest.files[0].sha256 = sha256(&changed);
        manifest.files[0].bytes = changed.len() as u64;
        if rows {
            let batches = form::decode(changed.clone()).unwrap();
            let mut all = crate::rollup::table::RowsHash::default();
            for hash in batches[0][ROW_HASH].as_string::<i32>().iter().flatten() {
                all.add(&hex::decode(hash).unwrap().try_into().unwrap());
            }
            manifest.files[0].rows_sha256 = all.finish();
        }
        put(&store, &path, changed).await;
        put_signed(&store, &there.signer, &manifest).await;
        let found = verify(Arc::new(store), &options)
            .await
            .unwrap_err()
            .to_string();
        assert!(found.contains(told), "{found}");
    }
}

#[tokio::test]
async fn a_changed_row_is_named_on_request() {
    let mut there = Installation::new().await;
    there.options.explain = true;
    let all = paths(&there.store).await;
    let path = all.iter().find(|path| is_parquet(path)).unwrap();
    let before = content(&there.store, path).await;
    let told = async |changed: Bytes| {
        let store = there.store.fork();
        put(&store, path, changed).await;
        let misfit = there.misfit(&store).await;
        assert_eq!(misfit.object, path.to_string());
        misfit.what
    };
    let what = told(edited(before.clone(), false, |batch| {
        with_cost(&batch, 1, 99)
    }))
    .await;
    assert!(
        what.ends_with("row 2, of offset 3, was changed: its values do not fit its hash"),
        "{what}"
    );
    let what = told(edited(before.clone(), false, |batch| {
        picked(&batch, &[1, 0])
    }))
    .await;
    assert!(
        what.ends_with("row 2, of offset 1, is not in the order of the offsets"),
        "{what}"
    );
    let what = told(edited(before.clone(), false, |batch| batch)).await;
    assert!(
        what.ends_with("its rows are those of the manifest"),
        "{what}"
    );
    let what = told(Bytes::from_static(b"PAR1 no")).await;
    assert!(what.contains("it cannot be read"), "{what}");
}

#[tokio::test]
async fn keys_change_over_and_unknown_ones_are_named() {
    let there = Installation::new().await;
    let next = AuditSigner::generate(None).unwrap();
    let store = there.store.fork();
    write(&store, &next, 3, &[4]).await;
    let error = there.misfit(&store).await;
    assert!(
        error.what.contains(&format!(
            "the key {}, whose public key is not given",
            next.id()
        )),
        "{error}"
    );
    let keys = there.options.keys.clone().and(next.public()).unwrap();
    let options = VerifyOptions {
        keys,
        ..there.options.clone()
    };
    assert_eq!(
        verify(Arc::new(store), &options)
            .await
            .unwrap()
            .chains
            .len(),
        3
    );
}

#[tokio::test]
async fn nothing_is_not_proven() {
    let mut there = Installation::new().await;
    assert!(there.misfit(&InMemory::new()).await.what.contains("a head"));
    there.options.heads.clear();
    assert_eq!(there.misfit(&InMemory::new()).await.object, MANIFESTS);
}

#[tokio::test]
async fn what_retention_removed_may_be_absent_and_nothing_else() {
    let there = Installation::new().await;
    let (store, keys) = (Arc::new(there.store.fork()), &there.options.keys);
    let mut expiry = Expiry {
        except: Vec::new(),
        tenant: Some("acme".parse().unwrap()),
        before_ms: HOUR + 3_599_999,
        dry_run: false,
    };
    let remove = async |expiry: &Expiry| {
        expire(store.clone(), &there.signer, keys, expiry)
            .await
            .unwrap()
    };
    // The hour has not ended.
    assert_eq!(remove(&expiry).await.files, 0);
    expiry.before_ms += 1;
    expiry.dry_run = true;
    assert_eq!(remove(&expiry).await.files, 3);
    assert_eq!(there.verify(store.fork()).await.unwrap().files, 6);
    expiry.dry_run = false;
    let removed = remove(&expiry).await;
    assert_eq!((removed.files, removed.rows), (3, 6));
    let verified = there.verify(store.fork()).await.unwrap();
    assert_eq!(
        (
            verified.files,
            verified.expired_files,
            verified.ignored_objects
        ),
        (3, 3, 0)
    );
    // Again, there is nothing to do.
    assert_eq!(remove(&expiry).await.files, 0);

    // What no record names must be there.
    let all = paths(&store).await;
    let left = all.iter().find(|path| is_parquet(path)).unwrap();
    let cut = store.fork();
    cut.delete(left).await.unwrap();
    assert_eq!(there.misfit(&cut).await.object, left.to_string());
    // A record that is gone, changed or of another key allows nothing.
    let record = all.iter().find(|path| retention::is_record(path)).unwrap();
    let text = content(&store, record).await;
    for text in [
        None,
        Some(
            String::from_utf8(text.to_vec())
                .unwrap()
                .replace("agenthub", "agenthob"),
        ),
    ] {
        let changed = store.fork();
        changed.delete(record).await.unwrap();
        if let Some(text) = text {
            put(&changed, record, text).await;
        }
        assert!(there.misfit(&changed).await.what.contains("it is missing"));
    }
}
