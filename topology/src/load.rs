//! From a file, or an embedded sample, to a checked topology.
//!
//! Guarantees: schema files are looked up relative to the topology file; only what the file names is read.
//! Never: watches a file; a topology is read once.

use crate::checked::Topology;
use crate::problem::Report;
use std::io;
use std::path::{Path, PathBuf};

/// Where the files that a topology names are read from.
pub trait Files {
    /// The text of a file, relative to the topology file.
    ///
    /// # Errors
    /// As reading a file fails.
    fn read(&self, path: &str) -> io::Result<String>;
}

/// Files beside a topology file.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Files for Folder {
    fn read(&self, path: &str) -> io::Result<String> {
        std::fs::read_to_string(self.0.join(path))
    }
}

/// Files that are part of the program: paths and texts.
#[derive(Debug, Clone, Copy)]
pub struct Embedded(pub &'static [(&'static str, &'static str)]);

impl Files for Embedded {
    fn read(&self, path: &str) -> io::Result<String> {
        let found = self.0.iter().find(|(name, _)| *name == path);
        found
            .map(|(_, text)| String::from(*text))
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

/// What a check found.
#[derive(Debug)]
pub struct Outcome {
    /// The checked topology; `None` if the report has errors.
    pub topology: Option<Topology>,
    /// Errors and warnings.
    pub report: Report,
}

impl Outcome {
    /// The topology, its warnings dropped.
    ///
    /// # Errors
    /// The report, if it has errors.
    pub fn into_result(self) -> Result<Topology, Report> {
        self.topology.ok_or(self.report)
    }
}

/// Why a topology could not even be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the topology {}", path.display())]
pub struct LoadError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Checks the text of a topology; `name` is what the file is called in messages.
pub fn check(name: &str, text: &str, files: &dyn Files) -> Outcome {
    crate::check::check(name, text, files)
}

/// Reads and checks a topology file.
///
/// # Errors
/// Fails if the file cannot be read; what is wrong in it is in the outcome's report.
pub fn load(path: &Path) -> Result<Outcome, LoadError> {
    let text = std::fs::read_to_string(path).map_err(|source| LoadError {
        path: path.to_path_buf(),
        source,
    })?;
    let folder = Folder(path.parent().map(Path::to_path_buf).unwrap_or_default());
    Ok(check(&path.display().to_string(), &text, &folder))
}
