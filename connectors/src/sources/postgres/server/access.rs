//! Connection parameters: the URL, its libpq parameters, and the settings of the connector.
//!
//! They are read again for each connection, so that a replaced password or certificate is used without a restart.

use super::link::{Host, Place};
use super::tls::{SslMode, SslNegotiation, TlsSettings, Unusable};
use serde::Deserialize;
use serde::de::IntoDeserializer as _;
use serde::de::value::{Error as ValueError, StrDeserializer};
use service::Secret;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::config::{Host as UrlHost, SslMode as UrlSslMode};

/// Session settings: the output format of values; no timeouts from role or database settings, which would cancel a long
/// COPY; and an error, instead of only some of the rows, if row-level security applies.
pub(super) const SESSION_OPTIONS: &str = "-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex \
    -c extra_float_digits=3 -c lc_monetary=C -c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_in_transaction_session_timeout=0 -c row_security=off";
/// Limit for socket and TLS, and for the login.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the login is bound to the TLS connection, as libpq's `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server supports it.
    #[default]
    Prefer,
    /// The login fails without it.
    Require,
}

/// Settings with which a source connects.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The URL.
    pub url: Secret,
    /// File with the password. Overrides the password of the URL.
    pub password_file: Option<PathBuf>,
    /// Overrides `sslmode` of the URL. This and the following settings have libpq's names and meanings.
    pub sslmode: Option<SslMode>,
    /// PEM file with certificate authorities, or `system`.
    pub sslrootcert: Option<PathBuf>,
    /// PEM file with the client certificate.
    pub sslcert: Option<PathBuf>,
    /// PEM file with the key of the client certificate.
    pub sslkey: Option<PathBuf>,
    /// How TLS begins.
    pub sslnegotiation: Option<SslNegotiation>,
    /// Channel binding.
    pub channel_binding: Option<ChannelBinding>,
    /// Whether the password may be sent in clear over a connection without TLS.
    pub allow_cleartext_password: bool,
}

impl Settings {
    /// Settings with only a URL.
    pub fn new(url: Secret) -> Self {
        Settings {
            url,
            password_file: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            sslnegotiation: None,
            channel_binding: None,
            allow_cleartext_password: false,
        }
    }
}

/// Parameters of one connection.
#[derive(Clone)]
pub(in super::super) struct Access {
    pub(super) hosts: Vec<Host>,
    pub(in super::super) user: String,
    pub(in super::super) database: String,
    pub(in super::super) password: Option<Vec<u8>>,
    pub(in super::super) options: String,
    pub(in super::super) channel_binding: ChannelBinding,
    pub(super) tls: TlsSettings,
    pub(super) allow_cleartext_password: bool,
}

fn invalid(reason: impl Into<String>) -> Unusable {
    Unusable::new(
        format!("invalid PostgreSQL URL: {}", reason.into()),
        "correct the url of the connector; its form is postgres://user:password@host:5432/database",
    )
}

impl Access {
    /// Reads URL, password and settings. Errors contain neither the URL nor the password.
    pub(super) fn read(settings: &Settings) -> Result<Self, Unusable> {
        let url = settings.url.reload().map_err(|e| {
            Unusable::new(
                format!("cannot read the URL of PostgreSQL: {e}"),
                "correct the url of the connector",
            )
        })?;
        let (url, parameters) = split_parameters(url.expose())?;
        let config: tokio_postgres::Config = url.parse().map_err(|e: tokio_postgres::Error| {
            let reason = service::chain(&e);
            // Only URLs are searched for these parameters.
            let hint = if reason.contains("ssl") {
                "; in a text of the form key=value, write it as a setting of the connector instead"
            } else {
                ""
            };
            invalid(format!("{reason}{hint}"))
        })?;
        let url_mode = match config.get_ssl_mode() {
            UrlSslMode::Disable => SslMode::Disable,
            UrlSslMode::Require => SslMode::Require,
            _ => SslMode::Prefer,
        };
        let tls = TlsSettings {
            mode: settings.sslmode.or(parameters.sslmode).unwrap_or(url_mode),
            root: settings.sslrootcert.clone().or(parameters.sslrootcert),
            certificate: settings.sslcert.clone().or(parameters.sslcert),
            key: settings.sslkey.clone().or(parameters.sslkey),
            negotiation: settings
                .sslnegotiation
                .or(parameters.sslnegotiation)
                .unwrap_or_default(),
        };
        tls.check()?;
        let channel_binding = settings
            .channel_binding
            .or(parameters.channel_binding)
            .unwrap_or_default();
        if channel_binding == ChannelBinding::Require && tls.mode == SslMode::Disable {
            return Err(Unusable::new(
                "channel_binding = require needs TLS, but sslmode is disable",
                "set sslmode = \"require\" or higher",
            ));
        }
        let password = match &settings.password_file {
            Some(path) => Some(read_password(path)?),
            None => config.get_password().map(<[u8]>::to_vec),
        };
        let user = config
            .get_user()
            .ok_or_else(|| invalid("it has no user; use postgres://user@host/database"))?;
        Ok(Access {
            hosts: hosts(&config)?,
            user: user.to_owned(),
            database: config.get_dbname().unwrap_or(user).to_owned(),
            password,
            options: match config.get_options() {
                Some(given) => format!("{given} {SESSION_OPTIONS}"),
                None => SESSION_OPTIONS.to_owned(),
            },
            channel_binding,
            tls,
            allow_cleartext_password: settings.allow_cleartext_password,
        })
    }

