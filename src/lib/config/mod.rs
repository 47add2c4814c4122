//! Configuration: the only place that reads the environment.
//!
//! A setting comes from the environment, else from the TOML file that `AGENTHUB_CONFIG` names, else
//! from its default. `<NAME>_FILE` names a file that holds the value (for secrets that are mounted).
//! Each setting is declared once, in `settings`; the struct, the reference page and the check for
//! unknown names are made from that declaration.
//!
//! Invariant: a process that starts has a configuration in which every value was parsed and checked.

mod kafka;
mod redis_address;
mod settings;
mod source;
mod storage;
mod value;

use kafka::check_kafka;
pub(crate) use kafka::{kafka_properties, load_kafka_properties};
pub use redis_address::{RedisKind, RedisSettings, RedisTls};
pub use settings::{REFERENCE, Settings};
pub(crate) use settings::{check_group_protocol, check_namespace};
pub use source::{ConfigError, Source};
pub use storage::StorageSettings;
pub use value::{
    AuditFull, ByteCount, ForwardedHeader, Millis, Origin, Rule, Share, TenantDays, ToolTtl,
};

/// What is known of one setting: the source of the reference page and of `config check`.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable; in lower case and without `AGENTHUB_`, the key in the file.
    pub env: &'static str,
    /// What applies when nothing is given; empty when there is no default.
    pub default: &'static str,
    /// What it does, its unit included.
    pub doc: &'static str,
    /// Whether the value is hidden wherever it is shown.
    pub secret: bool,
}

impl Setting {
    /// The key of this setting in the configuration file.
    pub fn file_key(&self) -> String {
        self.env
            .strip_prefix("AGENTHUB_")
            .unwrap_or(self.env)
            .to_ascii_lowercase()
    }
}
