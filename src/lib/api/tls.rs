//! TLS for installations without a proxy in front: the certificate, and its replacement while connections
//! go on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::runtime::Hangups;

/// Time between two looks at the files.
const LOOK: Duration = Duration::from_secs(2);

/// Why the certificate cannot be used. Names the setting and never shows what the files hold.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{setting} {}: {reason}", path.display())]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The certificate and the key do not fit, or TLS cannot be spoken with them.
    #[error("AGENTHUB_TLS_CERT and AGENTHUB_TLS_KEY: {0}")]
    Unusable(rustls::Error),
}

/// The files, as they were read last.
#[derive(Debug, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

/// What connections are accepted with.
#[derive(Debug, Clone)]
pub struct Tls {
    paths: Arc<(PathBuf, PathBuf)>,
    current: Arc<ArcSwap<ServerConfig>>,
}

impl Tls {
    /// Reads the certificate and key that the settings name; `None` when they name none.
    pub fn load(settings: &Settings) -> Result<Option<Self>, TlsError> {
        let (Some(cert), Some(key)) = (&settings.tls_cert, &settings.tls_key) else {
            return Ok(None);
        };
        let paths = (cert.clone(), key.clone());
        let config = parse(&read(&paths)?, &paths)?;
        Ok(Some(Self {
            paths: Arc::new(paths),
            current: Arc::new(ArcSwap::from_pointee(config)),
        }))
    }

    /// Accepts with the certificate that is in force now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.load_full().into()
    }

    /// Takes the files up again when they have changed, or at once on SIGHUP, until `stop`. What cannot be
    /// used is logged, and what was in force stays.
    pub async fn watch(self, stop: CancellationToken) {
        let mut hangups = Hangups::new();
        let mut seen = read(&self.paths).ok();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = hangups.next() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
            let files = match read(&self.paths) {
                Ok(files) if seen.as_ref() == Some(&files) => continue,
                Ok(files) => files,
                // Files that are being replaced may be away for a moment.
                Err(error) => {
                    if seen.take().is_some() {
                        told(&Err(error));
                    }
                    continue;
                }
            };
            let parsed = parse(&files, &self.paths);
            told(&parsed.map(|config| self.current.store(Arc::new(config))));
            seen = Some(files);
        }
    }
}

fn told(outcome: &Result<(), TlsError>) {
    let label = match outcome {
        Ok(()) => {
            tracing::info!("the certificate was replaced");
            "replaced"
        }
        Err(error) => {
            tracing::error!(%error, "the certificate in force stays");
            "refused"
        }
    };
    metrics::counter!("agenthub_tls_reloads_total", "outcome" => label).increment(1);
}

fn read(paths: &(PathBuf, PathBuf)) -> Result<Files, TlsError> {
    let file = |setting, path: &PathBuf| {
        std::fs::read(path).map_err(|error| TlsError::File {
            setting,
            path: path.clone(),
            reason: error.to_string(),
        })
    };
    Ok(Files {
        cert: file("AGENTHUB_TLS_CERT", &paths.0)?,
        key: file("AGENTHUB_TLS_KEY", &paths.1)?.into(),
    })
}

fn parse(files: &Files, paths: &(PathBuf, PathBuf)) -> Result<ServerConfig, TlsError> {
    let bad = |setting, path: &PathBuf, expected: &str| TlsError::File {
        setting,
        path: path.clone(),
        reason: format!("expected {expected}"),
    };
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&files.cert).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| bad("AGENTHUB_TLS_CERT", &paths.0, "certificates in PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|_| bad("AGENTHUB_TLS_KEY", &paths.1, "a private key in PEM"))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(TlsError::Unusable)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
