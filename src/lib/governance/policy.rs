//! What may narrow a key or a tenant, checked before it is kept. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::messages::{KeyPolicy, RateRule};

/// Rules of one list.
const MAX_RULES: usize = 4;
/// A rule remembers 8 bytes for each request that it accepts in its window.
const MAX_LIMIT: u32 = 100_000;
const MAX_WINDOW_MS: u64 = 24 * 3600 * 1000;
const MAX_NAMES: usize = 64;
const MAX_MODEL: usize = 128;

/// A member of a policy that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PolicyError {
    /// Where it stands: a JSON pointer into the request.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

fn wrong<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T, PolicyError> {
    Err(PolicyError {
        field: field.into(),
        problem: problem.into(),
    })
}

/// Checks what narrows a key. `is_tool` says whether there is a tool of that name.
pub fn check_policy(policy: &KeyPolicy, is_tool: impl Fn(&str) -> bool) -> Result<(), PolicyError> {
    if let Some(rules) = &policy.limits {
        check_rules("/limits", rules)?;
    }
    if let Some(tools) = &policy.tools_allowed {
        count("/tools_allowed", tools.len())?;
        if let Some(unknown) = tools.iter().position(|name| !is_tool(name)) {
            return wrong(format!("/tools_allowed/{unknown}"), "there is no such tool");
        }
    }
    if let Some(models) = &policy.models_allowed {
        count("/models_allowed", models.len())?;
        let fits = |name: &String| {
            let visible = name.bytes().all(|b| b.is_ascii_graphic());
            visible && (1..=MAX_MODEL).contains(&name.len())
        };
        if let Some(bad) = models.iter().position(|name| !fits(name)) {
            let problem = format!("1 to {MAX_MODEL} visible ASCII characters");
            return wrong(format!("/models_allowed/{bad}"), problem);
        }
    }
    if let Some(networks) = &policy.ips_allowed {
        count("/ips_allowed", networks.len())?;
    }
    Ok(())
}

fn count(field: &str, names: usize) -> Result<(), PolicyError> {
    if (1..=MAX_NAMES).contains(&names) {
        Ok(())
    } else {
        wrong(
            field,
            format!("1 to {MAX_NAMES} entries; leave it out to allow all"),
        )
    }
}

/// Checks a list of rate limits.
pub fn check_rules(field: &str, rules: &[RateRule]) -> Result<(), PolicyError> {
    if rules.is_empty() || rules.len() > MAX_RULES {
        return wrong(
            field,
            format!("1 to {MAX_RULES} rules; leave it out for the default"),
        );
    }
    let mut windows = BTreeSet::new();
    for (index, rule) in rules.iter().enumerate() {
        if !(1..=MAX_LIMIT).contains(&rule.limit) {
            let problem = format!("expected 1 to {MAX_LIMIT}");
            return wrong(format!("{field}/{index}/limit"), problem);
        }
        if !(1..=MAX_WINDOW_MS).contains(&rule.window_ms) {
            let problem = format!("expected 1 to {MAX_WINDOW_MS}");
            return wrong(format!("{field}/{index}/window_ms"), problem);
        }
        // Each window has one ring of timestamps.
        if !windows.insert(rule.window_ms) {
            let problem = "another rule has this window";
            return wrong(format!("{field}/{index}/window_ms"), problem);
        }
    }
    Ok(())
}

/// Reads networks, each written `address/bits` or as one address. An IPv4 network in IPv6 form is the
/// IPv4 network.
pub fn parse_networks(field: &str, texts: &[String]) -> Result<Vec<IpNet>, PolicyError> {
    let parsed = texts.iter().enumerate().map(|(index, text)| {
        parse_network(text).ok_or_else(|| PolicyError {
            field: format!("{field}/{index}"),
            problem: "expected an address or a network such as 192.0.2.0/24".to_owned(),
        })
    });
    parsed.collect()
}

fn parse_network(text: &str) -> Option<IpNet> {
    let net = match text.parse::<IpNet>() {
        Ok(net) => net,
        Err(_) => IpNet::from(text.parse::<IpAddr>().ok()?),
    };
    let mapped = match net {
        IpNet::V6(v6) => v6
            .addr()
            .to_ipv4_mapped()
            .zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    let net = match mapped {
        Some((address, bits)) => IpNet::new(address.into(), bits).ok()?,
        None => net,
    };
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(limit: u32, window_ms: u64) -> RateRule {
        RateRule { limit, window_ms }
    }

    fn field<T: std::fmt::Debug>(result: Result<T, PolicyError>) -> String {
        result.unwrap_err().field
    }

    #[test]
    fn rules_are_bounded_and_each_window_has_one() {
        assert!(check_rules("/l", &[rule(10, 1000), rule(100, 60_000)]).is_ok());
        assert_eq!(field(check_rules("/l", &[])), "/l");
        assert_eq!(field(check_rules("/l", &[rule(1, 1); 5])), "/l");
        assert_eq!(field(check_rules("/l", &[rule(0, 1)])), "/l/0/limit");
        assert_eq!(field(check_rules("/l", &[rule(100_001, 1)])), "/l/0/limit");
        assert_eq!(field(check_rules("/l", &[rule(1, 0)])), "/l/0/window_ms");
        let twice = [rule(1, 5), rule(2, 5)];
        assert_eq!(field(check_rules("/l", &twice)), "/l/1/window_ms");
    }

    #[test]
    fn names_are_known_and_bounded() {
        let check = |policy: KeyPolicy| check_policy(&policy, |name| name == "t");
        let tools = |names: &[&str]| KeyPolicy {
            tools_allowed: Some(names.iter().map(ToString::to_string).collect()),
            ..KeyPolicy::default()
        };
        assert!(check(KeyPolicy::default()).is_ok());
        assert!(check(tools(&["t"])).is_ok());
        assert_eq!(field(check(tools(&[]))), "/tools_allowed");
        assert_eq!(field(check(tools(&["t", "u"]))), "/tools_allowed/1");
        let models = |name: &str| KeyPolicy {
            models_allowed: Some(vec![name.to_owned()]),
            ..KeyPolicy::default()
        };
        assert!(check(models("gpt-4o-mini")).is_ok());
        for name in ["", "a b", "\u{e9}", &"x".repeat(129)] {
            assert_eq!(field(check(models(name))), "/models_allowed/0");
        }
    }

    #[test]
    fn networks_are_read_in_every_spelling() {
        let read = |text: &str| parse_networks("/ips_allowed", &[text.to_owned()]);
        let shown = |text: &str| read(text).unwrap()[0].to_string();
        assert_eq!(shown("192.0.2.7"), "192.0.2.7/32");
        assert_eq!(shown("192.0.2.7/24"), "192.0.2.0/24");
        assert_eq!(shown("::ffff:192.0.2.7"), "192.0.2.7/32");
        assert_eq!(shown("::ffff:192.0.2.0/120"), "192.0.2.0/24");
        assert_eq!(shown("2001:db8::1/32"), "2001:db8::/32");
        for wrong in ["", "192.0.2", "192.0.2.0/33", "host", "192.0.2.0/-1"] {
            assert_eq!(field(read(wrong)), "/ips_allowed/0", "{wrong}");
        }
    }
}
