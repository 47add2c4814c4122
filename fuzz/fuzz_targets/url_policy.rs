//! The URL policy: what it allows leads to no address that is not global, however the address is written.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agenthub::net::{Decision, Policy};
use libfuzzer_sys::fuzz_target;
use url::{Host, Url};

/// An oracle of its own: the ranges that nobody may reach, by the standard library's words for them.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let low = Ipv4Addr::from((u32::from(g) << 16) | u32::from(h));
            let embedded = match (a, b, c, d, e, f) {
                (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) => true, // compatible, mapped, translated
                (0x64, 0xff9b, 0, 0, 0, 0) => true,                            // NAT64
                _ => false,
            };
            let six_to_four = Ipv4Addr::from((u32::from(b) << 16) | u32::from(c));
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || embedded && is_private_v4(low)
                || a == 0x2002 && is_private_v4(six_to_four)
        }
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || a == 100 && (64..128).contains(&b)
}

/// What `inet_aton` makes of a name: one to four numbers, decimal, octal or hexadecimal.
fn inet_aton(name: &str) -> Option<Ipv4Addr> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let number = |text: &str| {
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("0x") {
            Some("") => Some(0),
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None if lower.len() > 1 && lower.starts_with('0') => {
                u64::from_str_radix(&lower, 8).ok()
            }
            None => lower.parse().ok(),
        }
    };
    let numbers: Vec<u64> = name.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = numbers.split_last()?;
    if first.len() > 3
        || first.iter().any(|n| *n > 255)
        || *last >= 1_u64 << (8 * (4 - first.len()))
    {
        return None;
    }
    let mut value = u32::try_from(*last).ok()?;
    for (index, n) in first.iter().enumerate() {
        value |= u32::try_from(*n).ok()? << (24 - 8 * index);
    }
    Some(Ipv4Addr::from(value))
}

/// Ways to write an address of IPv4 as the host of a URL.
fn spellings(ip: Ipv4Addr) -> Vec<String> {
    let n = u32::from(ip);
    let [a, b, c, d] = ip.octets();
    let full_width = |text: &str| -> String {
        let wide = |c: char| match c {
            '0'..='9' => char::from_u32(c as u32 - 0x30 + 0xff10).unwrap_or(c),
            '.' => '\u{3002}',
            c => c,
        };
        text.chars().map(wide).collect()
    };
    let percent: String = ip
        .to_string()
        .bytes()
        .map(|b| format!("%{b:02x}"))
        .collect();
    vec![
        format!("{ip}"),
        format!("{ip}."),
        format!("{n}"),
        format!("0x{n:x}"),
        format!("0X{n:08X}"),
        format!("0{n:o}"),
        format!("{a}.{}", n & 0x00ff_ffff),
        format!("{a}.{b}.{}", n & 0xffff),
        format!("0x{a:x}.0{b:o}.{c}.0x{d:02x}"),
        format!("0{a:o}.0x{:x}", n & 0x00ff_ffff),
        percent,
        full_width(&ip.to_string()),
        format!("[::ffff:{ip}]"),
        format!("[::{ip}]"),
        format!("[64:ff9b::{ip}]"),
        format!("[::ffff:0:{ip}]"),
        format!("[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]"),
        format!("[0:0:0:0:0:ffff:{:x}:{:x}]", n >> 16, n & 0xffff),
    ]
}

fn check(policy: &Policy, text: &str, answers: &[IpAddr]) {
    let Ok(target) = policy.screen(text) else {
        return;
    };
    let url = target.url();
    assert!(matches!(url.scheme(), "http" | "https"), "{text:?}");
    assert!(
        url.username().is_empty() && url.password().is_none(),
        "{text:?}"
    );
    match url.host() {
        Some(Host::Ipv4(ip)) => assert!(!is_private(ip.into()), "{text:?} is {ip}"),
        Some(Host::Ipv6(ip)) => assert!(!is_private(ip.into()), "{text:?} is {ip}"),
        Some(Host::Domain(name)) => {
            let ip = inet_aton(name);
            assert!(
                ip.is_none_or(|ip| !is_private_v4(ip)),
                "{text:?} may be {ip:?}"
            );
            let ip: Option<Ipv6Addr> = name.trim_matches(['[', ']']).parse().ok();
            assert!(
                ip.is_none_or(|ip| !is_private(ip.into())),
                "{text:?} may be {ip:?}"
            );
        }
        None => panic!("{text:?} has no host"),
    }
    // What is connected to is what was screened.
    let again = Url::parse(url.as_str()).expect("a URL is a URL");
    assert_eq!(again.host(), url.host(), "{text:?} is read in two ways");
    if let Decision::Allow { connect } = target.decide(answers) {
        assert!(!connect.is_empty(), "{text:?} is allowed to nowhere");
        for to in connect {
            assert!(!is_private(to.ip()), "{text:?} connects to {to}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let policy = Policy::default();
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes.iter_mut().zip(data) {
        *to = *from;
    }
    let v4 = Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
    let v6 = Ipv6Addr::from(bytes);
    let rest = std::str::from_utf8(data.get(4..).unwrap_or_default());
    if let Ok(text) = std::str::from_utf8(data) {
        check(&policy, text, &[v4.into()]);
        check(
            &policy,
            text,
            &[Ipv4Addr::new(93, 184, 215, 14).into(), v6.into()],
        );
    }
    if let Ok(rest) = rest {
        check(&policy, &format!("http://{rest}/"), &[v4.into(), v6.into()]);
    }
    check(&policy, &format!("http://[{v6}]/"), &[]);
    // An address that nobody may reach is refused however it is written.
    for host in spellings(v4) {
        let refused =
            ["http", "https"].map(|scheme| policy.screen(&format!("{scheme}://{host}/x")).is_err());
        assert!(
            !is_private_v4(v4) || refused == [true, true],
            "{host} is {v4}"
        );
    }
});
