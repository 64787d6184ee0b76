//! trunkline-operations
