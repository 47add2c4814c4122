//! The documents of each tenant, as objects: `docs/<tenant>/<sha256>.json` holds one document and
//! `docs/<tenant>/manifest.json` lists those that count.
//!
//! Invariant: the manifest is written after the documents that it lists, and only over the manifest
//! that was read: by a conditional write, or under a file lock where the store is a folder. So
//! nothing is lost when several add at once, and a reader that sees the manifest's entity tag change sees
//! the whole change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, ObjectStoreExt, PutMode, PutOptions, UpdateVersion,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::media::Extracted;
use super::storage::Storage;
use crate::ids::TenantId;

/// Documents that one tenant may have.
pub const MAX_DOCUMENTS: usize = 50_000;
/// Bytes of one object: a document's text with JSON's escapes.
const MAX_OBJECT_BYTES: u64 = 64 << 20;
/// Transfers at once.
const PARALLEL: usize = 8;
/// Times that a manifest which others keep changing is tried.
const MAX_TRIES: u32 = 64;

/// A document as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Its name in the corpus, with `/` between folders.
    pub path: String,
    /// Its first heading, or what stands for it.
    pub title: String,
    /// Readable text; headings are lines that begin with `#`, except in `text/plain`.
    pub text: String,
    /// What it was read from.
    pub media_type: String,
    /// When it was added, in milliseconds since 1970.
    pub added_ms: i64,
}

/// What the manifest says of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// SHA-256 of the stored object, which is its name.
    pub object: String,
    /// SHA-256 of the file that was added.
    pub content: String,
    /// The document's title.
    pub title: String,
    /// What it was read from.
    pub media_type: String,
    /// Bytes of its text.
    pub bytes: u64,
    /// When it was added, in milliseconds since 1970.
    pub added_ms: i64,
}

/// The documents of a tenant by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// By path.
    pub documents: BTreeMap<String, Entry>,
}

/// A file to add.
#[derive(Debug, Clone)]
pub struct NewDocument {
    /// Its name in the corpus.
    pub path: String,
    /// SHA-256 of the file.
    pub content: String,
    /// What was read from it.
    pub extracted: Extracted,
}

/// What adding a document did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Added {
    /// It is new.
    Added,
    /// It replaced another version.
    Updated,
    /// It was there already.
    Unchanged,
}

/// Why the corpus could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The store failed.
    #[error("the document store failed: {0}")]
    Store(StoreError),
    /// The lock file of the store's folder failed.
    #[error("the document store cannot be locked: {0}")]
    Lock(std::io::Error),
    /// An object is not what was written there.
    #[error("the object {0} cannot be read")]
    Damaged(String),
    /// Others changed the manifest each time.
    #[error("the corpus is being changed by others; try again")]
    Contended,
    /// The tenant would have too many documents.
    #[error("a tenant may have at most {MAX_DOCUMENTS} documents")]
    Full,
}

/// By hand: the text shows the cause, so it must not be shown again as the source.
impl From<StoreError> for CorpusError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Access to the documents.
#[derive(Debug, Clone)]
pub struct Corpus {
    storage: Storage,
}

impl Corpus {
    /// The documents in `storage`.
    pub fn new(storage: Storage) -> Self {
        Self { storage }
    }

    /// The manifest; empty when nothing was ever added.
    pub async fn manifest(&self, tenant: &TenantId) -> Result<Manifest, CorpusError> {
        let read = self.read_manifest(tenant, None).await?;
        Ok(read.map(|(manifest, _)| manifest).unwrap_or_default())
    }

    /// The manifest and its entity tag, or `None` when the tag is still `known`. A tenant without a
    /// manifest has the empty tag.
    pub async fn manifest_unless(
        &self,
        tenant: &TenantId,
        known: Option<&str>,
    ) -> Result<Option<(Manifest, String)>, CorpusError> {
        let read = match self
            .read_manifest(tenant, known.filter(|k| !k.is_empty()))
            .await
        {
            Err(CorpusError::Store(StoreError::NotModified { .. })) => return Ok(None),
            read => read?,
        };
        let (manifest, etag) = match read {
            Some((manifest, version)) => (manifest, version.e_tag.unwrap_or_default()),
            None => (Manifest::default(), String::new()),
        };
        // A store without entity tags answers as if everything had changed.
        let unchanged =
            known == Some(etag.as_str()) && (!etag.is_empty() || manifest.documents.is_empty());
        Ok((!unchanged).then_some((manifest, etag)))
    }