    /// The configuration of an SQL connection. TLS is negotiated before.
    pub(super) fn sql(&self, application: &str) -> tokio_postgres::Config {
        use tokio_postgres::config::{ChannelBinding as Binding, SslNegotiation as Negotiation};
        let mut config = tokio_postgres::Config::new();
        config
            .user(&self.user)
            .dbname(&self.database)
            .options(&self.options)
            .application_name(application)
            .connect_timeout(CONNECT_TIMEOUT)
            .ssl_mode(UrlSslMode::Require)
            .ssl_negotiation(Negotiation::Direct)
            .channel_binding(match self.channel_binding {
                ChannelBinding::Disable => Binding::Disable,
                ChannelBinding::Prefer => Binding::Prefer,
                ChannelBinding::Require => Binding::Require,
            });
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

fn read_password(path: &std::path::Path) -> Result<Vec<u8>, Unusable> {
    let fix = "correct password_file, or make the file readable for this process";
    let text = std::fs::read_to_string(path)
        .map_err(|e| Unusable::new(format!("password_file: cannot read {}: {e}", path.display()), fix))?;
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Unusable::new(
            format!("password_file: {} is empty", path.display()),
            fix,
        ));
    }
    Ok(password.as_bytes().to_vec())
}

/// libpq's parameters that `tokio_postgres` does not know.
#[derive(Debug, Default)]
struct Parameters {
    sslmode: Option<SslMode>,
    sslrootcert: Option<PathBuf>,
    sslcert: Option<PathBuf>,
    sslkey: Option<PathBuf>,
    sslnegotiation: Option<SslNegotiation>,
    channel_binding: Option<ChannelBinding>,
}

/// Removes the parameters that this module interprets from a URL.
fn split_parameters(url: &str) -> Result<(String, Parameters), Unusable> {
    let mut found = Parameters::default();
    let Some((base, query)) = url.split_once('?').filter(|_| url.contains("://")) else {
        return Ok((url.to_owned(), found));
    };
    let mut rest = Vec::new();
    for pair in query.split('&') {
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_encoding::percent_decode_str(text)
            .decode_utf8()
            .map_err(|_| invalid(format!("{name} is not UTF-8")))?
            .into_owned();
        match name {
            "sslmode" => found.sslmode = Some(parse(name, &value)?),
            "sslnegotiation" => found.sslnegotiation = Some(parse(name, &value)?),
            "channel_binding" => found.channel_binding = Some(parse(name, &value)?),
            "sslrootcert" => found.sslrootcert = Some(value.into()),
            "sslcert" => found.sslcert = Some(value.into()),
            "sslkey" => found.sslkey = Some(value.into()),
            "sslpassword" => {
                return Err(Unusable::new(
                    "sslpassword is not supported: the key must not have a password",
                    "openssl pkey -in KEY -out KEY.pem; and set sslkey to the new file",
                ));
            }
            // GSSAPI is never used.
            "gssencmode" if value != "require" => {}
            // The connector always needs the primary.
            "target_session_attrs" if matches!(value.as_str(), "any" | "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err(invalid(format!(
                    "target_session_attrs={value} selects a standby, but the connector needs the primary"
                )));
            }
            _ => rest.push(pair),
        }
    }
    let url = if rest.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", rest.join("&"))
    };
    Ok((url, found))
}

fn parse<'de, T: Deserialize<'de>>(name: &str, value: &'de str) -> Result<T, Unusable> {
    let deserializer: StrDeserializer<'de, ValueError> = value.into_deserializer();
    T::deserialize(deserializer).map_err(|e| invalid(format!("{name}: {e}")))
}

