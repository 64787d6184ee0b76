//! Quarantine: renames the directory of a store that cannot be used, so that a new store can be restored in its place.

use crate::directory::io_error;
use crate::error::Result;
use std::path::{Path, PathBuf};

/// Moves a store's directory to the first free path `DIR.aside-N`, and returns that path. Nothing is deleted. The store
/// must not be open.
pub fn quarantine(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1u32..)
        .map(|n| dir.with_file_name(format!("{name}.aside-{n}")))
        .find(|path| !path.exists());
    let to = free.expect("a directory has fewer entries than u32 has values");
    std::fs::rename(dir, &to).map_err(|source| io_error(dir, "quarantine a store directory", source))?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_quarantine_gets_its_own_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("store");
        for n in 1..=2 {
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("data"), [n]).unwrap();
            let moved = quarantine(&dir).unwrap();
            assert_eq!(moved, root.path().join(format!("store.aside-{n}")));
            assert_eq!(std::fs::read(moved.join("data")).unwrap(), [n]);
            assert!(!dir.exists());
        }
    }
}
