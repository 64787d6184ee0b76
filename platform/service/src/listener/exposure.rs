//! Checks the rule for listeners that other machines can reach: clients are authenticated, and credentials are sent
//! only over TLS.

use super::error::Error;
use std::net::{IpAddr, SocketAddr};

/// The protection of a listener according to its configuration.
#[derive(Debug, Clone, Copy)]
pub struct Exposure {
    /// Table of the configuration, such as `admin`.
    pub key: &'static str,
    /// Address to listen on.
    pub address: SocketAddr,
    /// Whether clients are authenticated.
    pub authenticated: bool,
    /// How to authenticate clients, for the error.
    pub fix: &'static str,
    /// Whether connections use TLS.
    pub tls: bool,
    /// Whether the operator allows credentials without TLS (`insecure = true`).
    pub insecure: bool,
}

impl Exposure {
    /// Checks the rule. A listener on loopback needs no protection. `insecure` allows connections without TLS, but not
    /// a listener without authentication.
    ///
    /// # Errors
    /// [`Error::Unauthenticated`] and [`Error::WithoutTls`].
    pub fn check(&self) -> Result<(), Error> {
        let Self { key, address, fix, .. } = *self;
        if is_loopback(address.ip()) {
            return Ok(());
        }
        if !self.authenticated {
            return Err(Error::Unauthenticated { key, address, fix });
        }
        if !self.tls && !self.insecure {
            return Err(Error::WithoutTls { key, address });
        }
        Ok(())
    }
}

/// Whether only processes of this machine can reach an address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_needs_no_protection() {
        let check = |address: &str, authenticated, tls, insecure| {
            let exposure = Exposure {
                key: "admin",
                address: address.parse().unwrap(),
                authenticated,
                fix: "add [[admin.tokens]]",
                tls,
                insecure,
            };
            exposure.check().map_err(|error| match error {
                Error::Unauthenticated { .. } => "unauthenticated",
                Error::WithoutTls { .. } => "without TLS",
                _ => "another error",
            })
        };
        for loopback in ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check(loopback, false, false, false), Ok(()), "{loopback}");
        }
        for reachable in ["0.0.0.0:1", "[::]:1", "10.0.0.5:1", "[::ffff:10.0.0.5]:1"] {
            assert_eq!(
                check(reachable, false, true, true),
                Err("unauthenticated"),
                "{reachable}"
            );
            assert_eq!(check(reachable, true, false, false), Err("without TLS"), "{reachable}");
            assert_eq!(check(reachable, true, false, true), Ok(()), "{reachable}");
            assert_eq!(check(reachable, true, true, false), Ok(()), "{reachable}");
        }
    }

    #[test]
    fn errors_name_the_fix() {
        let mut exposure = Exposure {
            key: "admin",
            address: "0.0.0.0:9464".parse().unwrap(),
            authenticated: false,
            fix: "add [[admin.tokens]]",
            tls: false,
            insecure: false,
        };
        let text = exposure.check().unwrap_err().to_string();
        assert!(text.contains("add [[admin.tokens]], or listen on 127.0.0.1"), "{text}");
        exposure.authenticated = true;
        let text = exposure.check().unwrap_err().to_string();
        assert!(
            text.contains("set admin.tls") && text.contains("admin.insecure = true"),
            "{text}"
        );
    }
}
