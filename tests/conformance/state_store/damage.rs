//! Directories that are locked, corrupt or not writable: each causes a different error, and the store does not panic,
//! hang or delete files.
//!
//! File modes do not restrict root. When the tests run as root, a directory in `/proc` is used as one that is not
//! writable.

use super::{ON_DISK, Random, options, rows};
use state_store::{Batch, Direction, Engine, Error, KeyRange, Space};
use std::path::{Path, PathBuf};

#[test]
fn open_store_is_locked() {
    for engine in ON_DISK {
        let dir = tempfile::tempdir().unwrap();
        let first = state_store::open(&options(engine, dir.path())).unwrap();
        let second = state_store::open(&options(engine, dir.path()));
        assert!(
            matches!(&second, Err(Error::Locked { dir: at }) if at == dir.path()),
            "{:?}",
            second.err()
        );
        // A snapshot keeps the store open.
        let snapshot = first.snapshot().unwrap();
        drop(first);
        assert!(matches!(
            state_store::open(&options(engine, dir.path())),
            Err(Error::Locked { .. })
        ));
        drop(snapshot);
        state_store::open(&options(engine, dir.path())).unwrap();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

#[test]
fn corrupt_store_is_reported_and_can_be_quarantined() {
    let mut random = Random::of_test("store garbage");
    for engine in ON_DISK {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("state");
        let store = state_store::open(&options(engine, &dir)).unwrap();
        for n in 0..2_000_u32 {
            let mut batch = Batch::default();
            batch.put(Space(1), n.to_be_bytes(), vec![b'v'; 1_000]);
            store.commit(batch).unwrap();
        }
        store.persist().unwrap();
        drop(store);
        for file in files(&dir)
            .into_iter()
            .filter(|file| file.file_name().is_some_and(|name| name != "lock"))
        {
            let len = std::fs::metadata(&file).unwrap().len().max(64);
            let garbage: Vec<u8> = (0..len).map(|_| random.byte()).collect();
            std::fs::write(file, garbage).unwrap();
        }
        let opened = state_store::open(&options(engine, &dir));
        assert!(
            matches!(&opened, Err(Error::Corrupt { dir: at, .. }) if *at == dir),
            "{engine:?}: {:?}",
            opened.err()
        );

        let before = files(&dir).len();
        let moved = state_store::quarantine(&dir).unwrap();
        assert_eq!(
            (moved.clone(), files(&moved).len()),
            (root.path().join("state.aside-1"), before)
        );
        let store = state_store::open(&options(engine, &dir)).unwrap();
        assert_eq!(rows(&*store, Space(1), KeyRange::ALL, Direction::Forward), []);
    }
}

/// Corrupts one file at a time. The store must open, or report that it is corrupt.
#[test]
fn damaged_file_does_not_panic() {
    let mut random = Random::of_test("store damage");
    for engine in ON_DISK {
        let root = tempfile::tempdir().unwrap();
        let whole = root.path().join("whole");
        let store = state_store::open(&options(engine, &whole)).unwrap();
        for n in 0..3_000_u32 {
            let mut batch = Batch::default();
            batch.put(Space(1), (n % 700).to_be_bytes(), vec![b'v'; 2_000]);
            store.commit(batch).unwrap();
        }
        drop(store);
        for (at, file) in files(&whole).into_iter().enumerate() {
            let copy = root.path().join(format!("copy-{at}"));
            for from in files(&whole) {
                let to = copy.join(from.strip_prefix(&whole).unwrap());
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(&from, to).unwrap();
            }
            let damaged = copy.join(file.strip_prefix(&whole).unwrap());
            let mut bytes = std::fs::read(&damaged).unwrap();
            let start = usize::try_from(random.below(u64::try_from(bytes.len() / 2 + 1).unwrap())).unwrap();
            bytes.iter_mut().skip(start).for_each(|byte| *byte = random.byte());
            std::fs::write(&damaged, bytes).unwrap();
            match state_store::open(&options(engine, &copy)) {
                Ok(store) => drop(store),
                Err(Error::Corrupt { .. }) => {}
                Err(other) => panic!("{engine:?}, {}: {other:?}", file.display()),
            }
            std::fs::remove_dir_all(copy).unwrap();
        }
    }
}

#[test]
fn unwritable_directory_is_named_in_the_error() {
    use std::os::unix::fs::PermissionsExt;
    for engine in ON_DISK {
        let root = tempfile::tempdir().unwrap();
        let read_only = root.path().join("read-only");
        std::fs::create_dir(&read_only).unwrap();
        std::fs::set_permissions(&read_only, std::fs::Permissions::from_mode(0o555)).unwrap();
        let is_restricted = std::fs::write(read_only.join("probe"), b"").is_err();
        let dir = if is_restricted {
            read_only.join("state")
        } else {
            PathBuf::from("/proc/1/trunkline-state")
        };
        let file = root.path().join("file");
        std::fs::write(&file, b"").unwrap();
        for dir in [dir, file.join("state")] {
            let Err(error @ Error::Io { .. }) = state_store::open(&options(engine, &dir)) else {
                panic!("{engine:?} opened {}", dir.display());
            };
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(&dir.display().to_string()), "{error}: {source}");
        }
    }
}

#[test]
fn memory_store_needs_no_directory() {
    let dir = Path::new("/proc/1/none");
    let (one, other) = (
        state_store::open(&options(Engine::Memory, dir)),
        state_store::open(&options(Engine::Memory, dir)),
    );
    assert!(one.is_ok() && other.is_ok());
}
