//! The example as a process: it becomes ready, counts, shows its numbers, drains on SIGTERM, and goes on after
//! kill -9.
//!
//! Guarantees: the same test on both homes of the log. Never: a sleep without a state that is waited for.
#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect fails")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for a state.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
fn wait<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
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

/// How to start it: once more in the same way is a restart.
struct Stage {
    data: tempfile::TempDir,
    name: String,
    brokers: Option<String>,
}

impl Stage {
    fn new(brokers: Option<String>) -> Self {
        let data = tempfile::tempdir().unwrap();
        let name = format!("loyalty-{}", uuid::Uuid::new_v4().simple());
        Stage { data, name, brokers }
    }

    fn start(&self) -> Loyalty {
        let lines = self.data.path().join("lines");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loyalty"));
        command
            .env("TRUNKLINE_DATA", self.data.path())
            .env("TRUNKLINE_NAME", &self.name)
            .env("TRUNKLINE_ADMIN__LISTEN", "127.0.0.1:0")
            .stderr(Stdio::from(File::create(&lines).unwrap()));
        if let Some(brokers) = &self.brokers {
            command.env("TRUNKLINE_BROKERS", brokers);
        }
        let child = command.spawn().unwrap();
        let mut loyalty = Loyalty { child, port: 0 };
        loyalty.port = wait("the address that it listens on", || {
            let said = fs::read_to_string(&lines).unwrap();
            let (_, after) = said.split_once("http://127.0.0.1:")?;
            after.split_once("/readyz")?.0.parse().ok()
        });
        loyalty.until("GET", "/readyz", |answer| answer.starts_with("HTTP/1.1 200"));
        loyalty
    }
}

impl Loyalty {
    /// The whole answer; nothing while nobody listens.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Asks until the answer is as wanted.
    fn until(&self, method: &str, path: &str, wanted: impl Fn(&str) -> bool) -> String {
        let ask = || self.ask(method, path, "").filter(|answer| wanted(answer));
        wait(&format!("{method} {path}"), ask)
    }

    fn order(&self, order: &str, cents: u32) {
        let body = format!("{{\"order\":\"{order}\",\"cents\":{cents}}}");
        let answer = self.ask("POST", "/orders/ada", &body).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn until_points(&self, points: u32) {
        self.until("GET", "/points", |answer| {
            answer.contains(&format!("\"points\":{points},"))
        });
    }

    /// Ends it with a signal; says whether it ended by itself and well.
    fn end(mut self, signal: &str) -> bool {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.child.wait().unwrap().success()
    }
}

fn life(stage: &Stage) {
    let loyalty = stage.start();
    loyalty.order("o-1", 1000);
    loyalty.until_points(10);
    let numbers = loyalty.until("GET", "/metrics", |text| {
        text.contains("trunkline_runtime_commits_total")
    });
    assert!(numbers.contains("trunkline_runtime_records_in_total"), "{numbers}");
    assert!(loyalty.end("-TERM"), "a drained process ends with 0");
    let loyalty = stage.start();
    loyalty.order("o-2", 500);
    loyalty.until_points(15);
    assert!(!loyalty.end("-KILL"));
    let loyalty = stage.start();
    loyalty.order("o-3", 100);
    loyalty.until_points(16);
    assert!(loyalty.end("-TERM"));
}

#[test]
fn it_lives_on_the_embedded_log() {
    life(&Stage::new(None));
}

#[test]
fn it_lives_on_kafka() {
    let brokers = service::config::env("TRUNKLINE_TEST_KAFKA");
    let brokers =
        brokers.expect("TRUNKLINE_TEST_KAFKA is not set; run the tests with tests/run, or see `tests/run up`");
    life(&Stage::new(Some(brokers)));
}
