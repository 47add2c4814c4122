//! The indexes of the tenants that are searched, kept up with their corpora.
//!
//! A search whose index was looked after within the refresh interval uses it as it is. Else the
//! first search to come brings it up to date, alone for its tenant; the others go on with the old
//! one. Work is kept batch by batch, so that a search that is cancelled delays an index and never
//! starts it over.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::{StreamExt, TryStreamExt, stream};
use tantivy::TantivyError;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::corpus::{Corpus, CorpusError, Document, Entry, Manifest};
use super::index::{Snapshot, TenantIndex};
use super::workspace::Workspace;
use crate::ids::TenantId;

/// Tenants whose indexes are kept.
const MAX_TENANTS: usize = 64;
/// Indexes that are built at once: each takes a writer's memory.
const MAX_BUILDS: usize = 2;
/// Bytes of text, and documents, that are read before they are indexed.
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_DOCUMENTS: usize = 64;
/// Documents that are read at once.
const PARALLEL: usize = 8;

/// Why there is no index to search.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The documents cannot be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The index cannot be written or read.
    #[error("the search index failed: {0}")]
    Index(#[from] TantivyError),
    /// The folder of the index cannot be used.
    #[error("the search index has no folder: {0}")]
    Folder(#[from] std::io::Error),
    /// The building task died.
    #[error("the search index was not built")]
    Aborted,
}

/// Indexes by tenant.
pub struct Tenants {
    corpus: Corpus,
    workspace: Arc<Workspace>,
    refresh: Duration,
    builds: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    tenants: HashMap<TenantId, (u64, Arc<Tenant>)>,
    uses: u64,
}

#[derive(Default)]
struct Tenant {
    /// Locked by the one that refreshes.
    state: Arc<tokio::sync::Mutex<State>>,
    current: ArcSwapOption<Current>,
}

/// What searches use; without a snapshot when the corpus is empty.
struct Current {
    snapshot: Option<Arc<Snapshot>>,
    checked: Instant,
}

#[derive(Default)]
struct State {
    /// Absent before the first document and after a failure, which may have left it half changed.
    index: Option<TenantIndex>,
    /// Of the manifest that `index` holds in full.
    etag: Option<String>,
}

impl Tenants {
    /// Indexes over `corpus`, in a folder below `cache_dir`, looked after at most every `refresh`.
    pub fn open(corpus: Corpus, cache_dir: &Path, refresh: Duration) -> std::io::Result<Self> {
        Ok(Self {
            corpus,
            workspace: Arc::new(Workspace::create(cache_dir)?),
            refresh,
            builds: Semaphore::new(MAX_BUILDS),
            kept: Mutex::default(),
        })
    }

    /// The tenant's index; `None` when it has no documents. When the documents cannot be read, an
    /// index that is there goes on being used.
    pub async fn snapshot(&self, tenant: &TenantId) -> Result<Option<Arc<Snapshot>>, IndexError> {
        let entry = self.tenant(tenant);
        if let Some(fresh) = self.fresh(&entry) {
            return Ok(fresh.snapshot.clone());
        }
        let state = match entry.current.load_full() {
            None => Arc::clone(&entry.state).lock_owned().await,
            Some(old) => match Arc::clone(&entry.state).try_lock_owned() {
                Ok(state) => state,
                Err(_) => return Ok(old.snapshot.clone()),
            },
        };
        // Someone may have done the work while this one waited for the lock.
        if let Some(fresh) = self.fresh(&entry) {
            return Ok(fresh.snapshot.clone());
        }
        let old = entry.current.load_full();
        let snapshot = match (self.refresh(tenant, old.as_ref(), state).await, old) {
            (Ok(snapshot), _) => snapshot,
            (Err(error), Some(old)) => {
                tracing::warn!(%tenant, %error, "the search index is not up to date");
                old.snapshot.clone()
            }
            (Err(error), None) => return Err(error),
        };
        entry.current.store(Some(Arc::new(Current {
            snapshot: snapshot.clone(),
            checked: Instant::now(),
        })));
        Ok(snapshot)
    }

    fn fresh(&self, entry: &Tenant) -> Option<Arc<Current>> {
        let current = entry.current.load_full()?;
        (current.checked.elapsed() < self.refresh).then_some(current)
    }

    /// The tenant's place; the least recently used one goes when there are too many.
    fn tenant(&self, tenant: &TenantId) -> Arc<Tenant> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.uses += 1;
        let uses = kept.uses;
        if let Some((last_use, entry)) = kept.tenants.get_mut(tenant) {
            *last_use = uses;
            return Arc::clone(entry);
        }
        if kept.tenants.len() >= MAX_TENANTS {
            let oldest = kept
                .tenants
                .iter()
                .min_by_key(|(_, (last_use, _))| *last_use);
            if let Some(oldest) = oldest.map(|(tenant, _)| tenant.clone()) {
                kept.tenants.remove(&oldest);
            }
        }
        let entry = Arc::new(Tenant::default());
        kept.tenants
            .insert(tenant.clone(), (uses, Arc::clone(&entry)));
        entry
    }

    /// Brings the index to the corpus as it is now.
    async fn refresh(
        &self,
        tenant: &TenantId,
        old: Option<&Arc<Current>>,
        state: OwnedMutexGuard<State>,
    ) -> Result<Option<Arc<Snapshot>>, IndexError> {
        // An index that was never shown must be built, whatever its tag.
        let known = old.and(state.etag.as_deref());
        let Some((manifest, etag)) = self.corpus.manifest_unless(tenant, known).await? else {
            return Ok(old.and_then(|old| old.snapshot.clone()));
        };
        if manifest.documents.is_empty() {
            let mut state = state;
            *state = State {
                index: None,
                etag: Some(etag),
            };
            return Ok(None);
        }
        let _permit = self
            .builds
            .acquire()
            .await
            .map_err(|_| IndexError::Aborted)?;
        let mut state = self.open_index(state).await?;
        let have = state.index.as_ref().map(TenantIndex::objects);
        let (gone, new) = difference(have, &manifest);
        state = change(state, move |index| {
            gone.iter().try_for_each(|object| index.remove(object))
        })
        .await?
        .0;
        for batch in batches(new) {
            let documents = self.read(tenant, batch).await?;
            state = change(state, move |index| {
                documents
                    .iter()
                    .try_for_each(|(object, document)| index.add(object, document))
            })
            .await?
            .0;
        }
        let (mut state, snapshot) = change(state, TenantIndex::commit).await?;
        state.etag = Some(etag);
        Ok(Some(Arc::new(snapshot)))
    }

    async fn open_index(
        &self,
        mut state: OwnedMutexGuard<State>,
    ) -> Result<OwnedMutexGuard<State>, IndexError> {
        if state.index.is_none() {
            let workspace = Arc::clone(&self.workspace);
            let create = move || Ok(TenantIndex::create(workspace.index_folder()?)?);
            let created: Result<_, IndexError> = tokio::task::spawn_blocking(create)
                .await
                .unwrap_or(Err(IndexError::Aborted));
            state.index = Some(created?);
        }
        Ok(state)
    }

    async fn read(
        &self,
        tenant: &TenantId,
        objects: Vec<String>,
    ) -> Result<Vec<(String, Document)>, CorpusError> {
        let read: Vec<_> = stream::iter(objects)
            .map(|object| async {
                let document = self.corpus.document(tenant, &object).await?;
                Ok::<_, CorpusError>(document.map(|document| (object, document)))
            })
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        // One that is missing was replaced since; the next look at the manifest finds its heir.
        Ok(read.into_iter().flatten().collect())
    }
}