    /// One document; `None` when it was replaced or removed since the manifest was read.
    pub async fn document(
        &self,
        tenant: &TenantId,
        object: &str,
    ) -> Result<Option<Document>, CorpusError> {
        let location = object_path(tenant, object);
        let got = match self.storage.store.get(&location).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            got => got?,
        };
        if got.meta.size > MAX_OBJECT_BYTES {
            return Err(CorpusError::Damaged(location.to_string()));
        }
        serde_json::from_slice(&got.bytes().await?)
            .map(Some)
            .map_err(|_| CorpusError::Damaged(location.to_string()))
    }

    /// Adds documents or replaces those of the same path; says for each what it did.
    pub async fn add(
        &self,
        tenant: &TenantId,
        documents: Vec<NewDocument>,
    ) -> Result<Vec<(String, Added)>, CorpusError> {
        let before = self.manifest(tenant).await?;
        let is_new = |d: &&NewDocument| !before.documents.contains_key(&d.path);
        if before.documents.len() + documents.iter().filter(is_new).count() > MAX_DOCUMENTS {
            return Err(CorpusError::Full);
        }
        let (unchanged, changed): (Vec<_>, Vec<_>) = documents.into_iter().partition(|document| {
            let known = before.documents.get(&document.path);
            known.is_some_and(|entry| entry.content == document.content)
        });
        let stored: Vec<(String, Entry)> = stream::iter(changed)
            .map(|document| self.store_document(tenant, document))
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await?;
        let mut outcomes = self
            .update(tenant, |manifest| {
                let insert = |(path, entry): &(String, Entry)| {
                    let replaced = manifest.documents.insert(path.clone(), entry.clone());
                    let added = if replaced.is_some() {
                        Added::Updated
                    } else {
                        Added::Added
                    };
                    (path.clone(), added)
                };
                let outcomes: Vec<_> = stored.iter().map(insert).collect();
                if manifest.documents.len() > MAX_DOCUMENTS {
                    return Err(CorpusError::Full);
                }
                Ok(outcomes)
            })
            .await?;
        outcomes.extend(unchanged.into_iter().map(|d| (d.path, Added::Unchanged)));
        outcomes.sort();
        Ok(outcomes)
    }

    /// Removes the document at `path`, or all below it when it names a folder. Returns the paths
    /// that were removed.
    pub async fn remove(&self, tenant: &TenantId, path: &str) -> Result<Vec<String>, CorpusError> {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.update(tenant, |manifest| {
            let (gone, kept) = std::mem::take(&mut manifest.documents)
                .into_iter()
                .partition(|(p, _)| *p == path || p.starts_with(&folder));
            manifest.documents = kept;
            let gone: BTreeMap<String, Entry> = gone;
            Ok(gone.into_keys().collect())
        })
        .await
    }

    async fn store_document(
        &self,
        tenant: &TenantId,
        new: NewDocument,
    ) -> Result<(String, Entry), CorpusError> {
        let document = Document {
            path: new.path,
            title: new.extracted.title,
            text: new.extracted.text,
            media_type: new.extracted.media_type.to_owned(),
            added_ms: jiff::Timestamp::now().as_millisecond(),
        };
        let json = serde_json::to_vec(&document)
            .map_err(|_| CorpusError::Damaged(document.path.clone()))?;
        // The time of adding is hashed with the rest, so that no two additions share an object and
        // removing one cannot take the other's away.
        let object = sha256(&json);
        self.storage
            .store
            .put(&object_path(tenant, &object), json.into())
            .await?;
        let entry = Entry {
            object,
            content: new.content,
            title: document.title,
            media_type: document.media_type,
            bytes: document.text.len() as u64,
            added_ms: document.added_ms,
        };
        Ok((document.path, entry))
    }

    /// Applies `change` to the manifest, again when someone else wrote it meanwhile, and deletes the
    /// objects that nothing refers to any more.
    async fn update<R>(
        &self,
        tenant: &TenantId,
        mut change: impl FnMut(&mut Manifest) -> Result<R, CorpusError>,
    ) -> Result<R, CorpusError> {
        let lock = self.lock(tenant).await?;
        let mut dropped = BTreeSet::new();
        for tries in 0..MAX_TRIES {
            let read = self.read_manifest(tenant, None).await?;
            let mode = match (&lock, &read) {
                (Some(_), _) => PutMode::Overwrite,
                (None, Some((_, version))) => PutMode::Update(version.clone()),
                (None, None) => PutMode::Create,
            };
            let before = read.map(|(manifest, _)| manifest).unwrap_or_default();
            let mut after = before.clone();
            let outcome = change(&mut after)?;
            if after == before {
                return Ok(outcome);
            }
            dropped.extend(before.documents.into_values().map(|entry| entry.object));
            match self.write_manifest(tenant, &after, mode).await {
                Ok(()) => {
                    drop(lock);
                    for entry in after.documents.values() {
                        dropped.remove(&entry.object);
                    }
                    self.delete_objects(tenant, dropped).await;
                    return Ok(outcome);
                }
                Err(StoreError::Precondition { .. } | StoreError::AlreadyExists { .. }) => {
                    tokio::time::sleep(pause(tries)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CorpusError::Contended)
    }

    /// `None` when there is no manifest.
    async fn read_manifest(
        &self,
        tenant: &TenantId,
        if_none_match: Option<&str>,
    ) -> Result<Option<(Manifest, UpdateVersion)>, CorpusError> {
        let location = object_path(tenant, "manifest");
        let options = GetOptions::new().with_if_none_match(if_none_match);
        let got = match self.storage.store.get_opts(&location, options).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            got => got?,
        };
        let version = UpdateVersion {
            e_tag: got.meta.e_tag.clone(),
            version: got.meta.version.clone(),
        };
        let manifest = serde_json::from_slice(&got.bytes().await?)
            .map_err(|_| CorpusError::Damaged(location.to_string()))?;
        Ok(Some((manifest, version)))
    }

    async fn write_manifest(
        &self,
        tenant: &TenantId,
        manifest: &Manifest,
        mode: PutMode,
    ) -> Result<(), StoreError> {
        let json = serde_json::to_vec(manifest).map_err(|source| StoreError::Generic {
            store: "manifest",
            source: source.into(),
        })?;
        let location = object_path(tenant, "manifest");
        let options = PutOptions::from(mode);
        self.storage
            .store
            .put_opts(&location, json.into(), options)
            .await
            .map(|_| ())
    }

    /// An object that stays costs space and nothing else, so that a failure is only logged.
    async fn delete_objects(&self, tenant: &TenantId, objects: BTreeSet<String>) {
        stream::iter(objects)
            .for_each_concurrent(PARALLEL, |object| async move {
                let location = object_path(tenant, &object);
                match self.storage.store.delete(&location).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(error) => {
                        tracing::warn!(%location, %error, "an unused document was not deleted");
                    }
                }
            })
            .await;
    }

    /// The lock of a tenant's manifest where the store is a folder; it ends with the file handle.
    async fn lock(&self, tenant: &TenantId) -> Result<Option<File>, CorpusError> {
        let Some(folder) = &self.storage.folder else {
            return Ok(None);
        };
        let folder = folder.join("docs").join(tenant.as_str());
        let locked = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder)?;
            let file = File::create(folder.join("manifest.lock"))?;
            file.lock()?;
            Ok(file)
        });
        match locked.await {
            Ok(locked) => locked.map(Some).map_err(CorpusError::Lock),
            Err(error) => Err(CorpusError::Lock(std::io::Error::other(error))),
        }
    }
}

/// SHA-256 in lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn object_path(tenant: &TenantId, name: &str) -> Path {
    Path::from_iter(["docs", tenant.as_str(), &format!("{name}.json")])
}

/// Full jitter below a bound that doubles up to half a second.
fn pause(tries: u32) -> Duration {
    let bound = (10u64 << tries.min(6)).min(500);
    Duration::from_millis(rand::random_range(0..=bound))
}
