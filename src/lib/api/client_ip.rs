//! Which address a request comes from, when proxies that the operator trusts stand in front.
//!
//! The list of addresses in `X-Forwarded-For` or `Forwarded` (RFC 7239) is read from the right, the end
//! that the nearest proxy wrote, and only as far as trusted proxies vouch for it: an entry counts when
//! whoever added it is trusted. What a client writes itself stands further left and is never reached.
//!
//! Only the one header that the operator names is read. A proxy that writes one of the two usually passes
//! the other on as the client sent it, so that preferring either would let clients choose their address.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::config::ForwardedHeader;

/// The address of the client, in the extensions of every request that came over a connection. An IPv4
/// address is never written as IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

impl ClientIp {
    /// The client's address, given the address that the connection comes from.
    pub(super) fn of(
        peer: IpAddr,
        headers: &HeaderMap,
        trusted: &[IpNet],
        header: ForwardedHeader,
    ) -> Self {
        let mut client = peer.to_canonical();
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        if !is_trusted(&client) {
            return Self(client);
        }
        // An entry that is no address (`unknown`, `_hidden`, nonsense) hides what is left of it.
        for entry in entries(headers, header) {
            match entry {
                Some(address) => client = address,
                None => break,
            }
            if !is_trusted(&client) {
                break;
            }
        }
        Self(client)
    }
}

/// Entries of a line; `None` for one that names no address.
type Entries = Vec<Option<IpAddr>>;

/// The entries of the header, the last one first.
fn entries(
    headers: &HeaderMap,
    header: ForwardedHeader,
) -> impl Iterator<Item = Option<IpAddr>> + '_ {
    let (name, read): (_, fn(&str) -> Entries) = match header {
        ForwardedHeader::XForwardedFor => ("x-forwarded-for", x_forwarded_for),
        ForwardedHeader::Forwarded => ("forwarded", forwarded),
    };
    let lines = headers.get_all(name).iter().rev();
    // Bytes that are no text must not hide the entries beside them, which the proxy added.
    lines.flat_map(move |line| read(&String::from_utf8_lossy(line.as_bytes())))
}

/// The entries of a line of `X-Forwarded-For`, the last one first.
fn x_forwarded_for(line: &str) -> Entries {
    line.rsplit(',').map(|entry| node(entry.trim())).collect()
}

/// The `for` of each element of a line of `Forwarded`, the last one first. A line that is not well-formed
/// says nothing: a quote that a client left open would else swallow what its proxy added.
fn forwarded(line: &str) -> Entries {
    let Some(mut elements) = elements(line) else {
        return vec![None];
    };
    elements.reverse();
    elements
}

/// An element is `pair *( ";" pair )`, a pair `token "=" ( token / quoted-string )`.
fn elements(line: &str) -> Option<Entries> {
    let mut elements = Vec::new();
    let mut rest = line.trim_start();
    let mut node_of_element = None;
    loop {
        let (name, after) = rest.split_once('=')?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        let (value, after) = value(after)?;
        if name.eq_ignore_ascii_case("for") {
            if node_of_element.is_some() {
                return None; // RFC 7239, section 4: once in an element
            }
            node_of_element = Some(node(&value));
        }
        let after = after.trim_start();
        match after.as_bytes().first() {
            None => break,
            Some(b';') => rest = after[1..].trim_start(),
            Some(b',') => {
                elements.push(node_of_element.take().flatten());
                rest = after[1..].trim_start();
            }
            Some(_) => return None,
        }
    }
    elements.push(node_of_element.flatten());
    Some(elements)
}

/// A token or quoted string, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.bytes().position(|byte| !is_token(byte));
        let (token, rest) = text.split_at(end.unwrap_or(text.len()));
        return (!token.is_empty()).then(|| (token.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            _ => value.push(char),
        }
    }
    None
}

/// RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An address as proxies write it: bare, in brackets, or with a port.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = || {
        let inside = text.strip_prefix('[')?.strip_suffix(']')?;
        inside.parse().ok().map(IpAddr::V6)
    };
    let with_port = || text.parse().ok().map(|address: SocketAddr| address.ip());
    let address = text.parse().ok().or_else(bracketed).or_else(with_port)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests;
