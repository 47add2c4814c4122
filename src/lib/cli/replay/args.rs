//! Which records: what `agenthub replay` and `agenthub topics cat` have in common.

use crate::ids::{RunId, TenantId};
use crate::kafka::{Extent, Place};
use crate::replay::{Filter, Selection};

/// Where to read.
#[derive(Debug, Clone, clap::Args)]
pub struct Where {
    /// Where to begin in each partition: an offset, a time (RFC 3339), earliest or latest.
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    from: Place,
    /// Where to end, exclusive: an offset, a time, or latest, which is the end as it is now.
    #[arg(
        long,
        value_name = "PLACE",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    to: Place,
    /// Only this partition.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    partition: Option<i32>,
}

impl Where {
    /// The part of the topic.
    pub fn extent(&self) -> Extent {
        Extent {
            from: self.from,
            to: self.to,
            partition: self.partition,
        }
    }
}

/// Which of the records there.
#[derive(Debug, Clone, clap::Args)]
pub struct Which {
    /// Only records with this key.
    #[arg(long)]
    key: Option<String>,
    /// Only this tenant's.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only those about this run.
    #[arg(long, value_name = "RUN_ID")]
    run: Option<RunId>,
    /// Only those for which this holds: a JSONPath filter (RFC 9535), where @ is the record with
    /// partition, offset, timestamp_ms, key, headers and value.
    #[arg(long = "where", value_name = "EXPRESSION")]
    filter: Option<Filter>,
    /// Stop after so many records.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

impl Which {
    /// What a record must be.
    pub fn selection(&self) -> Selection {
        Selection {
            key: self.key.clone(),
            tenant: self.tenant.clone(),
            run: self.run.clone(),
            filter: self.filter.clone(),
        }
    }

    /// Whether so many records are enough.
    pub fn is_reached(&self, matched: u64) -> bool {
        self.limit.is_some_and(|limit| matched >= limit)
    }
}
