use std::net::Ipv4Addr;

use axum::http::HeaderValue;
use proptest::prelude::*;

use super::*;
use ForwardedHeader::{Forwarded, XForwardedFor};

const PROXY: &str = "10.0.0.1";

fn trusted() -> Vec<IpNet> {
    ["10.0.0.0/8", "fd00::/8"]
        .map(|n| n.parse().unwrap())
        .into()
}

fn client(peer: &str, header: ForwardedHeader, lines: &[&[u8]]) -> String {
    let mut headers = HeaderMap::new();
    let name = match header {
        XForwardedFor => "x-forwarded-for",
        Forwarded => "forwarded",
    };
    for line in lines {
        headers.append(name, HeaderValue::from_bytes(line).unwrap());
    }
    let peer = peer.parse().unwrap();
    ClientIp::of(peer, &headers, &trusted(), header)
        .0
        .to_string()
}

#[test]
fn x_forwarded_for_is_read_from_the_right_while_proxies_are_trusted() {
    let read = |peer: &str, lines: &[&str]| {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        client(peer, XForwardedFor, &lines)
    };
    for (lines, expected) in [
        (&[][..], PROXY),
        (&[""], PROXY),
        (&["192.0.2.1"], "192.0.2.1"),
        (&["192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        // What stands left of an untrusted address was written by it.
        (&["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
        (&["10.9.9.9, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        // The proxies' own requests.
        (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        // Several lines are one list.
        (&["198.51.100.1", "192.0.2.1,10.0.0.2"], "192.0.2.1"),
        (&["192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        // Ports, brackets, IPv6, IPv4 inside IPv6.
        (&["192.0.2.1:4711"], "192.0.2.1"),
        (&["[2001:db8::1]:4711"], "2001:db8::1"),
        (&["[2001:db8::1]"], "2001:db8::1"),
        (&["2001:DB8::1, fd00::2"], "2001:db8::1"),
        (&["::ffff:192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
        // What is no address hides what is left of it.
        (&["192.0.2.1, unknown"], PROXY),
        (&["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (&["192.0.2.1,, 10.0.0.2"], "10.0.0.2"),
        (&["192.0.2.1%eth0"], PROXY),
        (&["192.0.2.1:99999"], PROXY),
        (&["0x7f.1"], PROXY),
    ] {
        assert_eq!(read(PROXY, lines), expected, "{lines:?}");
        assert_eq!(read("203.0.113.5", lines), "203.0.113.5", "{lines:?}");
    }
    assert_eq!(read("::ffff:10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
}

#[test]
fn forwarded_is_read_by_its_grammar() {
    let read = |line: &str| client(PROXY, Forwarded, &[line.as_bytes()]);
    for (line, expected) in [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=192.0.2.1;proto=https;by=10.0.0.1", "192.0.2.1"),
        ("proto=http ; for=192.0.2.1 , for=10.0.0.2", "192.0.2.1"),
        ("for=\"[2001:db8::1]:4711\", for=10.0.0.2", "2001:db8::1"),
        ("for=\"192.0.2.1:80\"", "192.0.2.1"),
        ("host=\"a,b;for=198.51.100.1\";for=192.0.2.1", "192.0.2.1"),
        ("host=\"a\\\"b\";for=192.0.2.1", "192.0.2.1"),
        ("for=198.51.100.1, for=192.0.2.1", "192.0.2.1"),
        // An element that hides its client, or says nothing of it.
        ("for=_hidden", PROXY),
        ("for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("proto=https, for=10.0.0.2", "10.0.0.2"),
        // What is not well-formed says nothing at all.
        ("", PROXY),
        ("192.0.2.1", PROXY),
        ("for=", PROXY),
        ("for=192.0.2.1;for=198.51.100.1", PROXY),
        ("for=\"192.0.2.1", PROXY),
        ("for=\"192.0.2.1\"x", PROXY),
        ("for=\"\\", PROXY),
        ("=192.0.2.1", PROXY),
        ("for=192.0.2.1,", PROXY),
        ("for=2001:db8::1", PROXY), // IPv6 must be quoted
    ] {
        assert_eq!(read(line), expected, "{line}");
    }
    // A quote that a client left open does not swallow what its proxy added.
    let swallow = "for=\"198.51.100.1, for=192.0.2.1";
    assert_eq!(read(swallow), PROXY);
    // Lines are read one by one.
    let lines: [&[u8]; 2] = [b"for=\"open", b"for=192.0.2.1;proto=https"];
    assert_eq!(client(PROXY, Forwarded, &lines), "192.0.2.1");
}

#[test]
fn the_header_that_is_not_named_is_not_read() {
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
    headers.insert("forwarded", HeaderValue::from_static("for=198.51.100.1"));
    let peer = PROXY.parse().unwrap();
    let read = |header| {
        ClientIp::of(peer, &headers, &trusted(), header)
            .0
            .to_string()
    };
    assert_eq!(read(XForwardedFor), "192.0.2.1");
    assert_eq!(read(Forwarded), "198.51.100.1");
}

/// Bytes that a header's value may have.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        Just(b"for=".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"\\".to_vec()),
        Just(b",".to_vec()),
        Just(b";".to_vec()),
        Just(b"=".to_vec()),
        Just(b"[2001:db8::9]:1".to_vec()),
        Just(b"198.51.100.9".to_vec()),
        Just(b"10.0.0.7".to_vec()),
        proptest::collection::vec(prop_oneof![Just(b' '), 0x21_u8..0x7f, 0x80_u8..=0xff], 0..4),
    ];
    proptest::collection::vec(text, 0..12).prop_map(|parts| parts.concat())
}

fn outside() -> impl Strategy<Value = IpAddr> {
    let v4 = (192_u8..224, any::<[u8; 3]>());
    prop_oneof![
        v4.prop_map(|(a, [b, c, d])| IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        any::<u64>()
            .prop_map(|low| IpAddr::V6(((0x2001_0db8_u128 << 96) | u128::from(low)).into())),
    ]
}

proptest! {
    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says(peer in outside(), line in line()) {
        for header in [XForwardedFor, Forwarded] {
            let found = client(&peer.to_string(), header, &[&line]);
            prop_assert_eq!(found, peer.to_string());
        }
    }

    #[test]
    fn what_a_client_writes_never_changes_its_address(real in outside(), line in line()) {
        let appended = [&line[..], b", ", real.to_string().as_bytes()].concat();
        prop_assert_eq!(client(PROXY, XForwardedFor, &[&appended]), real.to_string());
        let second = [appended.as_slice(), b", 10.0.0.2"].concat();
        prop_assert_eq!(client(PROXY, XForwardedFor, &[&second]), real.to_string());
        // At worst a client makes its proxy's element unreadable, and then counts as the proxy.
        let node = if real.is_ipv6() { format!("\"[{real}]\"") } else { real.to_string() };
        let appended = [&line[..], b", for=", node.as_bytes()].concat();
        let found = client(PROXY, Forwarded, &[&appended]);
        prop_assert!(found == real.to_string() || found == PROXY, "{}", found);
        // Not even that where the proxy adds a line of its own.
        let own = format!("for={node}");
        prop_assert_eq!(client(PROXY, Forwarded, &[&line, own.as_bytes()]), real.to_string());
    }
}
