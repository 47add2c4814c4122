//! The manifests of a topic in the object store.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::keys::PublicKeys;
use super::layout::{self, Range};
use super::manifest::Manifest;
use super::signed::{self, SignedError, sha256};

/// How far before the committed offset the last manifest is looked for first. Most batches are shorter;
/// where one is longer, all manifests of the partition are listed.
const LOOK_BACK: i64 = 1_000_000;

/// A manifest as it is stored.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) path: Path,
    pub(super) content: Bytes,
}

impl Stored {
    /// What it says, if one of the keys signed it.
    pub(super) fn open(&self, keys: &PublicKeys) -> Result<Manifest, SignedError> {
        signed::open(&self.content, keys, true)
    }
}

/// Why manifests cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The store was not reached, or misses an object.
    #[error(transparent)]
    Store(#[from] Error),
    /// A manifest is not to be believed.
    #[error("{path}: {error}")]
    Signed {
        /// The manifest.
        path: String,
        /// What is wrong with it.
        error: SignedError,
    },
}

/// The manifests of a topic in an object store.
#[derive(Debug, Clone)]
pub struct Chain {
    store: Arc<dyn ObjectStore>,
    topic: String,
}

impl Chain {
    /// The manifests of `topic`, as named on the broker.
    pub fn new(store: Arc<dyn ObjectStore>, topic: String) -> Self {
        Self { store, topic }
    }

    /// A partition's manifests, in order. Each is checked by itself; whether they fit each other is for
    /// [`verify`](super::verify) to say.
    pub async fn all(
        &self,
        partition: i32,
        keys: &PublicKeys,
    ) -> Result<Vec<Manifest>, ChainError> {
        let folder = layout::manifests(&self.topic, partition);
        let listed = self.store.list(Some(&folder));
        let mut paths: Vec<Path> = listed.map_ok(|meta| meta.location).try_collect().await?;
        paths.sort();
        let mut manifests = Vec::with_capacity(paths.len());
        for path in paths {
            let stored = read(&*self.store, path).await?;
            manifests.push(stored.open(keys).map_err(|error| ChainError::Signed {
                path: stored.path.to_string(),
                error,
            })?);
        }
        Ok(manifests)
    }

    /// A partition's last manifest. `committed`, an offset that it is known to cover, shortens the
    /// search.
    pub(super) async fn last(
        &self,
        partition: i32,
        committed: Option<i64>,
    ) -> Result<Option<Stored>, Error> {
        let folder = layout::manifests(&self.topic, partition);
        let mut last: Option<Path> = None;
        if let Some(start) = committed.map(|at| at - LOOK_BACK).filter(|from| *from > 0) {
            let topic = &self.topic;
            let from = Range {
                topic,
                partition,
                start,
            }
            .manifest();
            last = greatest(self.store.list_with_offset(Some(&folder), &from)).await?;
        }
        if last.is_none() {
            last = greatest(self.store.list(Some(&folder))).await?;
        }
        match last {
            Some(path) => read(&*self.store, path).await.map(Some),
            None => Ok(None),
        }
    }

    /// Writes the manifest that begins at `start`. Returns whether it was written; false when there is
    /// one of this start already.
    pub(super) async fn create(
        &self,
        partition: i32,
        start: i64,
        content: Bytes,
    ) -> Result<bool, Error> {
        let topic = &self.topic;
        let path = Range {
            topic,
            partition,
            start,
        }
        .manifest();
        create(&*self.store, &path, content).await
    }
}

/// Reads a manifest, or whatever is in its place.
pub(super) async fn read(store: &dyn ObjectStore, path: Path) -> Result<Stored, Error> {
    let content = store.get(&path).await?.bytes().await?;
    Ok(Stored { path, content })
}

async fn greatest(
    listed: impl TryStreamExt<Ok = ObjectMeta, Error = Error>,
) -> Result<Option<Path>, Error> {
    let greatest =
        |last: Option<Path>, meta: ObjectMeta| async move { Ok(last.max(Some(meta.location))) };
    listed.try_fold(None, greatest).await
}

