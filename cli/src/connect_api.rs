//! Routes of the admin listener for connectors, compatible with Kafka Connect's REST API, and their JSON.
//!
//! A connector is declared in the topology, so it can be neither created nor deleted here. `trunkline` in a status has the
//! exact state with cause and fix. `resync` and `snapshot` are additions. Errors are problem details with Kafka Connect's
//! members `error_code` and `message`.

mod routes;
mod running;

pub use routes::routes;
pub use running::{RunningConnector, RunningConnectors, Worker};
