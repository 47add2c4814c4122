//! The DNS resolver of the HTTP client, which returns only addresses that the policy accepts.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::policy::Reach;

/// Looks a name up through the operating system and returns every address it gave. Fails when the
/// name has none or the resolver cannot be asked.
pub async fn lookup(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = tokio::net::lookup_host((name, 0)).await?;
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address.ip()) {
            addresses.push(address.ip());
        }
    }
    Ok(addresses)
}

/// Where answers come from.
#[derive(Debug, Clone)]
pub(super) enum Lookup {
    /// The operating system.
    System,
    /// Answers of successive look-ups, for tests.
    #[cfg(test)]
    Scripted(Arc<Script>),
}

/// Answers of successive look-ups by name.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) answers: std::sync::Mutex<std::collections::HashMap<String, Vec<Vec<IpAddr>>>>,
    pub(super) asked: std::sync::Mutex<Vec<String>>,
}

impl Lookup {
    async fn run(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::System => lookup(name).await,
            #[cfg(test)]
            Self::Scripted(script) => {
                script.asked.lock().unwrap().push(name.to_owned());
                let mut answers = script.answers.lock().unwrap();
                let left = answers.get_mut(name).filter(|left| !left.is_empty());
                left.map(|left| left.remove(0))
                    .ok_or_else(|| io::ErrorKind::NotFound.into())
            }
        }
    }
}

/// Resolves and checks in one step. The client connects to what this returns and nothing else, so
/// there is no second look-up whose answer could differ from the one that was checked.
#[derive(Debug, Clone)]
pub(super) struct Guarded {
    pub(super) lookup: Lookup,
    pub(super) reach: Reach,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = Arc::new(self.clone());
        Box::pin(async move {
            let answers = guard.lookup.run(name.as_str()).await?;
            guard.reach.check(name.as_str(), &answers)?;
            // Port 0 stands for the port of the URL.
            let addresses = answers.into_iter().map(|ip| SocketAddr::new(ip, 0));
            let addresses: Addrs = Box::new(addresses);
            Ok(addresses)
        })
    }
}
