//! Load and latency, printed beside what is asked for: not tests, since a busy machine must not fail a build.
//!
//! Guarantees: each command says what it did, on which parts, and its figures. Never: a verdict by exit code.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a measurement that meets what it does not expect ends; what it stands on is shared with the tests"
)]

#[path = "../support.rs"]
mod support;

mod cluster;
mod edge;
mod figures;
mod growth;
mod line;
mod log;
mod postgres;
mod runtime;
mod state;
mod store;

/// As in the binary.
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "usage: load WHAT
  cluster [MINUTES]   three brokers, a join and a count, everything killed in turn; what is lost, doubled or made up
  edge [embedded|kafka] [ROWS]   apply, idle polls, long polls; edge and devices in this one process
  growth [MILLION ROWS ...]   cost of a random row update by sync-views and by the edge at 1, 5 and 20 million rows;
                      builds states of up to 10 GB in the directory for temporary files
  store [fjall|sled] [ROWS] [VALUE BYTES] [MEMORY MIB]   fill, read, scan, reopen
  runtime [kafka|embedded] [copy|count|aggregate|singles|alone]   a copy, beside the library's own, a count with state,
                      the declared count(), one record at a time; copy, count and singles without transactions
  state [fjall|sled] [THOUSAND KEYS]   a process with state on Kafka: cold start, idle, memory, kill -9, full restore
  postgres [kafka|embedded] [THOUSAND ROWS]   the connector: snapshot, backlogs, one change at a time
  line [THOUSAND ROWS|latency]   the whole line, a process a role: starts, one change at a time, a backlog, pgbench; CPU, memory
  log [kafka|embedded]   small transactions and an exactly-once copy; kafka: see tests/run up";

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rest = words.get(1..).unwrap_or_default();
    match words.first().map(String::as_str) {
        Some("cluster") => crate::cluster::run(rest),
        Some("edge") => crate::edge::run(rest),
        Some("growth") => crate::growth::run(rest),
        Some(crate::growth::CHILD) => crate::growth::child(rest),
        Some("line") => crate::line::run(rest),
        Some("runtime") => crate::runtime::run(rest),
        Some("state") => crate::state::run(rest),
        Some(crate::state::CHILD) => crate::state::child(rest),
        Some("store") => crate::store::run(rest),
        Some("postgres") => crate::postgres::run(rest),
        Some("log") => crate::log::run(rest),
        _ => Err(anyhow::anyhow!(USAGE)),
    }
}
