//! Proves from the objects alone, and the public keys, that nothing was removed, changed or reordered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use serde::Serialize;

use super::chain::{self, Stored};
use super::inspect::{self, Contents, Place};
use super::keys::PublicKeys;
use super::layout::{self, MANIFESTS, ROOT, Range};
use super::manifest::{Head, ListedFile, Manifest};
use super::retention;
use super::signed::sha256;
use super::totals;

/// Objects that are read at once.
const READS: usize = 8;

/// What to verify against.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// The keys whose signatures are believed.
    pub keys: PublicKeys,
    /// Heads that were kept elsewhere.
    pub heads: Vec<Head>,
    /// Whether a changed file is opened, to name the row that does not fit. Whoever changed it decides
    /// what is in it.
    pub explain: bool,
}

/// What was proven.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The chains.
    pub chains: Vec<VerifiedChain>,
    /// Files that are there.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Files that a signed retention record lets be absent.
    pub expired_files: u64,
    /// Heads that the chains were held against: those given, and those among the records.
    pub heads: u64,
    /// Objects below `audit/` that no manifest lists, and that readers ignore.
    pub ignored_objects: u64,
}

/// A chain that holds together.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedChain {
    /// The topic, as named on the broker.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its manifests.
    pub manifests: u64,
    /// Every offset before it is accounted for.
    pub end: i64,
    /// Records that went to the dead letters.
    pub dead_letters: u64,
}

/// The first object that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{object}: {what}")]
pub struct Misfit {
    /// Its path.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Why nothing was proven.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Something was removed, changed or reordered.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// The store could not be read.
    #[error(transparent)]
    Store(Error),
}

type Outcome<T> = Result<T, VerifyError>;

pub(super) fn misfit(object: impl Into<String>, what: impl Into<String>) -> VerifyError {
    VerifyError::Misfit(Misfit {
        object: object.into(),
        what: what.into(),
    })
}

/// Verifies all chains below `audit/`: by topic, partition and offset, so that the first misfit is always
/// the same.
///
/// What cannot be seen without a head: that the end of a chain, or a whole chain, was cut off. Heads
/// among the records show it for as long as the chain that holds them is whole.
pub async fn verify(store: Arc<dyn ObjectStore>, options: &VerifyOptions) -> Outcome<Verified> {
    let mut objects = Objects::list(&*store).await?;
    let mut verified = Verified::default();
    let mut links = Links::default();
    let mut told = Vec::new();
    for ((topic, partition), starts) in std::mem::take(&mut objects.chains) {
        let mut walk = Walk {
            store: &store,
            options,
            verified: &mut verified,
            links: &mut links,
            told: &mut told,
            listed_objects: 0,
        };
        let chain = walk.chain(&topic, partition, &starts).await?;
        objects.others = objects.others.saturating_sub(walk.listed_objects);
        verified.chains.push(chain);
    }
    if let Some(stray) = objects.stray {
        return Err(misfit(stray, "no manifest has this name"));
    }
    // What somebody kept is asked first, then what the records say.
    let told = told
        .iter()
        .filter_map(|text: &String| Head::read(text.as_bytes(), &options.keys).ok()?.pop());
    for head in options.heads.iter().cloned().chain(told) {
        links.hold(&head)?;
        verified.heads += 1;
    }
    if verified.chains.is_empty() {
        return Err(misfit(MANIFESTS, "there is no manifest"));
    }
    verified.ignored_objects = objects.others;
    Ok(verified)
}

/// What is in the store.
#[derive(Default)]
struct Objects {
    /// The starts of the manifests by topic and partition, in order.
    chains: BTreeMap<(String, i32), Vec<i64>>,
    /// An object among the manifests whose name is none.
    stray: Option<String>,
    /// How many other objects there are, but retention records.
    others: u64,
}

