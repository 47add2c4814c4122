//! Which URLs may be fetched, and which addresses a URL's host may have.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::AllowList;
use super::address::{is_metadata_name, metadata_service, non_global};
use super::allow_list::normalise;

/// Longest URL in bytes.
pub const MAX_URL_BYTES: usize = 2048;

/// Ports that any public host may be fetched on. Others belong to services that are not web
/// servers and can often be driven by what an HTTP request lets an attacker write.
pub const PORTS: [u16; 4] = [80, 443, 8080, 8443];

/// Suffixes of names that mean this machine or its own network: RFC 6761 (`localhost`), RFC 6762
/// (`local`), RFC 8375 (`home.arpa`), ICANN's reservation of `internal`, and the customary
/// `localdomain`.
const LOCAL_SUFFIXES: [&str; 5] = ["localhost", "local", "internal", "localdomain", "home.arpa"];

/// Why a URL may not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockReason {
    /// It is not a URL.
    InvalidUrl,
    /// It is longer than [`MAX_URL_BYTES`].
    UrlTooLong,
    /// Its scheme is neither `http` nor `https`.
    SchemeNotAllowed,
    /// It carries a user name or a password.
    UserinfoNotAllowed,
    /// Its host is missing or no name that DNS can hold.
    InvalidHost,
    /// Its host means this machine or its own network.
    LocalName,
    /// It leads to a service that hands out a machine's credentials.
    MetadataEndpoint,
    /// Its port is not among [`PORTS`].
    PortNotAllowed,
    /// An address of its host is not global.
    AddressNotGlobal,
    /// Its host has no address.
    NameNotResolved,
    /// More redirects than [`super::hops::MAX_REDIRECTS`].
    TooManyRedirects,
    /// A redirect from `https` to `http`.
    HttpsDowngrade,
}

impl BlockReason {
    /// The stable code, in snake case.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidUrl => "invalid_url",
            Self::UrlTooLong => "url_too_long",
            Self::SchemeNotAllowed => "scheme_not_allowed",
            Self::UserinfoNotAllowed => "userinfo_not_allowed",
            Self::InvalidHost => "invalid_host",
            Self::LocalName => "local_name",
            Self::MetadataEndpoint => "metadata_endpoint",
            Self::PortNotAllowed => "port_not_allowed",
            Self::AddressNotGlobal => "address_not_global",
            Self::NameNotResolved => "name_not_resolved",
            Self::TooManyRedirects => "too_many_redirects",
            Self::HttpsDowngrade => "https_downgrade",
        }
    }
}

/// A refusal, with a stable code and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.code())]
pub struct Block {
    /// The rule that refused.
    pub reason: BlockReason,
    /// What it refused.
    pub detail: String,
}

impl Block {
    pub(super) fn new(reason: BlockReason, detail: impl fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }
}

/// The answer about one URL and the addresses of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may be fetched from these addresses and no others.
    Allow {
        /// Where to connect to, in the order of the resolver's answer.
        connect: Vec<SocketAddr>,
    },
    /// It may not be fetched.
    Block(Block),
}

/// Which addresses a host may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reach {
    /// Global addresses.
    Global,
    /// The operator listed the host: any address but that of a metadata service.
    Listed,
    /// The operator listed a metadata service itself: any address.
    Metadata,
}

impl Reach {
    /// Checks every answer of a resolver. One bad address refuses the name, because the client
    /// would try them in any order, and a mixed answer is how a rebinding attack looks.
    pub(super) fn check(self, name: &str, answers: &[IpAddr]) -> Result<(), Block> {
        if answers.is_empty() {
            let detail = format_args!("{name} has no address");
            return Err(Block::new(BlockReason::NameNotResolved, detail));
        }
        answers.iter().try_for_each(|ip| {
            self.check_address(*ip).map_err(|block| Block {
                detail: format!("{name} has the address {}", block.detail),
                ..block
            })
        })
    }

