//! How the text of a setting becomes a value.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

/// A duration written in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    /// The same span as a [`Duration`].
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// A size in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteCount(pub usize);

/// One rate-limit rule, written `<limit>/<window in ms>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Requests accepted in any window.
    pub limit: u32,
    /// Length of the window in milliseconds.
    pub window_ms: u64,
}

/// How long a tool's results are kept, written `<tool>=<seconds>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolTtl {
    /// The tool.
    pub tool: String,
    /// Seconds; 0 keeps none.
    pub seconds: u64,
}

/// A type that a setting can have.
pub trait Parse: Sized {
    /// The value that `text` writes. `Err` holds what was expected, never the given text, which may
    /// be a secret.
    fn parse(text: &str) -> Result<Self, String>;
}

macro_rules! parse_from_str {
    ($($type:ty => $expected:literal),+ $(,)?) => {$(
        impl Parse for $type {
            fn parse(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| $expected.to_owned())
            }
        }
    )+};
}

parse_from_str! {
    u16 => "a whole number from 0 to 65535",
    u32 => "a whole number from 0 to 4294967295",
    u64 => "a whole number of at least 0",
    usize => "a whole number of at least 0",
    std::net::SocketAddr => "an address and port such as 127.0.0.1:8080",
}

impl Parse for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().to_owned())
    }
}

impl Parse for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().into())
    }
}

impl Parse for SecretString {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.trim().to_owned().into())
    }
}

impl Parse for bool {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" | "1" | "yes" => Ok(true),
            "false" | "0" | "no" => Ok(false),
            _ => Err("true or false".to_owned()),
        }
    }
}

impl Parse for Millis {
    fn parse(text: &str) -> Result<Self, String> {
        u64::parse(text)
            .map(Millis)
            .map_err(|_| "a whole number of milliseconds".to_owned())
    }
}

impl Parse for ByteCount {
    fn parse(text: &str) -> Result<Self, String> {
        usize::parse(text)
            .map(ByteCount)
            .map_err(|_| "a whole number of bytes".to_owned())
    }
}

impl Parse for Rule {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "a rule <limit>/<window in ms> such as 10/1000".to_owned();
        let (limit, window) = text.trim().split_once('/').ok_or_else(expected)?;
        let rule = Rule {
            limit: limit.parse().map_err(|_| expected())?,
            window_ms: window.parse().map_err(|_| expected())?,
        };
        if rule.limit == 0 || rule.window_ms == 0 {
            Err(expected())
        } else {
            Ok(rule)
        }
    }
}

impl Parse for ToolTtl {
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || "<tool>=<seconds> such as http_fetch=60, at most a day".to_owned();
        let (tool, seconds) = text.trim().split_once('=').ok_or_else(expected)?;
        let seconds = seconds.trim().parse().map_err(|_| expected())?;
        if seconds > 86_400 || tool.trim().is_empty() {
            return Err(expected());
        }
        let tool = tool.trim().to_owned();
        Ok(Self { tool, seconds })
    }
}

/// An empty text is "not given".
impl<T: Parse> Parse for Option<T> {
    fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            Ok(None)
        } else {
            T::parse(text).map(Some)
        }
    }
}

/// Comma-separated; an empty text is the empty list.
impl<T: Parse> Parse for Vec<T> {
    fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .filter(|part| !part.trim().is_empty())
            .map(T::parse)
            .collect()
    }
}
