//! Scripted answers.
#![doc = include_str!("../SCRIPTS.md")]

pub(super) mod directive;
mod positions;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use positions::Positions;

use super::wire::{Call, Usage};

const MAX_LATENCY_MS: u64 = 600_000;
const MAX_CHUNK_MS: u64 = 60_000;
const MAX_CONTENT_BYTES: u64 = 64 * 1024 * 1024;

/// Why a script was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The file cannot be read.
    #[error("script file: {0}")]
    Read(#[from] std::io::Error),
    /// It is not a script.
    #[error("script: {0}")]
    Parse(#[from] serde_json::Error),
    /// A rule's regular expression is none.
    #[error("script: {0}")]
    Match(#[from] regex::Error),
    /// A field has a value that it cannot have.
    #[error("script: {0}")]
    Value(&'static str),
}

/// One scripted answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Script {
    latency_ms: Option<u64>,
    status: Option<u16>,
    pub(super) error: Option<Value>,
    retry_after: Option<Value>,
    pub(super) body: Option<String>,
    pub(super) drop: Option<Drop>,
    pub(super) content: Option<String>,
    content_bytes: Option<u64>,
    tool_calls: Option<Vec<ScriptedCall>>,
    usage: Option<ScriptedUsage>,
    chunk_ms: Option<u64>,
    sequence: Option<Vec<Script>>,
    key: Option<String>,
}

/// How a connection is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Drop {
    /// Before any byte of the answer.
    Connection,
    /// In the middle of the body.
    Body,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptedCall {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum ScriptedUsage {
    Shown(bool),
    Counts(ScriptedCounts),
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_field_names)] // OpenAI's names
struct ScriptedCounts {
    prompt_tokens: u64,
    completion_tokens: u64,
    cached_tokens: u64,
    reasoning_tokens: u64,
}

impl Script {
    fn check(&self) -> Result<(), ScriptError> {
        if self.status.is_some_and(|s| !(200..=599).contains(&s)) {
            return Err(ScriptError::Value("`status` must be 200 to 599"));
        }
        if self.content_bytes.is_some_and(|n| n > MAX_CONTENT_BYTES) {
            return Err(ScriptError::Value(
                "`content_bytes` must be at most 67108864",
            ));
        }
        for script in self.sequence.iter().flatten() {
            if script.sequence.is_some() || script.key.is_some() {
                return Err(ScriptError::Value(
                    "`sequence` and `key` have no place in a `sequence`",
                ));
            }
            script.check()?;
        }
        Ok(())
    }

    /// How long to wait, when it says so.
    pub(super) fn latency(&self) -> Option<Duration> {
        let ms = self.latency_ms?.min(MAX_LATENCY_MS);
        Some(Duration::from_millis(ms))
    }

    /// How long to wait between two chunks.
    pub(super) fn chunk_delay(&self) -> Option<Duration> {
        let ms = self.chunk_ms?.min(MAX_CHUNK_MS);
        (ms > 0).then(|| Duration::from_millis(ms))
    }

    /// The status, when it says so or has an error.
    pub(super) fn status(&self) -> Option<u16> {
        self.status.or_else(|| self.error.as_ref().map(|_| 500))
    }

    /// The value of `Retry-After`.
    pub(super) fn retry_after(&self) -> Option<String> {
        Some(match self.retry_after.as_ref()? {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    }

    /// The text of the answer.
    pub(super) fn content(&self) -> Option<String> {
        self.content.clone().or_else(|| {
            let bytes = usize::try_from(self.content_bytes?).ok()?;
            Some("sim ".repeat(bytes.div_ceil(4))[..bytes].to_owned())
        })
    }

    /// The calls of the answer.
    pub(super) fn calls(&self) -> Option<Vec<Call>> {
        let calls = self.tool_calls.as_ref()?.iter().map(|call| Call {
            name: call.name.clone(),
            arguments: match &call.arguments {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            },
        });
        Some(calls.collect())
    }

    /// The usage in place of `counted`, if any is shown.
    pub(super) fn usage(&self, counted: Usage) -> Option<Usage> {
        match &self.usage {
            None | Some(ScriptedUsage::Shown(true)) => Some(counted),
            Some(ScriptedUsage::Shown(false)) => None,
            Some(ScriptedUsage::Counts(c)) => Some(Usage::new(
                c.prompt_tokens,
                c.cached_tokens,
                c.completion_tokens,
                c.reasoning_tokens,
            )),
        }
    }
}

/// A rule of the script file.
#[derive(Debug)]
struct Rule {
    matches: Regex,
    left: Option<AtomicU64>,
    answer: Script,
}

impl Rule {
    /// Whether the rule applies; takes one of its times.
    fn applies(&self, goal: &str) -> bool {
        self.matches.is_match(goal)
            && self.left.as_ref().is_none_or(|left| {
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                    .is_ok()
            })
    }
}

/// The scripts of a simulator and where their sequences are.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    rules: Vec<Rule>,
    positions: Positions,
}

impl Scripts {
    /// Reads the script file, if there is one.
    pub(super) fn load(path: Option<&Path>) -> Result<Self, ScriptError> {
        match path {
            Some(path) => Self::parse(&std::fs::read_to_string(path)?),
            None => Ok(Self::default()),
        }
    }

    /// Reads the text of a script file.
    pub(super) fn parse(text: &str) -> Result<Self, ScriptError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            r#match: String,
            times: Option<u64>,
            answer: Script,
        }
        let written: Vec<Written> = serde_json::from_str(text)?;
        let rules = written.into_iter().map(|rule| {
            rule.answer.check()?;
            Ok(Rule {
                matches: Regex::new(&rule.r#match)?,
                left: rule.times.map(AtomicU64::new),
                answer: rule.answer,
            })
        });
        Ok(Self {
            rules: rules.collect::<Result<_, ScriptError>>()?,
            positions: Positions::default(),
        })
    }

    /// The script for a request; the empty one when the rules are to answer.
    pub(super) fn pick(
        &self,
        header: Option<&str>,
        goal: &str,
        goal_is_data: bool,
        model: &str,
    ) -> Result<Script, ScriptError> {
        let written = match header {
            Some(text) => Some(text),
            None if goal_is_data => None,
            None => directive::find(goal).map(|found| found.script),
        };
        if let Some(text) = written {
            let script: Script = serde_json::from_str(text)?;
            script.check()?;
            return Ok(self.next(script, (text, model, goal)));
        }
        let rule = self.rules.iter().enumerate().find(|(_, r)| r.applies(goal));
        Ok(match rule {
            Some((at, rule)) => self.next(rule.answer.clone(), (at, model, goal)),
            None => Script::default(),
        })
    }

    /// The part of `script` whose turn it is.
    fn next(&self, mut script: Script, default_key: impl Hash) -> Script {
        let Some(sequence) = script.sequence.take() else {
            return script;
        };
        let mut hasher = DefaultHasher::new();
        match &script.key {
            Some(key) => key.hash(&mut hasher),
            None => default_key.hash(&mut hasher),
        }
        let position = self.positions.take(hasher.finish());
        // Once it is used up, what stands beside the sequence applies.
        sequence.into_iter().nth(position).unwrap_or(script)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(scripts: &Scripts, header: Option<&str>, goals: &[&str]) -> Vec<Option<u16>> {
        let status = |goal: &&str| scripts.pick(header, goal, false, "m").unwrap().status();
        goals.iter().map(status).collect()
    }

    #[test]
    fn the_header_wins_over_the_goal_and_the_goal_over_the_file() {
        let scripts = Scripts::parse(r#"[{"match": "adv", "answer": {"status": 503}}]"#).unwrap();
        let goals = ["adv", "adv [[sim: {\"status\": 429}]]", "other"];
        assert_eq!(
            statuses(&scripts, None, &goals),
            [Some(503), Some(429), None]
        );
        let header = Some(r#"{"status": 500}"#);
        assert_eq!(statuses(&scripts, header, &goals), [Some(500); 3]);
        let data = scripts.pick(None, goals[1], true, "m").unwrap();
        assert_eq!(data.status(), Some(503));
    }

    #[test]
    fn sequences_are_used_up_by_key() {
        let scripts = Scripts::default();
        let header = Some(r#"{"sequence": [{"status": 429}, {"status": 500}]}"#);
        let expected = [Some(429), Some(429), Some(500), None, Some(500)];
        assert_eq!(
            statuses(&scripts, header, &["a", "b", "a", "a", "b"]),
            expected
        );
        let keyed = Some(r#"{"key": "k", "sequence": [{"status": 429}]}"#);
        assert_eq!(statuses(&scripts, keyed, &["a", "b"]), [Some(429), None]);
    }

    #[test]
    fn rules_apply_their_times() {
        let text = r#"[{"match": "^a", "times": 2, "answer": {"status": 400}},
            {"match": "", "answer": {"content": "x"}}]"#;
        let scripts = Scripts::parse(text).unwrap();
        let expected = [Some(400), None, Some(400), None];
        assert_eq!(statuses(&scripts, None, &["a", "b", "ab", "a"]), expected);
        let last = scripts.pick(None, "a", false, "m").unwrap();
        assert_eq!(last.content().as_deref(), Some("x"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "{",
            r#"{"statuses": 1}"#,
            r#"{"status": 99}"#,
            r#"{"content_bytes": 67108865}"#,
            r#"{"drop": "out"}"#,
            r#"{"sequence": [{"sequence": []}]}"#,
            r#"{"usage": {"tokens": 1}}"#,
        ] {
            assert!(
                Scripts::default().pick(Some(text), "", false, "m").is_err(),
                "{text}"
            );
        }
        assert!(Scripts::parse(r#"[{"match": "(", "answer": {}}]"#).is_err());
        assert!(
            Scripts::default()
                .pick(None, "[[sim: {\"x\": 1}]]", false, "m")
                .is_err()
        );
    }

    #[test]
    fn lengths_are_exact() {
        let script: Script = serde_json::from_str(r#"{"content_bytes": 7}"#).unwrap();
        assert_eq!(script.content().as_deref(), Some("sim sim"));
    }
}
