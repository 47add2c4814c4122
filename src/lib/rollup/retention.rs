//! Removes files that are old enough, such that the chain still proves everything else: a signed record
//! says which files of a manifest may be absent.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};

use super::chain::{self, ChainError, Stored};
use super::keys::{AuditSigner, PublicKeys};
use super::layout::{HOUR_MS, ROOT, Range, folder_parts};
use super::manifest::Manifest;
use super::signed::{self, Signable, VERSION, sha256};
use super::verify::VerifyError;
use crate::ids::TenantId;

const FOLDER: &str = "audit/_retention";

/// Says that files of a manifest were removed because they were old enough.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expired {
    /// `agenthub.audit.retention`.
    kind: String,
    /// Version of this form.
    v: u16,
    /// The name of the key that signs it.
    key: String,
    /// The topic, partition and start of the manifest.
    topic: String,
    partition: i32,
    start: i64,
    /// SHA-256 of the manifest as it is stored.
    manifest: String,
    /// The files.
    files: Vec<String>,
    /// Records before this time were to be removed, in milliseconds since the epoch.
    before_ms: u64,
    /// When they were, in milliseconds since the epoch.
    at_ms: u64,
}

impl Signable for Expired {
    const KIND: &'static str = "agenthub.audit.retention";
}

/// What [`expire`] did, or would do.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Files that a manifest lists.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Which files are to be removed.
#[derive(Debug, Clone)]
pub struct Expiry {
    /// The tenant; `None` for every one, and for requests that were not authenticated.
    pub tenant: Option<TenantId>,
    /// Tenants that are left out where `tenant` names none.
    pub except: Vec<TenantId>,
    /// Files of hours that end before this time are removed, in milliseconds since the epoch.
    pub before_ms: u64,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// Removes files. The record that allows it is stored first, so that whatever ends this, the chain
/// verifies; run again, it goes on.
pub async fn expire(
    store: Arc<dyn ObjectStore>,
    signer: &AuditSigner,
    accepted: &PublicKeys,
    expiry: &Expiry,
) -> Result<Removed, ChainError> {
    let mut removed = Removed::default();
    for (range, paths) in due(&*store, expiry).await? {
        let path = range.borrow().manifest();
        let stored = match chain::read(&*store, path.clone()).await {
            Ok(stored) => stored,
            // Its roll-up is still at work on it, or never came to write one.
            Err(Error::NotFound { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let opened = stored.open(accepted);
        let manifest = opened.map_err(|error| ChainError::Signed {
            path: path.to_string(),
            error,
        })?;
        let listed = manifest
            .files
            .iter()
            .filter(|file| paths.contains(&file.path));
        let mut files = Vec::new();
        for file in listed {
            removed.files += 1;
            removed.rows += file.rows;
            removed.bytes += file.bytes;
            files.push(file.path.clone());
        }
        if files.is_empty() || expiry.dry_run {
            continue;
        }
        record(&*store, signer, &stored, &manifest, &files, expiry).await?;
        for file in files {
            match store.delete(&Path::from(file)).await {
                Ok(()) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(removed)
}

/// A range that owns its topic's name.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct OwnedRange {
    topic: String,
    partition: i32,
    start: i64,
}

impl OwnedRange {
    fn borrow(&self) -> Range<'_> {
        Range {
            topic: &self.topic,
            partition: self.partition,
            start: self.start,
        }
    }
}

/// The files that are there and old enough, by range.
async fn due(
    store: &dyn ObjectStore,
    expiry: &Expiry,
) -> Result<BTreeMap<OwnedRange, HashSet<String>>, Error> {
    let mut due: BTreeMap<OwnedRange, HashSet<String>> = BTreeMap::new();
    let mut listed = store.list(Some(&Path::from(ROOT)));
    while let Some(object) = listed.try_next().await? {
        let path = object.location;
        let Some((begins, tenant)) = folder_parts(&path) else {
            continue;
        };
        let ends = u64::try_from(begins.saturating_add(HOUR_MS)).unwrap_or(0);
        let is = |named: &TenantId| tenant.as_deref() == Some(named.as_str());
        let wanted = match &expiry.tenant {
            Some(wanted) => is(wanted),
            None => !expiry.except.iter().any(is),
        };
        let range = path.filename().and_then(Range::of_file);
        if let Some(range) = range.filter(|_| wanted && ends <= expiry.before_ms) {
            let range = OwnedRange {
                topic: range.topic.to_owned(),
                partition: range.partition,
                start: range.start,
            };
            due.entry(range).or_default().insert(path.to_string());
        }
    }
    Ok(due)
}

async fn record(
    store: &dyn ObjectStore,
    signer: &AuditSigner,
    stored: &Stored,
    manifest: &Manifest,
    files: &[String],
    expiry: &Expiry,
) -> Result<(), Error> {
    let record = Expired {
        kind: Expired::KIND.to_owned(),
        v: VERSION,
        key: signer.id().to_owned(),
        topic: manifest.topic.clone(),
        partition: manifest.partition,
        start: manifest.start,
        manifest: sha256(&stored.content),
        files: files.to_vec(),
        before_ms: expiry.before_ms,
        at_ms: u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0),
    };
    let text = signed::sign(&record, signer).map_err(|error| Error::Generic {
        store: "audit",
        source: error.into(),
    })?;
    let name = format!("{}.json", &sha256(text.as_bytes())[..16]);
    let path = folder(manifest).join(name);
    store.put(&path, text.into()).await.map(drop)
}

/// The folder of a manifest's retention records.
fn folder(manifest: &Manifest) -> Path {
    let partition = manifest.partition.to_string();
    Path::from(FOLDER)
        .join(manifest.topic.as_str())
        .join(partition)
        .join(format!("{:020}", manifest.start))
}

/// Whether an object is where retention records are.
pub(super) fn is_record(path: &Path) -> bool {
    path.prefix_matches(&Path::from(FOLDER))
}

/// The files of a manifest that signed records let be absent. A record that is not to be believed allows
/// nothing.
pub(super) async fn expired(
    store: &dyn ObjectStore,
    manifest: &Manifest,
    hash: &str,
    keys: &PublicKeys,
) -> Result<HashSet<String>, VerifyError> {
    let folder = folder(manifest);
    let listed = store.list(Some(&folder)).map_ok(|object| object.location);
    let paths: Vec<Path> = listed.try_collect().await.map_err(VerifyError::Store)?;
    let mut files = HashSet::new();
    for path in paths {
        let stored = chain::read(store, path).await.map_err(VerifyError::Store)?;
        let Ok(record) = signed::open::<Expired>(&stored.content, keys, false) else {
            continue;
        };
        let of_it = (
            record.topic.as_str(),
            record.partition,
            record.start,
            record.manifest.as_str(),
        ) == (
            manifest.topic.as_str(),
            manifest.partition,
            manifest.start,
            hash,
        );
        if of_it {
            files.extend(record.files);
        }
    }
    Ok(files)
}
