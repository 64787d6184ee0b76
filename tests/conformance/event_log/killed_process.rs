//! A child process of a test that writes to a log in a directory until it is killed with SIGKILL.
//!
//! It is the test binary, started for one test, with the directory in an environment variable. It acknowledges its work by
//! lines on its standard output. A child that exits on its own fails the test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Prefix of these lines.
const WORD: &str = "acknowledged";

/// Returns the directory to write to if this process is the child that the variable is set for.
#[expect(
    clippy::disallowed_methods,
    reason = "this is how the parent tells the child what it is"
)]
pub fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var(variable).ok().map(PathBuf::from)
}

/// Reports completed work to the parent.
pub fn acknowledge(words: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{WORD} {words}")
        .and_then(|()| out.flush())
        .expect("tell the parent");
}

/// Runs a test as a child on a directory, and kills it once `hear` has accepted `enough` of its lines.
pub fn run(variable: &str, test: &str, dir: &Path, enough: usize, hear: &mut dyn FnMut(&[&str]) -> bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(variable, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the writer");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut heard = 0;
    for line in lines {
        let line = line.expect("read the writer");
        let words: Vec<&str> = line.split(' ').skip_while(|word| *word != WORD).skip(1).collect();
        if !hear(&words) {
            continue;
        }
        heard += 1;
        if heard == enough {
            // Lines written to the pipe before the kill are still read below.
            child.kill().expect("kill the writer");
        }
    }
    assert!(heard >= enough, "the writer ended by itself after {heard} lines");
    child.wait().expect("wait for the writer");
}
