//! References to earlier outputs in the strings of a step's arguments.
//!
//! `${steps.<id>.output}` is the output of a step; `.name`, `["any name"]` and `[0]` go into it (on an
//! array `.0` means `[0]`, as many write it). `$${` stands for the two characters `${`; a dollar sign
//! elsewhere stands for itself. Only values are looked at, never the names of fields.
//!
//! Invariant: resolution is a single pass. What an output holds is inserted as it is and never read
//! as a reference, so that fetched text cannot reach into other outputs.

use std::fmt;

use serde_json::Value;

use super::problem::{excerpt, pointer_part};
use super::size::json_bytes;
use super::{is_step_id, is_step_id_byte};

/// A reference to the output of a step, or to a place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The step.
    pub step: String,
    /// The way into its output.
    pub path: Vec<Segment>,
}

/// One step of the way into an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A field of an object.
    Key(String),
    /// An item of an array, from 0.
    Index(usize),
}

/// A string, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Reference(Reference),
}

/// Why a string is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{expected} expected at byte {at}; write $${{ for a literal ${{")]
pub struct SyntaxError {
    /// Byte of the string at which it goes wrong.
    pub at: usize,
    /// What should have stood there.
    pub expected: &'static str,
}

/// Why references cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A string is not a template. A checked plan has none.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// The step has no output: it does not exist or has not succeeded.
    #[error("step {} has no output", excerpt(step))]
    NoOutput {
        /// The step.
        step: String,
    },
    /// The output does not have what the reference names.
    #[error("the output of step {} has no {}", excerpt(step), excerpt(path))]
    MissingPath {
        /// The step.
        step: String,
        /// The way into its output, up to the part that is missing, such as `.items[0]`.
        path: String,
    },
    /// The arguments would become larger than is allowed.
    #[error("the arguments are larger than {limit} bytes once references are resolved")]
    TooLarge {
        /// The most bytes of JSON.
        limit: usize,
    },
}

impl ReferenceError {
    /// Stable name of the reason, in snake case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "invalid_reference",
            Self::NoOutput { .. } => "reference_without_output",
            Self::MissingPath { .. } => "reference_not_found",
            Self::TooLarge { .. } => "args_too_large",
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "[{index}]"),
            Self::Key(key) if !key.is_empty() && key.chars().all(is_name_char) => {
                write!(f, ".{key}")
            }
            Self::Key(key) => write!(f, "[{}]", Value::from(key.as_str())),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${{steps.{}.output", self.step)?;
        for segment in &self.path {
            write!(f, "{segment}")?;
        }
        f.write_str("}")
    }
}

impl Template {
    /// Takes `text` apart.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            if let Some(before) = before.strip_suffix('$') {
                literal.push_str(before);
                literal.push_str("${");
                rest = after;
                continue;
            }
            literal.push_str(before);
            if !literal.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut literal)));
            }
            let mut cursor = Cursor { text, rest: after };
            parts.push(Part::Reference(cursor.reference()?));
            rest = cursor.rest;
        }
        literal.push_str(rest);
        if !literal.is_empty() || parts.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts })
    }

    /// The reference, when the string is exactly one.
    pub fn sole_reference(&self) -> Option<&Reference> {
        match self.parts.as_slice() {
            [Part::Reference(reference)] => Some(reference),
            _ => None,
        }
    }

    /// The text, when the string has no reference.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// Every reference, in the order of the text.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.parts.iter().filter_map(|part| match part {
            Part::Reference(reference) => Some(reference),
            Part::Text(_) => None,
        })
    }
}

/// Writes `text` so that it stands for itself in arguments.
pub fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

/// A string of arguments that holds `${`.
#[derive(Debug)]
pub(super) struct Site {
    /// JSON pointer into the arguments.
    pub(super) pointer: String,
    pub(super) template: Result<Template, SyntaxError>,
}

/// What can be said of arguments before anything runs.
#[derive(Debug)]
pub(super) struct Preview {
    /// The arguments with their literal texts as they will be; strings with references are as they
    /// were written.
    pub(super) args: Value,
    /// Every string that holds a reference, or something that looks like one.
    pub(super) sites: Vec<Site>,
}

pub(super) fn preview(args: &Value) -> Preview {
    let mut sites = Vec::new();
    let args = preview_at(args, &mut String::new(), &mut sites);
    Preview { args, sites }
}

fn preview_at(value: &Value, pointer: &mut String, sites: &mut Vec<Site>) -> Value {
    let length = pointer.len();
    match value {
        Value::String(text) if text.contains("${") => {
            let template = Template::parse(text);
            if let Ok(Some(literal)) = template.as_ref().map(Template::literal) {
                return Value::from(literal);
            }
            sites.push(Site {
                pointer: pointer.clone(),
                template,
            });
            value.clone()
        }
        Value::Array(items) => {
            let mut previews = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                pointer.push('/');
                pointer.push_str(&index.to_string());
                previews.push(preview_at(item, pointer, sites));
                pointer.truncate(length);
            }
            Value::Array(previews)
        }
        Value::Object(fields) => {
            let mut previews = serde_json::Map::new();
            for (name, field) in fields {
                pointer.push('/');
                pointer.push_str(&pointer_part(name));
                previews.insert(name.clone(), preview_at(field, pointer, sites));
                pointer.truncate(length);
            }
            Value::Object(previews)
        }
        other => other.clone(),
    }
}

/// The steps that `args` refers to, in the order of the text and with repetitions. Strings that are
/// not templates are passed over.
pub fn referenced_steps(args: &Value) -> Vec<String> {
    let sites = preview(args).sites;
    let templates = sites.iter().filter_map(|site| site.template.as_ref().ok());
    templates
        .flat_map(Template::references)
        .map(|reference| reference.step.clone())
        .collect()
}

