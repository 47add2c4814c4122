use proptest::prelude::*;

use super::*;

fn range_of(ip: &str) -> Option<&'static str> {
    non_global(ip.parse().unwrap()).map(|found| found.range)
}

/// First and last address of each range, and the neighbours outside.
const V4_EDGES: &[(&str, &str, &str, [&str; 2])] = &[
    (
        "0.0.0.0",
        "0.255.255.255",
        "This network",
        ["1.0.0.0", "1.0.0.1"],
    ),
    (
        "10.0.0.0",
        "10.255.255.255",
        "Private-Use",
        ["9.255.255.255", "11.0.0.0"],
    ),
    (
        "100.64.0.0",
        "100.127.255.255",
        "Shared Address Space",
        ["100.63.255.255", "100.128.0.0"],
    ),
    (
        "127.0.0.0",
        "127.255.255.255",
        "Loopback",
        ["126.255.255.255", "128.0.0.0"],
    ),
    (
        "169.254.0.0",
        "169.254.255.255",
        "Link Local",
        ["169.253.255.255", "169.255.0.0"],
    ),
    (
        "172.16.0.0",
        "172.31.255.255",
        "Private-Use",
        ["172.15.255.255", "172.32.0.0"],
    ),
    (
        "192.0.0.0",
        "192.0.0.255",
        "IETF Protocol Assignments",
        ["191.255.255.255", "192.0.1.0"],
    ),
    (
        "192.0.2.0",
        "192.0.2.255",
        "Documentation (TEST-NET-1)",
        ["192.0.1.255", "192.0.3.0"],
    ),
    (
        "192.88.99.0",
        "192.88.99.255",
        "6to4 Relay Anycast",
        ["192.88.98.255", "192.88.100.0"],
    ),
    (
        "192.168.0.0",
        "192.168.255.255",
        "Private-Use",
        ["192.167.255.255", "192.169.0.0"],
    ),
    (
        "198.18.0.0",
        "198.19.255.255",
        "Benchmarking",
        ["198.17.255.255", "198.20.0.0"],
    ),
    (
        "198.51.100.0",
        "198.51.100.255",
        "Documentation (TEST-NET-2)",
        ["198.51.99.255", "198.51.101.0"],
    ),
    (
        "203.0.113.0",
        "203.0.113.255",
        "Documentation (TEST-NET-3)",
        ["203.0.112.255", "203.0.114.0"],
    ),
    (
        "224.0.0.0",
        "239.255.255.255",
        "Multicast",
        ["223.255.255.255", "223.255.255.254"],
    ),
    (
        "240.0.0.0",
        "255.255.255.254",
        "Reserved",
        ["223.255.255.255", "1.1.1.1"],
    ),
    (
        "255.255.255.255",
        "255.255.255.255",
        "Limited Broadcast",
        ["8.8.8.8", "1.1.1.1"],
    ),
];

#[test]
fn ipv4_ranges_begin_and_end_where_the_registry_says() {
    assert_eq!(V4_EDGES.len(), V4_RANGES.len());
    for (first, last, name, outside) in V4_EDGES {
        assert_eq!(range_of(first), Some(*name), "{first}");
        assert_eq!(range_of(last), Some(*name), "{last}");
        for ip in outside {
            assert_eq!(range_of(ip), None, "{ip}");
        }
    }
}

