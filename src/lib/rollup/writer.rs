//! Writes what was gathered: dead letters first, then files, then the marker, then the offsets.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::batch::{Batch, Epoch};
use super::commits::{self, Commits, ListedFile, Marker};
use super::intake::{Content, Entry, Rollup};
use super::layout::Group;
use super::parquet;
use super::position::{self, PositionError, Positions};
use crate::dlq::letter::{self, Author, Failure};
use crate::kafka::{KafkaSettings, Producer};
use crate::messages::Topic;
use crate::privacy::mask::Masker;
use crate::runtime::Health;

/// Files that are uploaded at once.
const UPLOADS: usize = 8;
/// Longest pause between two attempts at what failed.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// When nothing is gathered, there is nothing to wait for but a change.
const IDLE: Duration = Duration::from_hours(1);

/// Why a roll-up must not go on: it would leave a gap that nobody sees.
#[derive(Debug, thiserror::Error)]
pub enum RollupError {
    /// The group's offset is beyond what the markers cover, so records would be passed over. The
    /// storage may be another one than before.
    #[error(
        "partition {partition}: offset {committed} is committed, but the store has commit markers \
         only up to {written}; restore the store, or set the group's offset back to {written}"
    )]
    Ahead {
        /// The partition.
        partition: i32,
        /// The committed offset.
        committed: i64,
        /// Where the last marker ends.
        written: i64,
    },
    /// The markers cover offsets that the topic has not reached, so new records would be taken for
    /// written ones. The topic may have been made anew.
    #[error(
        "partition {partition}: the topic ends at {end}, but the store has commit markers up to \
         {written}; a topic that was made anew needs another storage prefix"
    )]
    Beyond {
        /// The partition.
        partition: i32,
        /// The offset that the next record gets.
        end: i64,
        /// Where the last marker ends.
        written: i64,
    },
    /// Rows could not be encoded.
    #[error("a file could not be made: {0}")]
    Encode(String),
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

/// Where a partition's chain of markers ends, as far as is known.
#[derive(Debug, Clone, Copy)]
struct Chain {
    epoch: Epoch,
    next: i64,
    /// Others have written on.
    overtaken: bool,
}

/// Writes the batches of a [`Rollup`]. There is to be one for each.
#[derive(Debug)]
pub struct Writer {
    rollup: Rollup,
    store: Arc<dyn ObjectStore>,
    commits: Commits,
    positions: Positions,
    producer: Producer,
    masker: Arc<Masker>,
    health: Health,
    worker: String,
    topic: String,
    chains: HashMap<i32, Chain>,
}

