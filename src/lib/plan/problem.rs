//! What is wrong with a plan, told so that a person or a model can correct it.

use std::fmt;

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind as Kind;
use serde::Serialize;

/// The most problems that one check reports.
pub const MAX_PROBLEMS: usize = 20;

/// The most characters of a plan's own text that a message repeats.
const MAX_EXCERPT: usize = 64;
const MAX_PATH: usize = 256;

/// One thing that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanProblem {
    /// Stable name of the rule that is broken, in snake case.
    pub code: &'static str,
    /// Where: a JSON pointer (RFC 6901) into the plan, such as `/steps/0/args/url`; empty for the
    /// whole plan. Cut after 256 characters.
    pub path: String,
    /// For people and models. It repeats at most 64 characters of the plan.
    pub message: String,
}

impl PlanProblem {
    /// A problem at `path`. What `message` repeats of the plan must come from [`excerpt`].
    pub fn new(code: &'static str, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code,
            path: cut(path.into(), MAX_PATH),
            message: message.into(),
        }
    }

    /// The index of the step that this is about, or `None` when it is about the whole plan.
    pub fn step_index(&self) -> Option<usize> {
        let rest = self.path.strip_prefix("/steps/")?;
        rest.split('/').next()?.parse().ok()
    }
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() {
            "/"
        } else {
            &self.path
        };
        write!(f, "{path}: {} ({})", self.message, self.code)
    }
}

/// Collects problems up to [`MAX_PROBLEMS`].
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<PlanProblem>);

impl Problems {
    pub(super) fn add(&mut self, code: &'static str, path: String, message: String) {
        if self.0.len() < MAX_PROBLEMS {
            self.0.push(PlanProblem::new(code, path, message));
        }
    }

    /// `value` when there are no problems.
    pub(super) fn or<T>(self, value: T) -> Result<T, Vec<PlanProblem>> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self.0)
        }
    }
}

/// Why arguments do not fit a tool's JSON Schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgsProblem {
    /// Where: a JSON pointer into the arguments; empty for the arguments as a whole.
    pub path: String,
    /// The schema keyword that refused, such as `required`. For what `then` and `else` refuse it is
    /// `if`, because whether they apply depends on other values.
    pub keyword: String,
    /// For people and models. It repeats at most 64 characters of the arguments.
    pub message: String,
}

impl From<&ValidationError<'_>> for ArgsProblem {
    fn from(error: &ValidationError<'_>) -> Self {
        let conditional = error
            .schema_path()
            .as_str()
            .split('/')
            .any(|part| part == "then" || part == "else");
        let keyword = if conditional {
            "if"
        } else {
            error.kind().keyword()
        };
        // These two repeat names that the plan chose; all other messages speak of the schema once
        // the value itself is masked.
        let message = match error.kind() {
            Kind::AdditionalProperties { unexpected }
            | Kind::UnevaluatedProperties { unexpected } => {
                format!("unknown field {}", excerpt(&unexpected.join(", ")))
            }
            Kind::PropertyNames { .. } => "a field has a name that is not allowed".to_owned(),
            Kind::UnevaluatedItems { .. } => "more items than are allowed".to_owned(),
            _ => error.masked_with("the value").to_string(),
        };
        Self {
            path: error.instance_path().as_str().to_owned(),
            keyword: keyword.to_owned(),
            message: cut(message, MAX_PATH),
        }
    }
}

/// At most the first 64 characters of `text` in quotes, without control characters.
pub fn excerpt(text: &str) -> String {
    let shown: String = text
        .chars()
        .take(MAX_EXCERPT)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let more = if text.chars().nth(MAX_EXCERPT).is_some() {
        "…"
    } else {
        ""
    };
    format!("\"{shown}{more}\"")
}

fn cut(mut text: String, max_chars: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(max_chars) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// One component of a JSON pointer, escaped (RFC 6901, section 3).
pub(super) fn pointer_part(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problems(schema: &Value, args: &Value) -> Vec<ArgsProblem> {
        let validator = jsonschema::validator_for(schema).unwrap();
        validator
            .iter_errors(args)
            .map(|error| ArgsProblem::from(&error))
            .collect()
    }

    #[test]
    fn schema_errors_repeat_little_of_the_arguments() {
        let schema = json!({
            "type": "object",
            "properties": {
                "n": {"type": "integer"},
                "s": {"enum": ["a", "b"]},
                "t": {"type": "string", "maxLength": 5, "pattern": "^x"}
            },
            "additionalProperties": false
        });
        let long = "z".repeat(5000);
        let args = json!({"n": long, "s": long, "t": long, &long: 1});
        let found = problems(&schema, &args);
        let keywords: Vec<&str> = found.iter().map(|p| p.keyword.as_str()).collect();
        for keyword in [
            "type",
            "enum",
            "maxLength",
            "pattern",
            "additionalProperties",
        ] {
            assert!(keywords.contains(&keyword), "{keyword}: {keywords:?}");
        }
        for problem in &found {
            let repeated = problem.message.matches('z').count();
            assert!(repeated <= 64, "{problem:?}");
        }
    }

    #[test]
    fn what_hangs_on_a_condition_is_marked() {
        let schema = json!({
            "if": {"properties": {"m": {"const": "a"}}},
            "else": {"required": ["x"]}
        });
        let found = problems(&schema, &json!({"m": "b"}));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].keyword, "if");
    }

    #[test]
    fn pointers_are_escaped_as_the_validator_does() {
        let schema = json!({"additionalProperties": {"type": "integer"}});
        let found = problems(&schema, &json!({"a/b~c": "x"}));
        assert_eq!(found[0].path, format!("/{}", pointer_part("a/b~c")));
    }

    #[test]
    fn excerpts_are_short_and_printable() {
        assert_eq!(excerpt("a\nb"), "\"a b\"");
        let cut = excerpt(&"ä".repeat(65));
        assert_eq!(cut.matches('ä').count(), 64);
        assert!(cut.ends_with("…\""));
    }

    #[test]
    fn the_step_is_read_from_the_path() {
        let at = |path: &str| PlanProblem::new("x", path, "").step_index();
        assert_eq!(at("/steps/12/args"), Some(12));
        assert_eq!(at("/steps/3"), Some(3));
        assert_eq!(at("/steps"), None);
        assert_eq!(at(""), None);
    }

    #[test]
    fn no_more_than_the_cap_is_kept() {
        let mut problems = Problems::default();
        for _ in 0..100 {
            problems.add("x", String::new(), String::new());
        }
        assert_eq!(problems.or(()).unwrap_err().len(), MAX_PROBLEMS);
    }
}
