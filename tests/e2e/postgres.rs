//! The postgres source against a real PostgreSQL: what a reader of the change topic sees.
//!
//! Guarantees: every case looks from outside: SQL in, records and states out; each has a database of its own.
//! Never: a wait without a limit, a database or slot that is left behind.

mod changes;
pub mod fault_injection;
mod harness;
mod key_changes;
mod refusals;
mod types;
