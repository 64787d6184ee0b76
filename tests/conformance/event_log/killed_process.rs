//! A child process of a test that writes to a log in a directory until it is killed with SIGKILL.
//!
//! The child is the test binary, started for one test, with the directory in an environment variable. It acknowledges
//! its work with lines on its standard output. If the child exits before it is killed, the test fails.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Prefix of the lines that acknowledge work.
const WORD: &str = "acknowledged";

/// If this process is the child for which the variable is set, returns the directory to which it must write.
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

/// Runs a test in a child process with a directory, and kills the child after `hear` has returned true for `enough`
/// lines of its output.
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
            // Lines that were written to the pipe before the kill are still read below.
            child.kill().expect("kill the writer");
        }
    }
    assert!(heard >= enough, "the writer ended by itself after {heard} lines");
    child.wait().expect("wait for the writer");
}
