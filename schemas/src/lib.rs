//! trunkline-schemas
