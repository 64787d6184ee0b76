//! What operators can see and change: queries of the state, offset commands, addresses of the processes, metrics,
//! readiness.

pub mod members;
pub mod offsets;
pub mod query;

pub(crate) mod lag;
pub(crate) mod metrics;
pub(crate) mod status;
