//! Tests of the PostgreSQL source with a real server: they execute SQL and check records and states. Each test has its own
//! database, and removes database and slot.

mod changes;
mod key_changes;
pub mod mishaps;
mod refusals;
mod stand;
mod types;
