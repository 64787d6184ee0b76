//! Exclusive use of a data directory by one process, from start to exit.
//!
//! The lock is an advisory lock on a file in the directory, so the kernel also releases it after kill -9. The file is
//! inside the directory because the parent is often not writable (`/var/lib`, a mounted volume). `dev --fresh` renames
//! the directory together with the locked file. Therefore [`DataDir::claim`] checks after locking that the path still
//! refers to the locked file. A process renames the directory only while it holds the lock, so a lock that passed the
//! check stays valid.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The locked file. It contains the process id of its owner as text.
const LOCK_FILE: &str = "process.lock";
/// Number of attempts while other processes rename the directory.
const ATTEMPTS_MAX: usize = 16;

/// The option with which a user chooses another directory, for error messages.
pub const OPTION: &str = "--data DIR";

/// A data directory that is locked by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

/// A data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses the directory.
    #[error("data directory {directory} is in use by {holder}; stop it, or choose another directory with {option}")]
    InUse {
        /// The directory, as given and resolved.
        directory: String,
        /// `process PID`, or `another process`.
        holder: String,
        /// The option or configuration key that sets the directory.
        option: &'static str,
    },
    /// A file system operation failed.
    #[error("cannot {attempted} {}", .path.display())]
    Io {
        /// The operation.
        attempted: &'static str,
        /// Path of the file or directory.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The old directory was renamed, but the new one could not be claimed.
    #[error("cannot create a new data directory; the previous contents were moved to {}", .aside.display())]
    NotReplaced {
        /// New path of the old directory.
        aside: PathBuf,
        /// Cause.
        source: Box<DataDirError>,
    },
    /// The directory cannot be renamed.
    #[error("cannot rename the data directory {}", .path.display())]
    Rename {
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: state_store::Error,
    },
}

impl DataDir {
    /// Creates the directory if it does not exist, and locks it. `option` is the option or key that sets it; it becomes
    /// part of the error.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] if another process holds the lock, [`DataDirError::Io`] if a file operation fails.
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
        // A symbolic link or a relative path must lead to the same lock file.
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
            // `dev --fresh` renamed the directory between opening and locking, so this is the lock of the old
            // directory.
            Ok(()) => Err(failed("lock", &file)(io::ErrorKind::NotFound.into())),
            Err(TryLockError::WouldBlock) => Err(in_use(named, &path, option)),
            Err(TryLockError::Error(error)) => Err(failed("lock", &file)(error)),
        }
    }

    /// Renames the directory to `DIR.aside-N` and claims a new one at the same path. Keeps an empty directory.
    ///
    /// # Errors
    /// As [`DataDir::claim`]. If the old directory was already renamed, the error contains its new path.
    pub fn start_over(self, option: &'static str) -> Result<(Self, Option<PathBuf>), DataDirError> {
        if self.is_empty()? {
            return Ok((self, None));
        }
        let moved = state_store::quarantine(&self.path);
        let aside = moved.map_err(|source| DataDirError::Rename {
            path: self.path.clone(),
            source,
        })?;
        // The old lock is kept until the new lock is held: a process that opened the old file before the rename must
        // fail.
        match DataDir::claim(&self.path, option) {
            Ok(new) => Ok((new, Some(aside))),
            Err(source) => Err(DataDirError::NotReplaced {
                aside,
                source: Box::new(source),
            }),
        }
    }

    /// Keeps the lock until the process exits, and returns the absolute path. The lock is not released earlier, because
    /// threads that still run after an interrupted drain may write.
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

/// Whether the error can be caused by a concurrent rename of the directory.
fn is_moved(error: &io::Error) -> bool {
    // AlreadyExists: the directory existed at `mkdir`, but no longer when `create_dir_all` checked whether it is a
    // directory.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists)
}

/// Whether the path still refers to this open file.
fn is_at(open: &File, path: &Path) -> bool {
    let (Ok(open), Ok(found)) = (open.metadata(), fs::metadata(path)) else {
        return false;
    };
    (open.dev(), open.ino()) == (found.dev(), found.ino())
}

/// The process id is used only in the error message of other processes, so a failed write is ignored.
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

    fn is_in_use(dir: &Path) -> bool {
        matches!(DataDir::claim(dir, OPTION), Err(DataDirError::InUse { .. }))
    }

    #[test]
    fn second_claim_names_directory_and_holder() {
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
    fn symbolic_link_leads_to_the_same_lock() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, link) = (parent.path().join("data"), parent.path().join("link"));
        fs::create_dir(&dir).unwrap();
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        let held = DataDir::claim(&link, OPTION).unwrap();
        assert!(is_in_use(&dir));
        assert!(is_in_use(&parent.path().join("data/../link/.")));
        fs::write(dir.join("file"), "old").unwrap();
        // The directory is renamed, not the symbolic link.
        let (_new, aside) = held.start_over(OPTION).unwrap();
        let aside = aside.unwrap();
        assert_eq!(aside, parent.path().canonicalize().unwrap().join("data.aside-1"));
        assert_eq!(fs::read(aside.join("file")).unwrap(), b"old");
        assert!(dir.is_dir() && !link.join("file").exists());
        assert!(is_in_use(&link));
    }

    #[test]
    fn empty_directory_is_not_renamed() {
        let parent = tempfile::tempdir().unwrap();
        let held = DataDir::claim(&parent.path().join("a/b"), OPTION).unwrap();
        let (_held, aside) = held.start_over(OPTION).unwrap();
        assert_eq!(aside, None);
        assert!(is_in_use(&parent.path().join("a/b")));
    }

    #[test]
    fn renamed_directory_is_unlocked() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let held = DataDir::claim(&dir, OPTION).unwrap();
        fs::write(dir.join("file"), "old").unwrap();
        let (_new, aside) = held.start_over(OPTION).unwrap();
        assert!(is_in_use(&dir));
        DataDir::claim(&aside.unwrap(), OPTION).unwrap();
    }

    #[test]
    fn lock_of_a_renamed_directory_is_detected() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let held = DataDir::claim(&dir, OPTION).unwrap();
        fs::write(dir.join("file"), "old").unwrap();
        let early = File::open(dir.join(LOCK_FILE)).unwrap();
        let (_new, _) = held.start_over(OPTION).unwrap();
        // A claim that opened the file before the rename gets the lock, and must detect that it is the lock of the old
        // directory.
        early.try_lock().unwrap();
        assert!(!is_at(&early, &dir.join(LOCK_FILE)));
    }

    #[test]
    fn one_of_many_concurrent_claims_wins() {
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
            // Locks are kept until all threads have finished, as running processes keep theirs.
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
