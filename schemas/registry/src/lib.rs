//! trunkline-registry
