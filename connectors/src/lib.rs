//! trunkline-connectors
