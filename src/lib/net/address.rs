//! Which IP addresses are global.
//!
//! The tables follow IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190)
//! with the multicast and reserved space of the address-space registries. Two choices are stricter
//! than the registries:
//! - 192.0.0.0/24 and `2001::/23` are refused whole. The few entries inside them that count as
//!   globally reachable (PCP and TURN anycast, AMT, `ORCHIDv2`, drone identifiers) are protocol
//!   machinery, often of the own network, and never web servers.
//! - IPv6 is refused outside `2000::/3`, the only unicast space that IANA has delegated (RFC 4291),
//!   but for the well-known NAT64 prefix around a global IPv4 address (RFC 6052), which is how an
//!   IPv6-only network reaches IPv4.
//!
//! A NAT64 prefix that a network chose for itself inside its own global space looks like any other
//! address and cannot be recognised here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A block of addresses that is not global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range<A> {
    base: A,
    prefix: u32,
    /// Its name in the registry.
    pub name: &'static str,
    /// The document that reserves it.
    pub source: &'static str,
}

/// Why an address is not global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonGlobal {
    /// Name of the range in the registry.
    pub range: &'static str,
    /// The document that reserves the range.
    pub source: &'static str,
    /// The form and the IPv4 address inside it, when that address is what is not global.
    pub embedded: Option<(Embedding, Ipv4Addr)>,
}

/// A way to write an IPv4 address inside an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embedding {
    /// `::ffff:a.b.c.d` (RFC 4291).
    Mapped,
    /// `::a.b.c.d` (RFC 4291, deprecated).
    Compatible,
    /// `::ffff:0:a.b.c.d` (RFC 2765).
    Translated,
    /// `64:ff9b::a.b.c.d` (RFC 6052).
    Nat64,
    /// `64:ff9b:1::/48` (RFC 8215), in any of the layouts of RFC 6052.
    LocalNat64,
    /// `2002:aabb:ccdd::/48` (RFC 3056).
    SixToFour,
    /// The server of a Teredo address (RFC 4380).
    TeredoServer,
    /// The client of a Teredo address (RFC 4380), stored inverted.
    TeredoClient,
    /// Interface identifier `[02]00:5efe:a.b.c.d` (RFC 5214).
    Isatap,
}

impl fmt::Display for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "IPv4-mapped",
            Self::Compatible => "IPv4-compatible",
            Self::Translated => "IPv4-translated",
            Self::Nat64 => "NAT64",
            Self::LocalNat64 => "local-use NAT64",
            Self::SixToFour => "6to4",
            Self::TeredoServer => "Teredo server",
            Self::TeredoClient => "Teredo client",
            Self::Isatap => "ISATAP",
        })
    }
}

impl fmt::Display for NonGlobal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((form, v4)) = self.embedded {
            write!(f, "{form} form of {v4}, ")?;
        }
        write!(f, "{} ({})", self.range, self.source)
    }
}

const fn v4(
    octets: [u8; 4],
    prefix: u32,
    name: &'static str,
    source: &'static str,
) -> Range<Ipv4Addr> {
    Range {
        base: Ipv4Addr::from_octets(octets),
        prefix,
        name,
        source,
    }
}

const fn v6(
    head: [u16; 4],
    prefix: u32,
    name: &'static str,
    source: &'static str,
) -> Range<Ipv6Addr> {
    let [a, b, c, d] = head;
    Range {
        base: Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0),
        prefix,
        name,
        source,
    }
}

/// The IPv4 ranges that are not global; the most specific name comes first.
pub static V4_RANGES: &[Range<Ipv4Addr>] = &[
    v4([0, 0, 0, 0], 8, "This network", "RFC 791"),
    v4([10, 0, 0, 0], 8, "Private-Use", "RFC 1918"),
    v4([100, 64, 0, 0], 10, "Shared Address Space", "RFC 6598"),
    v4([127, 0, 0, 0], 8, "Loopback", "RFC 1122"),
    v4([169, 254, 0, 0], 16, "Link Local", "RFC 3927"),
    v4([172, 16, 0, 0], 12, "Private-Use", "RFC 1918"),
    v4([192, 0, 0, 0], 24, "IETF Protocol Assignments", "RFC 6890"),
    v4([192, 0, 2, 0], 24, "Documentation (TEST-NET-1)", "RFC 5737"),
    v4([192, 88, 99, 0], 24, "6to4 Relay Anycast", "RFC 7526"),
    v4([192, 168, 0, 0], 16, "Private-Use", "RFC 1918"),
    v4([198, 18, 0, 0], 15, "Benchmarking", "RFC 2544"),
    v4(
        [198, 51, 100, 0],
        24,
        "Documentation (TEST-NET-2)",
        "RFC 5737",
    ),
    v4(
        [203, 0, 113, 0],
        24,
        "Documentation (TEST-NET-3)",
        "RFC 5737",
    ),
    v4([224, 0, 0, 0], 4, "Multicast", "RFC 5771"),
    v4([255, 255, 255, 255], 32, "Limited Broadcast", "RFC 8190"),
    v4([240, 0, 0, 0], 4, "Reserved", "RFC 1112"),
];

