//! The names of the objects. Pure.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use object_store::path::Path;

use crate::ids::TenantId;

/// Milliseconds of an hour.
const HOUR_MS: i64 = 3_600_000;
/// How the Hive layout writes an absent value: readers make it NULL.
const NO_TENANT: &str = "__HIVE_DEFAULT_PARTITION__";

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

    /// The file of a group's records from `first` to `last`; `None` for a time that has no date.
    pub(super) fn file(&self, topic: &str, partition: i32, first: i64, last: i64) -> Option<Path> {
        let time = Timestamp::from_millisecond(self.hour.checked_mul(HOUR_MS)?).ok()?;
        let time = TimeZone::UTC.to_datetime(time);
        let tenant = self.tenant.as_ref().map_or(NO_TENANT, TenantId::as_str);
        Some(Path::from_iter([
            "audit".to_owned(),
            format!("date={}", time.date()),
            format!("hour={:02}", time.hour()),
            format!("tenant={tenant}"),
            format!("{topic}-{partition}-{first}-{last}.parquet"),
        ]))
    }
}

/// Whether a record of this time has a place in the layout.
pub(super) fn has_place(ts_ms: u64) -> bool {
    i64::try_from(ts_ms).is_ok_and(|ms| Timestamp::from_millisecond(ms).is_ok())
}

/// The folder of a partition's markers.
pub(super) fn markers(topic: &str, partition: i32) -> Path {
    Path::from_iter(["audit", "_commits", topic, &partition.to_string()])
}

/// The marker of the range that begins at `start`. Names sort as the numbers do.
pub(super) fn marker(topic: &str, partition: i32, start: i64) -> Path {
    markers(topic, partition).join(format!("{start:020}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_by_day_hour_and_tenant() {
        let acme: TenantId = "acme".parse().unwrap();
        // 2026-02-03T04:59:59.999Z, and a millisecond later.
        let before = Group::new(1_770_094_799_999, Some(&acme));
        let after = Group::new(1_770_094_800_000, None);
        assert_eq!(
            before.file("ns.audit.logs", 2, 10, 19).unwrap().as_ref(),
            "audit/date=2026-02-03/hour=04/tenant=acme/ns.audit.logs-2-10-19.parquet"
        );
        assert_eq!(
            after.file("t", 0, 1, 1).unwrap().as_ref(),
            "audit/date=2026-02-03/hour=05/tenant=__HIVE_DEFAULT_PARTITION__/t-0-1-1.parquet"
        );
    }

    #[test]
    fn a_time_beyond_the_calendar_has_no_place() {
        assert!(has_place(0) && has_place(253_402_200_000_000));
        assert!(!has_place(u64::MAX) && !has_place(1 << 62));
    }

    #[test]
    fn markers_sort_by_their_start() {
        let names: Vec<String> = [0, 9, 10, 100_000, i64::MAX]
            .map(|start| marker("t", 0, start).to_string())
            .into();
        assert!(names.is_sorted());
        assert_eq!(names[1], "audit/_commits/t/0/00000000000000000009.json");
    }
}