    fn check_address(self, ip: IpAddr) -> Result<(), Block> {
        let metadata = metadata_service(ip).filter(|_| self != Self::Metadata);
        let range = non_global(ip).filter(|_| self == Self::Global);
        let (reason, what) = match (metadata, range) {
            (Some(service), _) => (BlockReason::MetadataEndpoint, service.to_owned()),
            (None, Some(range)) => (BlockReason::AddressNotGlobal, range.to_string()),
            (None, None) => return Ok(()),
        };
        Err(Block::new(reason, format_args!("{ip}: {what}")))
    }
}

/// A URL that passed every check that needs no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    url: Url,
    host: Host,
    port: u16,
    pub(super) reach: Reach,
}

impl Target {
    /// The URL, with its host normalised and without its fragment.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The name to look up; `None` when the host is an address, which has been checked already.
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Domain(name) => Some(name),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        }
    }

    /// Whether the operator listed the host, so that its addresses need not be global.
    pub fn is_listed(&self) -> bool {
        self.reach != Reach::Global
    }

    /// Decides about the addresses that a look-up of [`Target::name`] gave. They are ignored when
    /// the host is an address itself.
    pub fn decide(&self, answers: &[IpAddr]) -> Decision {
        let literal = address(&self.host);
        let answers = literal
            .as_slice()
            .first()
            .map_or(answers, std::slice::from_ref);
        // A host that is an address was checked when the URL was.
        let checked = self
            .name()
            .map_or(Ok(()), |name| self.reach.check(name, answers));
        match checked {
            Ok(()) => Decision::Allow {
                connect: answers
                    .iter()
                    .map(|ip| SocketAddr::new(*ip, self.port))
                    .collect(),
            },
            Err(block) => Decision::Block(block),
        }
    }
}

/// The rules for URLs, with the exceptions that the operator made.
///
/// - Schemes `http` and `https`; no user name or password; at most [`MAX_URL_BYTES`] bytes; no
///   control characters and no backslash, which parsers read in different ways.
/// - Ports [`PORTS`], unless the host is listed.
/// - No local names, no metadata services, no address that is not global. A listed host may have
///   any address but that of a metadata service, which must be the listed host itself.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    allow: AllowList,
}

impl Policy {
    /// The policy with these exceptions.
    pub fn new(allow: AllowList) -> Self {
        Self { allow }
    }

    /// Checks everything about a URL that needs no look-up; a host that is an address is decided
    /// here.
    pub fn screen(&self, text: &str) -> Result<Target, Block> {
        check_text(text)?;
        let url = Url::parse(text).map_err(parse_error)?;
        self.screen_url(url, text)
    }

    /// Checks the target of a redirect, given as the text of a `Location` header that is read
    /// relative to the URL that answered.
    pub(super) fn screen_location(&self, from: &Url, location: &str) -> Result<Target, Block> {
        check_text(location)?;
        let url = from.join(location).map_err(parse_error)?;
        self.screen_url(url, location)
    }

    fn screen_url(&self, mut url: Url, text: &str) -> Result<Target, Block> {
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(too_long());
        }
        if !matches!(url.scheme(), "http" | "https") {
            let detail = format_args!("the scheme {} is neither http nor https", url.scheme());
            return Err(Block::new(BlockReason::SchemeNotAllowed, detail));
        }
        if has_userinfo(&url, text) {
            let detail = "a user name or password in a URL is not allowed";
            return Err(Block::new(BlockReason::UserinfoNotAllowed, detail));
        }
        let host = url.host().map(|host| host.to_owned()).and_then(normalise);
        let (Some(host), Some(port)) = (host, url.port_or_known_default()) else {
            let detail = "the host is not a name that DNS can hold";
            return Err(Block::new(BlockReason::InvalidHost, detail));
        };
        let listed = self.allow.contains(&host, port);
        let reach = reach(&host, listed)?;
        if let Some(ip) = address(&host) {
            reach.check_address(ip)?;
        }
        if !listed && !PORTS.contains(&port) {
            let detail = format_args!("port {port} is not among {PORTS:?}");
            return Err(Block::new(BlockReason::PortNotAllowed, detail));
        }
        // What is sent (Host, SNI) and what is resolved must be what was checked.
        if let Host::Domain(name) = &host {
            url.set_host(Some(name)).map_err(parse_error)?;
        }
        url.set_fragment(None);
        Ok(Target {
            url,
            host,
            port,
            reach,
        })
    }
}

