//! The version of the messages' schema: what this build writes, and what it reads.

use serde::Deserialize;

use super::{AuditRecord, Command, DeadLetter, EventBatch, FailureClass, StateRecord};

/// Version of the schema that this build writes.
pub const SCHEMA_VERSION: u16 = 1;

/// The oldest version that this build reads. It is raised only when no topic can hold an older record any
/// more: `agent.state` is compacted and never ends, so that its records keep their readers for good.
pub const OLDEST_VERSION: u16 = 1;

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is of a version that this build does not know: one that reads it may be on its way.
    #[error("unknown schema version {0}; this build reads {OLDEST_VERSION} to {SCHEMA_VERSION}")]
    Version(u16),
    /// It is not what its topic's schema says.
    #[error("{0}")]
    Undecodable(String),
}

impl Unreadable {
    /// The class of its dead letter.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Version(_) => FailureClass::UnknownSchemaVersion,
            Self::Undecodable(_) => FailureClass::Undecodable,
        }
    }
}

/// A value that says its version.
pub trait Versioned {
    /// Version of its schema.
    fn version(&self) -> u16;
}

macro_rules! versioned {
    ($($kind:ty),+) => {
        $(impl Versioned for $kind {
            fn version(&self) -> u16 {
                self.v
            }
        })+
    };
}

versioned!(AuditRecord, Command, DeadLetter, EventBatch, StateRecord);

/// Reads a value of a version that this build knows. One of another version is told apart even where
/// its form is another too.
pub fn read<'v, T: Deserialize<'v> + Versioned>(value: &'v [u8]) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        v: u16,
    }
    let known = |v: u16| (OLDEST_VERSION..=SCHEMA_VERSION).contains(&v);
    match serde_json::from_slice::<T>(value) {
        Ok(read) if known(read.version()) => Ok(read),
        Ok(other) => Err(Unreadable::Version(other.version())),
        Err(error) => match serde_json::from_slice::<Version>(value) {
            Ok(Version { v }) if !known(v) => Err(Unreadable::Version(v)),
            _ => Err(Unreadable::Undecodable(error.to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Result<u16, Unreadable> {
        read::<EventBatch>(text.as_bytes()).map(|batch| batch.v)
    }

    #[test]
    fn a_version_that_is_not_known_is_no_broken_record() {
        let next = SCHEMA_VERSION + 1;
        assert_eq!(
            outcome(&format!(r#"{{"v":{SCHEMA_VERSION},"events":[]}}"#)),
            Ok(SCHEMA_VERSION)
        );
        assert_eq!(
            outcome(&format!(r#"{{"v":{OLDEST_VERSION},"events":[]}}"#)),
            Ok(OLDEST_VERSION)
        );
        for form in ["\"events\":[]", "\"events\":7", "\"other\":{}"] {
            let text = format!("{{\"v\":{next},{form}}}");
            let unknown = Err(Unreadable::Version(next));
            assert_eq!(outcome(&text), unknown, "{text}");
        }
        assert_eq!(
            outcome(r#"{"v":0,"events":[]}"#),
            Err(Unreadable::Version(0))
        );
        for broken in ["{", r#"{"events":[]}"#, r#"{"v":1}"#, r#"{"v":"2"}"#] {
            let class = outcome(broken).unwrap_err().class();
            assert_eq!(class, FailureClass::Undecodable, "{broken}");
        }
    }
}
