//! The client of a connection, as an extension of each of its requests.

use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use std::net::SocketAddr;
use std::sync::Arc;

/// The client of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Address of the client, or of the proxy in front of it.
    pub address: SocketAddr,
    certificate: Option<Arc<CertificateDer<'static>>>,
}

impl Peer {
    pub(super) fn plain(address: SocketAddr) -> Self {
        Self::new(address, None)
    }

    pub(super) fn new(address: SocketAddr, certificate: Option<CertificateDer<'static>>) -> Self {
        Self {
            address,
            certificate: certificate.map(|certificate| Arc::new(certificate.into_owned())),
        }
    }

    /// Whether the client presented a certificate that was signed by the client CA of the listener.
    pub fn has_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    /// Whether the verified certificate of the client has this DNS name or IP address as a subject alternative name.
    pub fn is_named(&self, name: &str) -> bool {
        let Some(certificate) = &self.certificate else {
            return false;
        };
        let (Ok(certificate), Ok(name)) = (ParsedCertificate::try_from(&**certificate), ServerName::try_from(name))
        else {
            return false;
        };
        verify_server_name(&certificate, &name).is_ok()
    }
}
