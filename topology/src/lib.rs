//! trunkline-topology
