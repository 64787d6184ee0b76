//! TLS of a listener. Reads certificate, key and client CA from files, and reads them again when they change.
//!
//! Existing connections keep the configuration with which they were established. If new files cannot be used, an error
//! is reported and the previous configuration remains in use, because certificate and key are usually not replaced in
//! one step.

use super::error::TlsError;
use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// TLS of a listener. The files are PEM and are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// File with the certificate of the listener, followed by its intermediate certificates.
    pub certificate: PathBuf,
    /// File with the private key of the certificate.
    pub key: PathBuf,
    /// File with the certificate authorities that sign certificates of clients. If set, a client must present such a
    /// certificate.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// The current TLS configuration.
pub(super) struct Tls {
    files: TlsConfig,
    current: ArcSwap<ServerConfig>,
    /// Digest of the current contents and of the contents that were rejected last.
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    used: Vec<u8>,
    rejected: Vec<u8>,
}

/// Result of checking the files for changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// Nothing changed, or the contents were rejected before.
    Unchanged,
    /// The new contents are now used.
    Reloaded,
}

impl Tls {
    /// Reads the files.
    pub(super) fn load(files: &TlsConfig) -> Result<Self, TlsError> {
        let contents = Contents::read(files)?;
        Ok(Self {
            current: ArcSwap::from_pointee(contents.server_config(files)?),
            seen: Mutex::new(Seen {
                used: contents.digest(),
                rejected: Vec::new(),
            }),
            files: files.clone(),
        })
    }

    /// The configuration for a new connection.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again if they changed. Unusable contents are reported as an error only once, until they change
    /// again.
    pub(super) fn reload(&self) -> Result<Reload, TlsError> {
        let contents = Contents::read(&self.files)?;
        let digest = contents.digest();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.used == digest || seen.rejected == digest {
            return Ok(Reload::Unchanged);
        }
        match contents.server_config(&self.files) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                seen.used = digest;
                Ok(Reload::Reloaded)
            }
            Err(error) => {
                seen.rejected = digest;
                Err(error)
            }
        }
    }
}

/// Contents of the files.
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    fn read(files: &TlsConfig) -> Result<Self, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> Vec<u8> {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()] {
            let part = part.map_or(&[][..], Vec::as_slice);
            context.update(digest::digest(&digest::SHA256, part).as_ref());
        }
        context.finish().as_ref().to_vec()
    }

    fn server_config(&self, files: &TlsConfig) -> Result<ServerConfig, TlsError> {
        let pair = |source| TlsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let missing = |path: &Path, what| TlsError::Pem {
            path: path.to_owned(),
            what,
        };
        let provider = provider();
        let chain = certificates(&self.certificate).ok_or_else(|| missing(&files.certificate, "certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|_| missing(&files.key, "private key"))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match (&self.client_ca, &files.client_ca) {
            (Some(pem), Some(path)) => {
                let unusable = |source: crate::BoxError| TlsError::ClientCa {
                    path: path.clone(),
                    source,
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem).ok_or_else(|| missing(path, "certificate"))? {
                    roots.add(certificate).map_err(|error| unusable(error.into()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| unusable(error.into()))?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The certificates of a PEM file; `None` if it contains none, or one that cannot be decoded.
fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    chain.ok().filter(|chain| !chain.is_empty())
}

/// The cryptography provider. HTTP clients of the process use the same one.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
