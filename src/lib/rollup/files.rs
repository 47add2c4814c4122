//! What a range of records becomes: a file for each hour and tenant, and their totals. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use object_store::path::Path;

use super::layout::{Group, Range};
use super::manifest::{ListedFile, ListedTotals};
use super::parquet::{self, Placed};
use super::row::Row;
use super::signed::sha256;
use super::totals::{self, HourlyTotals, Totals};

/// An object before it is stored. Its name has a part of its content's hash in it.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: Path,
    pub(super) content: Bytes,
    pub(super) sha256: String,
}

/// The objects of a range, and how its manifest lists them.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) objects: Vec<File>,
    pub(super) listed: Vec<ListedFile>,
    pub(super) totals: Option<ListedTotals>,
}

/// Makes the objects of a range's rows, which come with their offsets and in their order.
pub(super) fn encode<'a>(
    range: &Range<'_>,
    rows: impl Iterator<Item = (i64, &'a Row)>,
) -> Result<Files, String> {
    let mut groups: BTreeMap<Group, Vec<Placed<'_>>> = BTreeMap::new();
    for (offset, row) in rows {
        let ts = i64::try_from(row.audit.ts).unwrap_or(i64::MAX);
        let group = Group::new(ts, row.audit.tenant.as_ref());
        let placed = (row, range.partition, offset);
        groups.entry(group).or_default().push(placed);
    }
    let mut files = Files::default();
    let mut all_totals = Vec::with_capacity(groups.len());
    for (group, rows) in groups {
        let no_date = || format!("{group:?} has no date");
        let encoded = parquet::encode(&rows).map_err(|e| e.to_string())?;
        let hash = sha256(&encoded.content);
        let path = group.file(range, &hash).ok_or_else(no_date)?;
        files.listed.push(ListedFile {
            path: path.to_string(),
            sha256: hash.clone(),
            bytes: encoded.content.len() as u64,
            rows: rows.len() as u64,
            first: rows[0].2,
            last: rows[rows.len() - 1].2,
            rows_sha256: encoded.rows_sha256,
        });
        files.objects.push(File {
            path,
            content: encoded.content.into(),
            sha256: hash,
        });
        let mut totals = Totals::default();
        for (row, ..) in &rows {
            totals.add_record(&row.audit);
        }
        all_totals.push(hourly(&group, totals).ok_or_else(no_date)?);
    }
    if !all_totals.is_empty() {
        let content = totals::to_lines(&all_totals).map_err(|e| e.to_string())?;
        let hash = sha256(&content);
        let path = range.totals(&hash);
        files.totals = Some(ListedTotals {
            path: path.to_string(),
            sha256: hash.clone(),
            bytes: content.len() as u64,
            lines: all_totals.len() as u64,
        });
        files.objects.push(File {
            path,
            content: content.into(),
            sha256: hash,
        });
    }
    Ok(files)
}

/// A group's line of totals; `None` for a time that has no date.
pub(super) fn hourly(group: &Group, totals: Totals) -> Option<HourlyTotals> {
    let tenant = group.tenant().map(ToString::to_string);
    Some(HourlyTotals::new(
        group.begins()?.to_string(),
        tenant,
        totals,
    ))
}
