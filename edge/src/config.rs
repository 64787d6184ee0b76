//! What an edge is told: where it listens, whose tokens it takes, its limits, where its store lies.
//!
//! Guarantees: [`Config::check`] names the field and the fix of everything that can be known to be wrong without IO;
//! secrets never print. Never: a look at the environment (`service::config` does that).

use schemas::ids::Principal;
use serde::Deserialize;
use service::Secret;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Configuration of an edge.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the devices' listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whose tokens are accepted; at least one.
    pub issuers: Vec<IssuerConfig>,
    /// Keys that seal cursors, one or two, the same on every edge; the first one seals. Without any, the edge makes
    /// one and keeps it in its data directory: right for a single edge only.
    pub cursor_keys: Vec<CursorKeyConfig>,
    /// Directory for the replica's store and for generated keys.
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
            issuers: Vec::new(),
            cursor_keys: Vec::new(),
            data_dir: PathBuf::from("data/edge"),
            store: StoreConfig::default(),
            limits: Limits::default(),
        }
    }
}

/// A key that seals cursors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CursorKeyConfig {
    /// Number of the key, 0 to 255; a cursor names it.
    pub id: u8,
    /// 32 bytes as base64 (`openssl rand -base64 32`).
    pub secret: Secret,
}

/// Which store keeps the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// An LSM tree: steady under large views.
    #[default]
    Fjall,
    /// sled: for small views.
    Sled,
    /// Nothing on disk: read again from the log at every start.
    Memory,
}

/// Store of the replica.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Engine.
    pub engine: Engine,
    /// Upper limit for its caches and write buffers, in MiB.
    pub memory_mib: u32,
    /// Rows of open source transactions kept in memory, in MiB a partition; more of them stay in the store only.
    pub held_mib: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        StoreConfig {
            engine: Engine::default(),
            memory_mib: 64,
            held_mib: 4,
        }
    }
}

/// Limits on requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body, in bytes.
    pub body_bytes_max: usize,
    /// Time for a request's head, and again for its body, to arrive, in seconds.
    pub read_timeout_s: u64,
    /// Longest `wait` of a long poll, in seconds.
    pub wait_s_max: u64,
    /// Changes a page when the device does not say.
    pub page_rows: usize,
    /// Most changes a page that a device may ask for.
    pub page_rows_max: usize,
    /// About how many bytes of rows a page holds at most.
    pub page_bytes_max: usize,
    /// Open connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Polls that read the store at the same time; further ones wait.
    pub reads_max: usize,
    /// What `poll_after_ms` says to a device that does not long-poll, in ms; every answer adds its own jitter.
    pub poll_after_ms: u64,
    /// How long open requests may take to end when the process stops, in seconds.
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

/// A signature algorithm that an edge understands. There is no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Algorithm {
    /// HMAC with SHA-256, a shared secret.
    HS256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// As the token's header names it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::RS256 => "RS256",
            Algorithm::ES256 => "ES256",
            Algorithm::EdDSA => "EdDSA",
        }
    }

    /// The algorithm of a token's header.
    pub fn from_name(name: &str) -> Option<Self> {
        [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA]
            .into_iter()
            .find(|a| a.name() == name)
    }
}

/// An issuer of tokens. Exactly one of `jwks_url`, `jwks`, `pem` and `secret` says where its keys are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Short name; together with the subject it is the principal, so it must never change: a
    /// letter, then letters, digits, `_` or `-`.
    pub alias: String,
    /// The `iss` that tokens carry, compared as it is.
    pub issuer: String,
    /// Audiences of which `aud` must hold at least one.
    pub audience: Vec<String>,
    /// Algorithms that are accepted; a token under any other is refused whatever the keys say.
    pub algorithms: Vec<Algorithm>,
    /// URL of the issuer's JWKS; `https`, or `http` on loopback.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// Allows `jwks_url` to be plain `http` beyond loopback: whoever can change that answer can sign tokens.
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
    /// Clock difference that is forgiven, in seconds.
    #[serde(default = "leeway")]
    pub leeway_s: u64,
    /// Longest time since `iat`, in seconds; with it `iat` is required.
    #[serde(default)]
    pub max_age_s: Option<u64>,
    /// Claim that is the subject.
    #[serde(default = "subject")]
    pub subject_claim: String,
    /// Other names for claims: name in the topology = claim of the token. A dotted name that is no claim as it stands
    /// is a path into nested claims. Claims that are not named here go by their own names; `sub` is the subject.
    #[serde(default)]
    pub claims: BTreeMap<String, String>,
    /// Age at which fetched keys are fetched again, in seconds.
    #[serde(default = "refresh")]
    pub jwks_refresh_s: u64,
    /// Least time between two fetches because of a key id that is not known, in seconds.
    #[serde(default = "interval")]
    pub jwks_interval_s: u64,
    /// How long fetched keys are used while the issuer cannot be reached, in seconds.
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
    /// An issuer with the defaults and no keys yet.
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