/// Runs `work` on the index in a blocking task. The state goes with it, so that a caller who stops
/// waiting neither interrupts the work nor lets another one begin before its end. An index whose
/// change failed or panicked is given up.
async fn change<R: Send + 'static>(
    mut state: OwnedMutexGuard<State>,
    work: impl FnOnce(&mut TenantIndex) -> Result<R, TantivyError> + Send + 'static,
) -> Result<(OwnedMutexGuard<State>, R), IndexError> {
    let task = tokio::task::spawn_blocking(move || {
        state.etag = None;
        let mut index = state.index.take().ok_or(IndexError::Aborted)?;
        let result = work(&mut index)?;
        state.index = Some(index);
        Ok((state, result))
    });
    task.await.unwrap_or(Err(IndexError::Aborted))
}

/// The objects that the manifest no longer has, and the entries that the index does not have yet.
fn difference(
    have: Option<&HashSet<String>>,
    manifest: &Manifest,
) -> (Vec<String>, Vec<(String, u64)>) {
    let wanted: BTreeMap<&str, &Entry> = manifest
        .documents
        .values()
        .map(|entry| (entry.object.as_str(), entry))
        .collect();
    let gone = have
        .into_iter()
        .flatten()
        .filter(|object| !wanted.contains_key(object.as_str()))
        .cloned();
    let new = wanted
        .iter()
        .filter(|(object, _)| have.is_none_or(|have| !have.contains(**object)))
        .map(|(object, entry)| ((*object).to_owned(), entry.bytes));
    (gone.collect(), new.collect())
}

/// Groups objects, so that each group is small enough to be held in memory.
fn batches(objects: Vec<(String, u64)>) -> Vec<Vec<String>> {
    let mut batches: Vec<Vec<String>> = Vec::new();
    let mut held = u64::MAX;
    for (object, bytes) in objects {
        match batches.last_mut() {
            Some(batch)
                if held.saturating_add(bytes) <= BATCH_BYTES && batch.len() < BATCH_DOCUMENTS =>
            {
                held += bytes;
                batch.push(object);
            }
            _ => {
                held = bytes;
                batches.push(vec![object]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_and_lose_nothing() {
        let objects: Vec<_> = (0..300u64).map(|n| (n.to_string(), n * 1_000)).collect();
        let batches = batches(objects.clone());
        assert_eq!(batches.concat().len(), objects.len());
        for batch in &batches {
            let bytes: u64 = batch
                .iter()
                .map(|n| n.parse::<u64>().unwrap() * 1_000)
                .sum();
            assert!(batch.len() <= BATCH_DOCUMENTS && bytes <= BATCH_BYTES);
        }
        let huge = vec![("a".to_owned(), u64::MAX), ("b".to_owned(), 1)];
        assert_eq!(super::batches(huge).len(), 2);
    }
}
