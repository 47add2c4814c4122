//! Where the audit files are, which keys are believed, and which time is meant.

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};

use crate::config::{Source, StorageSettings};
use crate::rollup::{AuditSigner, PublicKeys};
use crate::tools::retrieval::storage::Storage;

/// The object store of a command, and the keys.
#[derive(Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// A public key, `<id>:<base64>`, or a file with some; may be given several times. With
    /// `AGENTHUB_AUDIT_PUBLIC_KEYS`, whose keys are believed too, it may be left out.
    #[arg(long, value_name = "KEY|FILE")]
    public_key: Vec<String>,
}

/// Opens the store at `url`, or the configured one. A folder must be there.
pub(super) fn open(source: &Source, url: Option<String>) -> anyhow::Result<Storage> {
    let mut settings = StorageSettings::load(source)?;
    if let Some(url) = url {
        settings.url = url;
    }
    let folder = settings
        .url
        .strip_prefix("file://")
        .unwrap_or(&settings.url);
    if !settings.url.starts_with("s3://") && !std::path::Path::new(folder).is_dir() {
        bail!("{folder} is not a folder");
    }
    Ok(Storage::open(&settings)?)
}

/// The configured signing key.
pub(super) fn signer(source: &Source) -> anyhow::Result<AuditSigner> {
    let key: SecretString = source.setting("AGENTHUB_AUDIT_SIGNING_KEY")?;
    let key = key.expose_secret();
    if key.is_empty() {
        bail!("AGENTHUB_AUDIT_SIGNING_KEY is required");
    }
    AuditSigner::parse(key).map_err(|e| anyhow!("AGENTHUB_AUDIT_SIGNING_KEY: {e}"))
}

impl PlaceArgs {
    /// The keys that were given and those of the configuration, and `more`.
    pub(super) fn keys(&self, source: &Source, more: PublicKeys) -> anyhow::Result<PublicKeys> {
        let configured: String = source.setting("AGENTHUB_AUDIT_PUBLIC_KEYS")?;
        let configured = PublicKeys::parse(&configured)
            .map_err(|e| anyhow!("AGENTHUB_AUDIT_PUBLIC_KEYS: {e}"))?;
        let mut keys = more.and(configured).map_err(|e| anyhow!(e))?;
        for given in &self.public_key {
            let is_key = given.contains(':') && !std::path::Path::new(given).exists();
            let text = if is_key {
                given.clone()
            } else {
                std::fs::read_to_string(given).with_context(|| format!("--public-key {given}"))?
            };
            let parsed = PublicKeys::parse(&text).and_then(|parsed| keys.and(parsed));
            keys = parsed.map_err(|e| anyhow!("--public-key: {e}"))?;
        }
        if keys.is_empty() {
            bail!("no public key: give --public-key, or set AGENTHUB_AUDIT_PUBLIC_KEYS");
        }
        Ok(keys)
    }
}

/// A time: RFC 3339, a day in UTC, or how long ago as `90m`, `24h`, `7d`.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let expected = || "expected a time such as 2026-02-03T04:00:00Z, 2026-02-03 or 24h".to_owned();
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    if let Ok(day) = format!("{text}T00:00:00Z").parse() {
        return Ok(day);
    }
    let unit = match text.chars().last() {
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(expected()),
    };
    let number: i64 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    let seconds = number
        .checked_mul(unit)
        .filter(|s| *s >= 0)
        .ok_or_else(expected)?;
    let ago = jiff::SignedDuration::from_secs(seconds);
    Timestamp::now().checked_sub(ago).map_err(|_| expected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_in_three_forms() {
        let ms = |text| time(text).unwrap().as_millisecond();
        assert_eq!(ms("2026-02-03T04:00:00Z"), 1_770_091_200_000);
        assert_eq!(ms("2026-02-03"), 1_770_076_800_000);
        let then = ms("1d");
        let day_ago = Timestamp::now().as_millisecond() - then;
        assert!((86_400_000..86_500_000).contains(&day_ago), "{day_ago}");
        for text in [
            "",
            "d",
            "-1d",
            "1w",
            "2026-13-01",
            "999999999999999999d",
            "ü",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
