//! Errors that prevent a listener from starting.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Error that prevents a listener from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Binding the address failed.
    #[error("cannot listen on {address}; another process may use it, or it is not an address of this machine")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// Other machines could use the listener without authentication.
    #[error(
        "{key}.listen is {address}, which other machines can reach, but clients are not authenticated; {fix}, or listen on 127.0.0.1"
    )]
    Unauthenticated {
        /// Table of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// How to authenticate clients.
        fix: &'static str,
    },
    /// Credentials would be sent over the network unencrypted.
    #[error(
        "{key}.listen is {address}, which other machines can reach, but credentials would be sent without TLS; set {key}.tls, listen on 127.0.0.1, or set {key}.insecure = true if a proxy or a private network protects the connections"
    )]
    WithoutTls {
        /// Table of the configuration.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The certificate, the key or the client CA cannot be used.
    #[error("{key}.tls cannot be used")]
    Tls {
        /// Table of the configuration.
        key: &'static str,
        /// Why.
        #[source]
        source: Box<TlsError>,
    },
}

/// Error of a file of a TLS configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// Reading a file failed.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file lacks the expected content.
    #[error("{} contains no {what} in PEM format", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The content that is missing.
        what: &'static str,
    },
    /// The certificate and the key do not belong together, or are of an unsupported kind.
    #[error("certificate {} and key {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// File with the certificate.
        certificate: PathBuf,
        /// File with the key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificates of the client CA cannot be used.
    #[error("the certificates in {} cannot be used to verify clients", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::BoxError,
    },
}
