//! Unwrapped data keys, kept so that only the first touch of a session costs a read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::{DataKey, KeyRing, SealError, TenantKey};
use crate::ids::{SessionId, TenantId};

type Half = HashMap<SessionId, (TenantId, DataKey)>;

/// Data keys by session, at most twice `capacity` of them: when the newer half is full, the older
/// half is dropped. Erasing a session elsewhere leaves its key here until then; what it could open is
/// gone from Redis by then, and Kafka is not read by this process for clients.
#[derive(Debug, Clone)]
pub struct KeyCache {
    ring: KeyRing,
    capacity: usize,
    halves: Arc<Mutex<[Half; 2]>>,
}

impl KeyCache {
    /// An empty cache over `ring`.
    pub fn new(ring: KeyRing, capacity: usize) -> Self {
        Self {
            ring,
            capacity,
            halves: Arc::default(),
        }
    }

    /// The master keys beneath.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// The key of what is kept for a whole tenant.
    pub fn tenant_key(&self, tenant: &TenantId) -> TenantKey {
        self.ring.tenant_key(tenant)
    }

    /// A fresh data key for a session, and its wrapped form to store.
    pub fn generate(&self, tenant: &TenantId, session: &SessionId) -> (DataKey, String) {
        let (key, wrapped) = self.ring.generate(tenant, session);
        self.put(tenant, session, key.clone());
        (key, wrapped)
    }

    /// The data key of a session, if it is here and the session is the tenant's.
    pub fn get(&self, tenant: &TenantId, session: &SessionId) -> Option<DataKey> {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let [newer, older] = &mut *halves;
        let (owner, key) = newer
            .get(session)
            .or_else(|| older.get(session))
            .filter(|(owner, _)| owner == tenant)?;
        let (owner, key) = (owner.clone(), key.clone());
        newer.insert(session.clone(), (owner, key.clone()));
        Some(key)
    }

    /// Unwraps and keeps the data key of a session.
    pub fn unwrap(
        &self,
        wrapped: &str,
        tenant: &TenantId,
        session: &SessionId,
    ) -> Result<DataKey, SealError> {
        if let Some(key) = self.get(tenant, session) {
            return Ok(key);
        }
        let key = self.ring.unwrap(wrapped, tenant, session)?;
        self.put(tenant, session, key.clone());
        Ok(key)
    }

    /// Forgets a session's key.
    pub fn forget(&self, session: &SessionId) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        for half in &mut *halves {
            half.remove(session);
        }
    }

    fn put(&self, tenant: &TenantId, session: &SessionId, key: DataKey) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let [newer, older] = &mut *halves;
        if newer.len() >= self.capacity {
            *older = std::mem::take(newer);
        }
        newer.insert(session.clone(), (tenant.clone(), key));
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn the_cache_stays_bounded_and_keeps_what_is_used() {
        let ring = KeyRing::parse(&format!("m:{}", STANDARD.encode([7; 32]))).unwrap();
        let cache = KeyCache::new(ring, 4);
        let tenant: TenantId = "acme".parse().unwrap();
        let used = SessionId::generate();
        cache.generate(&tenant, &used);
        for _ in 0..100 {
            cache.generate(&tenant, &SessionId::generate());
            assert!(cache.get(&tenant, &used).is_some());
        }
        let held: usize = cache.halves.lock().unwrap().iter().map(HashMap::len).sum();
        assert!(held <= 10, "{held}");
        assert!(cache.get(&"other".parse().unwrap(), &used).is_none());
        cache.forget(&used);
        assert!(cache.get(&tenant, &used).is_none());
    }
}
