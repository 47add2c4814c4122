//! What was spent, put together from the settlements on `audit.logs`. Pure.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use crate::ids::TenantId;
use crate::messages::AuditRecord;

/// Calls, tokens read, of those cached, tokens written, of those reasoning, money: as the ledger counts.
type Counters = [i64; 6];

/// What tenants spent and used.
#[derive(Debug, Default)]
pub(super) struct MoneyFold {
    /// By tenant and month (`yyyymm`): who (`t` for the tenant, else a key), and how much.
    pub(super) spent: BTreeMap<(TenantId, String), BTreeMap<String, i64>>,
    /// By tenant and day (`yyyymmdd`): by key and model, and by session.
    pub(super) used: BTreeMap<(TenantId, String), BTreeMap<String, Counters>>,
    /// Hashes of the settlements that were counted, one may be on the topic twice; and of the calls.
    /// There may be millions: eight bytes each do.
    counted: HashSet<u64>,
    hashing: RandomState,
}

impl MoneyFold {
    /// Takes a settlement; other records, and what was counted before, are left alone.
    pub(super) fn take(&mut self, record: &AuditRecord) {
        let (Some(tenant), Some(run), Some(call), Some(settlement), Some(month)) = (
            &record.tenant,
            &record.run_id,
            &record.call,
            &record.settlement,
            &record.month,
        ) else {
            return;
        };
        if !self
            .counted
            .insert(self.hashing.hash_one((run, call, settlement)))
        {
            return;
        }
        let first = self.counted.insert(self.hashing.hash_one((run, call)));
        let delta = record.delta_micro_usd.unwrap_or(0);
        let key = record.key_id.as_ref().map_or("-", |key| key.as_str());
        let spent = self
            .spent
            .entry((tenant.clone(), month.clone()))
            .or_default();
        for who in ["t", key] {
            *spent.entry(who.to_owned()).or_default() += delta;
        }
        let Some(day) = day(record.ts) else { return };
        let used = self.used.entry((tenant.clone(), day)).or_default();
        let model = record.target.as_deref().unwrap_or("-");
        let session = record
            .session_id
            .as_ref()
            .map(|session| format!("s:{session}"));
        for user in std::iter::once(format!("k:{key}:{model}")).chain(session) {
            let sums = used.entry(user).or_default();
            let told = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            sums[0] += i64::from(first);
            sums[1] += told(record.input_tokens);
            sums[3] += told(record.output_tokens);
            sums[5] += delta;
        }
    }
}

/// The day of a time in milliseconds, UTC.
pub(super) fn day(ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
    Some(time.strftime("%Y%m%d").to_string())
}
