//! How the text of a setting becomes a value.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

/// A duration written in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// The same span as a [`Duration`].
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub usize);

/// One rate-limit rule, written `<limit>/<window in ms>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Requests accepted in any window.
    pub limit: u32,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
}

/// The header in which proxies write where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// An origin as browsers write it: scheme, host and, where it is not the scheme's own, port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(pub String);

/// What becomes of requests while the audit trail is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFull {
    /// They are refused.
    Refuse,
    /// They are answered, and counted instead of recorded.
    Count,
}

impl Parse for AuditFull {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "refuse" => Ok(Self::Refuse),
            "count" => Ok(Self::Count),
            _ => Err("refuse or count".to_owned()),
        }
    }
}

/// A part of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl Parse for Share {
    fn parse(text: &str) -> Result<Self, String> {
        let share = text.trim().parse().ok();
        let share = share.filter(|share| (0.0..=1.0).contains(share));
        share
            .map(Self)
            .ok_or_else(|| "a number from 0 to 1".to_owned())
    }
}

/// How long a tool's results are kept, written `<tool>=<seconds>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolTtl {
    /// The tool.
    pub tool: String,
    /// Seconds; 0 keeps none.
    pub seconds: u64,
}

/// How many days a tenant's audit files are kept, written `<tenant>=<days>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantDays {
    /// The tenant.
    pub tenant: String,
    /// Days; 0 keeps them all.
    pub days: u32,
}

impl Parse for TenantDays {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "<tenant>=<days> such as acme=400".to_owned();
        let (tenant, days) = text.trim().split_once('=').ok_or_else(expected)?;
        let days = days.trim().parse().map_err(|_| expected())?;
        let tenant = tenant.trim().to_owned();
        if tenant.is_empty() {
            return Err(expected());
        }
        Ok(Self { tenant, days })
    }
}

/// A type that a setting can have.
pub trait Parse: Sized {
    /// The value that `text` writes. `Err` holds what was expected, never the given text, which may
    /// be a secret.
    fn parse(text: &str) -> Result<Self, String>;
}

macro_rules! parse_from_str {
    ($($type:ty => $expected:literal),+ $(,)?) => {$(
        impl Parse for $type {
            fn parse(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| $expected.to_owned())
            }
        }
    )+};
}

parse_from_str! {
    u16 => "a whole number from 0 to 65535",
    u32 => "a whole number from 0 to 4294967295",
    u64 => "a whole number of at least 0",
    usize => "a whole number of at least 0",
    std::net::SocketAddr => "an address and port such as 127.0.0.1:8080",
}

impl Parse for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().to_owned())
    }
}

impl Parse for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().into())
    }
}

impl Parse for SecretString {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().to_owned().into())
    }
}

impl Parse for bool {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err("true or false".to_owned()),
        }
    }
}

impl Parse for Millis {
    fn parse(text: &str) -> Result<Self, String> {
        u64::parse(text)
            .map(Millis)
            .map_err(|_| "a whole number of milliseconds".to_owned())
    }
}

impl Parse for ByteCount {
    fn parse(text: &str) -> Result<Self, String> {
        usize::parse(text)
            .map(ByteCount)
            .map_err(|_| "a whole number of bytes".to_owned())
    }
}

impl Parse for Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "a rule <limit>/<window in ms> such as 10/1000".to_owned();
        let (limit, window) = text.trim().split_once('/').ok_or_else(expected)?;
        let rule = Rule {
            limit: limit.parse().map_err(|_| expected())?,
            window_ms: window.parse().map_err(|_| expected())?,
        };
        if rule.limit == 0 || rule.window_ms == 0 {
            Err(expected())
        } else {
            Ok(rule)
        }
    }
}

impl Parse for ForwardedHeader {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Ok(Self::XForwardedFor),
            "forwarded" => Ok(Self::Forwarded),
            _ => Err("x-forwarded-for or forwarded".to_owned()),
        }
    }
}

/// What a browser would write differently would never match, and is refused.
impl Parse for Origin {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let url = url::Url::parse(text).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && !text.contains('*'));
        let origin = url.map(|url| url.origin().ascii_serialization());
        match origin {
            Some(origin) if origin == text => Ok(Self(origin)),
            _ => Err("an origin such as https://console.example.com, without a path, and without * in it".to_owned()),
        }
    }
}

/// A network, or an address alone. IPv4 inside IPv6 is taken as IPv4.
impl Parse for IpNet {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "an address or a network such as 10.0.0.0/8".to_owned();
        let text = text.trim();
        let net = text
            .parse()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(|_| expected())?.trunc();
        match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => {
                let mapped = v6.addr().to_ipv4_mapped();
                let v4 = mapped.map(|v4| IpNet::new(v4.into(), v6.prefix_len() - 96));
                v4.unwrap_or(Ok(net)).map_err(|_| expected())
            }
            _ => Ok(net),
        }
    }
}

impl Parse for ToolTtl {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "<tool>=<seconds> such as http_fetch=60, at most a day".to_owned();
        let (tool, seconds) = text.trim().split_once('=').ok_or_else(expected)?;
        let seconds = seconds.trim().parse().map_err(|_| expected())?;
        if seconds > 86_400 || tool.trim().is_empty() {
            return Err(expected());
        }
        let tool = tool.trim().to_owned();
        Ok(Self { tool, seconds })
    }
}

/// An empty text is "not given".
impl<T: Parse> Parse for Option<T> {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            Ok(None)
        } else {
            T::parse(text).map(Some)
        }
    }
}

/// Comma-separated; an empty text is the empty list.
impl<T: Parse> Parse for Vec<T> {
    fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .filter(|part| !part.trim().is_empty())
            .map(T::parse)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_exact() {
        for text in [
            "https://a.example",
            "http://127.0.0.1:3000",
            "https://[2001:db8::1]:444",
        ] {
            assert_eq!(Origin::parse(text), Ok(Origin(text.to_owned())));
        }
        for text in [
            "*",
            "null",
            "a.example",
            "https://*.a.example",
            "https://a.example/",
            "https://a.example/path",
            "https://A.example",
            "https://a.example:443",
            "https://user@a.example",
            "ftp://a.example",
        ] {
            assert!(Origin::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_network_is_an_address_or_has_a_prefix() {
        let parse = |text| IpNet::parse(text).map(|net| net.to_string());
        assert_eq!(parse("10.0.0.1"), Ok("10.0.0.1/32".to_owned()));
        assert_eq!(parse("10.1.2.3/8"), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(parse(" 2001:db8::/32 "), Ok("2001:db8::/32".to_owned()));
        assert_eq!(parse("::ffff:10.0.0.0/104"), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(parse("::ffff:10.0.0.1"), Ok("10.0.0.1/32".to_owned()));
        assert_eq!(parse("::/96"), Ok("::/96".to_owned()));
        for text in ["", "10.0.0.0/33", "10.0.0", "proxy", "10.0.0.0-10.0.0.9"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
