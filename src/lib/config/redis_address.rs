//! Where Redis is and how to get there, which commands load without the rest. Both clients are made
//! from this one reading of the URL.

use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use url::Url;

use super::{ConfigError, Settings, Source};

const URL_FORM: &str = "redis://, redis-cluster:// or redis-sentinel:// (rediss…:// for TLS), \
    user:password@host:port, and node=host:port for every further node";

/// How the nodes that a URL names are to be taken.
#[derive(Debug, Clone)]
pub enum RedisKind {
    /// One Redis.
    One,
    /// Nodes of a cluster.
    Cluster,
    /// Sentinels, which know the master.
    Sentinel {
        /// The name that they know it by.
        service: String,
        /// User at the sentinels; that of the URL is for Redis alone.
        username: Option<String>,
        /// Password at the sentinels.
        password: Option<SecretString>,
    },
}

/// What TLS is checked and spoken with, as PEM.
#[derive(Clone)]
pub struct RedisTls {
    /// Certificates of the authorities that are believed; those of the machine when absent.
    pub ca: Option<Vec<u8>>,
    /// The client's own certificate with its chain, and its key.
    pub identity: Option<(Vec<u8>, SecretSlice<u8>)>,
}

impl std::fmt::Debug for RedisTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisTls")
            .field("ca", &self.ca.is_some())
            .field("identity", &self.identity.is_some())
            .finish()
    }
}

/// Where Redis is and how to get there.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// What the nodes are.
    pub kind: RedisKind,
    /// Host and port of each node; at least one.
    pub nodes: Vec<(String, u16)>,
    /// The ACL user; `default` when absent.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<SecretString>,
    /// The database; 0 but for one Redis and Sentinel.
    pub database: u8,
    /// `None` for plain TCP.
    pub tls: Option<RedisTls>,
    /// Replicas that must have a transition before anything else follows from it.
    pub wait_replicas: u32,
}

impl RedisSettings {
    /// Parses these settings alone.
    pub fn load(source: &Source) -> Result<Self, ConfigError> {
        Self::read(
            &source.setting("REDIS_URL")?,
            source
                .setting::<Option<PathBuf>>("AGENTHUB_REDIS_TLS_CA")?
                .as_deref(),
            source
                .setting::<Option<PathBuf>>("AGENTHUB_REDIS_TLS_CERT")?
                .as_deref(),
            source
                .setting::<Option<PathBuf>>("AGENTHUB_REDIS_TLS_KEY")?
                .as_deref(),
            source.setting("AGENTHUB_REDIS_WAIT_REPLICAS")?,
        )
    }

    /// Those of a process; its files are read.
    pub fn of(settings: &Settings) -> Result<Self, ConfigError> {
        Self::read(
            &settings.redis_url,
            settings.redis_tls_ca.as_deref(),
            settings.redis_tls_cert.as_deref(),
            settings.redis_tls_key.as_deref(),
            settings.redis_wait_replicas,
        )
    }

    /// What a URL alone says.
    pub fn of_url(url: &SecretString) -> Result<Self, ConfigError> {
        Self::read(url, None, None, None, 0)
    }

    fn read(
        url: &SecretString,
        ca: Option<&Path>,
        cert: Option<&Path>,
        key: Option<&Path>,
        wait_replicas: u32,
    ) -> Result<Self, ConfigError> {
        let (mut settings, tls) =
            parse(url.expose_secret()).map_err(|expected| invalid("REDIS_URL", expected))?;
        settings.wait_replicas = wait_replicas;
        if !tls {
            for (name, file) in [
                ("AGENTHUB_REDIS_TLS_CA", ca),
                ("AGENTHUB_REDIS_TLS_CERT", cert),
                ("AGENTHUB_REDIS_TLS_KEY", key),
            ] {
                if file.is_some() {
                    return Err(invalid(name, "nothing, as REDIS_URL is not rediss…://"));
                }
            }
            return Ok(settings);
        }
        let identity = match (cert, key) {
            (None, None) => None,
            (Some(_), None) => {
                return Err(invalid(
                    "AGENTHUB_REDIS_TLS_KEY",
                    "a file, as AGENTHUB_REDIS_TLS_CERT is given",
                ));
            }
            (None, Some(_)) => {
                return Err(invalid(
                    "AGENTHUB_REDIS_TLS_CERT",
                    "a file, as AGENTHUB_REDIS_TLS_KEY is given",
                ));
            }
            (Some(_), Some(_)) if ca.is_none() => {
                return Err(invalid(
                    "AGENTHUB_REDIS_TLS_CA",
                    "a file, as AGENTHUB_REDIS_TLS_CERT is given",
                ));
            }
            (Some(cert), Some(key)) => Some((
                pem("AGENTHUB_REDIS_TLS_CERT", cert, "CERTIFICATE-----")?,
                pem("AGENTHUB_REDIS_TLS_KEY", key, "PRIVATE KEY-----")?.into(),
            )),
        };
        let ca = ca.map(|file| pem("AGENTHUB_REDIS_TLS_CA", file, "CERTIFICATE-----"));
        settings.tls = Some(RedisTls {
            ca: ca.transpose()?,
            identity,
        });
        Ok(settings)
    }
}

