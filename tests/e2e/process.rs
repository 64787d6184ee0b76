//! A process's life seen from outside: signals, drains that hang, failures, failpoints.
//!
//! Guarantees: each case is a real process (this test binary in a mode of its own) with its exit code and its log.
//! Never: a child that outlives its test.

use crate::support::{self, wait_for};
use service::{BoxError, Service, chain, telemetry};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Set in the child only: which of [`lead`]'s lives it lives.
const CHILD: &str = "TRUNKLINE_TEST_PROCESS_CHILD";

/// Not a test of its own: the child's body. Without the variable it has nothing to do.
#[test]
fn child_runs_until_shutdown() {
    let Some(mode) = service::config::env(CHILD) else {
        return;
    };
    telemetry::logs(&telemetry::Config::default()).unwrap();
    if let Err(error) = lead(&mode) {
        eprintln!("ended with: {}", chain(&error));
        panic!("not a clean end");
    }
    eprintln!("ended cleanly");
}

fn lead(mode: &str) -> Result<(), service::service::Error> {
    let mode = mode.to_owned();
    Service::new()
        .worker_threads(1)
        .drain_limit(Duration::from_secs(60))
        .run(move |tasks| async move {
            let (drain, other) = (tasks.drain(), tasks.drain());
            match mode.as_str() {
                "fails" => tasks.thread("reader", || Err::<(), _>("the disk is gone")),
                "panics" => tasks.spawn("reader", async {
                    let rows: Vec<u32> = Vec::new();
                    assert!(rows.len() > 2, "only {} rows", rows.len());
                }),
                "hangs" => tasks.spawn("deaf", std::future::pending::<()>()),
                _ => {}
            }
            tasks.spawn("listener", async move { drain.started().await });
            tasks.thread("worker", move || {
                let mut committed = 0;
                while !other.is_draining() {
                    failpoint::hit("test_commit");
                    committed += 1;
                    if committed == 1 {
                        println!("child works");
                    }
                    other.sleep_blocking(Duration::from_millis(1));
                }
                // What is begun is ended: the drain comes between two rounds, never inside one.
                eprintln!("worker ended after a whole round");
                Ok::<(), BoxError>(())
            });
        })
}

/// A child, and its standard output, which stays open so that the child may go on writing.
struct Life(Child, BufReader<ChildStdout>);

impl Life {
    fn of(mode: &str, failpoints: &str) -> Self {
        let binary = std::env::current_exe().unwrap();
        let mut child = Command::new(binary)
            .args(["--exact", "process::child_runs_until_shutdown", "--nocapture"])
            .env(CHILD, mode)
            .env(service::config::FAILPOINTS, failpoints)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self(child, stdout)
    }

    /// Waits until the worker has done a round.
    fn working(mut self) -> Self {
        let mut lines = self.1.by_ref().lines().map_while(Result::ok);
        assert!(
            lines.any(|line| line.ends_with("child works")),
            "the child never worked"
        );
        self
    }

    fn signal(&self, signal: &str) {
        support::signal(self.0.id(), signal);
    }

    /// Its exit status and all that it said.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_for("the child ends", Duration::from_secs(30), || self.0.try_wait().unwrap());
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn sigterm_and_sigint_shut_down_gracefully() {
    for signal in ["-TERM", "-INT"] {
        let life = Life::of("works", "").working();
        life.signal(signal);
        let (status, said) = life.end();
        assert!(status.success(), "{said}");
        assert!(
            said.contains("worker ended after a whole round") && said.contains("ended cleanly"),
            "{said}"
        );
    }
}

#[test]
fn second_signal_aborts_drain_and_names_hung_task() {
    let mut life = Life::of("hangs", "").working();
    life.signal("-TERM");
    // The worker has heard the drain: only the deaf one is left.
    let mut said = BufReader::new(life.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("worker ended") {
        line.clear();
        assert!(
            said.read_line(&mut line).unwrap() > 0,
            "the child ended before the second signal"
        );
    }
    life.signal("-TERM");
    let status = wait_for("the child ends", Duration::from_secs(30), || life.0.try_wait().unwrap());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(!status.success());
    assert!(
        rest.contains("ended with: interrupted while these still ran: deaf"),
        "{rest}"
    );
}

#[test]
fn failed_or_panicked_task_stops_process() {
    for (mode, expected) in [
        ("fails", "ended with: task reader failed: the disk is gone"),
        ("panics", "ended with: task reader panicked: only 0 rows"),
    ] {
        let (status, said) = Life::of(mode, "").end();
        assert!(!status.success());
        assert!(said.contains(expected), "{said}");
        assert!(
            said.contains("worker ended after a whole round"),
            "the others drain: {said}"
        );
    }
}

#[test]
fn failpoint_aborts_without_cleanup() {
    use std::os::unix::process::ExitStatusExt;
    let (status, said) = Life::of("works", "test_commit=kill@3").end();
    assert_eq!(status.signal(), Some(6), "aborted: {said}");
    assert!(
        said.contains("failpoint test_commit: aborting") && !said.contains("worker ended"),
        "{said}"
    );
}

#[test]
fn mistyped_failpoint_prevents_start() {
    let (status, said) = Life::of("works", "test_commit=kil").end();
    assert!(!status.success());
    assert!(
        said.contains("invalid failpoint `test_commit=kil`") && !said.contains("worker"),
        "{said}"
    );
}
