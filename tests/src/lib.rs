//! The package of the tests that need several crates or real parts; they are in the test binary `it/`.
//!
//! Guarantees: `tests/run` sets up everything that they ask the environment for. Never: an item of its own.
