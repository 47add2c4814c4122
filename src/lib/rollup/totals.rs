//! What the records of an hour and a tenant add up to. Pure.
//!
//! Totals are sums and counts, so that the parts which several manifests have of one hour can be added.
//! Durations are counted in buckets whose width is at most 1/64 of their value, so that a percentile of the
//! sum is never below the true one, and at most 1.6 % above.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::table::Table;
use crate::messages::{AuditDecision, AuditRecord};

/// Buckets of a doubling, as a power of two.
const BUCKET_BITS: u32 = 6;
/// What a record says that is a request.
const REQUEST: &str = "request";
/// From here on a status is the service's own failure.
const SERVER_ERROR: i64 = 500;
/// The rule of a refusal that names none.
const NO_RULE: &str = "unknown";

/// Totals of one hour and tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Records of every kind.
    pub records: u64,
    /// HTTP requests.
    pub requests: u64,
    /// Requests that ended with a status of 500 or more.
    pub errors: u64,
    /// Records by what was done, requests included.
    pub actions: BTreeMap<String, u64>,
    /// What was refused, by rule.
    pub refusals: BTreeMap<String, u64>,
    /// Tokens that models read.
    pub input_tokens: u64,
    /// Tokens that models wrote.
    pub output_tokens: u64,
    /// Millionths of a US dollar; below zero where corrections of earlier bounds outweigh it.
    pub cost_micro_usd: i64,
    /// Requests by the upper end of their bucket of milliseconds, as pairs.
    #[serde(with = "pairs")]
    pub durations_ms: BTreeMap<u64, u64>,
}

/// Numbers as keys are texts in JSON, which a flattened structure does not read back.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<u64, u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<u64, u64>, D::Error> {
        let pairs = Vec::<(u64, u64)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().collect())
    }
}

/// What totals need to know of a record.
struct Entry<'a> {
    action: &'a str,
    status: Option<i64>,
    refused: bool,
    rule: Option<&'a str>,
    input_tokens: u64,
    output_tokens: u64,
    cost_micro_usd: i64,
    duration_ms: u64,
}

impl Totals {
    pub(super) fn add_record(&mut self, record: &AuditRecord) {
        // As the file holds it: numbers end where signed ones do.
        let held = |n: u64| n.min(i64::MAX.unsigned_abs());
        let cost = i64::try_from(record.cost_micro_usd).unwrap_or(i64::MAX);
        self.add_entry(&Entry {
            action: &record.action,
            status: record.status.map(i64::from),
            refused: record.decision == AuditDecision::Refused,
            rule: record.rule.as_deref(),
            input_tokens: held(record.input_tokens),
            output_tokens: held(record.output_tokens),
            // A settlement says what it adds: its cost may have been counted by its bound already.
            cost_micro_usd: record.delta_micro_usd.unwrap_or(cost),
            duration_ms: held(record.duration_ms),
        });
    }

    pub(super) fn add_row(&mut self, table: &Table<'_>, row: usize) {
        let count = |name| {
            table
                .int(row, name)
                .map_or(0, |n| u64::try_from(n).unwrap_or(0))
        };
        self.add_entry(&Entry {
            action: table.text(row, "action").unwrap_or_default(),
            status: table.int(row, "status"),
            refused: table.text(row, "decision") == Some("refused"),
            rule: table.text(row, "rule"),
            input_tokens: count("input_tokens"),
            output_tokens: count("output_tokens"),
            cost_micro_usd: table
                .int(row, "delta_micro_usd")
                .or_else(|| table.int(row, "cost_micro_usd"))
                .unwrap_or(0),
            duration_ms: count("duration_ms"),
        });
    }

    fn add_entry(&mut self, entry: &Entry<'_>) {
        self.records += 1;
        count(&mut self.actions, entry.action, 1);
        if entry.action == REQUEST {
            self.requests += 1;
            self.errors += u64::from(entry.status.is_some_and(|status| status >= SERVER_ERROR));
            *self
                .durations_ms
                .entry(bucket(entry.duration_ms))
                .or_default() += 1;
        }
        if entry.refused {
            count(&mut self.refusals, entry.rule.unwrap_or(NO_RULE), 1);
        }
        let add = |sum: &mut u64, n: u64| *sum = sum.saturating_add(n);
        add(&mut self.input_tokens, entry.input_tokens);
        add(&mut self.output_tokens, entry.output_tokens);
        self.cost_micro_usd = self.cost_micro_usd.saturating_add(entry.cost_micro_usd);
    }

    /// Adds the part that another manifest has of the same hour and tenant.
    pub fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.requests += other.requests;
        self.errors += other.errors;
        for (action, n) in &other.actions {
            count(&mut self.actions, action, *n);
        }
        for (rule, n) in &other.refusals {
            count(&mut self.refusals, rule, *n);
        }
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.cost_micro_usd = self.cost_micro_usd.saturating_add(other.cost_micro_usd);
        for (bucket, n) in &other.durations_ms {
            *self.durations_ms.entry(*bucket).or_default() += n;
        }
    }

    /// What was refused, by whichever rule.
    pub fn refused(&self) -> u64 {
        self.refusals.values().sum()
    }

    /// The duration in milliseconds that 95 % of the requests did not exceed; `None` without requests.
    pub fn p95_ms(&self) -> Option<u64> {
        let all: u64 = self.durations_ms.values().sum();
        let rank = (all * 95).div_ceil(100);
        let mut seen = 0;
        let mut buckets = self.durations_ms.iter();
        buckets.find_map(|(upper, n)| {
            seen += n;
            (seen >= rank).then_some(*upper)
        })
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str, n: u64) {
    match counts.get_mut(name) {
        Some(count) => *count += n,
        None => _ = counts.insert(name.to_owned(), n),
    }
}

