//! What the subscriber is told of where Redis is.

use std::fmt::Display;

use fred::types::config::{ClusterDiscoveryPolicy, Config, Server, ServerConfig, TlsConnector};
use secrecy::{ExposeSecret, SecretString};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::StreamError;
use crate::config::{RedisKind, RedisSettings, RedisTls};

/// The subscriber's form of the settings.
pub(super) fn config(settings: &RedisSettings) -> Result<Config, StreamError> {
    let node = |(host, port): &(String, u16)| Server::new(host.as_str(), *port);
    let hosts: Vec<Server> = settings.nodes.iter().map(node).collect();
    let text = |secret: &SecretString| secret.expose_secret().to_owned();
    let server = match &settings.kind {
        RedisKind::One => {
            let server = hosts.into_iter().next();
            let missing = StreamError::Address("no node is named".to_owned());
            ServerConfig::Centralized {
                server: server.ok_or(missing)?,
            }
        }
        RedisKind::Cluster => ServerConfig::Clustered {
            hosts,
            policy: ClusterDiscoveryPolicy::default(),
        },
        RedisKind::Sentinel {
            service,
            username,
            password,
        } => ServerConfig::Sentinel {
            hosts,
            service_name: service.clone(),
            username: username.clone(),
            password: password.as_ref().map(text),
        },
    };
    Ok(Config {
        server,
        username: settings.username.clone(),
        password: settings.password.as_ref().map(text),
        database: Some(settings.database).filter(|number| *number != 0),
        tls: match &settings.tls {
            Some(tls) => Some(connector(tls)?.into()),
            None => None,
        },
        ..Config::default()
    })
}

fn connector(tls: &RedisTls) -> Result<TlsConnector, StreamError> {
    let Some(ca) = &tls.ca else {
        return Ok(TlsConnector::default_rustls()?);
    };
    let of_ca = |error: &dyn Display| unusable("AGENTHUB_REDIS_TLS_CA", error);
    let of_cert = |error: &dyn Display| unusable("AGENTHUB_REDIS_TLS_CERT", error);
    let of_key = |error: &dyn Display| unusable("AGENTHUB_REDIS_TLS_KEY", error);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|error| of_ca(&error))?;
        roots.add(certificate).map_err(|error| of_ca(&error))?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
            let chain = chain.map_err(|error| of_cert(&error))?;
            let key = PrivateKeyDer::from_pem_slice(key.expose_secret());
            let key = key.map_err(|error| of_key(&error))?;
            let config = builder.with_client_auth_cert(chain, key);
            config.map_err(|error| of_cert(&error))?
        }
    };
    Ok(TlsConnector::from(config))
}

fn unusable(name: &str, error: &dyn Display) -> StreamError {
    StreamError::Address(format!("{name}: {error}"))
}