impl Objects {
    async fn list(store: &dyn ObjectStore) -> Outcome<Self> {
        let mut found = Self::default();
        let mut listed = store.list(Some(&Path::from(ROOT)));
        while let Some(object) = listed.try_next().await.map_err(VerifyError::Store)? {
            let path = object.location;
            if let Some((topic, partition, start)) = layout::manifest_parts(&path) {
                found
                    .chains
                    .entry((topic, partition))
                    .or_default()
                    .push(start);
            } else if path.prefix_matches(&Path::from(MANIFESTS)) {
                let stray = found.stray.take().into_iter().chain([path.to_string()]);
                found.stray = stray.min();
            } else if !retention::is_record(&path) {
                found.others += 1;
            }
        }
        found
            .chains
            .values_mut()
            .for_each(|starts| starts.sort_unstable());
        Ok(found)
    }
}

/// The hashes of the manifests that were passed, by chain and start.
#[derive(Default)]
struct Links(HashMap<(String, i32), HashMap<i64, String>>);

impl Links {
    /// Whether the chain still has what a head names.
    fn hold(&self, head: &Head) -> Outcome<()> {
        let range = Range {
            topic: &head.topic,
            partition: head.partition,
            start: head.start,
        };
        let object = range.manifest().to_string();
        let chain = self.0.get(&(head.topic.clone(), head.partition));
        match chain.and_then(|chain| chain.get(&head.start)) {
            None => Err(misfit(
                object,
                format!(
                    "it is gone: a head of {} names it as the end of the chain, at offset {}",
                    time(head.at_ms),
                    head.end
                ),
            )),
            Some(sha256) if *sha256 != head.manifest => Err(misfit(
                object,
                format!(
                    "it is another one than a head of {} names: the chain was written anew",
                    time(head.at_ms)
                ),
            )),
            Some(_) => Ok(()),
        }
    }
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok();
    let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

/// The walk along the chains.
struct Walk<'a> {
    store: &'a Arc<dyn ObjectStore>,
    options: &'a VerifyOptions,
    verified: &'a mut Verified,
    links: &'a mut Links,
    /// Heads that records tell.
    told: &'a mut Vec<String>,
    /// Objects that were found and that a manifest lists.
    listed_objects: u64,
}

impl Walk<'_> {
    async fn chain(
        &mut self,
        topic: &str,
        partition: i32,
        starts: &[i64],
    ) -> Outcome<VerifiedChain> {
        let mut chain = VerifiedChain {
            topic: topic.to_owned(),
            partition,
            manifests: 0,
            end: 0,
            dead_letters: 0,
        };
        let store = self.store.clone();
        let path = |start: &i64| {
            Range {
                topic,
                partition,
                start: *start,
            }
            .manifest()
        };
        let paths: Vec<Path> = starts.iter().map(path).collect();
        let mut stored = stream::iter(paths)
            .map(|path| {
                let store = store.clone();
                async move { chain::read(&*store, path).await }
            })
            .buffered(READS);
        let mut previous = None;
        while let Some(stored) = stored.try_next().await.map_err(VerifyError::Store)? {
            let hash = sha256(&stored.content);
            let manifest = self.joined(&stored, &chain, previous.as_deref())?;
            self.files(&stored.path, &manifest, &hash).await?;
            chain.manifests += 1;
            chain.end = manifest.end;
            chain.dead_letters += manifest.dead_letters;
            let links = self
                .links
                .0
                .entry((topic.to_owned(), partition))
                .or_default();
            links.insert(manifest.start, hash.clone());
            previous = Some(hash);
        }
        Ok(chain)
    }

    /// The manifest, if it is signed, is where it says, and follows what came before.
    fn joined(
        &self,
        stored: &Stored,
        chain: &VerifiedChain,
        previous: Option<&str>,
    ) -> Outcome<Manifest> {
        let wrong = |what: String| misfit(stored.path.to_string(), what);
        let manifest = stored
            .open(&self.options.keys)
            .map_err(|e| wrong(e.to_string()))?;
        let here = Range {
            topic: &manifest.topic,
            partition: manifest.partition,
            start: manifest.start,
        };
        if here.manifest() != stored.path {
            return Err(wrong(format!("it is the manifest {}", here.manifest())));
        }
        if manifest.start != chain.end {
            return Err(wrong(format!(
                "it begins at offset {}, but the chain before it ends at {}: a manifest is missing",
                manifest.start, chain.end
            )));
        }
        if manifest.sequence != chain.manifests || manifest.previous.as_deref() != previous {
            return Err(wrong(
                "it does not follow the manifest before it".to_owned(),
            ));
        }
        inspect::plausible(&manifest).map_err(wrong)?;
        Ok(manifest)
    }

    async fn files(&mut self, path: &Path, manifest: &Manifest, hash: &str) -> Outcome<()> {
        let allowed = Absent::new(self.store, manifest, hash, &self.options.keys);
        let checks: Vec<_> = manifest
            .files
            .iter()
            .map(|file| check_file(self.store, file, manifest, self.options.explain))
            .collect();
        let mut checks = stream::iter(checks).buffered(READS);
        let mut lines = Vec::with_capacity(manifest.files.len());
        let mut is_whole = true;
        for file in &manifest.files {
            match checks.next().await {
                Some(Ok(Some(contents))) => {
                    lines.push(contents.totals);
                    self.told.extend(contents.heads);
                    self.verified.files += 1;
                    self.verified.rows += file.rows;
                    self.listed_objects += 1;
                }
                Some(Ok(None)) if allowed.covers(file).await? => {
                    is_whole = false;
                    self.verified.expired_files += 1;
                }
                Some(Ok(None)) | None => {
                    return Err(misfit(
                        &file.path,
                        format!("it is missing; {path} lists it"),
                    ));
                }
                Some(Err(error)) => return Err(error),
            }
        }
        let Some(listed) = &manifest.totals else {
            return Ok(());
        };
        let wrong = |what: &str| misfit(&listed.path, what);
        let found = get(self.store, &listed.path).await?;
        let found = found.ok_or_else(|| wrong("it is missing"))?;
        if sha256(&found) != listed.sha256 {
            return Err(wrong("it was changed: its SHA-256 is not the manifest's"));
        }
        let found = totals::from_lines(&found).map_err(|_| wrong("it cannot be read"))?;
        if is_whole && found != lines {
            return Err(wrong("its figures are not those of the records"));
        }
        self.listed_objects += 1;
        Ok(())
    }
}

