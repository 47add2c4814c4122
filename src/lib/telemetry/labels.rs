//! Labels whose values come from outside: bounded, so that nobody can fill a Prometheus with series.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use metrics::SharedString;

/// What every value beyond the bound is called.
pub const OTHER: &str = "other";

/// Models that are told apart. A request may name any, so that only the first ones count by name.
const MODELS: usize = 32;

static TENANTS: Bounded = Bounded::new(100);
static MODEL_NAMES: Bounded = Bounded::new(MODELS);

/// The label of a tenant: its name for the first tenants of this process, as many as
/// `AGENTHUB_METRICS_TENANTS` says, `other` for the rest.
pub fn tenant(name: &str) -> SharedString {
    TENANTS.label(name)
}

/// The label of a model: its name for the first 32 that this process met, `other` for the rest.
pub fn model(name: &str) -> SharedString {
    MODEL_NAMES.label(name)
}

/// Sets how many tenants are told apart.
pub(super) fn limit_tenants(limit: usize) {
    TENANTS.limit.store(limit, Ordering::Relaxed);
}

/// Tells the first values apart.
struct Bounded {
    limit: AtomicUsize,
    seen: RwLock<BTreeSet<Arc<str>>>,
}

impl Bounded {
    const fn new(limit: usize) -> Self {
        Self {
            limit: AtomicUsize::new(limit),
            seen: RwLock::new(BTreeSet::new()),
        }
    }

    fn label(&self, value: &str) -> SharedString {
        let known = {
            let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
            seen.get(value).cloned()
        };
        if let Some(known) = known {
            return SharedString::from(known);
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(value) && seen.len() >= self.limit.load(Ordering::Relaxed) {
            return SharedString::const_str(OTHER);
        }
        let value: Arc<str> = value.into();
        seen.insert(value.clone());
        SharedString::from(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_values_make_a_bounded_number_of_labels() {
        let bounded = Bounded::new(20);
        let labels: BTreeSet<String> = (0..10_000)
            .map(|n| bounded.label(&format!("v{n}")).to_string())
            .collect();
        assert_eq!(labels.len(), 21);
        assert!(labels.contains(OTHER));
        assert_eq!(
            &*bounded.label("v3"),
            "v3",
            "one that was told apart stays so"
        );
        assert_eq!(&*bounded.label("v9999"), OTHER);
        assert_eq!(&*Bounded::new(0).label("v"), OTHER);
    }
}