fn invalid(name: &'static str, expected: &str) -> ConfigError {
    ConfigError::Invalid {
        name,
        expected: expected.to_owned(),
    }
}

/// The bytes of a PEM file that holds what `label` ends the first line of.
pub(super) fn pem(name: &'static str, path: &Path, label: &str) -> Result<Vec<u8>, ConfigError> {
    let bytes = std::fs::read(path).map_err(|error| ConfigError::File {
        path: path.to_owned(),
        reason: format!("{name}: {error}"),
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(label);
    if text.lines().any(begins) {
        return Ok(bytes);
    }
    let what = label.trim_end_matches('-').to_ascii_lowercase();
    Err(invalid(name, &format!("a PEM file that holds a {what}")))
}

/// The settings that a URL holds, and whether it asks for TLS.
fn parse(text: &str) -> Result<(RedisSettings, bool), &'static str> {
    let url = Url::parse(text.trim()).map_err(|_| URL_FORM)?;
    let (tls, form) = match url.scheme() {
        "redis" => (false, ""),
        "rediss" => (true, ""),
        "redis-cluster" => (false, "cluster"),
        "rediss-cluster" => (true, "cluster"),
        "redis-sentinel" => (false, "sentinel"),
        "rediss-sentinel" => (true, "sentinel"),
        _ => return Err(URL_FORM),
    };
    let default_port = if form == "sentinel" { 26_379 } else { 6379 };
    let mut nodes = vec![node(&url, default_port)?];
    let (mut service, mut sentinel_user, mut sentinel_password) = (None, None, None);
    for (name, value) in url.query_pairs() {
        match (form, name.as_ref()) {
            ("cluster" | "sentinel", "node") => {
                let further = Url::parse(&format!("redis://{value}")).map_err(|_| URL_FORM)?;
                nodes.push(node(&further, default_port)?);
            }
            ("sentinel", "sentinelServiceName") => service = Some(value.into_owned()),
            ("sentinel", "sentinelUsername") => sentinel_user = Some(value.into_owned()),
            ("sentinel", "sentinelPassword") => {
                sentinel_password = Some(SecretString::from(value.into_owned()));
            }
            _ => return Err("no other parameter in its query than those that are documented"),
        }
    }
    let database = match url.path().trim_matches('/') {
        "" => 0,
        _ if form == "cluster" => return Err("no database, as a cluster has but one"),
        path => path.parse().map_err(|_| "a number as the database")?,
    };
    let kind = match form {
        "cluster" => RedisKind::Cluster,
        "sentinel" => RedisKind::Sentinel {
            service: service
                .filter(|name| !name.is_empty())
                .ok_or("sentinelServiceName=<name of the master> in its query")?,
            username: sentinel_user,
            password: sentinel_password,
        },
        _ => RedisKind::One,
    };
    let username = decoded(url.username())?;
    let password = url.password().map(decoded).transpose()?;
    let settings = RedisSettings {
        kind,
        nodes,
        username: Some(username).filter(|name| !name.is_empty()),
        password: password.map(SecretString::from),
        database,
        tls: None,
        wait_replicas: 0,
    };
    Ok((settings, tls))
}

fn decoded(text: &str) -> Result<String, &'static str> {
    let text = percent_decode_str(text).decode_utf8();
    Ok(text
        .map_err(|_| "user and password in UTF-8, percent-encoded")?
        .into_owned())
}

