//! Personal data and secrets: masked at the exits, sealed at rest.
//!
//! Invariant: what leaves the system was masked; what stays in Kafka or Redis and may hold personal
//! data is sealed with its session's data key, so that deleting the key erases it everywhere.

mod key_cache;
pub mod mask;
pub mod seal;

pub use key_cache::KeyCache;
pub use seal::{DataKey, KeyRing, SealError, Sealed, TenantKey};
