//! What operators see and change: state queries, offset commands, member addresses, metrics, readiness.

pub mod members;
pub mod offsets;
pub mod query;

pub(crate) mod lag;
pub(crate) mod metrics;
pub(crate) mod status;
