//! Dead letters: records that could not be handled, with the original bytes and the reason.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ids::{RunId, TenantId};

/// Why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The value is not what its topic's schema says.
    Undecodable,
    /// It is of a schema version that its reader does not know: of a later build, as a rule.
    UnknownSchemaVersion,
    /// There is no signature, or it does not fit.
    Unsigned,
    /// The command was taken up too often without progress.
    TooManyDeliveries,
    /// Handling it panicked every time.
    Panicked,
    /// Its run failed: a step or a model call had all its attempts, or none more fitted into the
    /// run's time.
    AttemptsExhausted,
    /// Its run failed: a tool or the model failed in a way that another attempt would repeat.
    Permanent,
    /// Its run failed: whether a step had its effect is not known.
    OutcomeUnknown,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 8] = [
        Self::Undecodable,
        Self::UnknownSchemaVersion,
        Self::Unsigned,
        Self::TooManyDeliveries,
        Self::Panicked,
        Self::AttemptsExhausted,
        Self::Permanent,
        Self::OutcomeUnknown,
    ];

    /// The name, as in JSON, metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::UnknownSchemaVersion => "unknown_schema_version",
            Self::Unsigned => "unsigned",
            Self::TooManyDeliveries => "too_many_deliveries",
            Self::Panicked => "panicked",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::Permanent => "permanent",
            Self::OutcomeUnknown => "outcome_unknown",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FailureClass {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|class| class.as_str() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("expected one of {names}")
        })
    }
}

/// The value of a record on `dead.letter`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// Schema version.
    pub v: u16,
    /// The topic that it came from, as named on the broker.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The original key; base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The original value; base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The original headers; values in base64.
    pub headers: Vec<(String, String)>,
    /// Why.
    pub class: FailureClass,
    /// What was wrong, masked and cut.
    pub error: String,
    /// Times that it was tried.
    pub attempts: u32,
    /// Milliseconds since the epoch at which the record was made.
    pub first_ms: u64,
    /// Milliseconds since the epoch at which it was given up.
    pub last_ms: u64,
    /// The worker that gave it up.
    pub worker: String,
    /// The tenant, where the record was trusted enough to know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// The run, where the record was trusted enough to know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<RunId>,
    /// Trace context of the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What its run came to, where it is a run's letter.
    #[serde(flatten)]
    pub end: RunEnd,
}

/// What a run that became a dead letter came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunEnd {
    /// Why it failed: a stable name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The tool that failed, or `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The step that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    /// State of the tool's circuit breaker when it was given up, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
    /// The run whose finished steps it had taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<RunId>,
}

impl DeadLetter {
    /// The name of the letter: the place of the record that it is about. The same however often the
    /// letter is written.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }

    /// What letters about equal failures have in common: a hash, in hexadecimal, of class, code, tool
    /// and of the error without what differs from one time to the next.
    pub fn fingerprint(&self) -> String {
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let mut digest = Sha256::new();
        for part in [
            self.class.as_str(),
            &text(&self.end.code),
            &text(&self.end.tool),
            &normalise(&self.error),
        ] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        hex::encode(&digest.finalize()[..8])
    }
}

/// A text without its numbers, ids and hashes, in lower case. The status of an HTTP answer stays: it is
/// what sets failures apart.
fn normalise(text: &str) -> String {
    let text = text.to_lowercase();
    let mut normal = String::with_capacity(text.len());
    let mut before = "";
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let inside = part_of_word(first);
        let end = rest.find(|c| part_of_word(c) != inside);
        let (run, after) = rest.split_at(end.unwrap_or(rest.len()));
        let varies = inside && run.contains(|c: char| c.is_ascii_digit());
        let status = run.len() == 3 && matches!(before, "http" | "status");
        normal.push_str(if varies && !status { "#" } else { run });
        if inside {
            before = run;
        }
        rest = after;
    }
    normal
}

/// The place of the record that a letter is about, as people and paths name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId {
    topic: String,
    partition: i32,
    offset: i64,
}

impl LetterId {
    /// The name in the index: as [`DeadLetter::id`].
    pub fn indexed(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl fmt::Display for LetterId {
    /// `<topic>.<partition>.<offset>`: one part of a path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.topic, self.partition, self.offset)
    }
}

impl From<&DeadLetter> for LetterId {
    fn from(letter: &DeadLetter) -> Self {
        Self {
            topic: letter.topic.clone(),
            partition: letter.partition,
            offset: letter.offset,
        }
    }
}

impl FromStr for LetterId {
    type Err = String;

    /// Either form, with dots or with slashes: what varies stands at the end, so both are clear.
    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |separator| {
            let mut parts = text.rsplitn(3, separator);
            let offset = parts.next()?.parse().ok()?;
            let partition = parts.next()?.parse().ok()?;
            let topic = parts.next()?;
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            let fits = !topic.is_empty() && topic.len() <= 249 && topic.bytes().all(allowed);
            (fits && offset >= 0 && partition >= 0).then(|| Self {
                topic: topic.to_owned(),
                partition,
                offset,
            })
        };
        let id = parse('/').or_else(|| parse('.'));
        id.ok_or_else(|| "expected <topic>.<partition>.<offset>".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_one_time_to_the_next_does_not_count() {
        let one = normalise("HTTP 503 from http://10.0.0.1:8080/a after 12 ms, run_0190b3c2");
        assert_eq!(one, "http 503 from http://#.#.#.#:#/a after # ms, #");
        assert_ne!(normalise("HTTP 503"), normalise("HTTP 404"));
        assert_eq!(normalise(""), "");
        assert_eq!(normalise("Zu sp\u{e4}t: 5s"), "zu sp\u{e4}t: #");
    }

    #[test]
    fn an_id_is_one_part_of_a_path_and_is_read_in_both_forms() {
        for text in ["ns.execute.commands.2.1041", "ns.execute.commands/2/1041"] {
            let id: LetterId = text.parse().unwrap();
            assert_eq!(id.to_string(), "ns.execute.commands.2.1041");
            assert_eq!(id.indexed(), "ns.execute.commands/2/1041");
        }
        for wrong in [
            "", "t", "t.1", ".1.2", "t.x.1", "t.1.-2", "a b.1.2", "../1/2/x",
        ] {
            assert!(wrong.parse::<LetterId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_class_has_one_name_everywhere() {
        for class in FailureClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(serde_json::json!(class), class.as_str());
        }
        assert!("unsinged".parse::<FailureClass>().is_err());
    }
}