/// `args` with every reference replaced by what `outputs` gives for its step. A string that is
/// exactly one reference becomes the value, its type kept; within text it becomes text: strings as
/// they are, other values as compact JSON. The result is at most `max_bytes` as compact JSON.
pub fn resolve<'a>(
    args: &Value,
    outputs: &dyn Fn(&str) -> Option<&'a Value>,
    max_bytes: usize,
) -> Result<Value, ReferenceError> {
    let mut resolver = Resolver {
        outputs,
        limit: max_bytes,
        left: max_bytes,
    };
    let result = resolver.value(args)?;
    // The resolver counts what it inserts, before it does, so that memory stays bounded; only the
    // whole tells whether the result fits.
    json_bytes(&result, max_bytes)
        .map(|_| result)
        .ok_or(ReferenceError::TooLarge { limit: max_bytes })
}

struct Resolver<'a, 'f> {
    outputs: &'f dyn Fn(&str) -> Option<&'a Value>,
    limit: usize,
    left: usize,
}

impl<'a> Resolver<'a, '_> {
    fn value(&mut self, value: &Value) -> Result<Value, ReferenceError> {
        match value {
            Value::String(text) if text.contains("${") => self.string(text),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => fields
                .iter()
                .map(|(name, field)| Ok((name.clone(), self.value(field)?)))
                .collect(),
            other => Ok(other.clone()),
        }
    }

    fn string(&mut self, text: &str) -> Result<Value, ReferenceError> {
        let template = Template::parse(text)?;
        if let Some(reference) = template.sole_reference() {
            let found = self.look_up(reference)?;
            return self.charge(found).map(|()| found.clone());
        }
        let mut result = String::new();
        for part in &template.parts {
            match part {
                Part::Text(text) => result.push_str(text),
                Part::Reference(reference) => {
                    let found = self.look_up(reference)?;
                    self.charge(found)?;
                    match found {
                        Value::String(text) => result.push_str(text),
                        other => result.push_str(&other.to_string()),
                    }
                }
            }
        }
        Ok(Value::String(result))
    }

    fn charge(&mut self, inserted: &Value) -> Result<(), ReferenceError> {
        // The JSON of a string is its text, escapes and two quotes; within text the quotes fall away.
        let size = json_bytes(inserted, self.left.saturating_add(2));
        let size = size.ok_or(ReferenceError::TooLarge { limit: self.limit })?;
        self.left = self.left.saturating_sub(size);
        Ok(())
    }

    fn look_up(&self, reference: &Reference) -> Result<&'a Value, ReferenceError> {
        let step = &reference.step;
        let mut value =
            (self.outputs)(step).ok_or_else(|| ReferenceError::NoOutput { step: step.clone() })?;
        for (depth, segment) in reference.path.iter().enumerate() {
            value = child(value, segment).ok_or_else(|| ReferenceError::MissingPath {
                step: step.clone(),
                path: reference.path[..=depth]
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            })?;
        }
        Ok(value)
    }
}

fn child<'a>(value: &'a Value, segment: &Segment) -> Option<&'a Value> {
    match (value, segment) {
        (Value::Object(fields), Segment::Key(key)) => fields.get(key),
        (Value::Array(items), Segment::Index(index)) => items.get(*index),
        (Value::Array(items), Segment::Key(key)) => items.get(index(key)?),
        _ => None,
    }
}

/// A decimal number without sign; `str::parse` alone would take `+1`.
fn index(text: &str) -> Option<usize> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn is_name_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '-'
}

/// Reads one reference after its `${`.
struct Cursor<'a> {
    text: &'a str,
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn reference(&mut self) -> Result<Reference, SyntaxError> {
        if !self.take("steps.") {
            return Err(self.expected("\"steps.<id>.output\""));
        }
        let step = self.take_while(|c| u8::try_from(c).is_ok_and(is_step_id_byte));
        if !is_step_id(step) {
            return Err(self.expected("a step id"));
        }
        if !self.take(".output") {
            return Err(self.expected("\".output\""));
        }
        let mut path = Vec::new();
        while !self.take("}") {
            path.push(self.segment()?);
        }
        Ok(Reference {
            step: step.to_owned(),
            path,
        })
    }

    fn segment(&mut self) -> Result<Segment, SyntaxError> {
        if self.take(".") {
            let name = self.take_while(is_name_char);
            return if name.is_empty() {
                Err(self.expected("a name"))
            } else {
                Ok(Segment::Key(name.to_owned()))
            };
        }
        if !self.take("[") {
            return Err(self.expected("\".\", \"[\" or \"}\""));
        }
        let segment = if self.rest.starts_with('"') {
            Segment::Key(self.quoted()?)
        } else {
            let digits = self.take_while(|c| c.is_ascii_digit());
            Segment::Index(index(digits).ok_or_else(|| self.expected("an index or a quoted name"))?)
        };
        if self.take("]") {
            Ok(segment)
        } else {
            Err(self.expected("\"]\""))
        }
    }

    /// A JSON string.
    fn quoted(&mut self) -> Result<String, SyntaxError> {
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
        let name = values.next().and_then(Result::ok);
        let read = values.byte_offset();
        let name = name.ok_or_else(|| self.expected("a quoted name"))?;
        self.rest = &self.rest[read..];
        Ok(name)
    }

    fn take(&mut self, prefix: &str) -> bool {
        self.rest.strip_prefix(prefix).is_some_and(|rest| {
            self.rest = rest;
            true
        })
    }

    fn take_while(&mut self, accepts: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accepts(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn expected(&self, expected: &'static str) -> SyntaxError {
        SyntaxError {
            at: self.text.len() - self.rest.len(),
            expected,
        }
    }
}

#[cfg(test)]
mod tests;
