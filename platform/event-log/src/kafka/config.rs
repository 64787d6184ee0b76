//! Connection settings of the event log on Kafka.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Connection settings.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bootstrap servers: `host:port`, separated by commas.
    pub bootstrap: String,
    /// Client id, used by the brokers for logs and quotas.
    #[serde(default = "default_client_id")]
    pub client_id: String,
    /// Settings by librdkafka's names, such as `security.protocol`, `ssl.ca.location`, `sasl.username`,
    /// `compression.type` or `queued.max.messages.kbytes`. Settings that exactly-once depends on cannot be overridden.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Request timeout. In the configuration file `request_timeout_s`, in seconds.
    #[serde(
        default = "default_request_timeout",
        rename = "request_timeout_s",
        deserialize_with = "seconds"
    )]
    pub request_timeout: Duration,
}

fn default_client_id() -> String {
    "trunkline".to_owned()
}

fn default_request_timeout() -> Duration {
    Duration::from_secs(20)
}

fn seconds<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Duration, D::Error> {
    u32::deserialize(from).map(|seconds| Duration::from_secs(seconds.into()))
}

impl Config {
    /// Creates settings for a connection to these servers without TLS and authentication.
    pub fn new(bootstrap: impl Into<String>) -> Config {
        Config {
            bootstrap: bootstrap.into(),
            client_id: default_client_id(),
            settings: BTreeMap::new(),
            request_timeout: default_request_timeout(),
        }
    }
}

/// Omits the values of settings, which may be secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("bootstrap", &self.bootstrap)
            .field("client_id", &self.client_id)
            .field("settings", &self.settings.keys().collect::<Vec<_>>())
            .field("request_timeout", &self.request_timeout)
            .finish()
    }
}
