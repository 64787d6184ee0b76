//! What the roles of a node have in common.

use crate::backends::Backends;
use crate::config::Processors;
use service::{Readiness, Tasks};
use std::path::PathBuf;
use topology::Names;

/// Milliseconds in a day.
pub const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What the roles of a node have in common.
#[derive(Clone)]
pub struct Context {
    /// Name of the node.
    pub node: String,
    /// Names of topics, groups and transactional ids.
    pub names: Names,
    /// Log and registry.
    pub backends: Backends,
    /// Settings of processors.
    pub processors: Processors,
    /// Data directory of the state stores.
    pub data: PathBuf,
    /// Owner of the node's tasks and threads.
    pub tasks: Tasks,
    /// Readiness of the node.
    pub readiness: Readiness,
}
