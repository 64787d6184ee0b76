//! Settings of a PostgreSQL source in the process configuration.

use super::retention::OnMaxRetainedWal;
use super::server::{ChannelBinding, Settings, SslMode, SslNegotiation};
use crate::source::OnMismatch;
use schemas::ids::SourceName;
use serde::Deserialize;
use service::Secret;
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::path::PathBuf;
use topology::Names;

/// Connection of a PostgreSQL source (process configuration).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `postgres://user:password@host:port/database`. The user needs `LOGIN REPLICATION`, `SELECT` on the tables, and
    /// ownership of the tables if the connector is to create the publication.
    pub url: Secret,
    /// File with the password. It is read for each connection.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// `sslmode`, as in libpq.
    #[serde(default)]
    pub sslmode: Option<SslMode>,
    /// `sslrootcert`, as in libpq: a PEM file or `system`.
    #[serde(default)]
    pub sslrootcert: Option<PathBuf>,
    /// `sslcert`, as in libpq.
    #[serde(default)]
    pub sslcert: Option<PathBuf>,
    /// `sslkey`, as in libpq.
    #[serde(default)]
    pub sslkey: Option<PathBuf>,
    /// `sslnegotiation`, as in libpq.
    #[serde(default)]
    pub sslnegotiation: Option<SslNegotiation>,
    /// `channel_binding`, as in libpq.
    #[serde(default)]
    pub channel_binding: Option<ChannelBinding>,
    /// Whether the password may be sent in clear over a connection without TLS. Default: no.
    #[serde(default)]
    pub allow_cleartext_password: bool,
    /// The replication slot. Default: `trunkline_<topology>_<database>_<connector>`, or the slot of the stored position.
    #[serde(default)]
    pub slot: Option<String>,
    /// The publication. Default: as the slot.
    #[serde(default)]
    pub publication: Option<String>,
    /// Which columns the publication lists: `when_needed` (default), `always` or `never`.
    #[serde(default)]
    pub column_lists: ColumnLists,
    /// The key of hashed columns, at least 16 bytes. Required if a column is masked with `hash`.
    #[serde(default)]
    pub mask_key: Option<Secret>,
    /// Interval of the heartbeat, a logical message that lets the slot of an idle database advance. Default: 10 s.
    #[serde(default = "heartbeat_seconds")]
    pub heartbeat_seconds: u64,
    /// What to do if the stored position is incompatible with the database: `stop` (default) or `resync`.
    #[serde(default)]
    pub on_mismatch: OnMismatch,
    /// How many records the consumers of this source may be behind before its snapshots wait for them; 0: they never wait.
    /// Default: 5,000.
    #[serde(default = "snapshot_lag_max")]
    pub snapshot_lag_max: u64,
    /// Limit of the write-ahead log that the server retains for the slot. Default: none.
    #[serde(default)]
    pub max_retained_wal: Option<WalSize>,
    /// What to do beyond that limit: `report` (default) or `drop_slot`.
    #[serde(default)]
    pub on_max_retained_wal: OnMaxRetainedWal,
    /// What this connector used with a log that was deleted. A slot among it is replaced at the first start; any other one
    /// that exists is refused.
    #[serde(skip)]
    pub previous_objects: Vec<ServerObjects>,
}

fn heartbeat_seconds() -> u64 {
    10
}

/// About a quarter of a second of records on two cores.
fn snapshot_lag_max() -> u64 {
    5_000
}

