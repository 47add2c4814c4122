//! Opens the object store that the configuration names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};
use secrecy::ExposeSecret;

use crate::config::StorageSettings;

/// A store, and its folder when it is one.
#[derive(Debug, Clone)]
pub struct Storage {
    /// The objects; paths are relative to the configured prefix.
    pub store: Arc<dyn ObjectStore>,
    /// The folder of a local store. A folder has no conditional writes, but it has file locks.
    pub folder: Option<PathBuf>,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The URL is neither a folder nor of the form `s3://bucket/prefix`.
    #[error("AGENTHUB_STORAGE_URL: expected a folder or s3://bucket/prefix")]
    Url,
    /// The folder cannot be made.
    #[error("the storage folder cannot be used: {0}")]
    Folder(std::io::Error),
    /// The client of the store refuses its settings.
    #[error("the object store cannot be opened: {0}")]
    Client(object_store::Error),
}

impl Storage {
    /// Opens the store; makes its folder where it is one. Does not talk to a remote store yet.
    pub fn open(settings: &StorageSettings) -> Result<Self, StorageError> {
        match settings.url.split_once("://") {
            Some(("s3", rest)) => Self::open_s3(rest, settings),
            Some(("file", folder)) => Self::open_folder(folder.into()),
            Some(_) => Err(StorageError::Url),
            None if settings.url.is_empty() => Err(StorageError::Url),
            None => Self::open_folder(settings.url.clone().into()),
        }
    }

    fn open_folder(folder: PathBuf) -> Result<Self, StorageError> {
        std::fs::create_dir_all(&folder).map_err(StorageError::Folder)?;
        // A manifest must not survive a crash that its documents do not.
        let store = LocalFileSystem::new_with_prefix(&folder)
            .map_err(StorageError::Client)?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            folder: Some(folder),
        })
    }

    fn open_s3(bucket_and_prefix: &str, settings: &StorageSettings) -> Result<Self, StorageError> {
        let (bucket, prefix) = match bucket_and_prefix.split_once('/') {
            Some((bucket, prefix)) => (bucket, prefix.trim_matches('/')),
            None => (bucket_and_prefix, ""),
        };
        if bucket.is_empty() {
            return Err(StorageError::Url);
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(&settings.region)
            .with_allow_http(settings.allow_http)
            .with_retry(retry());
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if !settings.access_key_id.is_empty() {
            builder = builder
                .with_access_key_id(&settings.access_key_id)
                .with_secret_access_key(settings.secret_access_key.expose_secret());
            let token = settings.session_token.expose_secret();
            if !token.is_empty() {
                builder = builder.with_token(token);
            }
        }
        let s3 = builder.build().map_err(StorageError::Client)?;
        let store: Arc<dyn ObjectStore> = if prefix.is_empty() {
            Arc::new(s3)
        } else {
            Arc::new(PrefixStore::new(s3, prefix))
        };
        Ok(Self {
            store,
            folder: None,
        })
    }
}

/// Fewer retries than the library's own three minutes: a tool call has a timeout, and a person waits
/// at the command line.
fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: 4,
        retry_timeout: Duration::from_secs(15),
        ..RetryConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> StorageSettings {
        StorageSettings {
            url: url.to_owned(),
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            region: "us-east-1".to_owned(),
            access_key_id: "id".to_owned(),
            secret_access_key: String::from("secret").into(),
            session_token: String::new().into(),
            allow_http: true,
        }
    }

    #[test]
    fn folders_and_buckets_are_told_apart() {
        let temp = tempfile::tempdir().unwrap();
        let folder = temp.path().join("new/storage");
        let local = Storage::open(&settings(folder.to_str().unwrap())).unwrap();
        assert!(local.folder.is_some() && folder.is_dir());

        let remote = Storage::open(&settings("s3://bucket/a/b/")).unwrap();
        assert!(remote.folder.is_none());
        assert!(remote.store.to_string().contains("a/b"), "{}", remote.store);

        for url in ["", "s3:///prefix", "gs://bucket"] {
            assert!(
                matches!(Storage::open(&settings(url)), Err(StorageError::Url)),
                "{url}"
            );
        }
    }
}
