//! Tools that the operator declares in a file: what they are called, what they take, where they are
//! and what a repeated call does. See `docs/tools.md`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{CachePolicy, CacheScope, Effects, ToolSpec, catalogue};

/// Longest name; models take no longer ones.
const MAX_NAME: usize = 64;
/// Longest description in characters.
const MAX_DESCRIPTION: usize = 2000;
/// Longest time that one attempt may take.
const MAX_TIMEOUT_S: u64 = 600;
/// Headers that a call has of its own.
const OWN_HEADERS: [&str; 5] = [
    "host",
    "content-type",
    "content-length",
    "transfer-encoding",
    "idempotency-key",
];

/// A declared tool.
#[derive(Debug, Clone)]
pub struct Declared {
    /// Its entry in the catalogue.
    pub spec: ToolSpec,
    /// Where its calls are posted.
    pub url: String,
    /// What every call carries; values are marked as sensitive.
    pub headers: HeaderMap,
}

/// Why a file was refused. The texts hold no value of a header.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// The file cannot be read.
    #[error("tools file: {0}")]
    Read(#[from] io::Error),
    /// The file has another form.
    #[error("tools file: {}", .0.message())]
    Parse(#[from] toml::de::Error),
    /// An entry makes no sense.
    #[error("tools file, tool {name:?}: {reason}")]
    Entry {
        /// The entry's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tool: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default = "first")]
    version: u32,
    description: String,
    effects: Effects,
    url: String,
    #[serde(default = "default_timeout_s")]
    timeout_s: u64,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    parameters: Value,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.name)
    }
}

fn first() -> u32 {
    1
}

fn default_timeout_s() -> u64 {
    15
}

/// The tools in `path`; none without one.
pub fn load(path: Option<&Path>) -> Result<Vec<Declared>, DeclareError> {
    match path {
        Some(path) => parse(&std::fs::read_to_string(path)?),
        None => Ok(Vec::new()),
    }
}

/// Reads and checks a file's text.
pub fn parse(text: &str) -> Result<Vec<Declared>, DeclareError> {
    let file: File = toml::from_str(text)?;
    let mut all: Vec<Declared> = Vec::with_capacity(file.tool.len());
    for entry in file.tool {
        let name = entry.name.clone();
        let taken = |other: &ToolSpec| other.name == name;
        let checked = if catalogue::shipped().iter().any(taken) {
            Err("a tool that ships has this name".to_owned())
        } else if all.iter().any(|other| taken(&other.spec)) {
            Err("it is declared twice".to_owned())
        } else {
            check(entry)
        };
        all.push(checked.map_err(|reason| DeclareError::Entry { name, reason })?);
    }
    Ok(all)
}

fn check(entry: Entry) -> Result<Declared, String> {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
    let named = (1..=MAX_NAME).contains(&entry.name.len()) && entry.name.bytes().all(letter);
    if !named {
        return Err(format!(
            "its name is not 1 to {MAX_NAME} letters, digits, underscores and hyphens"
        ));
    }
    if !(1..=MAX_DESCRIPTION).contains(&entry.description.trim().chars().count()) {
        return Err(format!(
            "its description has not 1 to {MAX_DESCRIPTION} characters"
        ));
    }
    if !(1..=MAX_TIMEOUT_S).contains(&entry.timeout_s) {
        return Err(format!("its timeout_s is not 1 to {MAX_TIMEOUT_S}"));
    }
    // Models name arguments, so that anything but an object could not be called.
    if entry.parameters.get("type") != Some(&json!("object")) {
        return Err("its parameters are no JSON Schema of type \"object\"".to_owned());
    }
    if catalogue::compile(&entry.parameters).is_err() {
        return Err("its parameters are no JSON Schema (draft 2020-12)".to_owned());
    }
    let headers = headers(&entry.headers)?;
    // As long as the process: so is the catalogue.
    let kept = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    Ok(Declared {
        spec: ToolSpec {
            name: kept(entry.name),
            version: entry.version,
            description: kept(entry.description.trim().to_owned()),
            effects: entry.effects,
            parameters: entry.parameters,
            timeout: Duration::from_secs(entry.timeout_s),
            // The operator says for how long (`AGENTHUB_CACHE_TTLS`), or it is called each time.
            cache: (entry.effects == Effects::None).then_some(CachePolicy {
                ttl: Duration::ZERO,
                scope: CacheScope::Tenant,
            }),
        },
        url: entry.url,
        headers,
    })
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let lower = name.to_ascii_lowercase();
        if OWN_HEADERS.contains(&lower.as_str()) || lower.starts_with("agenthub-") {
            return Err(format!("the header {name:?} is not its own to set"));
        }
        let parsed = HeaderName::from_bytes(lower.as_bytes()).ok();
        let value = HeaderValue::from_str(value).ok();
        let (Some(parsed), Some(mut value)) = (parsed, value) else {
            return Err(format!("{name:?} is no header"));
        };
        value.set_sensitive(true);
        headers.insert(parsed, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKETS: &str = r#"
        [[tool]]
        name = "create_ticket"
        description = "Opens a ticket. Returns {id}."
        effects = "idempotent"
        url = "https://tickets.example.com/v1/tickets"
        headers = { Authorization = "Bearer sesame" }
        [tool.parameters]
        type = "object"
        additionalProperties = false
        required = ["title"]
        properties.title = { type = "string", maxLength = 200 }
    "#;

    #[test]
    fn a_tool_is_read() {
        let [tool] = parse(TICKETS).unwrap().try_into().unwrap();
        assert_eq!((tool.spec.name, tool.spec.version), ("create_ticket", 1));
        assert_eq!(tool.spec.effects, Effects::Idempotent);
        assert_eq!(tool.spec.timeout, Duration::from_secs(15));
        assert!(tool.spec.cache.is_none());
        assert_eq!(tool.spec.parameters["required"], json!(["title"]));
        assert_eq!(tool.headers["authorization"], "Bearer sesame");
        assert!(!format!("{tool:?}").contains("sesame"));
        assert!(parse("").unwrap().is_empty());
        assert!(load(None).unwrap().is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name_and_no_secret_is_shown() {
        for (from, to, reason) in [
            ("create_ticket", "http_fetch", "ships has this name"),
            ("create_ticket", "a b", "its name is not"),
            ("Opens a ticket. Returns {id}.", " ", "its description"),
            ("\"idempotent\"", "\"maybe\"", "unknown variant"),
            ("url = ", "uri = ", "unknown field"),
            ("Authorization", "Idempotency-Key", "not its own to set"),
            ("Authorization", "AgentHub-Run", "not its own to set"),
            ("Authorization", "\"a b\"", "is no header"),
            (
                "type = \"object\"",
                "type = \"string\"",
                "of type \"object\"",
            ),
            ("type = \"string\"", "type = \"text\"", "draft 2020-12"),
            ("effects", "timeout_s = 0\neffects", "its timeout_s"),
        ] {
            let text = TICKETS.replacen(from, to, 1);
            assert_ne!(text, TICKETS);
            let error = parse(&text).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(
                error.to_string().contains(reason),
                "{from} -> {to}: {error}"
            );
            assert!(!error.to_string().contains("sesame"), "{shown}");
        }
        let twice = parse(&TICKETS.repeat(2)).unwrap_err().to_string();
        assert!(twice.contains("declared twice"), "{twice}");
    }
}
