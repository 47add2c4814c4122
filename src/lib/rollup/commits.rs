//! The commit markers of a topic: which offsets are in which files.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use super::layout;

/// How far before the committed offset the last marker is looked for first. Most batches are shorter;
/// where one is longer, all markers of the partition are listed.
const LOOK_BACK: i64 = 1_000_000;

/// Says that a range of a partition's offsets is written, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Version of this form.
    pub v: u16,
    /// The topic, as named on the broker.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset of the range: the end of the marker before, 0 for the first.
    pub start: i64,
    /// The offset after the last one.
    pub end: i64,
    /// Records of the range that went to the dead letters.
    pub dead_letters: usize,
    /// The files with all the others.
    pub files: Vec<ListedFile>,
}

/// A file that a marker lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedFile {
    /// Its path in the store.
    pub path: String,
    /// Its records.
    pub records: usize,
}

/// The markers of a topic in an object store.
#[derive(Debug, Clone)]
pub struct Commits {
    store: Arc<dyn ObjectStore>,
    topic: String,
}

impl Commits {
    /// The markers of `topic`, as named on the broker.
    pub fn new(store: Arc<dyn ObjectStore>, topic: String) -> Self {
        Self { store, topic }
    }

    /// A partition's markers, in order.
    pub async fn all(&self, partition: i32) -> Result<Vec<Marker>, Error> {
        let folder = layout::markers(&self.topic, partition);
        let listed = self.store.list(Some(&folder));
        let mut paths: Vec<Path> = listed.map_ok(|meta| meta.location).try_collect().await?;
        paths.sort();
        let mut markers = Vec::with_capacity(paths.len());
        for path in paths {
            markers.push(self.read(&path).await?);
        }
        Ok(markers)
    }

    /// A partition's last marker. `committed`, an offset that it is known to cover, shortens the
    /// search.
    pub(super) async fn last(
        &self,
        partition: i32,
        committed: Option<i64>,
    ) -> Result<Option<Marker>, Error> {
        let folder = layout::markers(&self.topic, partition);
        let mut last: Option<Path> = None;
        if let Some(from) = committed.map(|at| at - LOOK_BACK).filter(|from| *from > 0) {
            let from = layout::marker(&self.topic, partition, from);
            last = greatest(self.store.list_with_offset(Some(&folder), &from)).await?;
        }
        if last.is_none() {
            last = greatest(self.store.list(Some(&folder))).await?;
        }
        match last {
            Some(path) => Ok(Some(self.read(&path).await?)),
            None => Ok(None),
        }
    }

    /// Writes a marker. Returns whether it was written; false when there is one of its start already.
    pub(super) async fn create(&self, marker: &Marker) -> Result<bool, Error> {
        let path = layout::marker(&self.topic, marker.partition, marker.start);
        let text = serde_json::to_vec(marker).map_err(|error| invalid(error.into()))?;
        create(&*self.store, &path, text.into()).await
    }

    async fn read(&self, path: &Path) -> Result<Marker, Error> {
        let bytes = self.store.get(path).await?.bytes().await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            invalid(format!("the commit marker {path} is not to be understood: {error}").into())
        })
    }
}

fn invalid(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic {
        store: "audit",
        source,
    }
}

async fn greatest(
    listed: impl TryStreamExt<Ok = object_store::ObjectMeta, Error = Error>,
) -> Result<Option<Path>, Error> {
    let greatest = |last: Option<Path>, meta: object_store::ObjectMeta| async move {
        Ok(last.max(Some(meta.location)))
    };
    listed.try_fold(None, greatest).await
}

/// Writes an object that is not there yet; returns whether it was not.
pub(super) async fn create(
    store: &dyn ObjectStore,
    path: &Path,
    content: Bytes,
) -> Result<bool, Error> {
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

    fn marker(partition: i32, start: i64, end: i64) -> Marker {
        Marker {
            v: 1,
            topic: "t".to_owned(),
            partition,
            start,
            end,
            dead_letters: 0,
            files: Vec::new(),
        }
    }

    #[tokio::test]
    async fn the_last_marker_is_found_with_and_without_a_hint() {
        let commits = Commits::new(Arc::new(InMemory::new()), "t".to_owned());
        assert_eq!(commits.last(0, Some(7)).await.unwrap(), None);
        // The last range is longer than the look back.
        let chain = [(0, 9), (9, 10), (10, 100), (100, 5_000_000)];
        for (start, end) in chain {
            assert!(commits.create(&marker(0, start, end)).await.unwrap());
        }
        commits.create(&marker(10, 0, 7)).await.unwrap();
        for committed in [None, Some(0), Some(10), Some(5_000_000)] {
            let last = commits.last(0, committed).await.unwrap().unwrap();
            assert_eq!((last.start, last.end), (100, 5_000_000), "{committed:?}");
        }
        let all = commits.all(0).await.unwrap();
        assert_eq!(
            all.iter().map(|m| (m.start, m.end)).collect::<Vec<_>>(),
            chain
        );
    }

    #[tokio::test]
    async fn of_two_markers_of_one_start_the_first_stays() {
        let folder = tempfile::tempdir().unwrap();
        let local = object_store::local::LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let stores: [Arc<dyn ObjectStore>; 2] = [Arc::new(InMemory::new()), Arc::new(local)];
        for store in stores {
            let commits = Commits::new(store, "t".to_owned());
            assert!(commits.create(&marker(0, 0, 5)).await.unwrap());
            assert!(!commits.create(&marker(0, 0, 9)).await.unwrap());
            assert_eq!(commits.all(0).await.unwrap(), [marker(0, 0, 5)]);
        }
    }
}
