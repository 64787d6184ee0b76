//! What tests stand on: the real parts that `tests/run` started, parts of a test's own, and waiting for a state.
//!
//! Guarantees: what a test starts through here is gone when its value is dropped; names are unique over runs.
//! Never: a part that is silently replaced by a fake: a missing variable fails the test.
#![allow(dead_code, unused_imports, reason = "a toolbox: not every suite takes every tool")]

// The load commands include this file from beside, so that its children need their paths.
#[path = "support/broker.rs"]
mod broker;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/dev.rs"]
mod dev;
#[path = "support/disk.rs"]
mod disk;
#[path = "support/nodes.rs"]
mod nodes;
#[path = "support/phone.rs"]
mod phone;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/registry.rs"]
pub mod registry;

pub use broker::{Broker, Listener, abort_transaction, alter_topic, delete_group, delete_records};
pub use cluster::{BROKERS, Cluster};
pub use dev::{Dev, binary};
pub use disk::Disk;
pub use nodes::Fleet;
pub use phone::{Phone, Polled};
pub use postgres::{Postgres, make_bank, sql};

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bootstrap servers of the shared broker.
pub fn kafka() -> String {
    variable("TRUNKLINE_TEST_KAFKA")
}

/// URL of a superuser of the shared PostgreSQL cluster, database `postgres`.
pub fn postgres() -> String {
    variable("TRUNKLINE_TEST_POSTGRES")
}

/// URL of the shared registry, with Confluent's API below it.
pub fn registry_url() -> String {
    variable("TRUNKLINE_TEST_REGISTRY")
}

/// A Python with `confluent_kafka` and `fastavro`.
pub fn python() -> PathBuf {
    variable("TRUNKLINE_TEST_PYTHON").into()
}

/// Directory of Apache Kafka's jars.
pub fn kafka_libs() -> PathBuf {
    variable("TRUNKLINE_TEST_KAFKA_LIBS").into()
}

/// Directory of the jars of Java's Avro library and serialisers.
pub fn avro_libs() -> PathBuf {
    variable("TRUNKLINE_TEST_AVRO_LIBS").into()
}

/// Directory of PostgreSQL's programs.
pub fn postgres_bin() -> PathBuf {
    variable("TRUNKLINE_TEST_PG_BIN").into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the tests' environment is what tests/run hands them"
)]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: run this test with `tests/run`, or start the parts with `tests/run up` and source what it names")
    })
}

/// A name that no other test or run has: `prefix-` and twelve hexadecimal digits.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", id.get(..12).expect("a uuid has 32 digits"))
}

/// Asks until there is an answer; fails the test with `what` when there is none within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal, such as `-TERM`, to a process that the test started.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("run kill").success(), "kill {signal} {pid}");
}

/// The last lines of a log file; nothing when there is none.
pub fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}

/// A port that nobody listens on, below the range of outgoing connections: a part that is stopped and started again
/// finds it free.
pub fn free_port() -> u16 {
    wait_for("a free port", Duration::from_secs(10), || {
        let [low, high, ..] = *uuid::Uuid::new_v4().as_bytes();
        let port = 20_000 + u16::from_le_bytes([low, high]) % 12_000;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}
