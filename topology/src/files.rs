//! Access to the schema files that are named in a topology.

use std::io;
use std::path::PathBuf;

/// Reads the files that are named in a topology.
pub trait Files {
    /// The text of a file, relative to the topology file.
    ///
    /// # Errors
    /// The file cannot be read.
    fn read(&self, path: &str) -> io::Result<String>;
}

/// Files in the directory of a topology file.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Files for Folder {
    fn read(&self, path: &str) -> io::Result<String> {
        std::fs::read_to_string(self.0.join(path))
    }
}

/// Files that are compiled into the program: paths and texts.
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
