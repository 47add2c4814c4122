//! The settings of the object store, which commands load without the rest.

use secrecy::SecretString;

use super::settings::REFERENCE;
use super::value::Parse;
use super::{ConfigError, Settings, Source};

/// Where documents and audit files are kept, and how to get there.
#[derive(Debug, Clone)]
pub struct StorageSettings {
    /// A folder, or `s3://bucket/prefix`.
    pub url: String,
    /// Endpoint of an S3-compatible store; Amazon's own when absent.
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: String,
    /// Access key; empty for the role of the machine.
    pub access_key_id: String,
    /// Secret of the access key.
    pub secret_access_key: SecretString,
    /// Session token of a temporary access key; empty when there is none.
    pub session_token: SecretString,
    /// Whether the endpoint may be plain HTTP.
    pub allow_http: bool,
}

impl StorageSettings {
    /// Parses these settings alone, for commands that need neither secrets of the API nor Kafka.
    pub fn load(source: &Source) -> Result<Self, ConfigError> {
        Ok(Self {
            url: one(source, "AGENTHUB_STORAGE_URL")?,
            endpoint: one(source, "AWS_ENDPOINT_URL")?,
            region: one(source, "AWS_REGION")?,
            access_key_id: one(source, "AWS_ACCESS_KEY_ID")?,
            secret_access_key: one(source, "AWS_SECRET_ACCESS_KEY")?,
            session_token: one(source, "AWS_SESSION_TOKEN")?,
            allow_http: one(source, "AWS_ALLOW_HTTP")?,
        })
    }
}

impl From<&Settings> for StorageSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            url: settings.storage_url.clone(),
            endpoint: settings.aws_endpoint_url.clone(),
            region: settings.aws_region.clone(),
            access_key_id: settings.aws_access_key_id.clone(),
            secret_access_key: settings.aws_secret_access_key.clone(),
            session_token: settings.aws_session_token.clone(),
            allow_http: settings.aws_allow_http,
        }
    }
}

fn one<T: Parse>(source: &Source, env: &str) -> Result<T, ConfigError> {
    match REFERENCE.iter().find(|setting| setting.env == env) {
        Some(setting) => source.get(setting),
        None => Err(ConfigError::Unknown {
            name: env.to_owned(),
            nearest: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn loads_without_the_required_settings_of_the_processes() {
        let env = [
            ("AGENTHUB_STORAGE_URL", "s3://b/p"),
            ("AWS_ALLOW_HTTP", "true"),
        ];
        let env: BTreeMap<_, _> = env.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let storage = StorageSettings::load(&Source::from_env(env).unwrap()).unwrap();
        assert_eq!(storage.url, "s3://b/p");
        assert_eq!(storage.region, "us-east-1");
        assert!(storage.allow_http && storage.endpoint.is_none());
    }
}
