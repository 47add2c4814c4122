//! What is known of one request, from its arrival to its log line.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::client_ip::ClientIp;
use crate::governance::Place;
use crate::ids::{KeyId, RunId, SessionId, TenantId};
use crate::runs::LimitRow;
use crate::telemetry::TraceContext;

/// The address from which a connection came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

/// What the route was and where the request came from.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) trace: TraceContext,
    pub(super) method: &'static str,
    /// The route's template; `unmatched` when no route has the path.
    pub(super) route: String,
    pub(super) query: String,
    /// The client's address; `None` when the request came over no connection.
    pub(super) client_ip: Option<ClientIp>,
    pub(super) began: Instant,
    pub(super) began_ms: u64,
}

/// What becomes known while the request is handled.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) tenant: Option<TenantId>,
    pub(super) key_id: Option<KeyId>,
    /// The role of the key, once the gate has looked it up.
    pub(super) role: Option<String>,
    pub(super) session: Option<SessionId>,
    pub(super) run: Option<RunId>,
    pub(super) rule: Option<String>,
    /// What an admin's request changes or reads.
    pub(super) target: Option<String>,
    /// Keyed hash of the body.
    pub(super) input_hash: Option<String>,
    /// The place of the request's audit record.
    pub(super) place: Option<Place>,
    /// Whether the request has its audit record, in an outbox or in the trail.
    pub(super) recorded: bool,
    /// Whether the request was answered.
    pub(super) answered: bool,
    pub(super) limits: Vec<LimitRow>,
    /// Whether it was held until its run ended.
    pub(super) waited: bool,
    permit: Option<OwnedSemaphorePermit>,
}

/// One request. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Scope(Arc<(Facts, Mutex<Notes>)>);

impl Scope {
    pub(super) fn new(facts: Facts, permit: Option<OwnedSemaphorePermit>) -> Self {
        let notes = Notes {
            permit,
            ..Notes::default()
        };
        Self(Arc::new((facts, Mutex::new(notes))))
    }

    pub(super) fn facts(&self) -> &Facts {
        &self.0.0
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the request's place among those handled at once to another: from here on it only waits.
    pub(super) fn only_waits(&self) {
        let mut notes = self.notes();
        notes.permit = None;
        notes.waited = true;
    }

    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.facts().began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The client's address; `None` when the request came over no connection.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.facts().client_ip.map(|ClientIp(address)| address)
    }

    /// The network of the client's address: /24 of an IPv4, /48 of an IPv6 address.
    pub(super) fn network(&self) -> Option<String> {
        let address = self.address()?;
        let bits = if address.is_ipv4() { 24 } else { 48 };
        let network = ipnet::IpNet::new(address, bits).ok()?;
        Some(network.trunc().to_string())
    }
}

#[cfg(test)]
pub(super) fn sample() -> Scope {
    Scope::new(
        Facts {
            trace: TraceContext::generate(),
            method: "POST",
            route: "/v1/runs".to_owned(),
            query: String::new(),
            client_ip: Some(ClientIp([192, 0, 2, 7].into())),
            began: Instant::now(),
            began_ms: 1_700_000_000_000,
        },
        None,
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_is_told_as_its_network() {
        assert_eq!(super::sample().network().as_deref(), Some("192.0.2.0/24"));
    }
}
