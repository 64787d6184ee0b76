//! The example as a process: it becomes ready, counts orders, serves metrics, drains on SIGTERM, and continues after
//! SIGKILL. The same test runs with both backends of the log.
#![allow(clippy::unwrap_used, reason = "an unexpected result must fail the test")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a state.
const LIMIT: Duration = Duration::from_secs(60);

/// Polls until there is a result.
fn wait<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(result) = poll() {
            return result;
        }
        assert!(Instant::now() < end, "timed out after {LIMIT:?} waiting for {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A running example, killed when it is dropped.
struct Loyalty {
    child: Child,
    port: u16,
}

impl Drop for Loyalty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The settings of the process. Starting it a second time is a restart.
struct Harness {
    data: tempfile::TempDir,
    name: String,
    brokers: Option<String>,
}

impl Harness {
    fn new(brokers: Option<String>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let name = format!("loyalty-{}", uuid::Uuid::new_v4().simple());
        Harness { data, name, brokers }
    }

    fn start(&self) -> Loyalty {
        let log_file = self.data.path().join("output.log");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loyalty"));
        command
            .env("TRUNKLINE_DATA", self.data.path())
            .env("TRUNKLINE_NAME", &self.name)
            .env("TRUNKLINE_ADMIN__LISTEN", "127.0.0.1:0")
            .stderr(Stdio::from(File::create(&log_file).unwrap()));
        if let Some(brokers) = &self.brokers {
            command.env("TRUNKLINE_BROKERS", brokers);
        }
        let child = command.spawn().unwrap();
        let mut loyalty = Loyalty { child, port: 0 };
        loyalty.port = wait("the address of the listener", || {
            let log = fs::read_to_string(&log_file).unwrap();
            let (_, after) = log.split_once("http://127.0.0.1:")?;
            after.split_once("/readyz")?.0.parse().ok()
        });
        loyalty.until("GET", "/readyz", |answer| answer.starts_with("HTTP/1.1 200"));
        loyalty
    }
}

impl Loyalty {
    /// Sends a request and returns the whole response; `None` if the connection fails.
    fn request(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Repeats a request until its response matches.
    fn until(&self, method: &str, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let ask = || self.request(method, path, "").filter(|answer| wanted(answer));
        wait(&format!("{method} {path}"), ask)
    }

    fn order(&self, order: &str, cents: u32) {
        let body = format!("{{\"order\":\"{order}\",\"cents\":{cents}}}");
        let answer = self.request("POST", "/orders/ada", &body).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn until_points(&self, points: u32) {
        self.until("GET", "/points", |answer| {
            answer.contains(&format!("\"points\":{points},"))
        });
    }

    /// Sends a signal, and returns whether the process exited successfully.
    fn end(mut self, signal: &str) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.child.wait().unwrap().success()
    }
}

fn survives_restarts(harness: &Harness) {
    let loyalty = harness.start();
    loyalty.order("o-1", 1000);
    loyalty.until_points(10);
    let numbers = loyalty.until("GET", "/metrics", |text| {
        text.contains("trunkline_streams_commits_total")
    });
    assert!(numbers.contains("trunkline_streams_records_in_total"), "{numbers}");
    assert!(loyalty.end("-TERM"), "a drained process exits with status 0");
    let loyalty = harness.start();
    loyalty.order("o-2", 500);
    loyalty.until_points(15);
    assert!(!loyalty.end("-KILL"));
    let loyalty = harness.start();
    loyalty.order("o-3", 100);
    loyalty.until_points(16);
    assert!(loyalty.end("-TERM"));
}

#[test]
fn restarts_on_the_embedded_log() {
    survives_restarts(&Harness::new(None));
}

#[cfg(feature = "external")]
#[test]
fn restarts_on_kafka() {
    let brokers = service::config::env("TRUNKLINE_TEST_KAFKA");
    let brokers =
        brokers.expect("TRUNKLINE_TEST_KAFKA is not set; run the tests with tests/run, or see `tests/run up`");
    survives_restarts(&Harness::new(Some(brokers)));
}
