//! Tests of the PostgreSQL source with a real server: they execute SQL and check records and states. Each test has its
//! own database, and drops the database and the slot when it ends.

mod catalog_changes;
mod changes;
mod columns;
mod connections;
mod failover;
pub mod fault_injection;
pub mod harness;
mod key_changes;
mod memory;
mod operators;
mod partitions;
mod rejected_setups;
mod retention;
mod sample_schemas;
mod snapshots;
mod table_states;
mod tls;
mod types;
