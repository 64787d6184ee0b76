//! The directory of a store: its lock, and the errors of opening its files.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Error codes `ENFILE` and `EMFILE`: too many open files in the system and in the process.
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// A store's directory, locked for this process. The kernel releases the lock when the process ends, even after kill
/// -9.
pub(crate) struct LockedDirectory {
    /// The store's directory, as configured.
    pub(crate) dir: PathBuf,
    /// The subdirectory of the engine, so that one engine never opens the files of another.
    pub(crate) engine: PathBuf,
    lock: File,
}

impl LockedDirectory {
    /// Creates the directory if it is absent, and locks it.
    ///
    /// # Errors
    /// [`Error::Locked`] when it is locked already, [`Error::Io`] when it cannot be created or written.
    pub(crate) fn open(dir: &Path, engine: &str) -> Result<Self> {
        let failed = |attempted| move |source| io_error(dir, attempted, source);
        std::fs::create_dir_all(dir).map_err(failed("create a store directory"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .map_err(failed("write to a store directory"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { dir: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error(dir, "lock a store directory", source)),
        }
        Ok(Self {
            dir: dir.to_owned(),
            engine: dir.join(engine),
            lock,
        })
    }

    /// An error of the engine while it opens its files: an error of the system is reported as such, any other error
    /// means that the files are corrupt.
    pub(crate) fn open_error(&self, source: impl Into<OpenError>) -> Error {
        open_error(&self.dir, source.into())
    }
}

impl Drop for LockedDirectory {
    fn drop(&mut self) {
        // Closing the file does not suffice: a child process that another thread has just forked has a copy of the file
        // descriptor, and thus the lock, until it calls exec. An error can be ignored, because the file is closed next.
        self.lock.unlock().ok();
    }
}

/// Why an engine did not open its files.
pub(crate) enum OpenError {
    Io(io::Error),
    Other(Box<dyn std::error::Error + Send + Sync>),
}

fn open_error(dir: &Path, source: OpenError) -> Error {
    let source = match source {
        OpenError::Io(source) if is_of_system(&source) => return io_error(dir, "open a store", source),
        OpenError::Io(source) => source.into(),
        OpenError::Other(source) => source,
    };
    Error::Corrupt {
        dir: dir.to_owned(),
        source,
    }
}

/// Whether an error says nothing about the files: the system has no more disk space, memory or file descriptors, or
/// denies access.
fn is_of_system(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::StorageFull | Kind::QuotaExceeded | Kind::OutOfMemory
    ) || error
        .raw_os_error()
        .is_some_and(|code| TOO_MANY_OPEN_FILES.contains(&code))
}

/// An error of the operating system, with the directory in its text.
pub(crate) fn io_error(dir: &Path, attempted: &'static str, source: io::Error) -> Error {
    Error::Io {
        attempted,
        source: io::Error::new(source.kind(), format!("{}: {source}", dir.display())),
    }
}

/// Runs `open`. Both engines panic on some corrupt files, so a panic becomes [`Error::Corrupt`].
pub(crate) fn catch_panic<T>(dir: &Path, open: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned());
        Err(Error::Corrupt {
            dir: dir.to_owned(),
            source: format!("the engine panicked: {text}").into(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_while_opening_means_corrupt_files() {
        let opened = catch_panic::<()>(Path::new("state"), || panic!("no such page: {}", 7));
        let Err(Error::Corrupt { dir, source }) = opened else {
            panic!("{opened:?}")
        };
        assert_eq!(dir, Path::new("state"));
        assert_eq!(source.to_string(), "the engine panicked: no such page: 7");
    }

    #[test]
    fn error_of_the_system_does_not_mean_corrupt_files() {
        let opened = |source: io::Error| open_error(Path::new("state"), OpenError::Io(source));
        let too_many = opened(io::Error::from_raw_os_error(24));
        assert!(matches!(too_many, Error::Io { .. }), "{too_many:?}");
        let full = opened(io::ErrorKind::StorageFull.into());
        assert!(matches!(full, Error::Io { .. }), "{full:?}");
        let truncated = opened(io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(truncated, Error::Corrupt { .. }), "{truncated:?}");
    }
}
