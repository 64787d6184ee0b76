//! A dedicated `trunkline dev` process, which tests kill with SIGKILL and restart on the same data directory.

use super::{last_lines, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// The trunkline binary of the same build.
pub fn binary() -> PathBuf {
    let here = std::env::current_exe().expect("a running program has a path");
    // Tests are in target/release/deps, benchmarks in target/release.
    let near = here.ancestors().skip(1).take(2);
    near.map(|dir| dir.join("trunkline"))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!(
                "no trunkline binary next to {} or in its parent directory; run `cargo build --release` or tests/run",
                here.display()
            )
        })
}

pub struct Dev {
    data: PathBuf,
    args: Vec<String>,
    child: Option<Child>,
}

impl Dev {
    /// Starts the process with `args` in addition to ports and data directory, and waits until its listeners are open.
    pub fn start(data: &Path, args: &[&str]) -> Dev {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        let mut dev = Dev {
            data: data.to_owned(),
            args,
            child: None,
        };
        dev.restart();
        dev
    }

    /// Starts the process again with the same data directory.
    pub fn restart(&mut self) {
        let _ = std::fs::remove_file(self.data.join("dev.json"));
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.data.with_extension("log"))
            .unwrap();
        let mut child = Dev::command(&self.data)
            .args(&self.args)
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let (file, log) = (self.data.join("dev.json"), self.data.with_extension("log"));
        wait_for("trunkline dev to listen", Duration::from_secs(60), || {
            if let Some(status) = child.try_wait().expect("poll the exit status") {
                panic!(
                    "trunkline dev ended with {status}; end of its log:\n{}",
                    last_lines(&log, 8)
                );
            }
            file.exists().then_some(())
        });
        self.child = Some(child);
    }

    /// A command that starts `trunkline dev` in a data directory, on free ports and without input and output.
    pub fn command(data: &Path) -> Command {
        let mut command = Command::new(binary());
        command.args([
            "dev",
            "--port",
            "0",
            "--ingest-port",
            "0",
            "--admin-port",
            "0",
            "--data",
        ]);
        command.arg(data).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Whether the process was started and not killed.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Exit status of the process, if it has ended by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        child.try_wait().expect("poll the exit status")
    }

    /// The log of the process since its first start.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.data.with_extension("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The records of a topic from the earliest offset, with decoded values.
    pub fn records(&self, topic: &str) -> Vec<Value> {
        let data = self.data.display().to_string();
        let args = ["--output", "json", "topics", "--data", data.as_str(), "tail", topic];
        let all = Dev::output(&[&args[..], &["--from-start", "--limit", "1000"]].concat());
        let records = serde_json::Deserializer::from_str(&all).into_iter();
        records.map(|record| record.expect("JSON")).collect()
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// URL of a listener: `edge`, `ingest` or `admin`.
    pub fn url(&self, listener: &str) -> String {
        wait_for("dev.json to be complete", Duration::from_secs(10), || {
            let text = std::fs::read(self.data.join("dev.json")).ok()?;
            let running: Value = serde_json::from_slice(&text).ok()?;
            running[listener].as_str().map(str::to_owned)
        })
    }

    /// Standard output of a successful trunkline command.
    pub fn output(args: &[&str]) -> String {
        let out = Command::new(binary()).args(args).output().expect("the binary starts");
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A device token signed with the key of this process.
    pub fn token(&self, sub: &str, claims: &[&str]) -> String {
        let data = self.data.display().to_string();
        let mut args = vec!["token", "--data", data.as_str(), "--sub", sub];
        for claim in claims {
            args.extend(["--claim", claim]);
        }
        Dev::output(&args)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = last_lines(&self.data.with_extension("log"), 30);
            eprintln!("end of the log of trunkline dev:\n{log}");
        }
    }
}
