//! Where the text of a setting comes from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::value::Parse;
use super::{REFERENCE, Setting};

/// Why a configuration was refused. The text names the setting and never shows its value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value does not have the form of its setting.
    #[error("{name}: expected {expected}")]
    Invalid {
        /// The environment variable of the setting.
        name: &'static str,
        /// The form that was expected.
        expected: String,
    },
    /// A setting without a default was not given.
    #[error("{name} is required: {doc}")]
    Missing {
        /// The environment variable of the setting.
        name: &'static str,
        /// What the setting does.
        doc: &'static str,
    },
    /// A file that the configuration names cannot be read.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// A name that no setting has.
    #[error("unknown setting {name}{}", nearest.as_deref().map(|n| format!(" (did you mean {n}?)")).unwrap_or_default())]
    Unknown {
        /// The name as given.
        name: String,
        /// The setting whose name is closest.
        nearest: Option<String>,
    },
}

/// The texts from which settings are parsed.
#[derive(Debug, Default)]
pub struct Source {
    env: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
}

impl Source {
    /// The process' environment and the file that `AGENTHUB_CONFIG` names.
    pub fn from_process() -> Result<Self, ConfigError> {
        Self::from_env(std::env::vars().collect())
    }

    /// As [`Source::from_process`], from the given variables.
    pub fn from_env(env: BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let file = match env.get("AGENTHUB_CONFIG") {
            Some(path) => read_file(Path::new(path))?,
            None => BTreeMap::new(),
        };
        let source = Self { env, file };
        source.refuse_unknown_names()?;
        Ok(source)
    }

    fn refuse_unknown_names(&self) -> Result<(), ConfigError> {
        // A setting's own name may end in `_FILE`, too.
        let known = |given: &str| {
            let name = given.strip_suffix("_FILE").unwrap_or(given);
            name == "AGENTHUB_CONFIG"
                || super::settings::FOR_CLIENTS.contains(&name)
                || REFERENCE.iter().any(|s| s.env == name || s.env == given)
        };
        let env = self
            .env
            .keys()
            .filter(|n| n.starts_with("AGENTHUB_") && !known(n));
        let file = self
            .file
            .keys()
            .filter(|k| !REFERENCE.iter().any(|s| s.file_key() == **k));
        match env.chain(file).next() {
            None => Ok(()),
            Some(name) => Err(ConfigError::Unknown {
                name: name.clone(),
                nearest: nearest(name),
            }),
        }
    }

    /// One setting, for a command that needs no others (and so no secrets). `env` is the name in
    /// [`REFERENCE`]; a setting whose form depends on its meaning is checked by whoever reads it.
    pub fn setting<T: Parse>(&self, env: &str) -> Result<T, ConfigError> {
        let setting = REFERENCE.iter().find(|s| s.env == env);
        self.get(setting.ok_or_else(|| ConfigError::Unknown {
            name: env.to_owned(),
            nearest: nearest(env),
        })?)
    }

    pub(super) fn get<T: Parse>(&self, setting: &Setting) -> Result<T, ConfigError> {
        let text = match self.text(setting)? {
            Some(text) => text,
            None if setting.default == super::settings::REQUIRED => {
                return Err(ConfigError::Missing {
                    name: setting.env,
                    doc: setting.doc,
                });
            }
            None => setting.default.to_owned(),
        };
        T::parse(&text).map_err(|expected| ConfigError::Invalid {
            name: setting.env,
            expected,
        })
    }

    fn text(&self, setting: &Setting) -> Result<Option<String>, ConfigError> {
        if let Some(text) = self.env.get(setting.env) {
            return Ok(Some(text.clone()));
        }
        if let Some(path) = self.env.get(&format!("{}_FILE", setting.env)) {
            let path = PathBuf::from(path);
            return match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) => Err(ConfigError::File {
                    path,
                    reason: error.to_string(),
                }),
            };
        }
        Ok(self.file.get(&setting.file_key()).cloned())
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, ConfigError> {
    let fail = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| fail(e.to_string()))?;
    Ok(table
        .into_iter()
        .map(|(key, value)| match value {
            toml::Value::String(text) => (key, text),
            toml::Value::Array(items) => {
                let texts = items
                    .iter()
                    .map(|v| v.as_str().map_or(v.to_string(), str::to_owned));
                (key, texts.collect::<Vec<_>>().join(","))
            }
            other => (key, other.to_string()),
        })
        .collect())
}

/// The known name with the smallest edit distance, when it is close enough to be meant.
fn nearest(name: &str) -> Option<String> {
    REFERENCE
        .iter()
        .flat_map(|s| [s.env.to_owned(), s.file_key()])
        .map(|known| (edit_distance(name, &known), known))
        .min()
        .filter(|(distance, known)| *distance <= known.len() / 3)
        .map(|(_, known)| known)
}

/// Levenshtein distance in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::Settings;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let required = [
            (
                "AGENTHUB_SIGNING_SECRETS",
                "k1:c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LTMyISE=",
            ),
            (
                "AGENTHUB_MASTER_KEYS",
                "m1:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
            ),
        ];
        required
            .iter()
            .chain(pairs)
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn environment_beats_file_beats_default() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "kafka_brokers = \"file:1\"\nredis_url = \"redis://file/\"",
        )
        .unwrap();
        let path = file.path().to_str().unwrap();
        let source = Source::from_env(env(&[
            ("AGENTHUB_CONFIG", path),
            ("KAFKA_BROKERS", "env:1"),
        ]));
        let settings = Settings::load(&source.unwrap()).unwrap();
        assert_eq!(settings.kafka_brokers, "env:1");
        assert_eq!(settings.redis_url.expose_secret(), "redis://file/");
        assert_eq!(settings.max_body_bytes.0, 256 * 1024);
    }

    #[test]
    fn a_misspelt_name_is_refused_with_the_nearest() {
        let error = Source::from_env(env(&[("AGENTHUB_MAX_INFLIGHT", "3")])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("did you mean AGENTHUB_MAX_IN_FLIGHT"),
            "{error}"
        );
    }

    #[test]
    fn a_setting_whose_name_ends_in_file_is_no_other_settings_file() {
        let source = Source::from_env(env(&[("AGENTHUB_PRICES_FILE", "/prices.toml")])).unwrap();
        let settings = Settings::load(&source).unwrap();
        assert_eq!(settings.prices_file, Some("/prices.toml".into()));
        assert!(Source::from_env(env(&[("AGENTHUB_PRICES", "x")])).is_err());
    }

    #[test]
    fn a_wrong_value_is_named_and_not_shown() {
        let source = Source::from_env(env(&[("AGENTHUB_MAX_IN_FLIGHT", "sesame")])).unwrap();
        let error = Settings::load(&source).unwrap_err().to_string();
        assert!(
            error.starts_with("AGENTHUB_MAX_IN_FLIGHT") && !error.contains("sesame"),
            "{error}"
        );
    }
}
