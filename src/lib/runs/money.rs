//! What tenants spent, and what they may: read and set beside the transitions.

use std::collections::BTreeMap;

use redis::AsyncCommands;

use super::Runs;
use crate::ids::{KeyId, SessionId, TenantId};
use crate::store::StoreError;

/// What a tenant has spent in a month (UTC), in millionths of a US dollar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spending {
    /// The tenant's limit for each month; none when absent.
    pub limit: Option<u64>,
    /// Settled.
    pub spent: u64,
    /// Held for calls under way.
    pub reserved: u64,
}

/// What was used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Model calls.
    pub calls: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Of those, read from the provider's cache.
    pub cached_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of those, spent on reasoning.
    pub reasoning_tokens: u64,
    /// Millionths of a US dollar.
    pub cost_micro_usd: u64,
}

impl std::ops::AddAssign for Use {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.input_tokens += other.input_tokens;
        self.cached_tokens += other.cached_tokens;
        self.output_tokens += other.output_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
        self.cost_micro_usd += other.cost_micro_usd;
    }
}

impl Use {
    /// Reads "calls input cached output reasoning cost".
    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(Self {
            calls: next()?,
            input_tokens: next()?,
            cached_tokens: next()?,
            output_tokens: next()?,
            reasoning_tokens: next()?,
            cost_micro_usd: next()?,
        })
    }
}

/// Who used it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A key, and the model that it used.
    Key(KeyId, String),
    /// A session.
    Session(SessionId),
}

impl User {
    fn parse(field: &str) -> Option<Self> {
        if let Some(session) = field.strip_prefix("s:") {
            return Some(Self::Session(session.parse().ok()?));
        }
        let (key, model) = field.strip_prefix("k:")?.split_once(':')?;
        Some(Self::Key(key.parse().ok()?, model.to_owned()))
    }
}

impl Runs {
    /// What a tenant has spent in `month` (`yyyymm`).
    pub async fn spending(&self, tenant: &TenantId, month: &str) -> Result<Spending, StoreError> {
        let all = self
            .spending_of(std::slice::from_ref(tenant), month)
            .await?;
        Ok(all.into_iter().next().unwrap_or_default())
    }

    /// As [`Runs::spending`] of several tenants, in their order and in one round trip. On a cluster their keys
    /// must be in one slot.
    async fn spending_of(
        &self,
        tenants: &[TenantId],
        month: &str,
    ) -> Result<Vec<Spending>, StoreError> {
        let mut pipe = redis::pipe();
        for tenant in tenants {
            let base = self.redis.base(tenant);
            pipe.hget(format!("{base}:tenant"), "budget");
            pipe.hget(format!("{base}:spend:{month}"), "t.spent");
            pipe.hget(format!("{base}:spend:{month}"), "t.reserved");
        }
        let values: Vec<Option<u64>> = pipe.query_async(&mut self.redis.connection()).await?;
        let spending = values.chunks_exact(3).map(|of| Spending {
            limit: of[0],
            spent: of[1].unwrap_or(0),
            reserved: of[2].unwrap_or(0),
        });
        Ok(spending.collect())
    }

    /// What the tenants that have a budget have spent in the current month.
    pub async fn budgets(&self) -> Result<Vec<(TenantId, Spending)>, StoreError> {
        let month = jiff::Timestamp::now().strftime("%Y%m").to_string();
        let tenants = self.redis.tenants().await?;
        let chunk = if self.redis.connection().is_cluster() {
            1
        } else {
            1000
        };
        let mut budgets = Vec::new();
        for tenants in tenants.chunks(chunk) {
            let spending = self.spending_of(tenants, &month).await?;
            let of = tenants.iter().cloned().zip(spending);
            budgets.extend(of.filter(|(_, spending)| spending.limit.is_some()));
        }
        Ok(budgets)
    }

    /// Sets what a tenant may spend in each month, and lets the warning of `month` come again.
    pub async fn set_budget(
        &self,
        tenant: &TenantId,
        limit: Option<u64>,
        month: &str,
    ) -> Result<(), StoreError> {
        let base = self.redis.base(tenant);
        let mut pipe = redis::pipe();
        pipe.atomic();
        match limit {
            Some(limit) => pipe.hset(format!("{base}:tenant"), "budget", limit),
            None => pipe.hdel(format!("{base}:tenant"), "budget"),
        };
        pipe.hdel(format!("{base}:spend:{month}"), "t.warned");
        Ok(pipe.query_async(&mut self.redis.connection()).await?)
    }

    /// What was used on each of `days` (`yyyymmdd`), in their order.
    pub async fn used(
        &self,
        tenant: &TenantId,
        days: &[String],
    ) -> Result<Vec<Vec<(User, Use)>>, StoreError> {
        let base = self.redis.base(tenant);
        let mut used = Vec::with_capacity(days.len());
        for day in days {
            let fields: BTreeMap<String, String> = self
                .redis
                .connection()
                .hgetall(format!("{base}:use:{day}"))
                .await?;
            let entries = fields.iter();
            let entries =
                entries.filter_map(|(field, text)| Some((User::parse(field)?, Use::parse(text)?)));
            used.push(entries.collect());
        }
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_nothing_else() {
        let read = Use::parse("1 2 3 4 5 6").unwrap();
        assert_eq!((read.calls, read.cost_micro_usd), (1, 6));
        assert_eq!(Use::parse("1 2 3"), None);
        assert_eq!(Use::parse("1 2 3 4 5 x"), None);
        let key = KeyId::generate();
        let user = User::parse(&format!("k:{key}:ft:gpt-4o:acme")).unwrap();
        assert_eq!(user, User::Key(key, "ft:gpt-4o:acme".to_owned()));
        assert_eq!(User::parse("x:1"), None);
    }
}
