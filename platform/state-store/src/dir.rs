//! A store's directory: one holder at a time, and what an engine's failure to open means.
//!
//! Guarantees: the directory is locked by the kernel for as long as the holder lives, kill -9 included; an engine that
//! panics on unreadable files is an error like any other.
//! Never: deletes a file.

use crate::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A directory that this process, and nobody else, has open.
pub(crate) struct Held {
    /// The store's directory, as the operator named it.
    pub(crate) dir: PathBuf,
    /// The engine's own directory in it: engines never see each other's files.
    pub(crate) engine: PathBuf,
    lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Not left to the closing of the file: a child that another thread is just about to start holds a copy of the
        // handle until it runs, and the lock with it. An error is of no use here; the handle is closed next.
        drop(self.lock.unlock());
    }
}

/// Creates the directory when absent and takes its lock.
///
/// # Errors
/// [`Error::Locked`] when somebody holds it, [`Error::Io`] when it cannot be created or written.
pub(crate) fn hold(dir: &Path, engine: &str) -> Result<Held> {
    let refused = |attempted| move |source| named(dir, attempted, source);
    std::fs::create_dir_all(dir).map_err(refused("create a store directory"))?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join("lock"))
        .map_err(refused("open a store directory for writing"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(named(dir, "lock a store directory", source)),
    }
    Ok(Held {
        dir: dir.to_owned(),
        engine: dir.join(engine),
        lock,
    })
}

/// A file system error with the directory in its text.
fn named(dir: &Path, attempted: &'static str, source: io::Error) -> Error {
    Error::Io {
        attempted,
        source: io::Error::new(source.kind(), format!("{}: {source}", dir.display())),
    }
}

/// What an input or output error means when it comes up while opening: the machine refused (full, read-only, out of
/// handles), or the files are not what the engine wrote.
pub(crate) fn opening(dir: &Path, source: io::Error) -> Error {
    use io::ErrorKind as Kind;
    let refused = matches!(
        source.kind(),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem | Kind::StorageFull | Kind::QuotaExceeded | Kind::OutOfMemory
    ) || source.raw_os_error().is_some_and(|code| matches!(code, 23 | 24));
    if refused {
        return named(dir, "open a store", source);
    }
    Error::Broken {
        dir: dir.to_owned(),
        source: Box::new(source),
    }
}

/// Runs an engine's opening. Both engines panic on some unreadable files; that says [`Error::Broken`] too.
pub(crate) fn guarded<T>(dir: &Path, open: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned());
        let source = io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the engine panicked on its files: {text}"),
        );
        Err(Error::Broken {
            dir: dir.to_owned(),
            source: Box::new(source),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_panics_says_that_its_files_are_broken() {
        let opened = guarded::<()>(Path::new("state"), || panic!("no such page: {}", 7));
        let Err(Error::Broken { dir, source }) = opened else {
            panic!("{opened:?}")
        };
        assert_eq!(dir, Path::new("state"));
        assert_eq!(source.to_string(), "the engine panicked on its files: no such page: 7");
    }

    #[test]
    fn a_machine_that_refuses_has_not_broken_the_files() {
        let refused = opening(Path::new("state"), io::Error::from_raw_os_error(24));
        assert!(matches!(refused, Error::Io { .. }), "{refused:?}");
        let refused = opening(Path::new("state"), io::ErrorKind::StorageFull.into());
        assert!(matches!(refused, Error::Io { .. }), "{refused:?}");
        let broken = opening(Path::new("state"), io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(broken, Error::Broken { .. }), "{broken:?}");
    }
}
