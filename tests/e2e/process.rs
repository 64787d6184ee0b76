//! Lifecycle of a process: signals, drains that hang, failed tasks, failpoints. Each case runs this test binary as a
//! child process and checks its exit status and log.

use crate::support::{self, wait_for};
use service::{BoxError, Service, chain, telemetry};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

/// Set only in the child: the mode of [`run`].
const CHILD: &str = "TRUNKLINE_TEST_PROCESS_CHILD";

/// Main function of the child. When the variable is not set, it does nothing.
#[test]
fn child_runs_until_shutdown() {
    let Some(mode) = service::config::env(CHILD) else {
        return;
    };
    telemetry::logs(&telemetry::Config::default()).unwrap();
    if let Err(error) = run(&mode) {
        eprintln!("ended with: {}", chain(&error));
        panic!("not a clean end");
    }
    eprintln!("ended cleanly");
}

fn run(mode: &str) -> Result<(), service::service::Error> {
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
                // The worker checks for the drain only between rounds, so each round is completed.
                eprintln!("worker ended after a whole round");
                Ok::<(), BoxError>(())
            });
        })
}

/// A child process with its standard output, which stays open so that the child can write to it. Killed on drop.
struct Running(Child, BufReader<ChildStdout>);

impl Running {
    fn start(mode: &str, failpoints: &str) -> Self {
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

    /// Waits until the worker has completed a round.
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

    /// Waits until the process ends; returns the exit status and standard error.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait_for("the child to end", Duration::from_secs(30), || {
            self.0.try_wait().unwrap()
        });
        let mut output = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut output).unwrap();
        (status, output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn sigterm_and_sigint_shut_down_gracefully() {
    for signal in ["-TERM", "-INT"] {
        let child = Running::start("works", "").working();
        child.signal(signal);
        let (status, output) = child.end();
        assert!(status.success(), "{output}");
        assert!(
            output.contains("worker ended after a whole round") && output.contains("ended cleanly"),
            "{output}"
        );
    }
}

#[test]
fn second_signal_aborts_drain_and_names_hung_task() {
    let mut child = Running::start("hangs", "").working();
    child.signal("-TERM");
    // After the worker has ended, only the task that ignores the drain is still running.
    let mut output = BufReader::new(child.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("worker ended") {
        line.clear();
        assert!(
            output.read_line(&mut line).unwrap() > 0,
            "the child ended before the second signal"
        );
    }
    child.signal("-TERM");
    let status = wait_for("the child to end", Duration::from_secs(30), || {
        child.0.try_wait().unwrap()
    });
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(!status.success());
    assert!(
        rest.contains("ended with: interrupted by a second signal while tasks were running: deaf"),
        "{rest}"
    );
}

#[test]
fn failed_or_panicked_task_stops_process() {
    for (mode, expected) in [
        ("fails", "ended with: task reader failed: the disk is gone"),
        ("panics", "ended with: task reader panicked: only 0 rows"),
    ] {
        let (status, output) = Running::start(mode, "").end();
        assert!(!status.success());
        assert!(output.contains(expected), "{output}");
        assert!(
            output.contains("worker ended after a whole round"),
            "the other tasks did not drain: {output}"
        );
    }
}

#[test]
fn failpoint_aborts_without_cleanup() {
    use std::os::unix::process::ExitStatusExt;
    let (status, output) = Running::start("works", "test_commit=kill@3").end();
    assert_eq!(status.signal(), Some(6), "aborted: {output}");
    assert!(
        output.contains("failpoint test_commit: aborting") && !output.contains("worker ended"),
        "{output}"
    );
}

#[test]
fn mistyped_failpoint_prevents_start() {
    let (status, output) = Running::start("works", "test_commit=kil").end();
    assert!(!status.success());
    assert!(
        output.contains("invalid failpoint `test_commit=kil`") && !output.contains("worker"),
        "{output}"
    );
}
