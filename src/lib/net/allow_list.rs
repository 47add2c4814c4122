//! The hosts that an operator (or a tenant) lets tools reach although they are not public.

use std::str::FromStr;

use url::Host;

/// Hosts whose addresses may be other than global.
///
/// An entry is `host` (every port) or `host:port` (that port only), where the host is a name, an
/// IPv4 address or an IPv6 address, which stands in brackets when a port follows. It is compared
/// with the host of the URL, never with what the host resolves to, so that a foreign name cannot
/// borrow the exception of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    host: Host,
    port: Option<u16>,
}

/// An entry of an allow list that is neither `host` nor `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entry:?} is not a host or host:port")]
pub struct AllowListError {
    /// The entry as it was given.
    pub entry: String,
}

impl AllowList {
    /// Reads entries; empty ones are skipped.
    pub fn parse<S: AsRef<str>>(
        entries: impl IntoIterator<Item = S>,
    ) -> Result<Self, AllowListError> {
        let entries = entries
            .into_iter()
            .filter(|entry| !entry.as_ref().trim().is_empty())
            .map(|entry| entry.as_ref().trim().parse())
            .collect::<Result<_, _>>()?;
        Ok(Self { entries })
    }

    /// The entries of both lists: the operator's with those of one tenant.
    pub fn merged(&self, other: &Self) -> Self {
        let mut entries = self.entries.clone();
        entries.extend(other.entries.iter().cloned());
        Self { entries }
    }

    /// Whether the host of a URL is listed for a port. The host must be normalised (see
    /// [`normalise`]).
    pub fn contains(&self, host: &Host, port: u16) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.host == *host && entry.port.is_none_or(|listed| listed == port))
    }
}

impl FromStr for Entry {
    type Err = AllowListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || AllowListError {
            entry: text.to_owned(),
        };
        if let Ok(ip) = text.parse::<std::net::Ipv6Addr>() {
            return Ok(Self {
                host: Host::Ipv6(ip),
                port: None,
            });
        }
        let (host, port) = match text.rsplit_once(':') {
            // The colon belongs to a bracketed address without a port.
            Some((_, tail)) if tail.ends_with(']') => (text, None),
            Some((host, port)) => (host, Some(port.parse().map_err(|_| error())?)),
            None => (text, None),
        };
        let host = Host::parse(host).map_err(|_| error())?;
        let host = normalise(host).ok_or_else(error)?;
        Ok(Self { host, port })
    }
}

/// Brings the host of a URL to the one spelling that is compared and resolved: names in lower-case
/// ASCII (IDNA) without the trailing dot. `None` for a name that DNS cannot hold (RFC 1035: labels
/// of 1 to 63 octets, 253 in all; letters, digits, hyphens, and underscores, which occur).
pub fn normalise(host: Host) -> Option<Host> {
    let Host::Domain(name) = host else {
        return Some(host);
    };
    let name = name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (name.len() <= 253 && name.split('.').all(label)).then_some(Host::Domain(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(entries: &[&str], url: &str) -> bool {
        let url = url::Url::parse(url).unwrap();
        let host = normalise(url.host().unwrap().to_owned()).unwrap();
        AllowList::parse(entries)
            .unwrap()
            .contains(&host, url.port_or_known_default().unwrap())
    }

    #[test]
    fn an_entry_without_a_port_covers_every_port() {
        assert!(listed(&["127.0.0.1"], "http://127.0.0.1:38123/"));
        assert!(listed(&["intra.example"], "https://intra.example/"));
        assert!(!listed(&["intra.example"], "https://x.intra.example/"));
        assert!(!listed(&[""], "https://intra.example/"));
    }

    #[test]
    fn an_entry_with_a_port_covers_that_port() {
        assert!(listed(&["127.0.0.1:80"], "http://127.0.0.1/"));
        assert!(!listed(&["127.0.0.1:80"], "http://127.0.0.1:81/"));
        assert!(listed(
            &["localhost:9", "localhost:7"],
            "http://localhost:7/"
        ));
        assert!(listed(&["intra.example:443"], "https://intra.example/"));
    }

    #[test]
    fn spellings_are_normalised_on_both_sides() {
        assert!(listed(&["Intra.EXAMPLE."], "http://intra.example/"));
        assert!(listed(&["intra.example"], "http://INTRA.example./"));
        assert!(listed(&["bücher.example"], "http://xn--bcher-kva.example/"));
        assert!(listed(&["0x7f.1"], "http://127.0.0.1/"));
        for entry in ["::1", "[::1]", "[::1]:80", "0:0:0:0:0:0:0:1"] {
            assert!(listed(&[entry], "http://[::1]/"), "{entry}");
        }
        assert!(!listed(&["[::1]:81"], "http://[::1]/"));
    }

    #[test]
    fn an_address_is_listed_in_the_form_it_was_given() {
        assert!(!listed(&["127.0.0.1"], "http://[::ffff:127.0.0.1]/"));
    }

    #[test]
    fn malformed_entries_are_refused() {
        for entry in [
            "http://a/",
            "a:b",
            "a:70000",
            "a b",
            "[::1",
            ":80",
            "a/b",
            "..",
            "a..b",
            "u@h",
        ] {
            assert!(AllowList::parse([entry]).is_err(), "{entry}");
        }
        assert_eq!(AllowList::parse(["", " "]).unwrap(), AllowList::default());
    }

    #[test]
    fn names_that_dns_cannot_hold_are_refused() {
        let long = "a".repeat(64);
        let total = ["a".repeat(50).as_str(); 5].join(".");
        for name in [long.as_str(), &total, "a..b", "", "a.b..", "a!b"] {
            assert_eq!(normalise(Host::Domain(name.to_owned())), None, "{name}");
        }
        let edge = "a".repeat(63);
        assert!(normalise(Host::Domain(edge)).is_some());
    }

    #[test]
    fn merging_keeps_both() {
        let operator = AllowList::parse(["a.example"]).unwrap();
        let tenant = AllowList::parse(["b.example:81"]).unwrap();
        let both = operator.merged(&tenant);
        assert!(both.contains(&Host::Domain("a.example".into()), 5));
        assert!(both.contains(&Host::Domain("b.example".into()), 81));
        assert!(!both.contains(&Host::Domain("b.example".into()), 80));
    }
}
