//! Configuration of an edge: listener, token issuers, cursor keys, store and limits.
//!
//! [`Config::check`] finds everything that can be checked without IO, and reports the field and the fix. Secrets are not
//! printed by `Debug`. Environment variables are resolved by `service::config`.

use schemas::ids::Principal;
use serde::Deserialize;
use service::Secret;
use service::listener::{self, Exposure, TlsConfig};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Configuration of an edge.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the listener for devices. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// Allows an address beyond loopback without TLS, for an edge behind a proxy that terminates TLS.
    pub insecure: bool,
    /// Issuers whose tokens are accepted; at least one.
    pub issuers: Vec<IssuerConfig>,
    /// Keys that encrypt cursors: one or two, the same on all edges. The first encrypts, both decrypt. Without any, the
    /// edge generates one in its data directory, which works for a single edge only.
    pub cursor_keys: Vec<CursorKeyConfig>,
    /// Directory of the replica's store and of generated keys.
    pub data_dir: PathBuf,
    /// Store of the replica.
    pub store: StoreConfig,
    /// Limits on requests.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            tls: None,
            insecure: false,
            issuers: Vec::new(),
            cursor_keys: Vec::new(),
            data_dir: PathBuf::from("data/edge"),
            store: StoreConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// A key that encrypts cursors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CursorKeyConfig {
    /// Id of the key, 0 to 255. Each cursor contains the id of its key.
    pub id: u8,
    /// 32 bytes in base64 (`openssl rand -base64 32`).
    pub secret: Secret,
}

/// Storage engine of the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// LSM tree. Constant memory for large views.
    #[default]
    Fjall,
    /// sled. For small views.
    Sled,
    /// In memory. The replica is read from the log at each start.
    Memory,
}

/// Store of the replica.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Storage engine.
    pub engine: Engine,
    /// Maximum memory for caches and write buffers, in MiB.
    pub memory_mib: u32,
    /// Maximum memory for pending rows of all partitions, in MiB. Further pending rows are kept in the store only.
    pub pending_mib: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            engine: Engine::default(),
            memory_mib: 64,
            pending_mib: 16,
        }
    }
}

/// Limits on requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Maximum request body, in bytes.
    pub body_bytes_max: usize,
    /// Maximum time to receive a request body, in seconds.
    pub read_timeout_s: u64,
    /// Maximum `wait` of a long poll, in seconds.
    pub wait_s_max: u64,
    /// Default changes per page.
    pub page_rows: usize,
    /// Maximum changes per page that a device may request.
    pub page_rows_max: usize,
    /// Approximate maximum bytes of rows per page.
    pub page_bytes_max: usize,
    /// Maximum open connections. Further connections wait to be accepted.
    pub connections_max: usize,
    /// Maximum polls that read the store at the same time. Further polls wait.
    pub reads_max: usize,
    /// `poll_after_ms` in responses to devices that do not use long polls, before jitter.
    pub poll_after_ms: u64,
    /// Time that requests in progress have to end when the process stops, in seconds.
    pub drain_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes_max: 64 * 1024,
            read_timeout_s: 10,
            wait_s_max: 25,
            page_rows: 500,
            page_rows_max: 5_000,
            page_bytes_max: 1024 * 1024,
            connections_max: 20_000,
            reads_max: 64,
            poll_after_ms: 30_000,
            drain_s: 10,
        }
    }
}

/// Supported signature algorithms. `none` is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256 and a shared secret.
    HS256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// Name of the algorithm in a token's header (`alg`).
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::RS256 => "RS256",
            Algorithm::ES256 => "ES256",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// Parses the name of an algorithm.
    pub fn from_name(name: &str) -> Option<Self> {
        [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
            .into_iter()
            .find(|a| a.name() == name)
    }
}

/// An issuer of tokens. Exactly one of `jwks_url`, `jwks`, `pem` and `secret` must be set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Short name: a letter, then letters, digits, `_` or `-`. It is a part of the principal, so it must never change.
    pub alias: String,
    /// `iss` of the tokens, compared literally.
    pub issuer: String,
    /// Accepted audiences. `aud` must contain at least one of them.
    pub audience: Vec<String>,
    /// Accepted algorithms. Tokens with another algorithm are rejected, even if a key would verify them.
    pub algorithms: Vec<Algorithm>,
    /// URL of the issuer's JWKS: `https`, or `http` on loopback.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// Allows plain `http` for `jwks_url` beyond loopback. Insecure: everyone who can modify the response can sign tokens.
    #[serde(default)]
    pub jwks_insecure_http: bool,
    /// A JWKS document.
    #[serde(default)]
    pub jwks: Option<Secret>,
    /// A public key in PEM.
    #[serde(default)]
    pub pem: Option<Secret>,
    /// A shared secret for HS256, at least 32 bytes.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Tolerated clock difference, in seconds.
    #[serde(default = "leeway")]
    pub leeway_s: u64,
    /// Maximum age by `iat`, in seconds. If set, `iat` is required.
    #[serde(default)]
    pub max_age_s: Option<u64>,
    /// Claim that contains the subject.
    #[serde(default = "subject")]
    pub subject_claim: String,
    /// Mapping from names in the topology to claims of the token. A dotted name that is not itself a claim is a path into
    /// nested claims. Claims that are not mapped keep their names. `sub` is the subject.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// Refresh interval of fetched keys, in seconds.
    #[serde(default = "refresh")]
    pub jwks_refresh_s: u64,
    /// Minimum interval of fetches because of unknown key ids, in seconds.
    #[serde(default = "interval")]
    pub jwks_interval_s: u64,
    /// How long fetched keys remain in use while the issuer is not reachable, in seconds.
    #[serde(default = "stale")]
    pub jwks_stale_s: u64,
}