impl Config {
    /// Default settings.
    pub fn new(url: Secret) -> Self {
        Config {
            url,
            password_file: None,
            sslmode: None,
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            sslnegotiation: None,
            channel_binding: None,
            allow_cleartext_password: false,
            slot: None,
            publication: None,
            column_lists: ColumnLists::default(),
            mask_key: None,
            heartbeat_seconds: heartbeat_seconds(),
            on_mismatch: OnMismatch::default(),
            snapshot_lag_max: snapshot_lag_max(),
            max_retained_wal: None,
            on_max_retained_wal: OnMaxRetainedWal::default(),
            previous_objects: Vec::new(),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            password_file: self.password_file.clone(),
            sslmode: self.sslmode,
            sslrootcert: self.sslrootcert.clone(),
            sslcert: self.sslcert.clone(),
            sslkey: self.sslkey.clone(),
            sslnegotiation: self.sslnegotiation,
            channel_binding: self.channel_binding,
            allow_cleartext_password: self.allow_cleartext_password,
            ..Settings::new(self.url.clone())
        }
    }
}

/// Which tables of the publication have column lists. PostgreSQL rejects to drop or to change the type of a listed
/// column, so a list has a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnLists {
    /// Those with columns that are not declared.
    #[default]
    WhenNeeded,
    /// All.
    Always,
    /// None: the connector drops the columns that are not declared.
    Never,
}

/// What a source uses on its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerObjects {
    /// The server and database, without credentials.
    pub server: String,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
}

/// An amount of write-ahead log, written with PostgreSQL's units: `512MB`, `10GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct WalSize(u64);

impl WalSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<String> for WalSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a size; write it as 512MB, 10GB or 1TB");
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let shift = match unit.trim() {
            "kB" => 10,
            "MB" => 20,
            "GB" => 30,
            "TB" => 40,
            _ => return Err(invalid()),
        };
        number.checked_mul(1 << shift).map(WalSize).ok_or_else(invalid)
    }
}

/// Longest name in PostgreSQL, in bytes.
const NAME_BYTES_MAX: usize = 63;

/// Default name of the slot and the publication. Slots belong to a cluster, so the name contains topology and database.
/// Slot names permit only lower-case letters, digits and underscores. If a part contains another character, or an
/// underscore, which separates the parts, or if the name is too long, a hash of the parts makes the name unique.
pub(super) fn object_name(topology: &Names, database: &str, connector: &SourceName) -> String {
    let prefix = topology.prefix();
    let parts = [prefix.trim_end_matches('.'), database, connector.as_str()];
    let is_plain = |part: &&str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let name = format!("trunkline_{}", parts.join("_"));
    if parts.iter().all(is_plain) && name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let mut hash = String::from("_");
    for byte in Sha256::digest(parts.join("\0")).iter().take(4) {
        let _ = write!(hash, "{byte:02x}");
    }
    let permitted = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    let readable: String = name.chars().map(permitted).take(NAME_BYTES_MAX - hash.len()).collect();
    readable + &hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn name(topology: &str, database: &str, connector: &str) -> String {
        object_name(&Names::of(topology), database, &SourceName::new(connector).unwrap())
    }

    #[test]
    fn default_names_are_valid_and_do_not_collide() {
        assert_eq!(name("shop", "app", "db"), "trunkline_shop_app_db");
        let long = "x".repeat(60);
        let names = [
            name("shop", "app", "shop-eu"),
            name("shop", "app", "shop_eu"),
            name("shop", "app_shop", "eu"),
            name("shop-app", "shop", "eu"),
            name("shop", "App", "db"),
            name("shop", "app", "db"),
            name("stage", "app", "db"),
            name("shop", "Größe", "db"),
            name("shop", &long, "db"),
            name("shop", &format!("{long}x"), "db"),
        ];
        for name in &names {
            assert!(name.len() <= 63 && name.is_ascii(), "{name}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{name}"
            );
        }
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn sizes_have_units_of_postgresql() {
        let size = |text: &str| WalSize::try_from(text.to_owned()).map(WalSize::bytes);
        assert_eq!((size("512MB"), size("10 GB")), (Ok(512 << 20), Ok(10 << 30)));
        for bad in ["10", "10gb", "GB", "-1GB", "99999999999TB"] {
            assert!(size(bad).unwrap_err().contains("is not a size"), "{bad}");
        }
    }
}
