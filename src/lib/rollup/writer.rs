//! Writes what was gathered: dead letters first, then files, then the manifest, then the offsets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Epoch};
use super::chain::{self, Chain};
use super::files::{self, File};
use super::heads::Heads;
use super::intake::{Content, Entry, Rollup};
use super::keys::{AuditSigner, PublicKeys};
use super::layout::{MANIFESTS, Range};
use super::manifest::{Link, Manifest};
use super::position::{self, PositionError, Positions};
use super::signed::{self, SignedError, VERSION};
use crate::dlq::letter::{self, Author, Failure};
use crate::kafka::{KafkaSettings, Producer};
use crate::messages::Topic;
use crate::privacy::mask::Masker;
use crate::runtime::Health;
use crate::store::Redis;

/// Files that are uploaded at once.
const UPLOADS: usize = 8;
/// Longest pause between two attempts at what failed.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// When nothing is gathered, there is nothing to wait for but a change.
const IDLE: Duration = Duration::from_hours(1);

/// Why a roll-up must not go on: it would leave a gap that nobody sees.
#[derive(Debug, thiserror::Error)]
pub enum RollupError {
    /// The group's offset is beyond what the manifests cover, so records would be passed over. The
    /// storage may be another one than before.
    #[error(
        "partition {partition}: offset {committed} is committed, but the store has manifests \
         only up to {written}; restore the store, or set the group's offset back to {written}"
    )]
    Ahead {
        /// The partition.
        partition: i32,
        /// The committed offset.
        committed: i64,
        /// Where the last manifest ends.
        written: i64,
    },
    /// The manifests cover offsets that the topic has not reached, so new records would be taken for
    /// written ones. The topic may have been made anew.
    #[error(
        "partition {partition}: the topic ends at {end}, but the store has manifests up to \
         {written}; a topic that was made anew needs another storage prefix"
    )]
    Beyond {
        /// The partition.
        partition: i32,
        /// The offset that the next record gets.
        end: i64,
        /// Where the last manifest ends.
        written: i64,
    },
    /// The partition's last manifest is not to be believed, so nothing can be joined to it.
    #[error(
        "partition {partition}: the last manifest {path} cannot be joined to: {error}; after a change \
         of the signing key, name the old public key in AGENTHUB_AUDIT_PUBLIC_KEYS; otherwise somebody \
         else wrote it"
    )]
    Untrusted {
        /// The partition.
        partition: i32,
        /// The manifest.
        path: String,
        /// What is wrong with it.
        error: SignedError,
    },
    /// Rows or a manifest could not be encoded.
    #[error("a file could not be made: {0}")]
    Encode(String),
    /// The public keys contradict the signing key.
    #[error("AGENTHUB_AUDIT_PUBLIC_KEYS: {0}")]
    Keys(String),
    /// The embedded catalogue is wrong.
    #[error(transparent)]
    Catalogue(#[from] crate::kafka::catalogue::CatalogueError),
    /// The client for the topic's offsets could not be made.
    #[error(transparent)]
    Admin(#[from] crate::kafka::admin::AdminError),
}

/// Why the writer stops.
#[derive(Debug)]
enum Stop {
    /// The process ends.
    Told,
    Failed(RollupError),
}

impl From<RollupError> for Stop {
    fn from(error: RollupError) -> Self {
        Self::Failed(error)
    }
}

/// Where a partition's chain ends, as far as is known.
#[derive(Debug, Clone)]
struct ChainEnd {
    epoch: Epoch,
    /// The last manifest; `None` while there is none.
    last: Option<Link>,
    /// Others have written on.
    overtaken: bool,
}

impl ChainEnd {
    fn next(&self) -> i64 {
        self.last.as_ref().map_or(0, |link| link.end)
    }
}

/// What a [`Writer`] works with.
#[derive(Debug)]
pub struct WriterParts<'a> {
    /// The brokers.
    pub kafka: &'a KafkaSettings,
    /// The consumers' group, without the namespace.
    pub group: &'a str,
    /// Where files and manifests go.
    pub store: Arc<dyn ObjectStore>,
    /// Sends dead letters and heads.
    pub producer: Producer,
    /// Masks the texts of dead letters.
    pub masker: Arc<Masker>,
    /// Is told how `storage` is.
    pub health: Health,
    /// What the writer calls itself in dead letters.
    pub worker: String,
    /// Signs manifests and heads.
    pub signer: AuditSigner,
    /// Earlier keys whose manifests are joined to as well.
    pub accepted: PublicKeys,
    /// Where the API finds the heads.
    pub redis: Redis,
    /// Time between two publications of the heads.
    pub head_interval: Duration,
}