/// The hosts in order. Like libpq, the URL has one port for all hosts, or one for each.
fn hosts(config: &tokio_postgres::Config) -> Result<Vec<Host>, Unusable> {
    let (names, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = names.len().max(addresses.len());
    if count == 0 {
        return Err(invalid("it has no host; use postgres://user@host:5432/database"));
    }
    let is_complete = |given: usize| given == 0 || given == count;
    if !is_complete(names.len()) || !is_complete(addresses.len()) || !(ports.len() == 1 || is_complete(ports.len())) {
        return Err(invalid("it has a different number of hosts, addresses and ports"));
    }
    let host = |at: usize| {
        let address = addresses.get(at).copied();
        let place = match (names.get(at), address) {
            (Some(UrlHost::Tcp(name)), _) => Place::Tcp {
                name: name.clone(),
                address,
            },
            (Some(UrlHost::Unix(path)), _) => Place::Unix(path.clone()),
            (None, Some(ip)) => Place::Tcp {
                name: ip.to_string(),
                address,
            },
            (None, None) => return None,
        };
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
        Some(Host { place, port })
    };
    Ok((0..count).filter_map(host).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Access, Unusable> {
        Access::read(&Settings::new(Secret::new(url)))
    }

    #[test]
    fn parameters_of_libpq_are_read_from_the_url() {
        let url = "postgres://app:s3cret@a,b:5433/shop?sslmode=verify-full&sslrootcert=%2Fca.pem&channel_binding=require\
                   &gssencmode=prefer&target_session_attrs=read-write&connect_timeout=3";
        let access = read(url).unwrap();
        assert_eq!(access.tls.mode, SslMode::VerifyFull);
        assert_eq!(access.tls.root.as_deref(), Some(std::path::Path::new("/ca.pem")));
        assert_eq!(access.channel_binding, ChannelBinding::Require);
        assert_eq!(
            access.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["a:5432", "b:5433"]
        );
        let setting = Settings {
            sslmode: Some(SslMode::Disable),
            channel_binding: Some(ChannelBinding::Disable),
            ..Settings::new(Secret::new(url))
        };
        assert_eq!(Access::read(&setting).unwrap().tls.mode, SslMode::Disable);
    }

    #[test]
    fn invalid_urls_are_explained_without_the_password() {
        for (bad, why) in [
            (
                "postgres://app:s3cret@db/shop?sslmode=strict",
                "sslmode: unknown variant",
            ),
            (
                "postgres://app:s3cret@db/shop?sslmode=verify-ca",
                "need the certificate authority",
            ),
            (
                "postgres://app:s3cret@db/shop?target_session_attrs=standby",
                "needs the primary",
            ),
            ("postgres://app:s3cret@db/shop?sslpassword=x", "sslpassword"),
            (
                "host=db user=app password=s3cret sslmode=verify-full",
                "as a setting of the connector",
            ),
            ("postgres://app:s3cret@a:1,b:2,c:3/shop?port=1,2", "different number"),
            ("postgres://db/shop", "no user"),
            ("user=app", "no host"),
            ("postgres://app:s3cret@db:port/shop", "invalid"),
        ] {
            let Err(found) = read(bad) else {
                panic!("{bad} is accepted")
            };
            let text = format!("{} -> {}", found.reason, found.fix);
            assert!(text.contains(why) && !text.contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn password_and_url_are_read_again() {
        let dir = std::env::temp_dir().join(format!("trunkline-access-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("password");
        std::fs::write(&file, "one\n").unwrap();
        let url = Secret::resolve(&format!("postgres://app:${{file:{}}}@db/shop", file.display())).unwrap();
        let by_url = Settings::new(url);
        let by_file = Settings {
            password_file: Some(file.clone()),
            ..Settings::new(Secret::new("postgres://app:old@db/shop"))
        };
        let passwords = || [&by_url, &by_file].map(|s| Access::read(s).unwrap().password.unwrap());
        assert_eq!(passwords(), [b"one".to_vec(), b"one".to_vec()]);
        std::fs::write(&file, "two").unwrap();
        assert_eq!(passwords(), [b"two".to_vec(), b"two".to_vec()]);
        std::fs::remove_dir_all(&dir).unwrap();
        let gone = Access::read(&by_file).map(|_| ()).unwrap_err();
        assert!(gone.reason.starts_with("password_file: cannot read"), "{gone:?}");
    }
}