fn node(url: &Url, default_port: u16) -> Result<(String, u16), &'static str> {
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or(URL_FORM)?;
    // An IPv6 address has brackets in a URL only.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), url.port().unwrap_or(default_port)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(url: &str) -> Result<RedisSettings, ConfigError> {
        RedisSettings::of_url(&url.to_owned().into())
    }

    fn load(pairs: &[(&str, &str)]) -> Result<RedisSettings, ConfigError> {
        let env: BTreeMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        RedisSettings::load(&Source::from_env(env)?)
    }

    fn nodes(settings: &RedisSettings) -> Vec<String> {
        let node = |(host, port): &(String, u16)| format!("{host} {port}");
        settings.nodes.iter().map(node).collect()
    }

    #[test]
    fn a_url_names_one_redis() {
        let one = of("rediss://ah:p%40ss%2Bword@[::1]/3").unwrap();
        assert!(matches!(one.kind, RedisKind::One));
        assert_eq!(nodes(&one), ["::1 6379"]);
        assert_eq!(one.username.as_deref(), Some("ah"));
        assert_eq!(one.password.unwrap().expose_secret(), "p@ss+word");
        assert_eq!(one.database, 3);
        assert!(one.tls.is_some_and(|tls| tls.ca.is_none()));
        let plain = of("redis://:only-a-password@h:7/").unwrap();
        assert_eq!(plain.username, None);
        assert!(plain.password.is_some() && plain.tls.is_none());
    }

    #[test]
    fn the_nodes_of_a_cluster_share_their_credentials() {
        let cluster =
            of("redis-cluster://user:pass@a:7000?node=b:7001&node=10.0.0.3:7002").unwrap();
        assert!(matches!(cluster.kind, RedisKind::Cluster));
        assert_eq!(nodes(&cluster), ["a 7000", "b 7001", "10.0.0.3 7002"]);
        assert_eq!(cluster.username.as_deref(), Some("user"));
        assert!(of("rediss-cluster://a:7000").unwrap().tls.is_some());
        assert!(of("redis-cluster://a:7000?nodes=b:1").is_err());
        assert!(of("redis-cluster://a:7000/1").is_err());
        assert!(of("redis-cluster://").is_err());
    }

    #[test]
    fn sentinels_have_credentials_of_their_own() {
        let url = "rediss-sentinel://ah:pw@s1?node=s2:26380&sentinelServiceName=main\
            &sentinelUsername=watch&sentinelPassword=er";
        let settings = of(url).unwrap();
        assert_eq!(nodes(&settings), ["s1 26379", "s2 26380"]);
        let RedisKind::Sentinel {
            service,
            username,
            password,
        } = settings.kind
        else {
            panic!("{:?}", settings.kind);
        };
        assert_eq!(
            (service.as_str(), username.as_deref()),
            ("main", Some("watch"))
        );
        assert_eq!(password.unwrap().expose_secret(), "er");
        let error = of("redis-sentinel://s1:26379?node=s2:26379").unwrap_err();
        assert!(error.to_string().contains("sentinelServiceName"), "{error}");
    }

    #[test]
    fn what_does_not_fit_together_is_named_and_no_value_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let cert = path("cert.pem", "-----BEGIN CERTIFICATE-----\n");
        let key = path("key.pem", "-----BEGIN PRIVATE KEY-----\n");
        let neither = path("neither.pem", "sesame");
        let tls = ("REDIS_URL", "rediss://u:sesame@h/");
        for (pairs, named) in [
            (vec![("REDIS_URL", "http://u:sesame@h/")], "REDIS_URL"),
            (vec![("REDIS_URL", "redis://u:sesame@h/?x=1")], "REDIS_URL"),
            (
                vec![("AGENTHUB_REDIS_TLS_CA", cert.as_str())],
                "AGENTHUB_REDIS_TLS_CA",
            ),
            (
                vec![tls, ("AGENTHUB_REDIS_TLS_CA", &neither)],
                "AGENTHUB_REDIS_TLS_CA",
            ),
            (
                vec![tls, ("AGENTHUB_REDIS_TLS_CA", "/nowhere.pem")],
                "/nowhere.pem",
            ),
            (
                vec![tls, ("AGENTHUB_REDIS_TLS_CERT", &cert)],
                "AGENTHUB_REDIS_TLS_KEY",
            ),
            (
                vec![tls, ("AGENTHUB_REDIS_TLS_KEY", &key)],
                "AGENTHUB_REDIS_TLS_CERT",
            ),
            (
                vec![
                    tls,
                    ("AGENTHUB_REDIS_TLS_CERT", &cert),
                    ("AGENTHUB_REDIS_TLS_KEY", &key),
                ],
                "AGENTHUB_REDIS_TLS_CA",
            ),
        ] {
            let error = load(&pairs).unwrap_err().to_string();
            assert!(
                error.starts_with(named) && !error.contains("sesame"),
                "{error}"
            );
        }
        let whole = load(&[
            tls,
            ("AGENTHUB_REDIS_TLS_CA", &cert),
            ("AGENTHUB_REDIS_TLS_CERT", &cert),
            ("AGENTHUB_REDIS_TLS_KEY", &key),
            ("AGENTHUB_REDIS_WAIT_REPLICAS", "1"),
        ]);
        let whole = whole.unwrap();
        assert!(whole.tls.unwrap().identity.is_some() && whole.wait_replicas == 1);
    }
}