/// Which addresses the host may have, after the checks of its name.
fn reach(host: &Host, listed: bool) -> Result<Reach, Block> {
    let metadata = match host {
        Host::Domain(name) => is_metadata_name(name),
        Host::Ipv4(ip) => metadata_service((*ip).into()).is_some(),
        Host::Ipv6(ip) => metadata_service((*ip).into()).is_some(),
    };
    match host {
        _ if listed && metadata => Ok(Reach::Metadata),
        _ if listed => Ok(Reach::Listed),
        _ if metadata => Err(Block::new(
            BlockReason::MetadataEndpoint,
            format_args!("{host} is a cloud's metadata service"),
        )),
        Host::Domain(name) if is_local(name) => Err(Block::new(
            BlockReason::LocalName,
            format_args!("{host} names this machine or its own network"),
        )),
        _ => Ok(Reach::Global),
    }
}

fn is_local(name: &str) -> bool {
    LOCAL_SUFFIXES.iter().any(|suffix| {
        name.strip_suffix(suffix)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn address(host: &Host) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some((*ip).into()),
        Host::Ipv6(ip) => Some((*ip).into()),
    }
}

/// What must hold of the text itself, before a parser forgives it.
fn check_text(text: &str) -> Result<(), Block> {
    if text.len() > MAX_URL_BYTES {
        return Err(too_long());
    }
    if text.chars().any(|c| c.is_control() || c == '\\') {
        let detail = "control characters and backslashes are not allowed";
        return Err(Block::new(BlockReason::InvalidUrl, detail));
    }
    Ok(())
}

/// Whether there is a user name or password, an empty one too, which the parser drops.
fn has_userinfo(url: &Url, text: &str) -> bool {
    let rest = text.trim_start();
    let rest = match rest.split_once(':') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(url.scheme()) => rest,
        _ => rest,
    };
    // A relative reference has an authority only after `//`.
    let authority = rest
        .strip_prefix("//")
        .map(|rest| rest.trim_start_matches('/'))
        .and_then(|rest| rest.split(['/', '?', '#']).next());
    !url.username().is_empty()
        || url.password().is_some()
        || authority.is_some_and(|authority| authority.contains('@'))
}

fn too_long() -> Block {
    let detail = format_args!("the URL is longer than {MAX_URL_BYTES} bytes");
    Block::new(BlockReason::UrlTooLong, detail)
}

fn parse_error(error: url::ParseError) -> Block {
    use url::ParseError as E;
    let (reason, detail) = match error {
        E::EmptyHost => (BlockReason::InvalidHost, "the host is missing"),
        E::IdnaError | E::InvalidDomainCharacter => {
            (BlockReason::InvalidHost, "the host is not a valid name")
        }
        E::InvalidIpv4Address | E::InvalidIpv6Address => {
            (BlockReason::InvalidHost, "the host is not a valid address")
        }
        E::InvalidPort => (
            BlockReason::InvalidUrl,
            "the port is not a number up to 65535",
        ),
        E::RelativeUrlWithoutBase | E::RelativeUrlWithCannotBeABaseBase => {
            (BlockReason::InvalidUrl, "the URL is not absolute")
        }
        _ => (BlockReason::InvalidUrl, "the URL cannot be parsed"),
    };
    Block::new(reason, detail)
}

#[cfg(test)]
mod tests;