/// The IPv6 ranges that are not global; the most specific name comes first.
pub static V6_RANGES: &[Range<Ipv6Addr>] = &[
    Range {
        base: Ipv6Addr::LOCALHOST,
        prefix: 128,
        name: "Loopback",
        source: "RFC 4291",
    },
    v6([0, 0, 0, 0], 128, "Unspecified", "RFC 4291"),
    Range {
        base: Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0),
        prefix: 96,
        name: "IPv4-mapped",
        source: "RFC 4291",
    },
    v6([0, 0, 0, 0], 96, "IPv4-compatible", "RFC 4291"),
    v6(
        [0x64, 0xff9b, 1, 0],
        48,
        "Local-Use IPv4/IPv6 Translation",
        "RFC 8215",
    ),
    v6([0x100, 0, 0, 0], 64, "Discard-Only", "RFC 6666"),
    v6([0x100, 0, 0, 1], 64, "Dummy IPv6 Prefix", "RFC 9780"),
    v6([0x2001, 0, 0, 0], 32, "Teredo", "RFC 4380"),
    v6([0x2001, 2, 0, 0], 48, "Benchmarking", "RFC 5180"),
    v6([0x2001, 0x10, 0, 0], 28, "ORCHID", "RFC 4843"),
    v6(
        [0x2001, 0, 0, 0],
        23,
        "IETF Protocol Assignments",
        "RFC 2928",
    ),
    v6([0x2001, 0xdb8, 0, 0], 32, "Documentation", "RFC 3849"),
    v6([0x2002, 0, 0, 0], 16, "6to4", "RFC 3056"),
    v6([0x3fff, 0, 0, 0], 20, "Documentation", "RFC 9637"),
    v6(
        [0x5f00, 0, 0, 0],
        16,
        "Segment Routing (SRv6) SIDs",
        "RFC 9602",
    ),
    v6([0xfc00, 0, 0, 0], 7, "Unique-Local", "RFC 4193"),
    v6([0xfe80, 0, 0, 0], 10, "Link-Local Unicast", "RFC 4291"),
    v6([0xfec0, 0, 0, 0], 10, "Site-Local Unicast", "RFC 3879"),
    v6([0xff00, 0, 0, 0], 8, "Multicast", "RFC 4291"),
];

/// Everything outside `2000::/3` that no entry above names.
const UNDELEGATED: NonGlobal = NonGlobal {
    range: "Reserved by IETF",
    source: "RFC 4291",
    embedded: None,
};

/// Metadata and credential services of clouds, by address. One of them (168.63.129.16) lies in
/// global space, and some stay reachable where an operator lists a private network.
static METADATA: &[(IpAddr, &str)] = &[
    (ip4([169, 254, 169, 254]), "cloud instance metadata"),
    (ip4([169, 254, 170, 2]), "AWS ECS task credentials"),
    (ip4([169, 254, 170, 23]), "AWS EKS pod identity"),
    (ip4([168, 63, 129, 16]), "Azure wire server"),
    (ip4([100, 100, 100, 200]), "Alibaba Cloud metadata"),
    (ip4([100, 96, 0, 96]), "Volcengine metadata"),
    (ip4([192, 0, 0, 192]), "Oracle Cloud Classic metadata"),
    (ip4([169, 254, 0, 23]), "Tencent Cloud metadata"),
    (ip4([169, 254, 42, 42]), "Scaleway metadata"),
    (
        ip6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]),
        "AWS instance metadata",
    ),
    (
        ip6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]),
        "AWS EKS pod identity",
    ),
    (
        ip6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]),
        "Google Cloud metadata",
    ),
    (
        ip6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
        "Oracle Cloud metadata",
    ),
    (
        ip6([0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1]),
        "Linode metadata",
    ),
    (
        ip6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42]),
        "Scaleway metadata",
    ),
    (
        ip6([0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe]),
        "OpenStack metadata",
    ),
];

/// Host names of such services. The names under `.internal` and `.local` are refused as local
/// names anyhow; they are listed so that a general exception for them is not enough.
static METADATA_NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "metadata.azure.internal",
    "metadata.azure.com",
    "metadata.tencentyun.com",
    "metadata.platformequinix.com",
    "metadata.packet.net",
    "metadata.ec2.internal",
    "api.metadata.cloud.ibm.com",
    "instance-data",
    "instance-data.ec2.internal",
    "rancher-metadata",
];

