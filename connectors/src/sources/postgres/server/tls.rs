//! TLS to PostgreSQL with the semantics of libpq's `sslmode`, on rustls.
//!
//! Two deviations are stricter than libpq: with `prefer`, only a server that declines TLS is used without it, so a failed
//! handshake is an error; and names are matched with the subject alternative names only. Files are read at each connect.

use crate::error::Error;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha384, Sha512};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the connection is protected, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS, unless the server declines it. The certificate is not verified.
    #[default]
    Prefer,
    /// TLS. The certificate is verified only if `sslrootcert` is set.
    Require,
    /// TLS. A certificate authority must have signed the certificate.
    VerifyCa,
    /// TLS. In addition, the certificate must be valid for the host.
    VerifyFull,
}

/// How TLS begins, as libpq's `sslnegotiation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslNegotiation {
    /// The client asks whether the server supports TLS.
    #[default]
    Postgres,
    /// The client starts the handshake immediately. Needs PostgreSQL 17.
    Direct,
}

/// The value of `sslrootcert` for the certificate authorities of the operating system.
const SYSTEM: &str = "system";
/// The protocol name of PostgreSQL, which direct negotiation requires.
const ALPN: &[u8] = b"postgresql";

/// TLS settings of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TlsSettings {
    pub(super) mode: SslMode,
    pub(super) root: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) negotiation: SslNegotiation,
}

/// A setting that cannot be used, and its fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unusable {
    pub(super) reason: String,
    pub(super) fix: String,
}

impl Unusable {
    pub(super) fn new(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Unusable {
            reason: reason.into(),
            fix: fix.into(),
        }
    }
}

impl From<Unusable> for Error {
    fn from(Unusable { reason, fix }: Unusable) -> Self {
        Error::Rejected { reason, fix }
    }
}

impl TlsSettings {
    /// Checks combinations that libpq rejects too.
    pub(super) fn check(&self) -> Result<(), Unusable> {
        let is_system = self.root.as_deref() == Some(Path::new(SYSTEM));
        if is_system && self.mode != SslMode::VerifyFull {
            return Err(Unusable::new(
                "sslrootcert = \"system\" with a weaker sslmode would accept any certificate of a public authority",
                "set sslmode = \"verify-full\"",
            ));
        }
        if self.mode >= SslMode::VerifyCa && self.root.is_none() {
            return Err(Unusable::new(
                "sslmode = verify-ca and verify-full need the certificate authority of the server",
                "set sslrootcert to its PEM file, or to \"system\" for the authorities of the operating system",
            ));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err(Unusable::new(
                "a client certificate needs sslcert and sslkey, but only one of them is set",
                "set both to PEM files",
            ));
        }
        if self.negotiation == SslNegotiation::Direct && self.mode < SslMode::Require {
            return Err(Unusable::new(
                "sslnegotiation = direct cannot be used with an sslmode that permits a connection without TLS",
                "set sslmode to require, verify-ca or verify-full",
            ));
        }
        Ok(())
    }

    /// Reads the files and builds the configuration of a connection.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, Unusable> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = self.verifier(&provider)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Unusable::new(format!("cannot set up TLS: {e}"), "report this as a bug"))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let chain = certificates(certificate, "sslcert")?;
                let secret = read(key, "sslkey")?;
                let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|_| {
                    Unusable::new(
                        format!(
                            "sslkey: {} contains no private key in PEM without a password",
                            key.display()
                        ),
                        format!("openssl pkey -in {} -out {}.pem", key.display(), key.display()),
                    )
                })?;
                builder.with_client_auth_cert(chain, secret).map_err(|e| {
                    Unusable::new(
                        format!(
                            "sslcert: the certificate in {} cannot be used with the key in {}: {e}",
                            certificate.display(),
                            key.display()
                        ),
                        "set sslkey to the key of sslcert",
                    )
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Unusable> {
        let Some(root) = &self.root else {
            return Ok(Arc::new(Unverified(Arc::clone(provider))));
        };
        let mut roots = RootCertStore::empty();
        if root == Path::new(SYSTEM) {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        } else {
            roots.add_parsable_certificates(certificates(root, "sslrootcert")?);
        }
        let unusable = |reason: String| {
            let reason = format!("sslrootcert: {} cannot be used: {reason}", root.display());
            Unusable::new(reason, "set sslrootcert to a PEM file with certificate authorities")
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        let verifier = verifier.map_err(|e| unusable(e.to_string()))?;
        Ok(if self.mode == SslMode::VerifyFull {
            verifier
        } else {
            Arc::new(AnyName(verifier))
        })
    }
}

fn read(path: &Path, setting: &str) -> Result<Vec<u8>, Unusable> {
    std::fs::read(path).map_err(|e| {
        Unusable::new(
            format!("{setting}: cannot read {}: {e}", path.display()),
            format!("correct {setting}, or make the file readable for this process"),
        )
    })
}

fn certificates(path: &Path, setting: &str) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let pem = read(path, setting)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
        Unusable::new(
            format!("{setting}: {} contains no certificate in PEM", path.display()),
            format!("set {setting} to a PEM file"),
        )
    })
}