/// Writes the batches of a [`Rollup`]. There is to be one for each.
#[derive(Debug)]
pub struct Writer {
    rollup: Rollup,
    store: Arc<dyn ObjectStore>,
    chain: Chain,
    positions: Positions,
    producer: Producer,
    masker: Arc<Masker>,
    health: Health,
    worker: String,
    topic: String,
    signer: AuditSigner,
    keys: PublicKeys,
    heads: Heads,
    ends: HashMap<i32, ChainEnd>,
}

impl Writer {
    /// A writer of what `rollup` gathers.
    pub fn new(rollup: Rollup, parts: WriterParts<'_>) -> Result<Self, RollupError> {
        let topic = parts.kafka.topic(Topic::AuditLogs);
        let (signer, producer) = (parts.signer, parts.producer);
        let keys = parts
            .accepted
            .and(signer.public())
            .map_err(RollupError::Keys)?;
        parts.health.set("storage", false);
        Ok(Self {
            rollup,
            chain: Chain::new(parts.store.clone(), topic.clone()),
            store: parts.store,
            positions: Positions::new(parts.kafka, parts.group)?,
            heads: Heads::new(
                signer.clone(),
                parts.redis,
                producer.clone(),
                parts.head_interval,
            ),
            producer,
            masker: parts.masker,
            health: parts.health,
            worker: parts.worker,
            topic,
            signer,
            keys,
            ends: HashMap::new(),
        })
    }