impl Writer {
    /// A writer that calls itself `worker` in dead letters and says in `health` how `storage` is.
    /// `group` is the consumers' group, without the namespace.
    #[allow(clippy::too_many_arguments)] // the parts of a process, each once
    pub fn new(
        rollup: Rollup,
        kafka: &KafkaSettings,
        group: &str,
        store: Arc<dyn ObjectStore>,
        producer: Producer,
        masker: Arc<Masker>,
        health: Health,
        worker: String,
    ) -> Result<Self, RollupError> {
        let topic = kafka.topic(Topic::AuditLogs);
        health.set("storage", false);
        Ok(Self {
            rollup,
            commits: Commits::new(store.clone(), topic.clone()),
            store,
            positions: Positions::new(kafka, group)?,
            producer,
            masker,
            health,
            worker,
            topic,
            chains: HashMap::new(),
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
            let start = self.chain_end(&batch, end).await?;
            let written = batch.entries.partition_point(|entry| entry.offset < start);
            batch
                .entries
                .drain(..written)
                .for_each(|entry| entry.ack.done());
            let Some(last) = batch.entries.last().map(|entry| entry.offset) else {
                return Ok(());
            };
            if letters.is_none() {
                letters = Some(self.send_letters(&batch.entries, end).await?);
            }
            let (topic, partition) = (self.topic.clone(), batch.partition);
            let entries = std::mem::take(&mut batch.entries);
            let encoding = tokio::task::spawn_blocking(move || {
                let files = encode(&topic, partition, &entries);
                (entries, files)
            });
            let (entries, files) = encoding
                .await
                .map_err(|e| RollupError::Encode(e.to_string()))?;
            batch.entries = entries;
            let files = files?;
            self.upload(&files, end).await?;
            let unfit = |entry: &&Entry| matches!(entry.content, Content::Unfit(_));
            let marker = Marker {
                v: 1,
                topic: self.topic.clone(),
                partition,
                start,
                end: last + 1,
                dead_letters: batch.entries.iter().filter(unfit).count(),
                files: files.into_iter().map(|file| file.listed).collect(),
            };
            let create = || self.commits.create(&marker);
            if self.retry("commit marker", end, create).await? {
                let chain = Chain {
                    epoch: batch.epoch,
                    next: marker.end,
                    overtaken: false,
                };
                self.chains.insert(partition, chain);
                wrote(&marker, started);
                batch.entries.into_iter().for_each(|entry| entry.ack.done());
                return Ok(());
            }
            // Another roll-up was first, or this one was and did not hear of it.
            metrics::counter!("agenthub_rollup_markers_total", "outcome" => "taken").increment(1);
            tracing::warn!(partition, start, "the range has a commit marker already");
            if let Some(chain) = self.chains.get_mut(&partition) {
                chain.overtaken = true;
            }
        }
    }

    /// Where the partition's chain of markers ends: the next marker begins there.
    async fn chain_end(
        &mut self,
        batch: &Batch<Entry>,
        end: &CancellationToken,
    ) -> Result<i64, Stop> {
        let (partition, epoch) = (batch.partition, batch.epoch);
        let known = self.chains.get(&partition).filter(|c| c.epoch == epoch);
        let next = match known.copied() {
            Some(chain) if !chain.overtaken => return Ok(chain.next),
            Some(chain) => self.last_end(partition, Some(chain.next), end).await?,
            None => {
                // The offset first: whoever committed it had written its marker.
                let ask = || self.positions.of(partition);
                let at = self.retry("offsets", end, ask).await?;
                let next = self.last_end(partition, at.committed, end).await?;
                // Others may have written on since the topic's end was asked for.
                let at = if at.end < next {
                    self.retry("offsets", end, ask).await?
                } else {
                    at
                };
                position::check(partition, next, at)?;
                tracing::info!(partition, next, committed = at.committed, "resuming");
                next
            }
        };
        let chain = Chain {
            epoch,
            next,
            overtaken: false,
        };
        self.chains.insert(partition, chain);
        Ok(next)
    }

    /// The end of the last marker in the store, which covers `covered`.
    async fn last_end(
        &self,
        partition: i32,
        covered: Option<i64>,
        end: &CancellationToken,
    ) -> Result<i64, Stop> {
        let last = || self.commits.last(partition, covered);
        let last = self.retry("commit markers", end, last).await?;
        Ok(last.map_or(0, |marker| marker.end))
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
        let create = || commits::create(&*self.store, &file.path, file.content.clone());
        // One of this name may be there, left by whoever wrote no marker: it has the same rows, for
        // its name says which records it holds.
        self.retry("file", end, create).await.map(drop)
    }

    async fn look_at_storage(&self, end: &CancellationToken) -> Result<(), Stop> {
        let folder = Path::from("audit/_commits");
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

/// A file before it is uploaded.
struct File {
    path: Path,
    content: Bytes,
    listed: ListedFile,
}

/// The files of a batch: one for each hour and tenant.
fn encode(topic: &str, partition: i32, entries: &[Entry]) -> Result<Vec<File>, RollupError> {
    let mut groups: BTreeMap<Group, Vec<parquet::Row<'_>>> = BTreeMap::new();
    for entry in entries {
        let Content::Row(audit) = &entry.content else {
            continue;
        };
        let ts = i64::try_from(audit.ts).unwrap_or(i64::MAX);
        let group = Group::new(ts, audit.tenant.as_ref());
        let row = (&**audit, partition, entry.offset);
        groups.entry(group).or_default().push(row);
    }
    let mut files = Vec::with_capacity(groups.len());
    for (group, rows) in groups {
        let (first, last) = (rows[0].2, rows[rows.len() - 1].2);
        let path = group.file(topic, partition, first, last);
        let path = path.ok_or_else(|| RollupError::Encode(format!("{group:?} has no date")))?;
        let content = parquet::encode(&rows).map_err(|e| RollupError::Encode(e.to_string()))?;
        files.push(File {
            listed: ListedFile {
                path: path.to_string(),
                records: rows.len(),
            },
            path,
            content: content.into(),
        });
    }
    Ok(files)
}

fn wrote(marker: &Marker, started: Instant) {
    let records: usize = marker.files.iter().map(|file| file.records).sum();
    metrics::counter!("agenthub_rollup_records_total").increment(records as u64);
    metrics::counter!("agenthub_rollup_files_total").increment(marker.files.len() as u64);
    metrics::counter!("agenthub_rollup_markers_total", "outcome" => "written").increment(1);
    metrics::histogram!("agenthub_rollup_write_seconds").record(started.elapsed().as_secs_f64());
    tracing::info!(
        partition = marker.partition,
        start = marker.start,
        end = marker.end,
        records,
        files = marker.files.len(),
        dead_letters = marker.dead_letters,
        "written"
    );
}
