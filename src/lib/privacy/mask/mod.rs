//! Masking: personal data and credentials are replaced before anything leaves.
//!
//! One pass: all rules are one automaton ([`regex_automata::meta::Regex`], linear time), and what it
//! finds is looked at once more by the rule's own check, such as the Luhn sum of a card number.
//!
//! Invariant: masking is idempotent, keeps JSON JSON, and leaves identifiers, hashes, offsets and
//! timestamps alone.

mod checks;
mod fields;
mod pieces;
mod rules;

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use regex_automata::Input;
use regex_automata::meta::Regex;
use serde::Serialize;
use serde_json::{Value, json};

use self::rules::{RULES, Verdict};

pub use self::pieces::Pieces;

/// Rounds over one text.
const MAX_ROUNDS: usize = 8;

/// Something that may leave the system. Only [`Masker`] makes one of what came from outside.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Masked<T>(T);

impl<T> Masked<T> {
    /// The masked content.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl Masked<&'static str> {
    /// A text of our own.
    pub fn fixed(text: &'static str) -> Self {
        Self(text)
    }
}

impl<T> Deref for Masked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Display> fmt::Display for Masked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Masked<Value> {
    /// Its JSON text.
    pub fn to_text(&self) -> Masked<String> {
        Masked(self.0.to_string())
    }
}

impl Masked<String> {
    /// JSON text of at most `most` bytes: what is longer becomes an object that says so, with its first
    /// `preview` bytes.
    pub fn json_within(self, most: usize, preview: usize) -> Self {
        if self.0.len() <= most {
            return self;
        }
        let beginning = &self.0[..self.0.floor_char_boundary(preview)];
        let cut = json!({ "truncated": true, "bytes": self.0.len(), "preview": beginning });
        Self(cut.to_string())
    }
}

/// The operator's patterns in the text of a file: one a line; empty lines and those that begin with
/// `#` are left out.
pub fn patterns(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// A pattern of the operator that is not a regular expression.
#[derive(Debug, thiserror::Error)]
#[error("pattern {number} cannot be used: {reason}")]
pub struct PatternError {
    /// Which one, from 1.
    number: usize,
    reason: String,
}

/// One place that a rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The rule's class.
    pub class: &'static str,
    /// Bytes that are replaced.
    pub range: std::ops::Range<usize>,
}

/// Masks texts and JSON. Cheap to share, safe to use at once.
#[derive(Debug, Clone)]
pub struct Masker {
    automaton: Regex,
    /// How far from the end of a text that still grows a match may yet come about around white space.
    reach: Option<usize>,
}

impl Masker {
    /// The built-in rules, and `patterns` of the operator, whose matches are masked as `custom`.
    pub fn new(patterns: &[String]) -> Result<Self, PatternError> {
        for (index, pattern) in patterns.iter().enumerate() {
            let wrong = |reason: String| PatternError {
                number: index + 1,
                reason,
            };
            let regex = Regex::new(pattern).map_err(|e| wrong(e.to_string()))?;
            if regex.is_match("") {
                return Err(wrong("it matches the empty text".to_owned()));
            }
        }
        let all: Vec<&str> = RULES
            .iter()
            .map(|r| r.pattern)
            .chain(patterns.iter().map(String::as_str))
            .collect();
        let automaton = Regex::builder()
            .configure(Regex::config().hybrid_cache_capacity(8 << 20))
            .build_many(&all)
            .map_err(|e| PatternError {
                number: 0,
                reason: e.to_string(),
            })?;
        let reach = pieces::reach(patterns);
        Ok(Self { automaton, reach })
    }

    /// `text` with every hit replaced by `[masked:<class>]`.
    pub fn text<'t>(&self, text: &'t str) -> Masked<Cow<'t, str>> {
        let mut masked = Cow::Borrowed(text);
        // What stands beside a hit can become one when the hit is gone, so a text with hits is looked at
        // again. Each round leaves fewer; the bound only guards against a pattern that hits placeholders.
        for _ in 0..MAX_ROUNDS {
            let hits = self.hits(&masked);
            if hits.is_empty() {
                break;
            }
            masked = Cow::Owned(replace(&masked, hits));
        }
        Masked(masked)
    }

    /// What would be replaced in `text`, in order.
    pub fn hits(&self, text: &str) -> Vec<Hit> {
        let mut hits = Vec::new();
        let mut from = 0;
        while from < text.len() {
            let Some(found) = self.automaton.find(Input::new(text).span(from..text.len())) else {
                break;
            };
            let rule = RULES.get(found.pattern().as_usize());
            let verdict = match rule {
                Some(rule) => (rule.check)(text, found.range()),
                None => Verdict::Mask(found.range()),
            };
            match verdict {
                Verdict::Mask(range) => {
                    from = range.end.max(from + 1);
                    hits.push(Hit {
                        class: rule.map_or("custom", |rule| rule.class),
                        range,
                    });
                }
                Verdict::Pass { resume } => from = resume.max(from + 1),
            }
            while !text.is_char_boundary(from) {
                from += 1;
            }
        }
        hits
    }

    /// A JSON value with names and texts masked, nested JSON texts included. The values of sensitive
    /// names become `[masked:field]`, whatever they are.
    pub fn json(&self, value: &Value) -> Masked<Value> {
        Masked(self.value(value))
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.string(text)),
            Value::Number(number) if checks::is_card_number(&number.to_string()) => {
                "[masked:card]".into()
            }
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| {
                    let value = if fields::is_sensitive(name) {
                        hidden(value)
                    } else {
                        self.value(value)
                    };
                    (self.text(name).0.into_owned(), value)
                })
                .collect(),
            other => other.clone(),
        }
    }

    fn string(&self, text: &str) -> String {
        if text.trim_start().starts_with(['{', '['])
            && let Ok(nested @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(text)
        {
            let masked = self.value(&nested);
            return if masked == nested {
                text.to_owned()
            } else {
                masked.to_string()
            };
        }
        self.text(text).0.into_owned()
    }

    /// JSON text, masked; a text that is not JSON is masked as text.
    pub fn json_text(&self, text: &str) -> Masked<String> {
        match serde_json::from_str::<Value>(text) {
            Ok(value) => Masked(self.value(&value).to_string()),
            Err(_) => Masked(self.text(text).0.into_owned()),
        }
    }
}

fn replace(text: &str, hits: Vec<Hit>) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut from = 0;
    for hit in hits {
        masked.push_str(&text[from..hit.range.start]);
        masked.push_str("[masked:");
        masked.push_str(hit.class);
        masked.push(']');
        from = hit.range.end;
    }
    masked.push_str(&text[from..]);
    masked
}

/// The value of a sensitive name. Absence, truth and emptiness say nothing and stay.
fn hidden(value: &Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) => value.clone(),
        Value::String(text) if text.is_empty() => value.clone(),
        Value::Array(items) => items.iter().map(hidden).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), hidden(value)))
            .collect(),
        Value::String(_) | Value::Number(_) => "[masked:field]".into(),
    }
}

#[cfg(test)]
mod tests;