#[test]
#[allow(clippy::too_many_lines)] // one table
fn ipv6_ranges_begin_and_end_where_the_registry_says() {
    let edges = [
        ("::", "::", "Unspecified"),
        ("::1", "::1", "Loopback"),
        ("::8.8.8.8", "::223.255.255.255", "IPv4-compatible"),
        ("::ffff:8.8.8.8", "::ffff:223.255.255.255", "IPv4-mapped"),
        (
            "64:ff9b:1:808:8:808:808:808",
            "64:ff9b:1:dfdf:df:df00:dfff:ffff",
            "Local-Use IPv4/IPv6 Translation",
        ),
        ("100::", "100::ffff:ffff:ffff:ffff", "Discard-Only"),
        (
            "100:0:0:1::",
            "100::1:ffff:ffff:ffff:ffff",
            "Dummy IPv6 Prefix",
        ),
        (
            "2001:0:808:808::f7f7:f7f7",
            "2001:0:101:101::f7f7:f7f7",
            "Teredo",
        ),
        (
            "2001:1::",
            "2001:1:ffff:ffff:ffff:ffff:ffff:ffff",
            "IETF Protocol Assignments",
        ),
        (
            "2001:2::",
            "2001:2:0:ffff:ffff:ffff:ffff:ffff",
            "Benchmarking",
        ),
        (
            "2001:3::",
            "2001:f:ffff:ffff:ffff:ffff:ffff:ffff",
            "IETF Protocol Assignments",
        ),
        (
            "2001:10::",
            "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff",
            "ORCHID",
        ),
        (
            "2001:20::",
            "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff",
            "IETF Protocol Assignments",
        ),
        (
            "2001:db8::",
            "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
            "Documentation",
        ),
        (
            "2002:808:808::",
            "2002:dfff:ffff:ffff:ffff:ffff:ffff:ffff",
            "6to4",
        ),
        (
            "3fff::",
            "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Documentation",
        ),
        (
            "5f00::",
            "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Segment Routing (SRv6) SIDs",
        ),
        (
            "fc00::",
            "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Unique-Local",
        ),
        (
            "fe80::",
            "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Link-Local Unicast",
        ),
        (
            "fec0::",
            "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Site-Local Unicast",
        ),
        (
            "ff00::",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Multicast",
        ),
        // What no registry entry names, outside 2000::/3.
        ("::1:0:0:0", "::fffe:0:808:808", "Reserved by IETF"),
        (
            "200::",
            "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Reserved by IETF",
        ),
        (
            "4000::",
            "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Reserved by IETF",
        ),
        (
            "5f01::",
            "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Reserved by IETF",
        ),
        (
            "fe00::",
            "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
            "Reserved by IETF",
        ),
        (
            "64:ff9b::1:0:0",
            "64:ff9b:0:ffff:ffff:ffff:808:808",
            "Reserved by IETF",
        ),
        ("64:ff9b:2::", "64:ff9b:ffff::", "Reserved by IETF"),
        ("100:0:0:2::", "1ff:ffff::", "Reserved by IETF"),
    ];
    for (first, last, name) in edges {
        assert_eq!(range_of(first), Some(name), "{first}");
        assert_eq!(range_of(last), Some(name), "{last}");
    }
    for range in V6_RANGES {
        assert!(
            edges.iter().any(|edge| edge.2 == range.name),
            "{}",
            range.name
        );
    }
}

#[test]
fn public_addresses_are_global() {
    for ip in [
        "1.1.1.1",
        "8.8.8.8",
        "93.184.216.34",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.1",
        "223.255.255.255",
        "2000::",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700:4700::1111",
        "2620:4f:8000::1",
        "2a00:1450:4001:81b::200e",
        "3ffe:ffff::1",
        "3fff:1000::1",
        "64:ff9b::8.8.8.8",
        "2a00::5efe:8.8.8.8",
    ] {
        assert_eq!(range_of(ip), None, "{ip}");
    }
}

#[test]
fn a_refusal_names_the_inner_address() {
    let say = |ip: &str| non_global(ip.parse().unwrap()).unwrap().to_string();
    assert_eq!(say("127.0.0.1"), "Loopback (RFC 1122)");
    assert_eq!(say("::1"), "Loopback (RFC 4291)");
    let inner = "form of 10.0.0.1, Private-Use (RFC 1918)";
    for (ip, form) in [
        ("::ffff:10.0.0.1", "IPv4-mapped"),
        ("::10.0.0.1", "IPv4-compatible"),
        ("::ffff:0:10.0.0.1", "IPv4-translated"),
        ("64:ff9b::10.0.0.1", "NAT64"),
        ("64:ff9b:1::10.0.0.1", "local-use NAT64"),
        ("2002:a00:1::", "6to4"),
        ("2001:0:a00:1::f7f7:f7f7", "Teredo server"),
        ("2001:0:808:808::f5ff:fffe", "Teredo client"),
        ("2a00:1::5efe:10.0.0.1", "ISATAP"),
        ("2a00:1::200:5efe:10.0.0.1", "ISATAP"),
    ] {
        assert_eq!(say(ip), format!("{form} {inner}"), "{ip}");
    }
}

