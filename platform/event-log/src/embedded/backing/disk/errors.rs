//! Errors of the storage in a directory. Each names the failed operation, the directory and the fix.

use super::engine::OpenError;
use crate::Error;
use fjall::LsmError;
use std::io;
use std::path::Path;

pub(super) const FREE_SPACE: &str = "free or add disk space; the log continues by itself";
pub(super) const FIX_DISK: &str =
    "see the log of the process and of the kernel; the log continues by itself once files can be written";

pub(super) const RESTART: &str =
    "restart the process; state stores, edges and devices are then rebuilt from what is left";

/// Why nothing can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub cause: String,
    pub fix: &'static str,
}

/// The error of a file operation during the opening of the directory.
pub(super) fn io_refused(dir: &Path, source: &io::Error) -> Error {
    let fix = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free or add disk space",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "make the directory writable",
        _ => "check the disk",
    };
    Error::Rejected {
        attempted: format!("open the embedded log in {}", dir.display()),
        reason: format!("{source}; {fix}"),
    }
}

pub(super) fn open_error(dir: &Path, error: OpenError) -> Error {
    let text = match error {
        OpenError::Fjall(fjall::Error::Locked) => return locked(dir),
        OpenError::Fjall(fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)))
            if !matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ) =>
        {
            return io_refused(dir, &source);
        }
        OpenError::Fjall(error) => error.to_string(),
        OpenError::Panic(text) => format!("fjall panicked: {text}"),
    };
    Error::Corrupt {
        place: dir.display().to_string(),
        reason: format!(
            "the store cannot be opened ({text}); restore the directory from a backup, or move it away to start with an \
             empty log"
        ),
    }
}

pub(super) fn locked(dir: &Path) -> Error {
    Error::Rejected {
        attempted: format!("open the embedded log in {}", dir.display()),
        reason: "another process has opened it; stop that process or choose another directory".to_owned(),
    }
}

/// The error of a read. A damaged block of a file affects only the partitions of its rows.
pub(super) fn read_failed(attempted: &'static str) -> impl FnOnce(fjall::Error) -> Error {
    move |source| match source {
        fjall::Error::Storage(
            LsmError::ChecksumMismatch { .. }
            | LsmError::Decompress(_)
            | LsmError::InvalidTag(_)
            | LsmError::InvalidTrailer
            | LsmError::InvalidHeader(_),
        ) => Error::Corrupt {
            place: "a file of the store".to_owned(),
            reason: format!("{source}; restore the log's directory from a backup"),
        },
        source => Error::Storage {
            attempted,
            source: Box::new(source),
        },
    }
}

/// The error of each operation after acknowledged batches were lost.
pub(super) fn lost(attempted: &'static str) -> Error {
    Error::Storage {
        attempted,
        source: format!("acknowledged writes were lost when the disk failed; {RESTART}").into(),
    }
}

pub(super) fn io_failure(source: &io::Error) -> Failure {
    let (what, fix) = match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ("the disk is full", FREE_SPACE),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => (
            "the directory is not writable",
            "make it writable; the log continues by itself",
        ),
        _ => ("a file operation failed", FIX_DISK),
    };
    Failure {
        cause: format!("{what} ({source})"),
        fix,
    }
}