    /// Writes until `end`. From `stopping` on, everything is written at once.
    ///
    /// # Errors
    /// When it must not go on; what is not written then is not committed either.
    pub async fn run(
        mut self,
        stopping: CancellationToken,
        end: CancellationToken,
    ) -> Result<(), RollupError> {
        let outcome = self.write(&stopping, &end).await;
        match outcome {
            Ok(()) | Err(Stop::Told) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn write(
        &mut self,
        stopping: &CancellationToken,
        end: &CancellationToken,
    ) -> Result<(), Stop> {
        self.look_at_storage(end).await?;
        loop {
            let hurry = stopping.is_cancelled();
            let shared = self.rollup.shared.clone();
            let due = shared.batches().take_due(Instant::now(), hurry);
            if due.is_empty() {
                let next = shared.batches().next_due();
                let next = next.into_iter().chain(self.heads.due()).min();
                let wait = next.map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
                tokio::select! {
                    () = end.cancelled() => return Ok(()),
                    () = stopping.cancelled(), if !hurry => {}
                    () = shared.changed.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
            for batch in due {
                self.flush(batch, end).await?;
            }
            self.heads.publish_due(Instant::now()).await;
        }
    }

    /// Writes a batch, or finds that others have.
    async fn flush(
        &mut self,
        mut batch: Batch<Entry>,
        end: &CancellationToken,
    ) -> Result<(), Stop> {
        let started = Instant::now();
        let mut letters = None;
        loop {
            let last = self.chain_end(&batch, end).await?;
            let start = last.as_ref().map_or(0, |link| link.end);
            let written = batch.entries.partition_point(|entry| entry.offset < start);
            batch
                .entries
                .drain(..written)
                .for_each(|entry| entry.ack.done());
            if batch.entries.is_empty() {
                return Ok(());
            }
            if letters.is_none() {
                letters = Some(self.send_letters(&batch.entries, end).await?);
            }
            let manifest = self.write_files(&mut batch, last.as_ref(), end).await?;
            let content = signed::sign(&manifest, &self.signer);
            let content = content.map_err(|e| RollupError::Encode(e.to_string()))?;
            let content = bytes::Bytes::from(content);
            let create = || self.chain.create(batch.partition, start, content.clone());
            if self.retry("manifest", end, create).await? {
                let link = Link::of(&manifest, &content);
                let now_ms = manifest.written_ms;
                self.know_end(batch.partition, batch.epoch, Some(link), now_ms)
                    .await;
                wrote(&manifest, &batch.entries, started);
                batch.entries.into_iter().for_each(|entry| entry.ack.done());
                return Ok(());
            }
            // Another roll-up was first, or this one was and did not hear of it.
            metrics::counter!("agenthub_rollup_manifests_total", "outcome" => "taken").increment(1);
            tracing::warn!(
                partition = batch.partition,
                start,
                "the range has a manifest already"
            );
            if let Some(known) = self.ends.get_mut(&batch.partition) {
                known.overtaken = true;
            }
        }
    }

    /// Stores the files of a batch; returns the manifest that joins them to `last`.
    async fn write_files(
        &self,
        batch: &mut Batch<Entry>,
        last: Option<&Link>,
        end: &CancellationToken,
    ) -> Result<Manifest, Stop> {
        let start = last.map_or(0, |link| link.end);
        let (topic, partition) = (self.topic.clone(), batch.partition);
        let entries = std::mem::take(&mut batch.entries);
        let encoding = tokio::task::spawn_blocking(move || {
            let range = Range {
                topic: &topic,
                partition,
                start,
            };
            let rows = entries.iter().filter_map(|entry| match &entry.content {
                Content::Row(row) => Some((entry.offset, &**row)),
                Content::Unfit(_) => None,
            });
            let files = files::encode(&range, rows);
            (entries, files)
        });
        let failed = |error: String| Stop::Failed(RollupError::Encode(error));
        let (entries, files) = encoding.await.map_err(|e| failed(e.to_string()))?;
        batch.entries = entries;
        let files = files.map_err(failed)?;
        self.upload(&files.objects, end).await?;
        let unfit = |entry: &&Entry| matches!(entry.content, Content::Unfit(_));
        Ok(Manifest {
            kind: Manifest::kind(),
            v: VERSION,
            key: self.signer.id().to_owned(),
            topic: self.topic.clone(),
            partition,
            sequence: last.map_or(0, |link| link.sequence + 1),
            start,
            end: batch.entries.last().map_or(start, |entry| entry.offset + 1),
            previous: last.map(|link| link.sha256.clone()),
            written_ms: now_ms(),
            dead_letters: batch.entries.iter().filter(unfit).count() as u64,
            files: files.listed,
            totals: files.totals,
        })
    }

    /// The last manifest of the partition's chain, to which the next one is joined.
    async fn chain_end(
        &mut self,
        batch: &Batch<Entry>,
        end: &CancellationToken,
    ) -> Result<Option<Link>, Stop> {
        let (partition, epoch) = (batch.partition, batch.epoch);
        let known = self.ends.get(&partition).filter(|c| c.epoch == epoch);
        let last = match known {
            Some(known) if !known.overtaken => return Ok(known.last.clone()),
            Some(known) => self.last_link(partition, Some(known.next()), end).await?,
            None => {
                // The offset first: whoever committed it had written its manifest.
                let ask = || self.positions.of(partition);
                let at = self.retry("offsets", end, ask).await?;
                let last = self.last_link(partition, at.committed, end).await?;
                let next = last.as_ref().map_or(0, |link| link.end);
                // Others may have written on since the topic's end was asked for.
                let at = if at.end < next {
                    self.retry("offsets", end, ask).await?
                } else {
                    at
                };
                position::check(partition, next, at)?;
                tracing::info!(partition, next, committed = at.committed, "resuming");
                last
            }
        };
        self.know_end(partition, epoch, last.clone(), now_ms())
            .await;
        Ok(last)
    }

    async fn know_end(&mut self, partition: i32, epoch: Epoch, last: Option<Link>, now_ms: u64) {
        if let Some(link) = &last {
            self.heads.show(link, now_ms).await;
        }
        let known = ChainEnd {
            epoch,
            last,
            overtaken: false,
        };
        self.ends.insert(partition, known);
    }

    /// The last manifest in the store, which covers `covered`.
    async fn last_link(
        &self,
        partition: i32,
        covered: Option<i64>,
        end: &CancellationToken,
    ) -> Result<Option<Link>, Stop> {
        let last = || self.chain.last(partition, covered);
        let Some(stored) = self.retry("manifests", end, last).await? else {
            return Ok(None);
        };
        match stored.open(&self.keys) {
            Ok(manifest) => Ok(Some(Link::of(&manifest, &stored.content))),
            Err(error) => {
                metrics::counter!("agenthub_rollup_signature_failures_total").increment(1);
                let path = stored.path.to_string();
                Err(RollupError::Untrusted {
                    partition,
                    path,
                    error,
                }
                .into())
            }
        }
    }

    async fn send_letters(&self, entries: &[Entry], end: &CancellationToken) -> Result<(), Stop> {
        let author = Author {
            worker: &self.worker,
            masker: &self.masker,
        };
        for entry in entries {
            let Content::Unfit(unfit) = &entry.content else {
                continue;
            };
            let failure = Failure {
                class: unfit.class,
                error: &unfit.error,
                attempts: 1,
            };
            let letter = letter::describe(&unfit.record, failure, author);
            if !letter::send(&self.producer, &unfit.record, &letter, end).await {
                return Err(Stop::Told);
            }
        }
        Ok(())
    }

    async fn upload(&self, files: &[File], end: &CancellationToken) -> Result<(), Stop> {
        let uploads: Vec<_> = files
            .iter()
            .map(|file| self.upload_one(file, end))
            .collect();
        stream::iter(uploads)
            .buffer_unordered(UPLOADS)
            .try_collect()
            .await
    }

    async fn upload_one(&self, file: &File, end: &CancellationToken) -> Result<(), Stop> {
        let File {
            path,
            content,
            sha256,
        } = file;
        let put = || chain::store_named_by_hash(&*self.store, path, content, sha256);
        self.retry("file", end, put).await
    }

    async fn look_at_storage(&self, end: &CancellationToken) -> Result<(), Stop> {
        let folder = Path::from(MANIFESTS);
        let look = || self.store.list_with_delimiter(Some(&folder));
        self.retry("storage", end, look).await.map(drop)
    }

    /// Does it until it succeeds, or the process ends. Says in the health whether it does.
    async fn retry<T, E: Failing, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        end: &CancellationToken,
        deed: impl Fn() -> F,
    ) -> Result<T, Stop> {
        let mut delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(LONGEST_DELAY)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            match deed().await {
                Ok(done) => {
                    if E::IS_STORAGE {
                        self.health.set("storage", true);
                    }
                    return Ok(done);
                }
                Err(error) => {
                    if E::IS_STORAGE {
                        self.health.set("storage", false);
                    }
                    tracing::warn!(%error, what, "not reached; trying again");
                }
            }
            tokio::select! {
                () = end.cancelled() => return Err(Stop::Told),
                () = tokio::time::sleep(delays.next().unwrap_or(LONGEST_DELAY)) => {}
            }
        }
    }
}

/// An error that passes by.
trait Failing: std::fmt::Display {
    /// Whether it is the object store's.
    const IS_STORAGE: bool;
}

impl Failing for object_store::Error {
    const IS_STORAGE: bool = true;
}

impl Failing for PositionError {
    const IS_STORAGE: bool = false;
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

fn wrote(manifest: &Manifest, entries: &[Entry], started: Instant) {
    let (records, files) = (manifest.rows(), manifest.files.len());
    metrics::counter!("agenthub_rollup_records_total").increment(records);
    metrics::counter!("agenthub_rollup_files_total").increment(files as u64);
    metrics::counter!("agenthub_rollup_manifests_total", "outcome" => "written").increment(1);
    metrics::histogram!("agenthub_rollup_write_seconds").record(started.elapsed().as_secs_f64());
    let partition = manifest.partition.to_string();
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let seconds = |ms: u64| ms as f64 / 1000.0;
    metrics::gauge!("agenthub_rollup_last_manifest_seconds", "partition" => partition.clone())
        .set(seconds(manifest.written_ms));
    if let Some(oldest) = entries.iter().map(|entry| entry.produced_ms).min() {
        let lag = manifest.written_ms.saturating_sub(oldest);
        metrics::gauge!("agenthub_rollup_manifest_lag_seconds", "partition" => partition)
            .set(seconds(lag));
    }
    tracing::info!(
        partition = manifest.partition,
        start = manifest.start,
        end = manifest.end,
        records,
        files,
        dead_letters = manifest.dead_letters,
        "written"
    );
}
