//! The names of the objects. Pure.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use object_store::path::Path;

use crate::ids::TenantId;

/// Milliseconds of an hour.
pub(super) const HOUR_MS: i64 = 3_600_000;
/// How the Hive layout writes an absent value: readers make it NULL.
const NO_TENANT: &str = "__HIVE_DEFAULT_PARTITION__";
/// Characters of a content's hash in its name.
const HASH_CHARS: usize = 16;

/// The folder of everything.
pub(super) const ROOT: &str = "audit";
/// The folder of the manifests.
pub(super) const MANIFESTS: &str = "audit/_manifests";

/// What the records of one file have in common: the hour and the tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    /// The hour since the epoch.
    hour: i64,
    tenant: Option<TenantId>,
}

impl Group {
    /// The group of a record of this time, in milliseconds since the epoch.
    pub(super) fn new(ts_ms: i64, tenant: Option<&TenantId>) -> Self {
        Self {
            hour: ts_ms.div_euclid(HOUR_MS),
            tenant: tenant.cloned(),
        }
    }

    /// When its hour begins; `None` for a time that has no date.
    pub(super) fn begins(&self) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.hour.checked_mul(HOUR_MS)?).ok()
    }

    pub(super) fn tenant(&self) -> Option<&TenantId> {
        self.tenant.as_ref()
    }

    /// The folder of its files; `None` for a time that has no date.
    pub(super) fn folder(&self) -> Option<Path> {
        let time: DateTime = TimeZone::UTC.to_datetime(self.begins()?);
        let tenant = self.tenant.as_ref().map_or(NO_TENANT, TenantId::as_str);
        Some(Path::from_iter([
            ROOT.to_owned(),
            format!("date={}", time.date()),
            format!("hour={:02}", time.hour()),
            format!("tenant={tenant}"),
        ]))
    }

    /// The file with this content that the manifest of `range` lists.
    pub(super) fn file(&self, range: &Range<'_>, sha256: &str) -> Option<Path> {
        let Range {
            topic,
            partition,
            start,
        } = range;
        let hash = &sha256[..HASH_CHARS];
        Some(
            self.folder()?
                .join(format!("{topic}-{partition}-{start}-{hash}.parquet")),
        )
    }
}

/// Which range of offsets something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Range<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: i32,
    /// Its first offset.
    pub(super) start: i64,
}

impl<'a> Range<'a> {
    /// The range that a file's name tells; `None` for a name of another form.
    pub(super) fn of_file(name: &'a str) -> Option<Self> {
        let mut parts = name.strip_suffix(".parquet")?.rsplitn(4, '-');
        let _hash = parts.next()?;
        let start = parts.next()?.parse().ok()?;
        let partition = parts.next()?.parse().ok()?;
        Some(Self {
            topic: parts.next()?,
            partition,
            start,
        })
    }

    /// Its manifest. Names sort as the numbers do.
    pub(super) fn manifest(&self) -> Path {
        manifests(self.topic, self.partition).join(format!("{:020}.json", self.start))
    }

    /// Its totals with this content.
    pub(super) fn totals(&self, sha256: &str) -> Path {
        Path::from_iter([ROOT, "_totals", self.topic, &self.partition.to_string()]).join(format!(
            "{:020}-{}.jsonl",
            self.start,
            &sha256[..HASH_CHARS]
        ))
    }
}

/// Whether a record of this time has a place in the layout.
pub(super) fn has_place(ts_ms: u64) -> bool {
    i64::try_from(ts_ms).is_ok_and(|ms| Timestamp::from_millisecond(ms).is_ok())
}

/// The folder of a partition's manifests.
pub(super) fn manifests(topic: &str, partition: i32) -> Path {
    Path::from(MANIFESTS)
        .join(topic)
        .join(partition.to_string())
}