/// A field that is wrong, why, and the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("edge.{field}: {problem}")]
pub struct ConfigError {
    /// Path of the field, such as `issuers[0].secret`.
    pub field: String,
    /// What is wrong, and the fix.
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
    /// Checks everything that needs no IO; the keys themselves are checked when they are read.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.issuers.is_empty() {
            return Err(ConfigError::new(
                "issuers",
                "is empty, so no token would be accepted; declare an [[edge.issuers]]",
            ));
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let wrong = |field: &str, problem: String| ConfigError::new(format!("issuers[{index}].{field}"), problem);
            check_issuer(issuer, &wrong)?;
            for other in self.issuers.iter().take(index) {
                if other.alias == issuer.alias {
                    return Err(wrong(
                        "alias",
                        format!("{:?} is another issuer's already; choose another", issuer.alias),
                    ));
                }
                if other.issuer == issuer.issuer {
                    return Err(wrong(
                        "issuer",
                        "is declared twice; put all its keys into one entry".into(),
                    ));
                }
            }
        }
        self.limits.check()
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field: &str, problem: &str| Err(ConfigError::new(format!("limits.{field}"), problem));
        if self.page_rows == 0 || self.page_rows > self.page_rows_max {
            return wrong("page_rows", "must be between 1 and page_rows_max");
        }
        if self.page_bytes_max < 1_024 {
            return wrong("page_bytes_max", "must be at least 1024");
        }
        if self.wait_s_max > 25 {
            return wrong(
                "wait_s_max",
                "must be at most 25: mobile networks and proxies cut longer requests off",
            );
        }
        for (field, value) in [
            ("body_bytes_max", self.body_bytes_max),
            ("connections_max", self.connections_max),
            ("reads_max", self.reads_max),
        ] {
            if value == 0 {
                return wrong(field, "must be at least 1");
            }
        }
        if self.read_timeout_s == 0 {
            return wrong("read_timeout_s", "must be at least 1");
        }
        Ok(())
    }
}

fn check_issuer(issuer: &IssuerConfig, wrong: &dyn Fn(&str, String) -> ConfigError) -> Result<(), ConfigError> {
    if let Err(e) = Principal::new(&issuer.alias, "subject") {
        return Err(wrong("alias", format!("{:?} is refused: {}", issuer.alias, e.reason)));
    }
    if issuer.issuer.is_empty() {
        return Err(wrong("issuer", "is empty; write the `iss` that tokens carry".into()));
    }
    if issuer.audience.iter().all(String::is_empty) {
        return Err(wrong(
            "audience",
            "is empty; name the audience that tokens for this edge carry in `aud`".into(),
        ));
    }
    if issuer.algorithms.is_empty() {
        return Err(wrong(
            "algorithms",
            "is empty; name what the issuer signs with, such as [\"RS256\"]".into(),
        ));
    }
    let places = [&issuer.jwks, &issuer.pem, &issuer.secret]
        .iter()
        .filter(|s| s.is_some())
        .count();
    if places + usize::from(issuer.jwks_url.is_some()) != 1 {
        return Err(wrong(
            "jwks_url",
            "set exactly one of jwks_url, jwks, pem and secret".into(),
        ));
    }
    let symmetric = issuer.algorithms.contains(&Algorithm::HS256);
    if symmetric && issuer.algorithms.len() > 1 {
        // With both kinds a public key could be taken for a shared secret.
        return Err(wrong(
            "algorithms",
            "HS256 cannot stand beside others; declare two issuers".into(),
        ));
    }
    if symmetric && (issuer.jwks_url.is_some() || issuer.pem.is_some()) {
        return Err(wrong(
            "algorithms",
            "HS256 needs `secret` (or `jwks` with an oct key), not public keys".into(),
        ));
    }
    if !symmetric && issuer.secret.is_some() {
        return Err(wrong(
            "secret",
            "only HS256 uses a shared secret; set algorithms = [\"HS256\"]".into(),
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
    fn a_minimal_configuration_has_sane_limits_and_prints_no_secret() {
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
    fn every_mistake_names_its_field_and_the_fix() {
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
                "HS256 cannot stand beside others",
            ),
            (&GOOD.replace("[\"RS256\"]", "[\"HS256\"]"), "HS256 needs `secret`"),
            (
                &format!("{GOOD}\nsecret = \"x\""),
                "set exactly one of jwks_url, jwks, pem and secret",
            ),
            (&format!("{GOOD}\nkeys = 1"), "unknown field `keys`"),
            (
                &format!("{GOOD}{GOOD}"),
                "edge.issuers[1].alias: \"main\" is another issuer's already",
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
            assert!(got.contains(want), "{got:?} does not say {want:?}");
        }
    }
}
