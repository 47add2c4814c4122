//! Whether a manifest can be true, and whether a file holds what its manifest says. Pure.

use std::collections::HashSet;

use bytes::Bytes;
use object_store::path::Path;

use super::files;
use super::heads;
use super::layout::Group;
use super::manifest::{ListedFile, Manifest};
use super::parquet;
use super::signed::sha256;
use super::table::{ROW_HASH, RowsHash, Table};
use super::totals::{HourlyTotals, Totals};
use crate::ids::TenantId;

/// Whether what a manifest says of itself goes together.
pub(super) fn plausible(manifest: &Manifest) -> Result<(), String> {
    let (start, end) = (manifest.start, manifest.end);
    if start < 0 || end <= start {
        return Err(format!("its range from {start} to {end} is empty"));
    }
    let mut paths = HashSet::new();
    for file in &manifest.files {
        let fits = start <= file.first && file.first <= file.last && file.last < end;
        if !fits || file.rows == 0 {
            return Err(format!("{} is not within its range", file.path));
        }
        if !paths.insert(&file.path) {
            return Err(format!("it lists {} twice", file.path));
        }
    }
    let records = manifest.rows().saturating_add(manifest.dead_letters);
    if records > (end - start).unsigned_abs() {
        return Err("it lists more records than its range has offsets".to_owned());
    }
    if manifest.files.is_empty() != manifest.totals.is_none() {
        return Err("its totals do not go with its files".to_owned());
    }
    Ok(())
}

/// Where the rows of a file must belong.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    partition: i32,
    start: i64,
    end: i64,
}

impl Place {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self {
            partition: manifest.partition,
            start: manifest.start,
            end: manifest.end,
        }
    }
}

/// What a file holds beside its rows.
#[derive(Debug)]
pub(super) struct Contents {
    /// What its rows add up to.
    pub(super) totals: HourlyTotals,
    /// Signed heads among its rows.
    pub(super) heads: Vec<String>,
}

/// Holds a file against its manifest. With `explain`, a file whose bytes were changed is opened all the
/// same.
pub(super) fn file(
    content: Bytes,
    listed: &ListedFile,
    place: &Place,
    explain: bool,
) -> Result<Contents, String> {
    let found = sha256(&content);
    if found != listed.sha256 || content.len() as u64 != listed.bytes {
        let changed = format!(
            "it was changed: its SHA-256 is {found}, the manifest says {}",
            listed.sha256
        );
        if !explain {
            return Err(changed);
        }
        return Err(match rows(content, listed, place) {
            Ok(_) => format!("{changed}; its rows are those of the manifest"),
            Err(what) => format!("{changed}; {what}"),
        });
    }
    rows(content, listed, place)
}

/// Holds the rows against the manifest and against their own hashes.
fn rows(content: Bytes, listed: &ListedFile, place: &Place) -> Result<Contents, String> {
    let path = Path::from(listed.path.as_str());
    let batches = parquet::decode(content).map_err(|e| format!("it cannot be read: {e}"))?;
    let (mut all, mut buffer) = (RowsHash::default(), Vec::new());
    let (mut totals, mut heads) = (Totals::default(), Vec::new());
    let (mut group, mut rows, mut first, mut last) = (None, 0_u64, None, place.start - 1);
    for batch in &batches {
        let table = Table::new(batch)?;
        for row in 0..table.rows() {
            rows += 1;
            let offset = table.int(row, "offset").unwrap_or(-1);
            let wrong = |what: &str| Err(format!("row {rows}, of offset {offset}, {what}"));
            let hash = table.hash(row, &mut buffer);
            if table.text(row, ROW_HASH) != Some(hex::encode(hash).as_str()) {
                return wrong("was changed: its values do not fit its hash");
            }
            all.add(&hash);
            let partition = table.int(row, "partition");
            if partition != Some(place.partition.into()) || offset >= place.end {
                return wrong("is not of the manifest's range");
            }
            if offset <= last {
                return wrong("is not in the order of the offsets");
            }
            last = offset;
            first = first.or(Some(offset));
            let row_group = group_of(&table, row);
            if row_group
                .as_ref()
                .and_then(Group::folder)
                .is_none_or(|folder| !path.prefix_matches(&folder))
            {
                return wrong("is not of the file's hour and tenant");
            }
            group = group.or(row_group);
            totals.add_row(&table, row);
            if table.text(row, "action") == Some(heads::ACTION) {
                heads.extend(table.text(row, "target").map(str::to_owned));
            }
        }
    }
    if (rows, first, last) != (listed.rows, Some(listed.first), listed.last) {
        return Err(format!(
            "its {rows} rows are not the {} of the manifest",
            listed.rows
        ));
    }
    if all.finish() != listed.rows_sha256 {
        return Err(
            "rows were changed, and their hashes made anew: they are not the manifest's".to_owned(),
        );
    }
    let totals = group.and_then(|group| files::hourly(&group, totals));
    let totals = totals.ok_or("it has no rows")?;
    Ok(Contents { totals, heads })
}

/// The group of a row; `None` when its time or tenant are none.
fn group_of(table: &Table<'_>, row: usize) -> Option<Group> {
    let tenant = table.text(row, "tenant").map(str::parse::<TenantId>);
    let tenant = tenant.transpose().ok()?;
    Some(Group::new(table.int(row, "ts")?, tenant.as_ref()))
}