fn leeway() -> u64 {
    30
}

fn subject() -> String {
    "sub".into()
}

fn refresh() -> u64 {
    600
}

fn interval() -> u64 {
    30
}

fn stale() -> u64 {
    3_600
}

impl IssuerConfig {
    /// An issuer with default settings and without keys.
    pub fn new(alias: &str, issuer: &str, audience: &str, algorithms: &[Algorithm]) -> Self {
        IssuerConfig {
            alias: alias.into(),
            issuer: issuer.into(),
            audience: vec![audience.into()],
            algorithms: algorithms.to_vec(),
            jwks_url: None,
            jwks_insecure_http: false,
            jwks: None,
            pem: None,
            secret: None,
            leeway_s: leeway(),
            max_age_s: None,
            subject_claim: subject(),
            claims: BTreeMap::new(),
            jwks_refresh_s: refresh(),
            jwks_interval_s: interval(),
            jwks_stale_s: stale(),
        }
    }
}

/// The edge has more connections than the other listeners of a process.
const DESCRIPTORS_PERCENT: usize = 50;

/// An invalid field, with cause and fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("edge.{field}: {problem}")]
pub struct ConfigError {
    /// Path of the field below `edge`, such as `issuers[0].secret`.
    pub field: String,
    /// Cause and fix.
    pub problem: String,
}

impl ConfigError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        ConfigError {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Config {
    /// Checks everything that needs no IO. Keys are checked when they are loaded.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.issuers.is_empty() {
            return Err(ConfigError::new(
                "issuers",
                "is empty, so no token would be accepted; add an [[edge.issuers]]",
            ));
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let invalid = |field: &str, problem: String| ConfigError::new(format!("issuers[{index}].{field}"), problem);
            check_issuer(issuer, &invalid)?;
            for other in self.issuers.iter().take(index) {
                if other.alias == issuer.alias {
                    return Err(invalid(
                        "alias",
                        format!(
                            "{:?} is already the alias of another issuer; choose another",
                            issuer.alias
                        ),
                    ));
                }
                if other.issuer == issuer.issuer {
                    return Err(invalid(
                        "issuer",
                        "is declared twice; put all keys of the issuer into one entry".into(),
                    ));
                }
            }
        }
        self.limits.check()
    }
}

impl Config {
    /// The protection of the listener.
    pub(crate) fn exposure(&self) -> Exposure {
        Exposure {
            key: "edge",
            address: self.listen,
            authenticated: !self.issuers.is_empty(),
            fix: "add an [[edge.issuers]]",
            tls: self.tls.is_some(),
            insecure: self.insecure,
        }
    }
}

