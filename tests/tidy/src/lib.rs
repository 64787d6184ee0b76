//! Checks of the source tree that the compiler and clippy do not make. Run with `cargo test -p trunkline-tidy`.
//!
//! Each check returns a list of violations as `path:line: what is wrong; how to fix it`, and a test per check
//! asserts that the list is empty. The checks read files only; they never build or run anything.
#![allow(clippy::panic, reason = "a violation is reported by a failed assertion")]

pub mod imports;
pub mod layers;
pub mod limits;
pub mod links;
pub mod tree;
pub mod wording;

#[cfg(test)]
mod tests;
