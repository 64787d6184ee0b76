//! trunkline-tests
