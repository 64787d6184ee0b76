//! A small disk of a test's own, in memory.
//!
//! Guarantees: mounted with the size that was asked for, gone when the value is. Never: a limit that only some calls see.

use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Mounts a disk of so many MiB.
    pub fn mount(mib: u32) -> Disk {
        let mut named = tempfile::Builder::new();
        let dir = named.prefix("trunkline-disk-").tempdir().expect("make a directory");
        let disk = Disk { dir };
        disk.run(&["mount", "-t", "tmpfs", "-o", &format!("size={mib}m,mode=777"), "none"]);
        disk
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives it so many MiB.
    pub fn grow(&self, mib: u32) {
        self.run(&["mount", "-o", &format!("remount,size={mib}m")]);
    }

    /// Lets nobody write, or everybody again.
    pub fn read_only(&self, is: bool) {
        self.run(&["mount", "-o", if is { "remount,ro" } else { "remount,rw" }]);
    }

    /// Runs a command on it as root.
    fn run(&self, command: &[&str]) {
        let whoami = Command::new("id").arg("-u").output().expect("run id");
        let as_root: &[&str] = if whoami.stdout.trim_ascii() == b"0" {
            &[]
        } else {
            &["sudo", "-n"]
        };
        let words = [as_root, command].concat();
        let done = Command::new(words[0]).args(&words[1..]).arg(self.dir.path()).output();
        let done = done.expect("run mount");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{words:?} failed; a test's disk needs root, or sudo without a question: {said}"
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that failed may still have files open there.
        self.run(&["umount", "--lazy"]);
    }
}
