//! The files of the checkout, and the packages of the workspace.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories that contain build output or downloads, never sources.
const SKIPPED_DIRS: [&str; 4] = ["target", "node_modules", ".git", ".trunkline"];

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|dir| dir.join("Cargo.lock").is_file())
        .expect("the workspace root holds Cargo.lock")
        .to_path_buf()
}

/// A path relative to the root, with `/` as separator.
pub fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap_or(path);
    path.components()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect::<Vec<_>>()
        .join("/")
}

/// All files below a directory of the checkout whose extension is one of these (`""`: no extension), sorted.
pub fn files(below: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(below)];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !SKIPPED_DIRS.contains(&name.as_str()) {
                    dirs.push(path);
                }
            } else {
                let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
                if extensions.contains(&extension.as_str()) {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    found
}

/// The text of a file. Files in the checkout are UTF-8.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
