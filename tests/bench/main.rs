//! Benchmarks. Each prints the workload, the backends and the measured figures next to the targets.
//!
//! They are not tests: a missed target does not change the exit code, because a build must not fail on a busy machine.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a benchmark may panic on an unexpected result; it shares the harnesses of the tests"
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
mod snapshot;
mod state;
mod store;

/// The allocator of the `trunkline` binary.
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "usage: bench NAME [ARGUMENTS]
  cluster [MINUTES]
      join and count on three brokers while processes and brokers are killed; lost, duplicate and phantom records
  edge [embedded|kafka] [ROWS]
      apply, idle polls and long polls; the edge and its devices share this process
  growth [sync-views|edge] [MILLION ROWS ...]
      cost of a random row update in sync-views and in the edge at 1, 5 and 20 million rows;
      needs up to 10 GB in the directory for temporary files
  line [THOUSAND ROWS|latency]
      the pipeline from PostgreSQL to devices, one process per role: start time, latency, backlog, pgbench, CPU, memory
  log [kafka|embedded]
      small transactions and an exactly-once copy
  postgres [kafka|embedded] [THOUSAND ROWS]
      PostgreSQL connector: snapshot, backlogs, latency of single changes
  runtime [kafka|embedded] [copy|count|aggregate|singles|alone]
      stream runtime: copy (compared with plain librdkafka), count with state, declarative count(), latency of single
      records; `alone` runs copy, count and singles at least once, without transactions
  snapshot [MILLION ROWS]
      snapshot of a large table over Kafka to a device while the connector is killed five times and changes continue,
      then TRUNCATE: rows read again, latency, peak memory; 10 million rows need up to 20 GB in the directory for
      temporary files
  state [fjall|sled] [THOUSAND KEYS]
      stateful process on Kafka: cold start, idle CPU, memory, restart after SIGKILL, full restore
  store [fjall|sled] [ROWS] [VALUE BYTES] [MEMORY MIB]
      state store: fill, read, scan, reopen
`source <(tests/run up)` starts Kafka and PostgreSQL and sets the variables that the benchmarks read.";

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
        Some("snapshot") => crate::snapshot::run(rest),
        Some("state") => crate::state::run(rest),
        Some(crate::state::CHILD) => crate::state::child(rest),
        Some("store") => crate::store::run(rest),
        Some("postgres") => crate::postgres::run(rest),
        Some("log") => crate::log::run(rest),
        _ => Err(anyhow::anyhow!(USAGE)),
    }
}
