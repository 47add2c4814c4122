//! The limit of requests whose authentication failed, by the client's address.
//!
//! It is this process' own: it costs no round trip, and whoever has no key spends nobody's quota. Requests
//! with a valid key are never held against it, so that a neighbour behind the same address cannot lock a
//! client out.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use super::client_ip::ClientIp;
use crate::config::Rule;

/// Addresses that are remembered. The one that was quiet for longest gives way to a new one; what its
/// limit had left is then forgotten in its favour.
const ADDRESSES: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// How many requests without a valid key each address has sent.
///
/// A generic cell rate algorithm: `limit` at once, then one every `window / limit`. Eight bytes an address.
#[derive(Debug)]
pub(super) struct AuthFailures {
    rule: Option<Rule>,
    began: Instant,
    /// By address: when it will have its whole limit again, in nanoseconds from `began`.
    full_at: Mutex<LruCache<IpAddr, u64>>,
}

impl AuthFailures {
    /// No limit when there is no rule.
    pub(super) fn new(rule: Option<Rule>) -> Self {
        Self {
            rule,
            began: Instant::now(),
            full_at: Mutex::new(LruCache::new(ADDRESSES)),
        }
    }

    /// Counts a failure of `client` at `now`. When its limit is used up, nothing is counted, and the error
    /// says after which time the next one will be.
    pub(super) fn count(&self, client: ClientIp, now: Instant) -> Result<(), Duration> {
        let Some(rule) = self.rule else {
            return Ok(());
        };
        let now = nanos(now.saturating_duration_since(self.began));
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = full_at.get_or_insert_mut(network(client), || 0);
        *entry = next(*entry, now, rule)?;
        Ok(())
    }
}

/// When the limit is whole again after one more at `now`; or how long that one would have to wait.
fn next(full_at: u64, now: u64, rule: Rule) -> Result<u64, Duration> {
    let window = nanos(Duration::from_millis(rule.window_ms));
    let step = (window / u64::from(rule.limit)).max(1);
    let next = full_at.max(now).saturating_add(step);
    match next.saturating_sub(now).checked_sub(window) {
        None | Some(0) => Ok(next),
        Some(wait) => Err(Duration::from_nanos(wait)),
    }
}

/// What is taken for one client: an IPv4 address, or the /64 of an IPv6 address, all of which one host has.
fn network(client: ClientIp) -> IpAddr {
    match client.0 {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(text: &str) -> ClientIp {
        ClientIp(text.parse().unwrap())
    }

    fn limit(limit: u32, window_ms: u64) -> AuthFailures {
        AuthFailures::new(Some(Rule { limit, window_ms }))
    }

    #[test]
    fn each_address_has_its_limit_and_gets_it_back() {
        let failures = limit(3, 3000);
        let at = |ms| failures.began + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(failures.count(client("192.0.2.1"), at(0)), Ok(()));
        }
        let refused = failures.count(client("192.0.2.1"), at(100));
        assert_eq!(refused, Err(Duration::from_millis(900)));
        assert_eq!(failures.count(client("192.0.2.2"), at(100)), Ok(()));
        assert_eq!(failures.count(client("192.0.2.1"), at(1000)), Ok(()));
        assert!(failures.count(client("192.0.2.1"), at(1000)).is_err());
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let failures = limit(1, 1000);
        let now = failures.began;
        assert_eq!(failures.count(client("2001:db8:0:1::1"), now), Ok(()));
        assert!(failures.count(client("2001:db8:0:1:ffff::2"), now).is_err());
        assert_eq!(failures.count(client("2001:db8:0:2::1"), now), Ok(()));
    }

    #[test]
    fn memory_is_bounded() {
        let failures = limit(1, 60_000);
        let most = u32::try_from(ADDRESSES.get()).unwrap();
        for address in 0..most + 1000 {
            let address = ClientIp(std::net::Ipv4Addr::from(address).into());
            let _ = failures.count(address, failures.began);
        }
        assert_eq!(failures.full_at.lock().unwrap().len(), ADDRESSES.get());
    }

    #[test]
    fn without_a_rule_nothing_is_refused_or_remembered() {
        let failures = AuthFailures::new(None);
        for _ in 0..1000 {
            assert_eq!(failures.count(client("192.0.2.1"), failures.began), Ok(()));
        }
        assert!(failures.full_at.lock().unwrap().is_empty());
    }

    proptest! {
        /// At most the limit at once and one more for each step after; a wait that is told is enough.
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            limit in 1_u32..20,
            window_ms in 1_u64..5000,
            gaps in proptest::collection::vec(0_u64..2_000_000_000, 1..80),
        ) {
            let rule = Rule { limit, window_ms };
            let step = (window_ms * 1_000_000 / u64::from(limit)).max(1);
            let (mut full_at, mut now, mut accepted) = (0, 0, Vec::new());
            for gap in gaps {
                now += gap;
                match next(full_at, now, rule) {
                    Ok(after) => {
                        full_at = after;
                        accepted.push(now);
                    }
                    Err(wait) => {
                        let later = now + u64::try_from(wait.as_nanos()).unwrap();
                        prop_assert!(next(full_at, later, rule).is_ok());
                        prop_assert!(next(full_at, later - 1, rule).is_err());
                    }
                }
            }
            for (index, first) in accepted.iter().enumerate() {
                for (count, last) in accepted[index..].iter().enumerate() {
                    let allowed = u64::from(limit) + (last - first) / step + 1;
                    prop_assert!(count as u64 <= allowed);
                }
            }
        }
    }
}
