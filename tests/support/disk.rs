//! A small dedicated disk: a tmpfs with a size limit, unmounted on drop.

use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// A mounted disk.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Mounts a disk of `mib` MiB.
    pub fn mount(mib: u32) -> Disk {
        let mut named = tempfile::Builder::new();
        let dir = named.prefix("trunkline-disk-").tempdir().expect("make a directory");
        let disk = Disk { dir };
        disk.run(&["mount", "-t", "tmpfs", "-o", &format!("size={mib}m,mode=777"), "none"]);
        disk
    }

    /// Mount point.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Changes the size.
    pub fn grow(&self, mib: u32) {
        self.run(&["mount", "-o", &format!("remount,size={mib}m")]);
    }

    /// Makes the disk read-only or writable.
    pub fn read_only(&self, is: bool) {
        self.run(&["mount", "-o", if is { "remount,ro" } else { "remount,rw" }]);
    }

    /// Runs a command as root, with the mount point as the last argument.
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
        let output = String::from_utf8_lossy(&done.stderr);
        assert!(
            done.status.success(),
            "{words:?} failed; mounting needs root or sudo without a password: {output}"
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A failed test may still have open files on the disk.
        self.run(&["umount", "--lazy"]);
    }
}
