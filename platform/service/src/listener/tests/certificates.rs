//! Certificates for tests, and TLS clients that trust or present them.

use super::Served;
use crate::listener::TlsConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// A certificate authority.
pub(super) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(super) struct Issued {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        // Different names: clients find the authority of a certificate by its name.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        params
            .distinguished_name
            .push(DnType::CommonName, format!("authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub(super) fn issue(&self, names: &[&str]) -> Issued {
        self.sign(params(names))
    }

    pub(super) fn issue_expired(&self, names: &[&str]) -> Issued {
        let mut params = params(names);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    pub(super) fn listener_files(&self, dir: &Path, names: &[&str]) -> TlsConfig {
        write(dir, "listener", &self.issue(names))
    }

    pub(super) fn expired_files(&self, dir: &Path, names: &[&str]) -> TlsConfig {
        write(dir, "expired", &self.issue_expired(names))
    }

    pub(super) fn ca_file(&self, dir: &Path) -> PathBuf {
        let path = dir.join("ca.pem");
        std::fs::write(&path, &self.certificate).unwrap();
        path
    }

    /// A client that trusts this authority and presents a certificate.
    pub(super) fn client(&self, presents: Option<Issued>) -> Client {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match presents {
            None => builder.with_no_client_auth(),
            Some(Issued { certificate, key }) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        Client(TlsConnector::from(Arc::new(config)))
    }
}

fn params(names: &[&str]) -> CertificateParams {
    CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn write(dir: &Path, name: &str, issued: &Issued) -> TlsConfig {
    let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&certificate, &issued.certificate).unwrap();
    std::fs::write(&key, &issued.key).unwrap();
    TlsConfig {
        certificate,
        key,
        client_ca: None,
    }
}

/// A TLS client.
pub(super) struct Client(TlsConnector);

impl Client {
    /// Connects and verifies that the certificate is for `name`.
    pub(super) async fn connect(&self, served: &Served, name: &str) -> Result<TlsStream<TcpStream>, String> {
        let stream = served.connect().await;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        self.0.connect(name, stream).await.map_err(|error| error.to_string())
    }
}