impl Limits {
    /// Limits of the listener. The routes have their own limit for the time of a response, because of long polls.
    pub(crate) fn of_connections(&self) -> listener::Limits {
        let read = Duration::from_secs(self.read_timeout_s);
        listener::Limits {
            connections: self.connections_max,
            descriptors_percent: DESCRIPTORS_PERCENT,
            head: read,
            // This limit applies to bodies that no route reads. The routes themselves respond to a body that is too
            // slow.
            body: read + Duration::from_secs(5),
            response: None,
            drain: Duration::from_secs(self.drain_s),
            ..listener::Limits::default()
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field: &str, problem: &str| Err(ConfigError::new(format!("limits.{field}"), problem));
        if self.page_rows == 0 || self.page_rows > self.page_rows_max {
            return invalid("page_rows", "must be between 1 and page_rows_max");
        }
        if self.page_bytes_max < 1_024 {
            return invalid("page_bytes_max", "must be at least 1024");
        }
        if self.wait_s_max > 25 {
            return invalid(
                "wait_s_max",
                "must be at most 25, because mobile networks and proxies abort longer requests",
            );
        }
        for (field, value) in [
            ("body_bytes_max", self.body_bytes_max),
            ("connections_max", self.connections_max),
            ("reads_max", self.reads_max),
        ] {
            if value == 0 {
                return invalid(field, "must be at least 1");
            }
        }
        if self.read_timeout_s == 0 {
            return invalid("read_timeout_s", "must be at least 1");
        }
        Ok(())
    }
}

fn check_issuer(issuer: &IssuerConfig, invalid: &dyn Fn(&str, String) -> ConfigError) -> Result<(), ConfigError> {
    if let Err(e) = Principal::new(&issuer.alias, "subject") {
        return Err(invalid("alias", format!("{:?} is invalid: {}", issuer.alias, e.reason)));
    }
    if issuer.issuer.is_empty() {
        return Err(invalid("issuer", "is empty; set the `iss` of the tokens".into()));
    }
    if issuer.audience.iter().all(String::is_empty) {
        return Err(invalid(
            "audience",
            "is empty; set the `aud` of tokens for this edge".into(),
        ));
    }
    if issuer.algorithms.is_empty() {
        return Err(invalid(
            "algorithms",
            "is empty; set the algorithms of the issuer, such as [\"RS256\"]".into(),
        ));
    }
    let inline_keys = [&issuer.jwks, &issuer.pem, &issuer.secret]
        .iter()
        .filter(|s| s.is_some())
        .count();
    if inline_keys + usize::from(issuer.jwks_url.is_some()) != 1 {
        return Err(invalid(
            "jwks_url",
            "set exactly one of jwks_url, jwks, pem and secret".into(),
        ));
    }
    let symmetric = issuer.algorithms.contains(&Algorithm::HS256);
    if symmetric && issuer.algorithms.len() > 1 {
        // With both kinds, an attacker could sign with HMAC and a public key as the secret.
        return Err(invalid(
            "algorithms",
            "HS256 cannot be combined with other algorithms; declare two issuers".into(),
        ));
    }
    if symmetric && (issuer.jwks_url.is_some() || issuer.pem.is_some()) {
        return Err(invalid(
            "algorithms",
            "HS256 requires `secret` (or `jwks` with an oct key), not public keys".into(),
        ));
    }
    if !symmetric && issuer.secret.is_some() {
        return Err(invalid(
            "secret",
            "a shared secret is only used by HS256; set algorithms = [\"HS256\"]".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.message().to_owned())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    const GOOD: &str = r#"
        [[issuers]]
        alias = "main"
        issuer = "https://id.example.com/"
        audience = ["trunkline"]
        algorithms = ["RS256"]
        jwks_url = "https://id.example.com/jwks"
    "#;

    #[test]
    fn minimal_configuration_has_defaults_and_hides_secrets() {
        let config = with(GOOD).unwrap();
        assert_eq!(
            (
                config.limits.page_rows,
                config.limits.page_rows_max,
                config.limits.wait_s_max
            ),
            (500, 5_000, 25)
        );
        let text = format!("{GOOD}\n[[cursor_keys]]\nid = 1\nsecret = \"hunter2\"");
        assert!(!format!("{:?}", with(&text).unwrap()).contains("hunter2"));
    }

    #[test]
    fn invalid_field_is_named_with_its_fix() {
        let cases = [
            ("", "edge.issuers: is empty"),
            (&GOOD.replace("main", "Main!"), "edge.issuers[0].alias"),
            (&GOOD.replace("[\"trunkline\"]", "[]"), "edge.issuers[0].audience"),
            (
                &GOOD.replace("[\"RS256\"]", "[]"),
                "edge.issuers[0].algorithms: is empty",
            ),
            (&GOOD.replace("[\"RS256\"]", "[\"none\"]"), "unknown variant `none`"),
            (
                &GOOD.replace("[\"RS256\"]", "[\"HS256\", \"RS256\"]"),
                "HS256 cannot be combined with other algorithms",
            ),
            (&GOOD.replace("[\"RS256\"]", "[\"HS256\"]"), "HS256 requires `secret`"),
            (
                &format!("{GOOD}\nsecret = \"x\""),
                "set exactly one of jwks_url, jwks, pem and secret",
            ),
            (&format!("{GOOD}\nkeys = 1"), "unknown field `keys`"),
            (
                &format!("{GOOD}{GOOD}"),
                "edge.issuers[1].alias: \"main\" is already the alias of another issuer",
            ),
            (
                &format!("{GOOD}{}", GOOD.replace("main", "other")),
                "edge.issuers[1].issuer: is declared twice",
            ),
            (&format!("[limits]\nwait_s_max = 60\n{GOOD}"), "edge.limits.wait_s_max"),
            (&format!("[limits]\npage_rows = 0\n{GOOD}"), "edge.limits.page_rows"),
        ];
        for (text, want) in cases {
            let got = with(text).expect_err(want);
            assert!(got.contains(want), "{got:?} does not contain {want:?}");
        }
    }
}
