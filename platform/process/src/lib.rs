//! trunkline-process
