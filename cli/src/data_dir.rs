//! Exclusive use of a data directory: one process at a time, from its start until it ends.
//!
//! The lock is a file in the directory, locked by the kernel, so it is released by kill -9 too. It lies inside because
//! the parent of a data directory is often not writable (`/var/lib`, a mounted volume). `dev --fresh` renames the
//! directory and the locked file with it, so a locked file counts only while the path still leads to it;
//! [`DataDir::claim`] checks that after it has the lock. Whoever renames the directory holds its lock, so a claim that
//! passed the check stays valid.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The locked file. It holds the process id of its holder as text.
const LOCK_FILE: &str = "process.lock";
/// How many times a claim is tried while other processes move the directory.
const ATTEMPTS_MAX: usize = 16;

/// How the user of a command names another directory.
pub const OPTION: &str = "--data DIR";

/// A data directory that this process has to itself.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error("data directory {directory} is in use by {holder}; stop it, or choose another directory with {option}")]
    InUse {
        /// The directory, as named and resolved.
        directory: String,
        /// `process PID`, or `another process`.
        holder: String,
        /// The option or key that names the directory.
        option: &'static str,
    },
    /// The file system refused.
    #[error("{attempted} {}", .path.display())]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The old directory was moved, but the new one could not be claimed.
    #[error("the previous contents are in {}", .aside.display())]
    NotReplaced {
        /// Where the old directory is now.
        aside: PathBuf,
        /// Why the new one could not be claimed.
        source: Box<DataDirError>,
    },
    /// The directory cannot be renamed.
    #[error("move the data directory {} aside", .path.display())]
    SetAside {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        source: state_store::Error,
    },
}

impl DataDir {
    /// Creates the directory if it is missing and locks it. `option` is how the user names another one; it is part of
    /// the error.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] if another process holds the lock, [`DataDirError::Io`] if the file system refuses.
    pub fn claim(named: &Path, option: &'static str) -> Result<Self, DataDirError> {
        for _ in 1..ATTEMPTS_MAX {
            match DataDir::claim_once(named, option) {
                Err(DataDirError::Io { source, .. }) if is_moved(&source) => {}
                claimed => return claimed,
            }
        }
        DataDir::claim_once(named, option)
    }

