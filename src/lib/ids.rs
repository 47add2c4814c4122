//! Identifiers. Each is validated where it enters the system, so that the rest of the code can put
//! it into a Redis key, a Kafka key or a header without looking at it again.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}")]
pub struct InvalidId {
    /// The kind of identifier that was wanted, as shown to a client: `session id`, `tenant`, …
    pub kind: &'static str,
}

/// Declares an identifier of the form `<prefix>_<32 lower-case hex digits>`; the digits are a UUID
/// version 7 (RFC 9562), so that identifiers sort by creation time.
macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl $name {
            /// A fresh identifier, unique over all processes.
            pub fn generate() -> Self {
                Self(format!(concat!($prefix, "_{}"), Uuid::now_v7().simple()))
            }

            /// The identifier as it is written everywhere.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Milliseconds since the epoch at which it was made, as a UUID version 7 says. 0 when
            /// somebody else made it up in another way.
            pub fn created_ms(&self) -> i64 {
                let digits = self.0.split('_').nth(1).unwrap_or_default();
                let time = digits.get(..12).map(|time| i64::from_str_radix(time, 16));
                time.and_then(Result::ok).unwrap_or(0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let digits = text.strip_prefix(concat!($prefix, "_")).unwrap_or_default();
                let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                if digits.len() == 32 && digits.bytes().all(hex) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidId { kind: $kind })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

uuid_id!(
    /// A run: one request to plan, to execute, or both.
    RunId, "run", "run id"
);
uuid_id!(
    /// A session: the context, history and data key that runs share.
    SessionId, "ses", "session id"
);

/// Declares an identifier of lower-case letters, digits and inner hyphens, at most 63 bytes.
macro_rules! label_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schemars(with = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as it is written everywhere.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
                let valid = (1..=63).contains(&text.len())
                    && text.bytes().all(inner)
                    && !text.starts_with('-')
                    && !text.ends_with('-');
                if valid { Ok(Self(text.to_owned())) } else { Err(InvalidId { kind: $kind }) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label_id!(
    /// A tenant. It is the hash tag of every Redis key of its runs and part of every API key, so it
    /// holds neither braces nor underscores.
    TenantId, "tenant"
);
label_id!(
    /// The stable name of an API key; limits, budgets and audit refer to it.
    KeyId, "key id"
);

impl TenantId {
    /// The tenant of the installation's operator.
    pub const SYSTEM: &'static str = "system";

    /// The operator's own tenant.
    pub fn system() -> Self {
        Self(Self::SYSTEM.to_owned())
    }

    /// The tenant of what was asked without a valid key; nobody's, and no key is of it.
    pub fn anonymous() -> Self {
        Self("anonymous".to_owned())
    }

    /// Whether keys can be of this tenant.
    pub fn may_have_keys(&self) -> bool {
        *self != Self::anonymous()
    }

    /// Whether this is the operator's own tenant.
    pub fn is_system(&self) -> bool {
        self.0 == Self::SYSTEM
    }
}

impl KeyId {
    /// A fresh key identifier of 16 characters.
    pub fn generate() -> Self {
        Self(Uuid::new_v4().simple().to_string()[..16].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_ids_parse_and_sort_by_time() {
        let first = RunId::generate();
        let second = RunId::generate();
        assert_eq!(first.as_str().parse(), Ok(first.clone()));
        assert!(first < second);
        let (from, to) = (first.created_ms(), second.created_ms());
        assert!(from > 1_700_000_000_000 && from <= to && to - from < 60_000);
        assert_eq!(RunId(format!("run_{}", "0".repeat(32))).created_ms(), 0);
    }

    #[test]
    fn foreign_texts_are_refused() {
        for text in [
            "",
            "run_",
            "run_XYZ",
            "ses_00000000000000000000000000000000",
            "run_{a}",
        ] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
        for text in ["", "-a", "a-", "A", "a_b", "a{b}", &"a".repeat(64)] {
            assert!(text.parse::<TenantId>().is_err(), "{text}");
        }
        assert!("acme-1".parse::<TenantId>().is_ok());
    }
}