/// Accepts each certificate: `prefer` and `require` without `sslrootcert`. The handshake still proves that the server has
/// the key of its certificate.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Verifies everything but the name: `verify-ca`, and `require` with `sslrootcert`.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.0.verify_server_cert(certificate, intermediates, name, ocsp, now);
        match verified {
            // The name is compared last, so the chain and its validity have been verified.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Data of the channel binding `tls-server-end-point` (RFC 5929): the hash of the server's certificate. `None` if the
/// signature algorithm of the certificate defines no hash, such as Ed25519.
pub(super) fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use simple_asn1::ASN1Block;
    let blocks = simple_asn1::from_der(certificate.as_ref()).ok()?;
    let ASN1Block::Sequence(_, parts) = blocks.first()? else {
        return None;
    };
    let ASN1Block::Sequence(_, algorithm) = parts.get(1)? else {
        return None;
    };
    let ASN1Block::ObjectIdentifier(_, oid) = algorithm.first()? else {
        return None;
    };
    let oid: Vec<u64> = oid.as_vec().ok()?;
    match oid.as_slice() {
        // RSA with MD5, SHA-1 or SHA-256, and ECDSA with SHA-1 or SHA-256. The RFC replaces MD5 and SHA-1 by SHA-256.
        [1, 2, 840, 113_549, 1, 1, 4 | 5 | 11] | [1, 2, 840, 10_045, 4, 1] | [1, 2, 840, 10_045, 4, 3, 2] => {
            Some(Sha256::digest(certificate).to_vec())
        }
        [1, 2, 840, 113_549, 1, 1, 12] | [1, 2, 840, 10_045, 4, 3, 3] => Some(Sha384::digest(certificate).to_vec()),
        [1, 2, 840, 113_549, 1, 1, 13] | [1, 2, 840, 10_045, 4, 3, 4] => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// Returns the cause and fix of a TLS error, if one is in the chain of errors.
pub(super) fn explain(error: &(dyn std::error::Error + 'static)) -> Option<Unusable> {
    let mut next = Some(error);
    while let Some(error) = next {
        // The source of an I/O error is the source of the error inside, not that error itself.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(tls) = inner.or_else(|| error.downcast_ref()) {
            return Some(describe(tls));
        }
        next = error.source();
    }
    None
}

fn describe(error: &rustls::Error) -> Unusable {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(C::UnknownIssuer) => Unusable::new(
            "no authority in sslrootcert has signed the certificate of the server",
            "set sslrootcert to the authority that signed it",
        ),
        rustls::Error::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => Unusable::new(
            "the certificate of the server, or of its authority, has expired",
            "renew the certificate and reload the configuration of PostgreSQL",
        ),
        rustls::Error::InvalidCertificate(reason @ (C::NotValidForName | C::NotValidForNameContext { .. })) => {
            Unusable::new(
                format!("the certificate of the server is not valid for the host in the URL: {reason}"),
                "use a host name that is in the certificate, or set sslmode = \"verify-ca\"",
            )
        }
        rustls::Error::InvalidCertificate(reason) => Unusable::new(
            format!("the certificate of the server is not valid: {reason}"),
            "replace the certificate of the server",
        ),
        rustls::Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateRequired
            | AlertDescription::DecryptError,
        ) => Unusable::new(
            format!("the server rejects the client certificate: {error}"),
            "set sslcert and sslkey to a certificate that an authority in the server's ssl_ca_file has signed",
        ),
        other => Unusable::new(
            format!("the TLS handshake failed: {other}"),
            "compare the TLS settings of the server with sslmode and sslnegotiation",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: SslMode, root: Option<&str>) -> TlsSettings {
        TlsSettings {
            mode,
            root: root.map(PathBuf::from),
            ..TlsSettings::default()
        }
    }

    #[test]
    fn weak_combinations_are_rejected() {
        let reason = |settings: TlsSettings| settings.check().unwrap_err().reason;
        assert!(reason(settings(SslMode::VerifyFull, None)).contains("need the certificate authority"));
        assert!(reason(settings(SslMode::Require, Some(SYSTEM))).contains("weaker sslmode"));
        let direct = TlsSettings {
            negotiation: SslNegotiation::Direct,
            ..settings(SslMode::Prefer, None)
        };
        assert!(reason(direct).contains("without TLS"));
        let half = TlsSettings {
            certificate: Some(PathBuf::from("a")),
            ..settings(SslMode::Require, None)
        };
        assert!(reason(half).contains("only one of them"));
        assert_eq!(settings(SslMode::VerifyFull, Some(SYSTEM)).check(), Ok(()));
    }

    #[test]
    fn unreadable_file_names_the_setting() {
        let missing = settings(SslMode::VerifyCa, Some("/does/not/exist"));
        let found = missing.client_config().unwrap_err();
        assert!(
            found.reason.starts_with("sslrootcert: cannot read /does/not/exist"),
            "{found:?}"
        );
    }
}
