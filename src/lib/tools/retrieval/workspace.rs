//! Folders for indexes below the cache folder, one workspace a process.
//!
//! Invariant: a workspace is in use exactly while its lock file is locked, and the system unlocks it
//! however the process ends; so what a killed process left is told from what another one uses.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

/// The folder of this process' indexes; removed with the last reference to it.
#[derive(Debug)]
pub struct Workspace {
    folder: PathBuf,
    next: AtomicU64,
    _lock: File,
}

/// The folder of one index; removed when dropped.
#[derive(Debug)]
pub struct IndexFolder {
    path: PathBuf,
}

impl Workspace {
    /// Makes a workspace below `cache_dir` and removes those whose processes are gone.
    pub fn create(cache_dir: &Path) -> io::Result<Self> {
        let parent = cache_dir.join("search");
        fs::create_dir_all(&parent)?;
        // Held until the new workspace is locked: a neighbour that starts now must not take it for
        // an abandoned one.
        let gate = File::create(parent.join("gate.lock"))?;
        gate.lock()?;
        for entry in fs::read_dir(&parent)? {
            let path = entry?.path();
            if path.is_dir() {
                remove_if_abandoned(&path);
            }
        }
        let folder = parent.join(Uuid::new_v4().simple().to_string());
        fs::create_dir(&folder)?;
        let lock = File::create(lock_path(&folder))?;
        lock.lock()?;
        Ok(Self {
            folder,
            next: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// A new, empty folder.
    pub fn index_folder(&self) -> io::Result<IndexFolder> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(number.to_string());
        fs::create_dir(&path)?;
        Ok(IndexFolder { path })
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What stays is swept up by the next process.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl IndexFolder {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for IndexFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn lock_path(folder: &Path) -> PathBuf {
    folder.join("workspace.lock")
}

fn remove_if_abandoned(folder: &Path) {
    let in_use = match File::open(lock_path(folder)) {
        Ok(lock) => lock.try_lock().is_err(),
        // Its process died between making the folder and the lock.
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    };
    if !in_use && let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(%error, "an abandoned search index was not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abandoned_workspaces_go_and_used_ones_stay() {
        let cache = tempfile::tempdir().unwrap();
        let used = Workspace::create(cache.path()).unwrap();
        let kept = used.index_folder().unwrap();
        let abandoned = cache.path().join("search/gone");
        fs::create_dir_all(abandoned.join("0")).unwrap();
        File::create(lock_path(&abandoned)).unwrap();

        let other = Workspace::create(cache.path()).unwrap();
        assert!(kept.path().is_dir());
        assert!(!abandoned.exists());
        let folder = other.folder.clone();
        drop(other);
        assert!(!folder.exists() && kept.path().is_dir());
    }
}
