//! Services and clients for tests: shared services that `tests/run` has started, dedicated services, and waiting for a
//! condition.
//!
//! A dedicated service stops when its value is dropped. Names are unique across runs. If a service is missing, the test
//! fails; a service is never replaced with a fake.
#![allow(dead_code, unused_imports, reason = "each suite uses a part of these helpers")]

// The paths are explicit because several binaries include this file with `#[path]`.
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

pub use broker::{Broker, Listener, abort_transaction, alter_topic, delete_group, delete_records, deny_reads};
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

/// URL of the Confluent API of the shared registry.
pub fn registry_url() -> String {
    variable("TRUNKLINE_TEST_REGISTRY")
}

/// A Python interpreter with `confluent_kafka` and `fastavro`.
pub fn python() -> PathBuf {
    variable("TRUNKLINE_TEST_PYTHON").into()
}

/// Directory of Apache Kafka's jars.
pub fn kafka_libs() -> PathBuf {
    variable("TRUNKLINE_TEST_KAFKA_LIBS").into()
}

/// Directory of the jars of Java's Avro library and serializers.
pub fn avro_libs() -> PathBuf {
    variable("TRUNKLINE_TEST_AVRO_LIBS").into()
}

/// Directory of PostgreSQL's programs.
pub fn postgres_bin() -> PathBuf {
    variable("TRUNKLINE_TEST_PG_BIN").into()
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests/run configures the tests by environment variables"
)]
fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set; run this test with `tests/run`, or start the services with `tests/run up` and source the file that it prints")
    })
}

/// A unique name: `prefix-` and twelve hexadecimal digits.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}-{}", id.get(..12).expect("a uuid has 32 digits"))
}

/// Calls `poll` until it returns a value; panics with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "timed out after {limit:?} waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal, such as `-TERM`, to a process that the test started.
pub fn signal(pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.expect("run kill").success(), "kill {signal} {pid}");
}

/// The last lines of a log file; empty if there is no file.
pub fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}

/// A free port below the range of ports for outgoing connections, so that it is still free when its service restarts.
pub fn free_port() -> u16 {
    wait_for("a free port", Duration::from_secs(10), || {
        let [low, high, ..] = *uuid::Uuid::new_v4().as_bytes();
        let port = 20_000 + u16::from_le_bytes([low, high]) % 12_000;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}
