//! A `trunkline dev` of a test's own: started, killed as by kill -9, started again over the same data.

use super::{last_lines, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The binary under test, built beside this one.
pub fn binary() -> PathBuf {
    let here = std::env::current_exe().expect("a running program has a path");
    // The tests are in target/release/deps, the load commands in target/release.
    let near = here.ancestors().skip(1).take(2);
    near.map(|dir| dir.join("trunkline"))
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!(
                "no trunkline beside {} or one above: run `cargo build --release`, or use tests/run",
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
    /// Starts it and waits until its listeners are open; `args` beyond ports and data directory.
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

    /// Starts it again over the same data.
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
            if let Some(status) = child.try_wait().expect("a child can be asked") {
                panic!(
                    "trunkline dev ended, {status}; the end of its log:\n{}",
                    last_lines(&log, 8)
                );
            }
            file.exists().then_some(())
        });
        self.child = Some(child);
    }

    /// The command that starts one in a data directory, on free ports and without input and output.
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

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// The records of a topic, from the first one that is kept, with decoded values.
    pub fn records(&self, topic: &str) -> Vec<Value> {
        let data = self.data.display().to_string();
        let args = ["--output", "json", "topics", "--data", data.as_str(), "tail", topic];
        let all = Dev::ask(&[&args[..], &["--from-start", "--limit", "1000"]].concat());
        let records = serde_json::Deserializer::from_str(&all).into_iter();
        records.map(|record| record.expect("JSON")).collect()
    }

    /// Kills it, as by kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// An address of [`crate::support::Dev`]: `edge`, `ingest` or `admin`.
    pub fn url(&self, listener: &str) -> String {
        wait_for("dev.json to be whole", Duration::from_secs(10), || {
            let text = std::fs::read(self.data.join("dev.json")).ok()?;
            let running: Value = serde_json::from_slice(&text).ok()?;
            running[listener].as_str().map(str::to_owned)
        })
    }

    /// What the binary prints for these arguments; fails the test when it fails.
    pub fn ask(args: &[&str]) -> String {
        let out = Command::new(binary()).args(args).output().expect("the binary starts");
        assert!(
            out.status.success(),
            "{args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    /// A token of this one's key.
    pub fn token(&self, sub: &str, claims: &[&str]) -> String {
        let data = self.data.display().to_string();
        let mut args = vec!["token", "--data", data.as_str(), "--sub", sub];
        for claim in claims {
            args.extend(["--claim", claim]);
        }
        Dev::ask(&args)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = last_lines(&self.data.with_extension("log"), 30);
            eprintln!("the last lines of its log:\n{log}");
        }
    }
}