/// Stores content under a name that has its hash in it. What is there already was left by a process that
/// wrote no manifest and is as good, unless it was damaged; then it is replaced.
pub(super) async fn store_named_by_hash(
    store: &dyn ObjectStore,
    path: &Path,
    content: &Bytes,
    hash: &str,
) -> Result<(), Error> {
    if create(store, path, content.clone()).await? {
        return Ok(());
    }
    let present = store.get(path).await?.bytes().await?;
    if sha256(&present) != hash {
        tracing::warn!(%path, "a damaged object is replaced");
        let payload = PutPayload::from_bytes(content.clone());
        store.put(path, payload).await?;
    }
    Ok(())
}

/// Writes an object that is not there yet; returns whether it was not.
async fn create(store: &dyn ObjectStore, path: &Path, content: Bytes) -> Result<bool, Error> {
    let payload = PutPayload::from_bytes(content);
    match store.put_opts(path, payload, PutMode::Create.into()).await {
        Ok(_) => Ok(true),
        Err(Error::AlreadyExists { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;
    use crate::rollup::keys::AuditSigner;
    use crate::rollup::signed::VERSION;

    fn manifest(signer: &AuditSigner, partition: i32, start: i64, end: i64) -> Manifest {
        Manifest {
            kind: Manifest::kind(),
            v: VERSION,
            key: signer.id().to_owned(),
            topic: "t".to_owned(),
            partition,
            sequence: 0,
            start,
            end,
            previous: None,
            written_ms: 0,
            dead_letters: 0,
            files: Vec::new(),
            totals: None,
        }
    }

    async fn create(
        chain: &Chain,
        signer: &AuditSigner,
        partition: i32,
        start: i64,
        end: i64,
    ) -> bool {
        let text = signed::sign(&manifest(signer, partition, start, end), signer).unwrap();
        chain.create(partition, start, text.into()).await.unwrap()
    }

    #[tokio::test]
    async fn the_last_manifest_is_found_with_and_without_a_hint() {
        let signer = AuditSigner::generate(None).unwrap();
        let commits = Chain::new(Arc::new(InMemory::new()), "t".to_owned());
        assert!(commits.last(0, Some(7)).await.unwrap().is_none());
        // The last range is longer than the look back.
        let chain = [(0, 9), (9, 10), (10, 100), (100, 5_000_000)];
        for (start, end) in chain {
            assert!(create(&commits, &signer, 0, start, end).await);
        }
        create(&commits, &signer, 10, 0, 7).await;
        for committed in [None, Some(0), Some(10), Some(5_000_000)] {
            let last = commits.last(0, committed).await.unwrap().unwrap();
            let last = last.open(&signer.public()).unwrap();
            assert_eq!((last.start, last.end), (100, 5_000_000), "{committed:?}");
        }
        let all = commits.all(0, &signer.public()).await.unwrap();
        assert_eq!(
            all.iter().map(|m| (m.start, m.end)).collect::<Vec<_>>(),
            chain
        );
        let foreign = AuditSigner::generate(None).unwrap().public();
        let error = commits.all(0, &foreign).await.unwrap_err();
        assert!(matches!(error, ChainError::Signed { .. }), "{error}");
    }

    fn stores(folder: &std::path::Path) -> [Arc<dyn ObjectStore>; 2] {
        let local = object_store::local::LocalFileSystem::new_with_prefix(folder).unwrap();
        [Arc::new(InMemory::new()), Arc::new(local)]
    }

    #[tokio::test]
    async fn of_two_manifests_of_one_start_the_first_stays() {
        let folder = tempfile::tempdir().unwrap();
        let signer = AuditSigner::generate(None).unwrap();
        for store in stores(folder.path()) {
            let chain = Chain::new(store, "t".to_owned());
            assert!(create(&chain, &signer, 0, 0, 5).await);
            assert!(!create(&chain, &signer, 0, 0, 9).await);
            let all = chain.all(0, &signer.public()).await.unwrap();
            assert_eq!(all, [manifest(&signer, 0, 0, 5)]);
        }
    }

    #[tokio::test]
    async fn a_leftover_is_taken_over_and_a_damaged_one_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for store in stores(folder.path()) {
            let path = Path::from("audit/x");
            let good = Bytes::from_static(b"good");
            for before in [None, Some("good"), Some("goo"), Some("")] {
                if let Some(before) = before {
                    store.put(&path, before.into()).await.unwrap();
                }
                store_named_by_hash(&*store, &path, &good, &sha256(&good))
                    .await
                    .unwrap();
                let found = store.get(&path).await.unwrap().bytes().await.unwrap();
                assert_eq!(found, good, "{before:?}");
            }
        }
    }
}