/// The upper end of a duration's bucket: the duration itself below 128.
fn bucket(ms: u64) -> u64 {
    let width = ms.checked_ilog2().unwrap_or(0).saturating_sub(BUCKET_BITS);
    ms | ((1 << width) - 1)
}

/// Totals, and whose they are: one line of a totals object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HourlyTotals {
    /// When the hour begins, in RFC 3339.
    pub hour: String,
    /// The tenant; `None` for requests that were not authenticated.
    pub tenant: Option<String>,
    /// 95th percentile of the requests' milliseconds.
    pub p95_duration_ms: Option<u64>,
    /// The totals.
    #[serde(flatten)]
    pub totals: Totals,
}

impl HourlyTotals {
    pub(super) fn new(hour: String, tenant: Option<String>, totals: Totals) -> Self {
        Self {
            hour,
            tenant,
            p95_duration_ms: totals.p95_ms(),
            totals,
        }
    }
}

/// Lines of JSON. The same totals give the same bytes.
pub(super) fn to_lines(all: &[HourlyTotals]) -> Result<Vec<u8>, serde_json::Error> {
    let mut lines = Vec::new();
    for totals in all {
        serde_json::to_writer(&mut lines, totals)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Reads what [`to_lines`] wrote.
pub(super) fn from_lines(lines: &[u8]) -> Result<Vec<HourlyTotals>, serde_json::Error> {
    serde_json::Deserializer::from_slice(lines)
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(duration_ms: u64) -> Entry<'static> {
        Entry {
            action: REQUEST,
            status: Some(200),
            refused: false,
            rule: None,
            input_tokens: 1,
            output_tokens: 2,
            cost_micro_usd: 3,
            duration_ms,
        }
    }

    #[test]
    fn records_are_counted_by_what_they_are() {
        let mut totals = Totals::default();
        totals.add_entry(&entry(10));
        totals.add_entry(&Entry {
            status: Some(503),
            ..entry(20)
        });
        totals.add_entry(&Entry {
            status: Some(429),
            refused: true,
            rule: Some("key.1000"),
            ..entry(1)
        });
        totals.add_entry(&Entry {
            action: "model_call",
            status: None,
            refused: true,
            cost_micro_usd: i64::MAX,
            ..entry(9_000)
        });
        assert_eq!(
            (
                totals.records,
                totals.requests,
                totals.errors,
                totals.refused()
            ),
            (4, 3, 1, 2)
        );
        assert_eq!(
            totals.refusals,
            [("key.1000".to_owned(), 1), (NO_RULE.to_owned(), 1)].into()
        );
        assert_eq!(totals.actions[REQUEST], 3);
        assert_eq!(
            (
                totals.input_tokens,
                totals.output_tokens,
                totals.cost_micro_usd
            ),
            (4, 8, i64::MAX)
        );
        // The call of the model is no request.
        assert_eq!(totals.p95_ms(), Some(20));
        assert_eq!(Totals::default().p95_ms(), None);
    }

    #[test]
    fn a_settlement_counts_by_what_it_adds() {
        let record = |delta: Option<i64>| -> AuditRecord {
            let record = serde_json::json!({
                "v": 1, "id": "a", "ts": 1, "action": "model_call", "decision": "allowed",
                "cost_micro_usd": 70, "delta_micro_usd": delta,
            });
            serde_json::from_value(record).unwrap()
        };
        let mut totals = Totals::default();
        for (delta, sum) in [(None, 70), (Some(100), 170), (Some(-30), 140)] {
            totals.add_record(&record(delta));
            assert_eq!(totals.cost_micro_usd, sum);
        }
    }

    #[test]
    fn lines_come_back() {
        let mut totals = Totals::default();
        totals.add_entry(&entry(70_000));
        let line = HourlyTotals::new("2026-02-03T04:00:00Z".to_owned(), None, totals);
        let all = [
            line.clone(),
            HourlyTotals {
                tenant: Some("acme".to_owned()),
                ..line
            },
        ];
        assert_eq!(from_lines(&to_lines(&all).unwrap()).unwrap(), all);
    }

    proptest! {
        #[test]
        fn a_percentile_is_never_too_low_and_little_too_high(mut times in proptest::collection::vec(0u64..10_000_000, 1..200), cut in 0usize..200) {
            let (mut one, mut other) = (Totals::default(), Totals::default());
            let cut = cut.min(times.len());
            times[..cut].iter().for_each(|ms| one.add_entry(&entry(*ms)));
            times[cut..].iter().for_each(|ms| other.add_entry(&entry(*ms)));
            one.add(&other);
            times.sort_unstable();
            let exact = times[(times.len() * 95).div_ceil(100) - 1];
            let p95 = one.p95_ms().unwrap();
            prop_assert!(p95 >= exact && p95 - exact <= exact / 64, "{p95} for {exact}");
        }
    }
}
