//! How the brokers are reached: the properties of librdkafka that say so.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::redis_address::pem;
use super::{ConfigError, Settings, Source};

/// Encryption and credentials of the connections to Kafka, as the settings give them.
struct Security {
    protocol: String,
    mechanism: String,
    username: String,
    password: SecretString,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

/// Whether the settings of a process can be what its clients are made with.
pub(super) fn check_kafka(settings: &Settings) -> Result<(), ConfigError> {
    Security::of(settings).check()
}

/// `name=value` of every librdkafka property that the settings of a process give, the operator's own last.
pub(crate) fn kafka_properties(settings: &Settings) -> Vec<String> {
    let mut properties = Security::of(settings).properties();
    properties.extend(settings.kafka_properties.iter().cloned());
    properties
}

/// As [`kafka_properties`], for commands that read no other settings.
pub(crate) fn load_kafka_properties(source: &Source) -> Result<Vec<String>, ConfigError> {
    let security = Security {
        protocol: source.setting("AGENTHUB_KAFKA_SECURITY_PROTOCOL")?,
        mechanism: source.setting("AGENTHUB_KAFKA_SASL_MECHANISM")?,
        username: source.setting("AGENTHUB_KAFKA_SASL_USERNAME")?,
        password: source.setting("AGENTHUB_KAFKA_SASL_PASSWORD")?,
        ca: source.setting("AGENTHUB_KAFKA_TLS_CA")?,
        cert: source.setting("AGENTHUB_KAFKA_TLS_CERT")?,
        key: source.setting("AGENTHUB_KAFKA_TLS_KEY")?,
    };
    security.check()?;
    let mut properties = security.properties();
    properties.extend(source.setting::<Vec<String>>("AGENTHUB_KAFKA_PROPERTIES")?);
    Ok(properties)
}

impl Security {
    fn of(settings: &Settings) -> Self {
        Self {
            protocol: settings.kafka_security_protocol.clone(),
            mechanism: settings.kafka_sasl_mechanism.clone(),
            username: settings.kafka_sasl_username.clone(),
            password: settings.kafka_sasl_password.clone(),
            ca: settings.kafka_tls_ca.clone(),
            cert: settings.kafka_tls_cert.clone(),
            key: settings.kafka_tls_key.clone(),
        }
    }

    fn tls(&self) -> bool {
        self.protocol.ends_with("ssl")
    }

    fn sasl(&self) -> bool {
        self.protocol.starts_with("sasl_")
    }

    /// Nothing without TLS and SASL: then what the operator's own properties say of them holds.
    fn properties(&self) -> Vec<String> {
        let mut properties = Vec::new();
        let mut set = |name: &str, value: &str| properties.push(format!("{name}={value}"));
        if self.tls() || self.sasl() {
            set("security.protocol", &self.protocol);
        }
        if self.sasl() {
            set("sasl.mechanism", &self.mechanism);
            set("sasl.username", &self.username);
            set("sasl.password", self.password.expose_secret());
        }
        for (name, file) in [
            ("ssl.ca.location", &self.ca),
            ("ssl.certificate.location", &self.cert),
            ("ssl.key.location", &self.key),
        ] {
            if let Some(file) = file {
                set(name, &file.to_string_lossy());
            }
        }
        properties
    }

    fn check(&self) -> Result<(), ConfigError> {
        let protocol = self.protocol.as_str();
        if !matches!(
            protocol,
            "plaintext" | "ssl" | "sasl_plaintext" | "sasl_ssl"
        ) {
            return Err(invalid(
                "AGENTHUB_KAFKA_SECURITY_PROTOCOL",
                "plaintext, ssl, sasl_plaintext or sasl_ssl",
            ));
        }
        self.check_sasl()?;
        self.check_tls()
    }

    fn check_sasl(&self) -> Result<(), ConfigError> {
        let mechanism = self.mechanism.as_str();
        if !matches!(mechanism, "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512") {
            return Err(invalid(
                "AGENTHUB_KAFKA_SASL_MECHANISM",
                "SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN",
            ));
        }
        let password = self.password.expose_secret();
        for (name, given) in [
            ("AGENTHUB_KAFKA_SASL_USERNAME", !self.username.is_empty()),
            ("AGENTHUB_KAFKA_SASL_PASSWORD", !password.is_empty()),
        ] {
            let expected = match (self.sasl(), given) {
                (true, false) => "a value, as AGENTHUB_KAFKA_SECURITY_PROTOCOL is with SASL",
                (false, true) => "nothing, as AGENTHUB_KAFKA_SECURITY_PROTOCOL is without SASL",
                _ => continue,
            };
            return Err(invalid(name, expected));
        }
        Ok(())
    }

