//! Environment of a connector's loop.

use crate::status::Handle;
use event_log::SharedEventLog;
use registry::Registry;
use service::SharedClock;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle as Runtime;

/// Transaction timeout of connectors. The open transaction of a killed connector blocks `read_committed` readers for
/// this time, plus the coordinator's scan interval.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do if the stored position is incompatible with the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMismatch {
    /// Stay in `NEEDS_RESYNC` until an operator requests a resync.
    #[default]
    Stop,
    /// Start a new source epoch with a snapshot.
    Resync,
}

/// Environment of the loop.
#[derive(Clone)]
pub struct Context {
    /// Name of the connector.
    pub name: String,
    /// Transactional id. A process that opens it fences an older process of the same connector.
    pub transactional_id: String,
    /// Transaction timeout: [`TRANSACTION_TIMEOUT`], except in tests.
    pub transaction_timeout: Duration,
    /// The positions topic. It is created if it does not exist.
    pub positions_topic: String,
    /// The log.
    pub log: SharedEventLog,
    /// The schema registry, for the schema of position records.
    pub registry: Arc<dyn Registry>,
    /// The clock, for the time in position records.
    pub clock: SharedClock,
    /// Runtime of the source's async code.
    pub runtime: Runtime,
    /// State and commands of the connector.
    pub handle: Handle,
    /// What to do if the stored position is incompatible with the source.
    pub on_mismatch: OnMismatch,
    /// Replication factor of topics that the connector creates. Default: that of the brokers.
    pub replication: Option<i32>,
}
