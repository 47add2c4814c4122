//! Dead letters: records that could not be handled, with the original bytes and the reason.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{RunId, TenantId};

/// Why a record became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The value is not what its topic's schema says.
    Undecodable,
    /// There is no signature, or it does not fit.
    Unsigned,
    /// The command was taken up too often without progress.
    TooManyDeliveries,
    /// Handling it panicked every time.
    Panicked,
}

impl FailureClass {
    /// Every class.
    pub const ALL: [Self; 4] = [
        Self::Undecodable,
        Self::Unsigned,
        Self::TooManyDeliveries,
        Self::Panicked,
    ];

    /// The name, as in JSON, metrics and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Unsigned => "unsigned",
            Self::TooManyDeliveries => "too_many_deliveries",
            Self::Panicked => "panicked",
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
}

impl DeadLetter {
    /// The name of the letter: the place of the record that it is about. The same however often the
    /// letter is written.
    pub fn id(&self) -> String {
        format!("{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_one_name_everywhere() {
        for class in FailureClass::ALL {
            assert_eq!(class.as_str().parse(), Ok(class));
            assert_eq!(serde_json::json!(class), class.as_str());
        }
        assert!("unsinged".parse::<FailureClass>().is_err());
    }
}
