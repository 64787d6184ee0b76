//! The pipeline from sources to devices in real processes: every complete page contains either all or none of the rows
//! of a source transaction.
//!
//! A pgbench transaction changes the balance of a branch and inserts a row of its history, so after a partial
//! transaction, the balance would not be the sum of the deltas. In the sample shop, the total of an order is the sum of
//! its lines.

#[cfg(feature = "external")]
mod bank;
#[cfg(feature = "external")]
mod compose;
#[cfg(feature = "external")]
mod crash_recovery;
#[cfg(feature = "external")]
mod first_snapshot;
#[cfg(feature = "external")]
mod harness;
#[cfg(feature = "external")]
pub mod operators;
#[cfg(feature = "external")]
mod outages;
#[cfg(feature = "external")]
mod shared_cluster;
mod shop;
#[cfg(feature = "external")]
mod state;
mod trace;

use crate::support::{Phone, Polled};
use serde_json::Value;
use std::time::{Duration, Instant};

fn number(row: &Value, column: &str) -> i64 {
    match &row[column] {
        Value::String(text) => text.parse().expect("a whole number"),
        other => other.as_i64().expect("a whole number"),
    }
}

fn sum<'a>(rows: impl Iterator<Item = &'a Value>, column: &str) -> i64 {
    rows.map(|row| number(row, column)).sum()
}

/// Polls until `done` is true and calls `check` after every complete page; panics after `limit`.
fn follow(
    phone: &mut Phone,
    edge: &str,
    limit: Duration,
    check: &dyn Fn(&Phone),
    done: &mut dyn FnMut(&Phone) -> bool,
) {
    let until = Instant::now() + limit;
    loop {
        match phone.poll(edge, 1) {
            Polled::Complete => check(phone),
            Polled::Later => std::thread::park_timeout(Duration::from_millis(100)),
            Polled::Part | Polled::Same => {}
        }
        if done(phone) {
            return;
        }
        assert!(
            Instant::now() < until,
            "not done within {limit:?}; the device has {} rows",
            phone.rows.len()
        );
    }
}