/// The files of a manifest that signed retention records let be absent, read when they are needed.
struct Absent<'a> {
    store: &'a Arc<dyn ObjectStore>,
    manifest: &'a Manifest,
    hash: &'a str,
    keys: &'a PublicKeys,
    known: tokio::sync::OnceCell<HashSet<String>>,
}

impl<'a> Absent<'a> {
    fn new(
        store: &'a Arc<dyn ObjectStore>,
        manifest: &'a Manifest,
        hash: &'a str,
        keys: &'a PublicKeys,
    ) -> Self {
        let known = tokio::sync::OnceCell::new();
        Self {
            store,
            manifest,
            hash,
            keys,
            known,
        }
    }

    async fn covers(&self, file: &ListedFile) -> Outcome<bool> {
        let read = || retention::expired(&**self.store, self.manifest, self.hash, self.keys);
        let known = self.known.get_or_try_init(read).await?;
        Ok(known.contains(&file.path))
    }
}

/// What an object holds; `None` when it is not there.
async fn get(store: &Arc<dyn ObjectStore>, path: &str) -> Outcome<Option<bytes::Bytes>> {
    let path = Path::parse(path).map_err(|e| misfit(path, e.to_string()))?;
    let found = match store.get(&path).await {
        Ok(found) => found.bytes().await,
        Err(error) => Err(error),
    };
    match found {
        Ok(content) => Ok(Some(content)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(VerifyError::Store(error)),
    }
}

/// Whether a file is as its manifest says; `None` when it is not there.
async fn check_file(
    store: &Arc<dyn ObjectStore>,
    file: &ListedFile,
    manifest: &Manifest,
    explain: bool,
) -> Outcome<Option<Contents>> {
    let Some(content) = get(store, &file.path).await? else {
        return Ok(None);
    };
    let (listed, place) = (file.clone(), Place::of(manifest));
    // Also because a panic of the reader then ends here.
    let check =
        tokio::task::spawn_blocking(move || inspect::file(content, &listed, &place, explain));
    let checked = check
        .await
        .unwrap_or_else(|_| Err("it cannot be read".to_owned()));
    checked.map(Some).map_err(|what| misfit(&file.path, what))
}

#[cfg(test)]
mod tests;
