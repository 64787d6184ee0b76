//! Tests of corrupt files: after random cuts and changes of journal bytes, a prefix of the batches is kept; corruption
//! elsewhere is an error.

use super::*;
use std::fs;

const PAGE_BYTES: usize = 4096;

/// A directory that a killed process left, and the end of each batch in its journal.
struct Journal {
    dir: tempfile::TempDir,
    ends: Vec<u64>,
    bytes: Vec<u8>,
}

fn key(n: usize) -> String {
    format!("{n:03}")
}

/// Writes batches of one to three entries with values of up to 20 kB.
fn journal(seed: u64) -> Journal {
    let dir = tempfile::tempdir().unwrap();
    let backing = begin(dir.path());
    let mut random = Random(seed | 1);
    for n in 0..12 {
        let mut writes = batch(Space::Records, &key(n), &"v".repeat(random.below(20_000)));
        for other in 0..random.below(3) {
            writes.put(Space::Meta, format!("m{n}-{other}"), vec![7; random.below(50)]);
        }
        backing.commit(&writes, Persist::Buffer).unwrap();
    }
    // The first batch is the beginning of the session.
    let ends = journal::batch_ends(&dir.path().join("0.jnl")).split_off(1);
    assert_eq!(ends.len(), 12);
    kill(backing);
    let bytes = fs::read(dir.path().join("0.jnl")).unwrap();
    let bytes = bytes[..usize::try_from(*ends.last().unwrap()).unwrap()].to_vec();
    Journal { dir, ends, bytes }
}

/// Xorshift random generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A kind of corruption of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// The file ends early.
    Cut,
    /// The rest was never written and reads as zeros.
    Zeros,
    /// One page in the middle was never written.
    Page,
    /// A byte has another value.
    Flip,
}

impl Damage {
    /// Corrupts the bytes and returns the position of the first corrupt byte.
    fn apply(self, bytes: &mut Vec<u8>, from: usize, random: &mut Random) -> usize {
        let at = from + random.below(bytes.len() - from);
        match self {
            Damage::Cut => bytes.truncate(at),
            Damage::Zeros => bytes[at..].fill(0),
            Damage::Page => {
                let end = (at + PAGE_BYTES).min(bytes.len());
                bytes[at..end].fill(0);
            }
            Damage::Flip => bytes[at] ^= 1 << random.below(8),
        }
        at
    }
}

