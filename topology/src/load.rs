//! Loads and checks topology files.

use crate::files::{Files, Folder};
use crate::outcome::Outcome;
use std::io;
use std::path::{Path, PathBuf};

/// A topology file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the topology {}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// Cause.
    pub source: io::Error,
}

/// Checks the text of a topology; `name` is the name of the file in messages.
pub fn check(name: &str, text: &str, files: &dyn Files) -> Outcome {
    crate::check::check(name, text, files)
}

/// Reads and checks a topology file. Schema files are relative to it.
///
/// # Errors
/// The file cannot be read. Errors in its contents are part of the report.
pub fn load(path: &Path) -> Result<Outcome, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError {
        path: path.to_path_buf(),
        source,
    })?;
    let folder = Folder(path.parent().map(Path::to_path_buf).unwrap_or_default());
    Ok(check(&path.display().to_string(), &text, &folder))
}