    fn claim_once(named: &Path, option: &'static str) -> Result<Self, DataDirError> {
        fs::create_dir_all(named).map_err(failed("create the data directory", named))?;
        // A symbolic link and a relative path lead to the same lock file as the path itself.
        let path = fs::canonicalize(named).map_err(failed("resolve the data directory", named))?;
        let file = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&file)
            .map_err(failed("open", &file))?;
        match lock.try_lock() {
            Ok(()) if is_at(&lock, &file) => {
                write_pid(&lock);
                Ok(DataDir { path, lock })
            }
            // `dev --fresh` moved the directory between the two calls; this is the lock of the old one.
            Ok(()) => Err(failed("lock", &file)(io::ErrorKind::NotFound.into())),
            Err(TryLockError::WouldBlock) => Err(in_use(named, &path, option)),
            Err(TryLockError::Error(error)) => Err(failed("lock", &file)(error)),
        }
    }

    /// Moves the directory to `DIR.aside-N` and claims a new one at the same path. An empty directory is kept.
    ///
    /// # Errors
    /// As [`DataDir::claim`]. The old directory may have been moved by then; the error says where it is.
    pub fn start_over(self, option: &'static str) -> Result<(Self, Option<PathBuf>), DataDirError> {
        if self.is_empty()? {
            return Ok((self, None));
        }
        let moved = state_store::quarantine(&self.path);
        let aside = moved.map_err(|source| DataDirError::SetAside {
            path: self.path.clone(),
            source,
        })?;
        // The old lock is held until the new one is: a process that opened the old file before the move is refused.
        match DataDir::claim(&self.path, option) {
            Ok(new) => Ok((new, Some(aside))),
            Err(source) => Err(DataDirError::NotReplaced {
                aside,
                source: Box::new(source),
            }),
        }
    }

    /// Keeps the lock until the process ends, and returns the absolute path. Nothing unlocks it earlier: threads that
    /// outlive an interrupted drain may still write.
    pub fn keep(self) -> PathBuf {
        std::mem::forget(self.lock);
        self.path
    }

    fn is_empty(&self) -> Result<bool, DataDirError> {
        let attempted = "read the data directory";
        for entry in fs::read_dir(&self.path).map_err(failed(attempted, &self.path))? {
            let entry = entry.map_err(failed(attempted, &self.path))?;
            if entry.file_name() != LOCK_FILE {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether an error may mean that another process has just moved the directory.
fn is_moved(error: &io::Error) -> bool {
    // AlreadyExists: the directory was there when it was to be created and gone when `create_dir_all` looked again.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

/// Whether the path still leads to this open file.
fn is_at(open: &File, path: &Path) -> bool {
    let (Ok(open), Ok(found)) = (open.metadata(), fs::metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (found.dev(), found.ino())
}

/// The process id is information for the error message of others only, so a full disk does not matter here.
fn write_pid(mut lock: &File) {
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
}

fn in_use(named: &Path, path: &Path, option: &'static str) -> DataDirError {
    let directory = if named == path {
        path.display().to_string()
    } else {
        format!("{} ({})", named.display(), path.display())
    };
    let pid = fs::read_to_string(path.join(LOCK_FILE))
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    DataDirError::InUse {
        directory,
        holder: pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")),
        option,
    }
}

fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io {
        attempted,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    fn is_refused(dir: &Path) -> bool {
        matches!(DataDir::claim(dir, OPTION), Err(DataDirError::InUse { .. }))
    }

    #[test]
    fn a_second_claim_names_directory_holder_and_option() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().canonicalize().unwrap().join("data");
        let held = DataDir::claim(&dir, OPTION).unwrap();
        let error = DataDir::claim(&dir, OPTION).unwrap_err().to_string();
        let expected = format!(
            "data directory {} is in use by process {}; stop it, or choose another directory with --data DIR",
            dir.display(),
            std::process::id()
        );
        assert_eq!(error, expected);
        drop(held);
        DataDir::claim(&dir, OPTION).unwrap();
    }

    #[test]
    fn a_symbolic_link_leads_to_the_same_lock() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, link) = (parent.path().join("data"), parent.path().join("link"));
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let held = DataDir::claim(&link, OPTION).unwrap();
        assert!(is_refused(&dir));
        assert!(is_refused(&parent.path().join("data/../link/.")));
        fs::write(dir.join("file"), "old").unwrap();
        // The directory moves, not the link: the new one is on the same disk.
        let (_new, aside) = held.start_over(OPTION).unwrap();
        let aside = aside.unwrap();
        assert_eq!(aside, parent.path().canonicalize().unwrap().join("data.aside-1"));
        assert_eq!(fs::read(aside.join("file")).unwrap(), b"old");
        assert!(dir.is_dir() && !link.join("file").exists());
        assert!(is_refused(&link));
    }

    #[test]
    fn a_directory_without_data_is_not_moved() {
        let parent = tempfile::tempdir().unwrap();
        let held = DataDir::claim(&parent.path().join("a/b"), OPTION).unwrap();
        let (_held, aside) = held.start_over(OPTION).unwrap();
        assert_eq!(aside, None);
        assert!(is_refused(&parent.path().join("a/b")));
    }

    #[test]
    fn the_moved_directory_is_free_and_the_new_one_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let held = DataDir::claim(&dir, OPTION).unwrap();
        fs::write(dir.join("file"), "old").unwrap();
        let (_new, aside) = held.start_over(OPTION).unwrap();
        assert!(is_refused(&dir));
        DataDir::claim(&aside.unwrap(), OPTION).unwrap();
    }

    #[test]
    fn a_lock_file_that_was_moved_away_does_not_count() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let held = DataDir::claim(&dir, OPTION).unwrap();
        fs::write(dir.join("file"), "old").unwrap();
        let early = File::open(dir.join(LOCK_FILE)).unwrap();
        let (_new, _) = held.start_over(OPTION).unwrap();
        // What a claim does that opened the file before the move: it gets the lock, and sees that it is the old one.
        early.try_lock().unwrap();
        assert!(!is_at(&early, &dir.join(LOCK_FILE)));
    }

    #[test]
    fn of_many_that_start_over_at_once_one_has_the_directory() {
        const PROCESSES: usize = 8;
        for _ in 0..50 {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("data");
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("file"), "old").unwrap();
            let start = Barrier::new(PROCESSES);
            let claim = || {
                start.wait();
                let held = DataDir::claim(&dir, OPTION).ok()?;
                held.start_over(OPTION).ok().map(|(held, _)| held)
            };
            // The claims are kept until all have ended, as those of running processes are.
            let held: Vec<DataDir> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..PROCESSES).map(|_| scope.spawn(claim)).collect();
                threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
            });
            assert_eq!(held.len(), 1, "{held:?}");
            assert!(is_at(&held[0].lock, &dir.join(LOCK_FILE)));
            let old = parent.path().join("data.aside-1/file");
            assert_eq!(fs::read(old).unwrap(), b"old");
        }
    }
}