fn check_damage(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let Journal { dir, ends, mut bytes } = journal(seed);
    let file = dir.path().join("0.jnl");
    let damage = [Damage::Cut, Damage::Zeros, Damage::Page, Damage::Flip][random.below(4)];
    // Only bytes after the session and the first batch are corrupted.
    let first = usize::try_from(ends[0]).unwrap();
    let original = bytes.clone();
    let at = damage.apply(&mut bytes, first, &mut random);
    fs::write(&file, &bytes).unwrap();
    let intact = ends.iter().filter(|end| usize::try_from(**end).unwrap() <= at).count();
    let context = format!("seed {seed}: {damage:?} at {at}, batches end at {ends:?}");

    let backing = DiskBacking::open(dir.path(), &config()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = records(&backing);
    let kept = found.len();
    assert!(
        found.keys().cloned().eq((0..kept).map(key)),
        "{context}: not a prefix: {:?}",
        found.keys()
    );
    // Zeros that replace zeros, and a changed sequence number, are no corruption.
    assert!(kept >= intact, "{context}: {kept} batches left of {intact} intact ones");
    let recovered = backing.recovered();
    let is_whole = bytes == original || kept == ends.len();
    // Zeros up to the end look like a write that was never finished.
    let is_visible = match damage {
        Damage::Cut | Damage::Zeros => false,
        Damage::Page => at + PAGE_BYTES < bytes.len(),
        Damage::Flip => true,
    };
    if !is_whole && is_visible {
        let cut = recovered
            .cut
            .as_ref()
            .unwrap_or_else(|| panic!("{context}: nothing was cut"));
        assert_eq!(cut.at, ends[kept - 1], "{context}");
        if kept + 1 < ends.len() {
            assert!(recovered.lost.is_some(), "{context}: a later batch was acknowledged");
            assert_eq!(fs::read(cut.aside.as_ref().unwrap()).unwrap(), bytes, "{context}");
        }
    }
    put(&backing, "later", "x");
    kill(backing);
    let backing = open(dir.path());
    assert_eq!(records(&backing).len(), kept + 1, "{context}: written after the cut");
    assert_eq!(backing.recovered().cut, None, "{context}");
}

#[test]
fn damaged_journal_keeps_a_prefix_of_its_batches() {
    (1..=100).for_each(check_damage);
}

/// The host crashes after a sync. Each page that was written later reached the disk or not, in any order.
fn crash_after_sync(seed: u64) {
    let Journal { dir, ends, mut bytes } = journal(seed);
    let whole = records(&open(dir.path()));
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let batches = 1 + random.below(ends.len());
    let synced = usize::try_from(ends[batches - 1]).unwrap();
    let mut lost = String::new();
    for page in synced / PAGE_BYTES..=bytes.len() / PAGE_BYTES {
        let unsynced = (page * PAGE_BYTES).max(synced)..((page + 1) * PAGE_BYTES).min(bytes.len());
        if random.below(2) == 0 && unsynced.start < unsynced.end {
            lost += &format!(" {page}");
            bytes[unsynced].fill(0);
        }
    }
    fs::write(dir.path().join("0.jnl"), &bytes).unwrap();
    let session = Session::read(dir.path()).expect("a session");
    let boot = Some("another".to_owned());
    Session { boot, ..session }.write(dir.path()).expect("write");
    let context = format!(
        "seed {seed}: {batches} of {} batches synced, pages lost:{lost}",
        ends.len()
    );

    let backing = DiskBacking::open(dir.path(), &config()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(backing.recovered().lost.is_some(), "{context}: the epoch changes");
    let found = records(&backing);
    assert!(found.len() >= batches, "{context}: {} batches left", found.len());
    assert!(
        found.iter().eq(whole.iter().take(found.len())),
        "{context}: not a prefix: {:?}",
        found.keys()
    );
    backing.begin_session().expect("begin a session");
    put(&backing, "later", "x");
    kill(backing);
    let backing = open(dir.path());
    assert_eq!(
        records(&backing).len(),
        found.len() + 1,
        "{context}: written after the crash"
    );
    assert_eq!(backing.recovered().lost, None, "{context}");
}

#[test]
fn crash_of_the_host_loses_only_a_suffix_of_what_was_not_synced() {
    (1..=100).for_each(crash_after_sync);
}

#[test]
fn batch_with_a_wrong_checksum_is_cut_and_kept_aside() {
    let Journal { dir, ends, mut bytes } = journal(7);
    let at = usize::try_from(ends[5]).unwrap() + 60;
    bytes[at] ^= 0xff;
    fs::write(dir.path().join("0.jnl"), &bytes).unwrap();
    let backing = begin(dir.path());
    assert_eq!(records(&backing).len(), 6);
    let cut = backing.recovered().cut.expect("a cut");
    assert_eq!((cut.at, cut.is_unfinished_write), (ends[5], false));
    assert_eq!(cut.bytes, ends[11] - ends[5]);
    assert_eq!(fs::read(cut.aside.unwrap()).unwrap(), bytes);
    assert!(backing.recovered().lost.is_some());
}

#[test]
fn unfinished_write_loses_nothing() {
    let Journal { dir, ends, mut bytes } = journal(3);
    bytes.truncate(usize::try_from(ends[11]).unwrap() - 5);
    let file = dir.path().join("0.jnl");
    for preallocated in [false, true] {
        fs::write(&file, &bytes).unwrap();
        if preallocated {
            fs::OpenOptions::new()
                .write(true)
                .open(&file)
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
        }
        let backing = open(dir.path());
        assert_eq!(records(&backing).len(), 11);
        let recovered = backing.recovered();
        assert!(recovered.cut.expect("a cut").is_unfinished_write);
        assert_eq!(recovered.lost, None);
        kill(backing);
    }
}

#[test]
fn damage_before_a_later_journal_is_refused() {
    let Journal { dir, ends, mut bytes } = journal(5);
    fs::write(dir.path().join("1.jnl"), &bytes).unwrap();
    bytes[usize::try_from(ends[5]).unwrap() + 60] ^= 0xff;
    fs::write(dir.path().join("0.jnl"), &bytes).unwrap();
    let error = DiskBacking::open(dir.path(), &config())
        .map(drop)
        .expect_err("rejected");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("0.jnl") && text.contains("backup"), "{text}");
}

#[test]
fn interrupted_creation_is_repeated() {
    for left in [&["0.jnl"][..], &["0.jnl", "version"], &["version"]] {
        let dir = tempfile::tempdir().unwrap();
        for file in left {
            let file = fs::File::create(dir.path().join(file)).unwrap();
            file.set_len(0).unwrap();
        }
        let backing = begin(dir.path());
        put(&backing, "a", "1");
    }
}

#[test]
fn damaged_store_is_an_error_with_directory_and_fix() {
    for file in ["version", "keyspaces/1/current", "keyspaces/0/current"] {
        let Journal { dir, .. } = journal(2);
        let path = dir.path().join(file);
        assert!(path.exists(), "{file}");
        fs::write(&path, b"damaged").unwrap();
        let error = DiskBacking::open(dir.path(), &config()).map(drop).expect_err(file);
        assert!(matches!(error, Error::Corrupt { .. }), "{file}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
        assert!(text.contains("restore the directory from a backup"), "{text}");
    }
}

#[test]
fn loss_is_remembered_until_a_session_has_begun() {
    let journal = journal(7);
    let file = journal.dir.path().join("0.jnl");
    let mut bytes = journal.bytes.clone();
    let middle = usize::try_from(journal.ends[5]).unwrap() + 40;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    for attempt in 1..=2 {
        // The process ends before it has stored a new epoch.
        let backing = open(journal.dir.path());
        assert!(backing.recovered().lost.is_some(), "attempt {attempt}");
    }
    kill(begin(journal.dir.path()));
    assert_eq!(open(journal.dir.path()).recovered().lost, None);
}
