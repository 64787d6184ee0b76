//! Quarantine: renames the directory of a store that cannot be used, so that a new store can be restored in its place.

use crate::directory::{LockedDirectory, io_error};
use crate::error::Result;
use std::path::{Path, PathBuf};

/// Moves a store's directory to the first free path `DIR.aside-N`, and returns that path. Nothing is deleted.
///
/// # Errors
/// [`crate::Error::Locked`] while the store is open, including by a snapshot: its engine writes files by path, so it
/// would write into the store that takes its place.
pub fn quarantine(dir: &Path) -> Result<PathBuf> {
    let _locked = LockedDirectory::open(dir, "")?;
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
    use crate::{Batch, Engine, Error, Options, Space};

    #[test]
    fn open_store_is_not_quarantined() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("store");
        let options = Options {
            engine: Engine::Fjall,
            dir: dir.clone(),
            spaces: vec!["rows"],
            memory_bytes: 8 << 20,
        };
        let store = crate::open(&options).unwrap();
        let mut batch = Batch::default();
        batch.put(Space(0), b"a".to_vec(), b"1".to_vec());
        store.commit(batch).unwrap();
        let snapshot = store.snapshot().unwrap();
        drop(store);
        assert!(matches!(quarantine(&dir), Err(Error::Locked { .. })));
        assert_eq!(snapshot.get(Space(0), b"a").unwrap().as_deref(), Some(&b"1"[..]));
        drop(snapshot);
        assert!(quarantine(&dir).unwrap().exists() && !dir.exists());
    }

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
