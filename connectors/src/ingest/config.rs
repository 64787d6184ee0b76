//! Configuration of the listener.

use super::access::{Credential, CredentialError, Credentials};
use schemas::codec::UnknownFields;
use serde::Deserialize;
use service::listener::{Error as ListenerError, Exposure, Listener, TlsConfig};
use std::net::SocketAddr;
use std::sync::Arc;

/// The listener for backends (process configuration).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address and port; port 0 selects a free port.
    pub listen: SocketAddr,
    /// TLS. With `client_ca`, only clients with a certificate can connect.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// Allows an address beyond loopback without TLS.
    #[serde(default)]
    pub insecure: bool,
    /// Backends that may post.
    pub credentials: Vec<Credential>,
    /// Maximum size of a body in bytes; a larger body is answered with 413. Default: 1 MiB.
    #[serde(default = "body_bytes_max")]
    pub body_bytes_max: usize,
    /// Maximum number of open connections. Further connections wait to be accepted. Default: 1,024.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// Maximum total size in bytes of the bodies of requests in progress. Further requests are answered with 503.
    /// Default: 64 MiB.
    #[serde(default = "waiting_bytes_max")]
    pub waiting_bytes_max: usize,
    /// Whether fields that are not in the schema are rejected (default) or ignored.
    #[serde(default)]
    pub unknown_fields: UnknownFields,
}

/// Error that prevents the listener from starting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The listener cannot be bound, or is not protected.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// No connection would be accepted.
    #[error("ingest.connections_max is 0; it must be at least 1")]
    NoConnections,
}

impl Config {
    /// Checks the credentials and reads their files.
    ///
    /// # Errors
    /// Names the credential that cannot be used.
    pub fn load_credentials(&self) -> Result<Arc<Credentials>, CredentialError> {
        let has_client_ca = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        Credentials::load(&self.credentials, has_client_ca).map(Arc::new)
    }

    /// Binds the listener.
    ///
    /// # Errors
    /// Names the address that cannot be used.
    pub fn bind(&self) -> Result<Listener, ConfigError> {
        let exposure = Exposure {
            key: "ingest",
            address: self.listen,
            authenticated: !self.credentials.is_empty(),
            fix: "add [[ingest.credentials]]",
            tls: self.tls.is_some(),
            insecure: self.insecure,
        };
        exposure.check()?;
        if self.connections_max == 0 {
            return Err(ConfigError::NoConnections);
        }
        let limits = service::listener::Limits {
            connections: self.connections_max,
            ..Default::default()
        };
        Ok(Listener::bind("ingest", self.listen)?
            .tls(self.tls.as_ref())?
            .limits(limits))
    }
}

fn connections_max() -> usize {
    1_024
}

fn body_bytes_max() -> usize {
    1 << 20
}

fn waiting_bytes_max() -> usize {
    64 << 20
}

impl Config {
    /// The configuration of a listener with these credentials; all other settings have their defaults.
    pub fn on(listen: SocketAddr, credentials: Vec<Credential>) -> Self {
        Self {
            listen,
            tls: None,
            insecure: false,
            credentials,
            body_bytes_max: body_bytes_max(),
            connections_max: connections_max(),
            waiting_bytes_max: waiting_bytes_max(),
            unknown_fields: UnknownFields::default(),
        }
    }
}
