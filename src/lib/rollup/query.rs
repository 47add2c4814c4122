//! Reads records back: of files that a manifest lists, and that are as it says.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use serde_json::{Map, Value};

use super::chain::{self, ChainError};
use super::files;
use super::keys::PublicKeys;
use super::layout::{Group, HOUR_MS, Range};
use super::manifest::{ListedFile, Manifest};
use super::parquet;
use super::signed::sha256;
use super::table::{Cell, Table};
use super::totals::{HourlyTotals, Totals};
use crate::ids::TenantId;

/// Which records are read.
#[derive(Debug, Clone)]
pub struct Query {
    /// The tenant; `None` for requests that were not authenticated.
    pub tenant: Option<TenantId>,
    /// The first millisecond since the epoch.
    pub from_ms: i64,
    /// The millisecond after the last one.
    pub to_ms: i64,
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The manifests cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file is not as its manifest says.
    #[error("{path}: {what}; `agenthub audit verify` says what else does not fit")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// What is to be read has no place in the calendar.
    #[error("the times are beyond the calendar")]
    Times,
}

impl From<Error> for QueryError {
    fn from(error: Error) -> Self {
        Self::Chain(error.into())
    }
}

/// A record as its file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its time, in milliseconds since the epoch.
    pub ts_ms: i64,
    partition: i64,
    offset: i64,
    /// Its values by column, without those that are null.
    pub values: Map<String, Value>,
}

/// The columns of a record, in the order of the files.
pub fn record_columns() -> Vec<&'static str> {
    parquet::columns()
}

/// Reads the records of one tenant, hour by hour, in the order of their times.
#[derive(Debug)]
pub struct Reader {
    store: Arc<dyn ObjectStore>,
    keys: PublicKeys,
    query: Query,
    /// When the next hour begins.
    next_ms: i64,
    /// The files that the manifests list, by the path of the manifest; of the hour under way and the one
    /// before.
    manifests: HashMap<Path, Vec<ListedFile>>,
}

impl Reader {
    /// A reader of what `query` asks for. Manifests must be signed by one of `keys`.
    pub fn new(store: Arc<dyn ObjectStore>, keys: PublicKeys, query: Query) -> Self {
        let next_ms = query.from_ms.div_euclid(HOUR_MS) * HOUR_MS;
        Self {
            store,
            keys,
            query,
            next_ms,
            manifests: HashMap::new(),
        }
    }

    /// The records of the next hour that has any; `None` when there is no further one.
    pub async fn next_hour(&mut self) -> Result<Option<Vec<Record>>, QueryError> {
        while let Some((_, files)) = self.next_files().await? {
            let mut records = Vec::new();
            for batch in files {
                let table = Table::new(&batch).map_err(|what| wrong(&"a file", &what))?;
                let wanted = (0..table.rows()).filter(|row| self.is_wanted(&table, *row));
                records.extend(wanted.map(|row| record(&table, row)));
            }
            if !records.is_empty() {
                records.sort_by_key(|r| (r.ts_ms, r.partition, r.offset));
                return Ok(Some(records));
            }
        }
        Ok(None)
    }

    /// What the records of the next hour add up to; `None` when there is no further one.
    pub async fn next_totals(&mut self) -> Result<Option<HourlyTotals>, QueryError> {
        while let Some((group, files)) = self.next_files().await? {
            let mut totals = Totals::default();
            for batch in files {
                let table = Table::new(&batch).map_err(|what| wrong(&"a file", &what))?;
                let wanted = (0..table.rows()).filter(|row| self.is_wanted(&table, *row));
                wanted.for_each(|row| totals.add_row(&table, row));
            }
            if totals.records > 0 {
                return Ok(files::hourly(&group, totals));
            }
        }
        Ok(None)
    }

    fn is_wanted(&self, table: &Table<'_>, row: usize) -> bool {
        let ts = table.int(row, "ts");
        ts.is_some_and(|ts| self.query.from_ms <= ts && ts < self.query.to_ms)
    }

    /// The files of the next hour.
    async fn next_files(
        &mut self,
    ) -> Result<Option<(Group, Vec<arrow::record_batch::RecordBatch>)>, QueryError> {
        if self.next_ms >= self.query.to_ms {
            return Ok(None);
        }
        let group = Group::new(self.next_ms, self.query.tenant.as_ref());
        let folder = group.folder().ok_or(QueryError::Times)?;
        self.next_ms = self.next_ms.checked_add(HOUR_MS).ok_or(QueryError::Times)?;
        let listed = self
            .store
            .list(Some(&folder))
            .map_ok(|object| object.location);
        let mut paths: Vec<Path> = listed.try_collect().await?;
        paths.sort();
        let mut ranges: BTreeMap<Path, Vec<Path>> = BTreeMap::new();
        for path in paths {
            if let Some(range) = path.filename().and_then(Range::of_file) {
                ranges.entry(range.manifest()).or_default().push(path);
            }
        }
        self.manifests.retain(|path, _| ranges.contains_key(path));
        let mut batches = Vec::new();
        for (manifest, paths) in ranges {
            for path in paths {
                if let Some(file) = self.listed(&manifest, &path).await? {
                    batches.extend(read(&*self.store, &path, &file).await?);
                }
            }
        }
        Ok(Some((group, batches)))
    }

    /// How the manifest lists the file; `None` when it does not, or is not there.
    async fn listed(
        &mut self,
        manifest: &Path,
        file: &Path,
    ) -> Result<Option<ListedFile>, QueryError> {
        if !self.manifests.contains_key(manifest) {
            let files = match chain::read(&*self.store, manifest.clone()).await {
                Err(Error::NotFound { .. }) => Vec::new(),
                Err(error) => return Err(error.into()),
                Ok(stored) => {
                    let path = manifest.to_string();
                    let opened: Result<Manifest, _> = stored.open(&self.keys);
                    opened
                        .map_err(|error| ChainError::Signed { path, error })?
                        .files
                }
            };
            self.manifests.insert(manifest.clone(), files);
        }
        let files = self.manifests.get(manifest).into_iter().flatten();
        Ok(files
            .clone()
            .find(|listed| listed.path == file.as_ref())
            .cloned())
    }
}

fn wrong(path: &impl ToString, what: &impl ToString) -> QueryError {
    QueryError::File {
        path: path.to_string(),
        what: what.to_string(),
    }
}

async fn read(
    store: &dyn ObjectStore,
    path: &Path,
    file: &ListedFile,
) -> Result<Vec<arrow::record_batch::RecordBatch>, QueryError> {
    let content = store.get(path).await?.bytes().await?;
    if sha256(&content) != file.sha256 {
        return Err(wrong(path, &"it is not the file that its manifest lists"));
    }
    let decoding = tokio::task::spawn_blocking(move || parquet::decode(content));
    let decoded = decoding.await.map_err(|error| wrong(path, &error))?;
    decoded.map_err(|error| wrong(path, &error))
}

fn record(table: &Table<'_>, row: usize) -> Record {
    let mut values = Map::new();
    for (name, cell) in table.row(row) {
        let value = match cell {
            Cell::Null => continue,
            Cell::Text(text) => text.into(),
            Cell::Int(number) => number.into(),
            Cell::Time(ms) => match jiff::Timestamp::from_millisecond(ms) {
                Ok(time) => time.to_string().into(),
                Err(_) => ms.into(),
            },
        };
        values.insert(name.to_owned(), value);
    }
    Record {
        ts_ms: table.int(row, "ts").unwrap_or(0),
        partition: table.int(row, "partition").unwrap_or(0),
        offset: table.int(row, "offset").unwrap_or(0),
        values,
    }
}
