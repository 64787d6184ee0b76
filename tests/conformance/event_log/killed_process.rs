//! A process of a test's own that writes to a log in a directory until it is killed, as by kill -9.
//!
//! It is the test binary once more, with one test; a variable tells it the directory. It acknowledges what it has done by
//! lines on its standard output.
//! Guarantees: what was acknowledged before the end is read; one that ends by itself fails the test. Never: a survivor.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the lines begin.
const WORD: &str = "acknowledged";

/// The directory that this process is to write to, if it is the killed_process that the variable is for.
#[expect(
    clippy::disallowed_methods,
    reason = "this is how the parent tells the child what it is"
)]
pub fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var(variable).ok().map(PathBuf::from)
}

/// Tells the parent what was done.
pub fn acknowledge(words: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{WORD} {words}")
        .and_then(|()| out.flush())
        .expect("tell the parent");
}

/// Runs a test as the killed_process over a directory, and kills it once `hear` has understood so many of its lines.
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
            // What was written to the pipe before the end is still read below.
            child.kill().expect("kill the writer");
        }
    }
    assert!(heard >= enough, "the writer ended by itself after {heard} lines");
    child.wait().expect("wait for the writer");
}