const fn ip4(octets: [u8; 4]) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_octets(octets))
}

const fn ip6(segments: [u16; 8]) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_segments(segments))
}

impl Range<Ipv4Addr> {
    /// Whether the address lies in the range.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        let shift = 32 - self.prefix;
        ip.to_bits().checked_shr(shift) == self.base.to_bits().checked_shr(shift)
    }
}

impl Range<Ipv6Addr> {
    /// Whether the address lies in the range.
    pub fn contains(&self, ip: Ipv6Addr) -> bool {
        let shift = 128 - self.prefix;
        ip.to_bits().checked_shr(shift) == self.base.to_bits().checked_shr(shift)
    }
}

/// Says why an address is not global; `None` when it is.
pub fn non_global(ip: IpAddr) -> Option<NonGlobal> {
    match ip {
        IpAddr::V4(ip) => non_global_v4(ip),
        IpAddr::V6(ip) => non_global_v6(ip),
    }
}

fn non_global_v4(ip: Ipv4Addr) -> Option<NonGlobal> {
    let range = V4_RANGES.iter().find(|range| range.contains(ip))?;
    Some(NonGlobal {
        range: range.name,
        source: range.source,
        embedded: None,
    })
}

fn non_global_v6(ip: Ipv6Addr) -> Option<NonGlobal> {
    // `::` and `::1` have the shape of a compatible address and a clearer name of their own.
    if !ip.is_unspecified() && !ip.is_loopback() {
        for (form, inner) in embedded_v4(ip) {
            if let Some(found) = non_global_v4(inner) {
                return Some(NonGlobal {
                    embedded: Some((form, inner)),
                    ..found
                });
            }
        }
    }
    if let Some(range) = V6_RANGES.iter().find(|range| range.contains(ip)) {
        return Some(NonGlobal {
            range: range.name,
            source: range.source,
            embedded: None,
        });
    }
    let delegated = ip.segments()[0] & 0xe000 == 0x2000;
    (!delegated && !is_nat64(ip)).then_some(UNDELEGATED)
}

/// Names the metadata service behind an address, in any embedding; `None` when there is none.
pub fn metadata_service(ip: IpAddr) -> Option<&'static str> {
    let known = |ip: IpAddr| {
        METADATA
            .iter()
            .find(|(a, _)| *a == ip)
            .map(|(_, name)| *name)
    };
    known(ip).or_else(|| match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => embedded_v4(ip).find_map(|(_, inner)| known(IpAddr::V4(inner))),
    })
}

/// Whether a normalised host name (lower case, no trailing dot) is that of a metadata service.
pub fn is_metadata_name(name: &str) -> bool {
    METADATA_NAMES.contains(&name)
}

fn is_nat64(ip: Ipv6Addr) -> bool {
    ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]
}

/// Every IPv4 address that an IPv6 address carries in one of the known forms.
pub fn embedded_v4(ip: Ipv6Addr) -> impl Iterator<Item = (Embedding, Ipv4Addr)> {
    let s = ip.segments();
    let o = ip.octets();
    let pair = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    let last = pair(s[6], s[7]);
    let mut found = [None; 4];
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] => found[0] = Some((Embedding::Mapped, last)),
        [0, 0, 0, 0, 0, 0, ..] => found[0] = Some((Embedding::Compatible, last)),
        [0, 0, 0, 0, 0xffff, 0, ..] => found[0] = Some((Embedding::Translated, last)),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => found[0] = Some((Embedding::Nat64, last)),
        // RFC 6052, section 2.2: /48, /56, /64 step over octet 8, which is zero.
        [0x64, 0xff9b, 1, ..] => {
            found = [
                Some((Embedding::LocalNat64, last)),
                Some((
                    Embedding::LocalNat64,
                    Ipv4Addr::new(o[6], o[7], o[9], o[10]),
                )),
                Some((
                    Embedding::LocalNat64,
                    Ipv4Addr::new(o[7], o[9], o[10], o[11]),
                )),
                Some((
                    Embedding::LocalNat64,
                    Ipv4Addr::new(o[9], o[10], o[11], o[12]),
                )),
            ];
        }
        [0x2002, high, low, ..] => found[0] = Some((Embedding::SixToFour, pair(high, low))),
        [0x2001, 0, high, low, ..] => {
            found[0] = Some((Embedding::TeredoServer, pair(high, low)));
            found[1] = Some((Embedding::TeredoClient, pair(!s[6], !s[7])));
        }
        _ => {}
    }
    if s[4] & 0xfdff == 0 && s[5] == 0x5efe {
        found[3] = Some((Embedding::Isatap, last));
    }
    found.into_iter().flatten()
}

#[cfg(test)]
mod tests;
