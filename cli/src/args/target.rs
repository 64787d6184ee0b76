//! Options that choose the log, and the credentials for it.

use clap::Args;
use service::Secret;
use std::path::PathBuf;

/// Default of `--data`.
pub const DEFAULT_DATA: &str = ".trunkline";

/// The log to which a command connects.
// The options are global, so that they can be given before and after a subcommand.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connection options")]
pub struct Target {
    /// Kafka bootstrap servers. Without it, the command uses the `trunkline dev` of the data directory.
    #[arg(long, global = true, value_name = "ADDR", env = "TRUNKLINE_KAFKA")]
    pub kafka: Option<String>,
    /// Setting of the Kafka client, by librdkafka's name. ${env:NAME} and ${file:PATH} keep secrets out of the command
    /// line. May be repeated; the variable has one setting a line.
    #[arg(long, short = 'X', global = true, value_name = "NAME=VALUE", env = "TRUNKLINE_KAFKA_SETTINGS", hide_env_values = true, value_delimiter = '\n', value_parser = setting)]
    pub kafka_setting: Vec<KafkaSetting>,
    /// Configuration file whose sections `kafka` and `registry` are used: that of a node, or a profile.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "TRUNKLINE_CONFIG",
        conflicts_with = "profile"
    )]
    pub config: Option<PathBuf>,
    /// Profile: the configuration file NAME.toml in `trunkline/profiles` of the user's configuration directory.
    #[arg(long, global = true, value_name = "NAME", env = "TRUNKLINE_PROFILE")]
    pub profile: Option<String>,
    /// Schema registry (Confluent API) for decoding records, together with a Kafka.
    #[arg(long, global = true, value_name = "URL", env = "TRUNKLINE_REGISTRY_URL")]
    pub registry: Option<String>,
    /// User of the schema registry.
    #[arg(long, global = true, value_name = "USER", env = "TRUNKLINE_REGISTRY_USER")]
    pub registry_user: Option<String>,
    /// Password of the schema registry. Prefer the environment variable, because other users of this machine can see
    /// command lines.
    #[arg(long, global = true, value_name = "PASSWORD", env = "TRUNKLINE_REGISTRY_PASSWORD", hide_env_values = true, value_parser = secret)]
    pub registry_password: Option<Secret>,
    /// Data directory of a `trunkline dev`, which may be running or stopped.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Token for admin listeners. Prefer --admin-token-file or the environment variable, because other users of this
    /// machine can see command lines.
    #[arg(long, global = true, value_name = "TOKEN", env = "TRUNKLINE_ADMIN_TOKEN", hide_env = true, value_parser = secret)]
    pub admin_token: Option<Secret>,
    /// File with the token for admin listeners.
    #[arg(long, global = true, value_name = "FILE", env = "TRUNKLINE_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// PEM file with additional certificate authorities to trust for the certificates of admin listeners.
    #[arg(long, global = true, value_name = "FILE", env = "TRUNKLINE_ADMIN_CA")]
    pub admin_ca: Option<PathBuf>,
}

/// A setting of the Kafka client.
#[derive(Debug, Clone)]
pub struct KafkaSetting {
    /// librdkafka's name.
    pub name: String,
    /// The value, which may be a password.
    pub value: Secret,
}

fn setting(text: &str) -> Result<KafkaSetting, String> {
    // The text is not repeated, because it may contain a password.
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let value = Secret::resolve(value).map_err(|error| error.to_string())?;
    let name = name.trim().to_owned();
    Ok(KafkaSetting { name, value })
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}