    fn check_tls(&self) -> Result<(), ConfigError> {
        for (name, label, file) in [
            ("AGENTHUB_KAFKA_TLS_CA", "CERTIFICATE-----", &self.ca),
            ("AGENTHUB_KAFKA_TLS_CERT", "CERTIFICATE-----", &self.cert),
            ("AGENTHUB_KAFKA_TLS_KEY", "PRIVATE KEY-----", &self.key),
        ] {
            let Some(file) = file else { continue };
            if !self.tls() {
                let expected = "nothing, as AGENTHUB_KAFKA_SECURITY_PROTOCOL is without TLS";
                return Err(invalid(name, expected));
            }
            if file.to_str().is_none() {
                return Err(invalid(name, "a path in UTF-8"));
            }
            pem(name, file, label)?;
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => Err(invalid(
                "AGENTHUB_KAFKA_TLS_KEY",
                "a file, as AGENTHUB_KAFKA_TLS_CERT is given",
            )),
            (None, Some(_)) => Err(invalid(
                "AGENTHUB_KAFKA_TLS_CERT",
                "a file, as AGENTHUB_KAFKA_TLS_KEY is given",
            )),
            _ => Ok(()),
        }
    }
}

fn invalid(name: &'static str, expected: &str) -> ConfigError {
    ConfigError::Invalid {
        name,
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn load(pairs: &[(&str, &str)]) -> Result<Vec<String>, ConfigError> {
        let env: BTreeMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        load_kafka_properties(&Source::from_env(env)?)
    }

    const PROTOCOL: &str = "AGENTHUB_KAFKA_SECURITY_PROTOCOL";
    const USER: (&str, &str) = ("AGENTHUB_KAFKA_SASL_USERNAME", "agenthub");
    const PASSWORD: (&str, &str) = ("AGENTHUB_KAFKA_SASL_PASSWORD", "se,sa=me\n");

    #[test]
    fn settings_become_properties() {
        assert!(load(&[]).unwrap().is_empty());
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let ca = ca.to_str().unwrap();
        let pairs = [
            (PROTOCOL, "sasl_ssl"),
            USER,
            PASSWORD,
            ("AGENTHUB_KAFKA_TLS_CA", ca),
            ("AGENTHUB_KAFKA_PROPERTIES", "linger.ms=1"),
        ];
        let pairs = load(&pairs).unwrap();
        assert_eq!(
            pairs,
            [
                "security.protocol=sasl_ssl",
                "sasl.mechanism=SCRAM-SHA-512",
                "sasl.username=agenthub",
                "sasl.password=se,sa=me",
                &format!("ssl.ca.location={ca}"),
                "linger.ms=1",
            ]
        );
    }

    #[test]
    fn what_does_not_fit_together_is_named_and_no_value_shown() {
        let folder = tempfile::tempdir().unwrap();
        let cert = folder.path().join("cert.pem");
        std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let cert = cert.to_str().unwrap();
        for (pairs, named) in [
            (vec![(PROTOCOL, "tls")], PROTOCOL),
            (vec![USER], USER.0),
            (vec![PASSWORD], PASSWORD.0),
            (vec![(PROTOCOL, "sasl_ssl"), USER], PASSWORD.0),
            (
                vec![("AGENTHUB_KAFKA_SASL_MECHANISM", "GSSAPI")],
                "AGENTHUB_KAFKA_SASL_MECHANISM",
            ),
            (
                vec![("AGENTHUB_KAFKA_TLS_CA", cert)],
                "AGENTHUB_KAFKA_TLS_CA",
            ),
            (
                vec![(PROTOCOL, "ssl"), ("AGENTHUB_KAFKA_TLS_CERT", cert)],
                "AGENTHUB_KAFKA_TLS_KEY",
            ),
            (
                vec![(PROTOCOL, "ssl"), ("AGENTHUB_KAFKA_TLS_KEY", cert)],
                "AGENTHUB_KAFKA_TLS_KEY",
            ),
            (
                vec![(PROTOCOL, "ssl"), ("AGENTHUB_KAFKA_TLS_CA", "/nowhere")],
                "/nowhere",
            ),
        ] {
            let error = load(&pairs).unwrap_err().to_string();
            assert!(
                error.starts_with(named) && !error.contains("sa=me"),
                "{error}"
            );
        }
    }
}