#[test]
fn metadata_services_are_known_in_every_embedding() {
    for (ip, name) in METADATA {
        assert_eq!(metadata_service(*ip), Some(*name));
        if let IpAddr::V4(ip) = ip {
            for embedded in embeddings(*ip) {
                assert_eq!(metadata_service(embedded.into()), Some(*name), "{embedded}");
            }
        }
    }
    assert_eq!(metadata_service("169.254.169.1".parse().unwrap()), None);
    assert_eq!(metadata_service("8.8.8.8".parse().unwrap()), None);
    assert!(is_metadata_name("metadata.google.internal"));
    assert!(!is_metadata_name("metadata.example"));
}

/// The address in every form that [`embedded_v4`] knows, with room for other bits left global.
fn embeddings(ip: Ipv4Addr) -> Vec<Ipv6Addr> {
    let [a, b, c, d] = ip.octets();
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let (high, low) = (pair(a, b), pair(c, d));
    let six = |s: [u16; 8]| Ipv6Addr::from(s);
    vec![
        six([0, 0, 0, 0, 0, 0xffff, high, low]),
        six([0, 0, 0, 0, 0, 0, high, low]),
        six([0, 0, 0, 0, 0xffff, 0, high, low]),
        six([0x64, 0xff9b, 0, 0, 0, 0, high, low]),
        six([0x64, 0xff9b, 1, 0x808, 8, 0x800, high, low]),
        six([0x64, 0xff9b, 1, high, u16::from(c), pair(d, 0), 0, 0x808]),
        six([0x64, 0xff9b, 1, pair(8, a), u16::from(b), low, 0, 0x808]),
        six([
            0x64,
            0xff9b,
            1,
            0x808,
            u16::from(a),
            pair(b, c),
            pair(d, 8),
            0x808,
        ]),
        six([0x2002, high, low, 1, 0, 0, 0, 1]),
        six([0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7]),
        six([0x2001, 0, 0x808, 0x808, 0, 0, !high, !low]),
        six([0x2a00, 1, 2, 3, 0, 0x5efe, high, low]),
        six([0x2a00, 1, 2, 3, 0x200, 0x5efe, high, low]),
    ]
}

fn in_v4_range() -> impl Strategy<Value = Ipv4Addr> {
    (0..V4_RANGES.len(), any::<u32>()).prop_map(|(index, bits)| {
        let range = &V4_RANGES[index];
        let host = u32::MAX.checked_shr(range.prefix).unwrap_or(0);
        Ipv4Addr::from_bits(range.base.to_bits() | (bits & host))
    })
}

fn in_v6_range() -> impl Strategy<Value = Ipv6Addr> {
    (0..V6_RANGES.len(), any::<u128>()).prop_map(|(index, bits)| {
        let range = &V6_RANGES[index];
        let host = u128::MAX.checked_shr(range.prefix).unwrap_or(0);
        Ipv6Addr::from_bits(range.base.to_bits() | (bits & host))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_embedding_makes_a_special_address_global(ip in in_v4_range()) {
        prop_assert!(non_global(ip.into()).is_some());
        for embedded in embeddings(ip) {
            prop_assert!(non_global(embedded.into()).is_some(), "{}", embedded);
        }
    }

    #[test]
    fn special_ipv6_addresses_are_not_global(ip in in_v6_range()) {
        prop_assert!(non_global(ip.into()).is_some());
    }

    #[test]
    fn ipv6_is_global_only_in_delegated_space(bits in any::<u128>()) {
        let ip = Ipv6Addr::from_bits(bits);
        if non_global(ip.into()).is_none() {
            prop_assert!(bits >> 125 == 1 || is_nat64(ip));
        }
    }

    /// The standard library's own classification, as far as it is stable, is never looser.
    #[test]
    fn the_standard_library_agrees(v4 in any::<u32>(), v6 in any::<u128>()) {
        let v4 = Ipv4Addr::from_bits(v4);
        if v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_broadcast()
            || v4.is_documentation() || v4.is_multicast() || v4.is_unspecified()
        {
            prop_assert!(non_global(v4.into()).is_some());
        }
        let v6 = Ipv6Addr::from_bits(v6);
        if v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast() {
            prop_assert!(non_global(v6.into()).is_some());
        }
    }

    #[test]
    fn embedded_addresses_are_found(bits in any::<u32>()) {
        let ip = Ipv4Addr::from_bits(bits);
        for embedded in embeddings(ip) {
            prop_assert!(embedded_v4(embedded).any(|(_, inner)| inner == ip), "{}", embedded);
        }
    }
}
