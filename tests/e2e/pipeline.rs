//! The whole line, real processes: rows go in, devices poll, and at every complete page what belongs together is there.
//!
//! pgbench's transaction changes a branch's balance and writes its history: half a transaction would show as a balance
//! that is not the sum of the deltas. The sample shop's order and its lines are held to the same.

#[cfg(feature = "external")]
mod bank;
#[cfg(feature = "external")]
mod compose;
#[cfg(feature = "external")]
mod crash_recovery;
#[cfg(feature = "external")]
mod harness;
#[cfg(feature = "external")]
mod outages;
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

/// Polls until `done` says so, within a limit; every complete page is held to `check`.
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
            "not done within {limit:?}; the device holds {} rows",
            phone.rows.len()
        );
    }
}