/// The topic and partition whose manifest this could be, and its start; `None` for another object.
pub(super) fn manifest_parts(path: &Path) -> Option<(String, i32, i64)> {
    let parts: Vec<String> = path.parts().map(|part| part.as_ref().to_owned()).collect();
    let [root, folder, topic, partition, name] = parts.as_slice() else {
        return None;
    };
    let start = name.strip_suffix(".json")?.parse().ok()?;
    let partition = partition.parse().ok()?;
    let range = Range {
        topic,
        partition,
        start,
    };
    let fits = format!("{root}/{folder}") == MANIFESTS && range.manifest() == *path;
    fits.then(|| (topic.clone(), partition, start))
}

/// When the hour of a file begins, in milliseconds since the epoch, and its tenant; `None` for an object
/// that is none.
pub(super) fn folder_parts(path: &Path) -> Option<(i64, Option<String>)> {
    let parts: Vec<_> = path.parts().collect();
    let [root, date, hour, tenant, _] = parts.as_slice() else {
        return None;
    };
    let date = date.as_ref().strip_prefix("date=")?;
    let hour = hour.as_ref().strip_prefix("hour=")?;
    let tenant = tenant.as_ref().strip_prefix("tenant=")?;
    let begins: Timestamp = format!("{date}T{hour}:00:00Z").parse().ok()?;
    let tenant = (tenant != NO_TENANT).then(|| tenant.to_owned());
    (root.as_ref() == ROOT).then(|| (begins.as_millisecond(), tenant))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123";

    fn range(topic: &str, partition: i32, start: i64) -> Range<'_> {
        Range {
            topic,
            partition,
            start,
        }
    }

    #[test]
    fn files_lie_by_day_hour_and_tenant() {
        let acme: TenantId = "acme".parse().unwrap();
        // 2026-02-03T04:59:59.999Z, and a millisecond later.
        let before = Group::new(1_770_094_799_999, Some(&acme));
        let after = Group::new(1_770_094_800_000, None);
        let file = before.file(&range("n-s.audit.logs", 2, 10), HASH).unwrap();
        assert_eq!(
            file.as_ref(),
            "audit/date=2026-02-03/hour=04/tenant=acme/n-s.audit.logs-2-10-0123456789abcdef.parquet"
        );
        assert_eq!(
            after.file(&range("t", 0, 1), HASH).unwrap().as_ref(),
            "audit/date=2026-02-03/hour=05/tenant=__HIVE_DEFAULT_PARTITION__/t-0-1-0123456789abcdef.parquet"
        );
        assert_eq!(
            folder_parts(&file),
            Some((1_770_091_200_000, Some("acme".to_owned())))
        );
        let other = after.file(&range("t", 0, 1), HASH).unwrap();
        assert_eq!(folder_parts(&other), Some((1_770_094_800_000, None)));
        assert_eq!(folder_parts(&range("t", 0, 1).manifest()), None);
        // Its name leads to its manifest.
        let range = Range::of_file(file.filename().unwrap()).unwrap();
        assert_eq!(
            (range.topic, range.partition, range.start),
            ("n-s.audit.logs", 2, 10)
        );
        for name in ["", "x.parquet", "t-0-x-h.parquet", "t-0-1-h.json"] {
            assert_eq!(Range::of_file(name), None, "{name}");
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_has_no_place() {
        assert!(has_place(0) && has_place(253_402_200_000_000));
        assert!(!has_place(u64::MAX) && !has_place(1 << 62));
    }

    #[test]
    fn manifests_sort_by_their_start_and_are_known_by_their_path() {
        let paths = [0, 9, 10, 100_000, i64::MAX].map(|start| range("t", 0, start).manifest());
        assert!(paths.is_sorted());
        assert_eq!(
            paths[1].as_ref(),
            "audit/_manifests/t/0/00000000000000000009.json"
        );
        assert_eq!(manifest_parts(&paths[1]), Some(("t".to_owned(), 0, 9)));
        for other in [
            "audit/_manifests/t/0/9.json",
            "audit/_manifests/t/0/x",
            "audit/t/0/1.json",
            "audit/_totals/t/0/00000000000000000009.json",
        ] {
            assert_eq!(manifest_parts(&Path::from(other)), None, "{other}");
        }
    }
}
