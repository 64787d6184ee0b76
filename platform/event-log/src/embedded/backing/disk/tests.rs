//! Tests of the storage in a directory: corrupt files, interrupted sessions, and writes that fail.

use super::keeper::CHECK_INTERVAL;
use super::*;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

mod damage;

/// Configuration of a log whose keeper does nothing during a test.
fn config() -> Config {
    Config::new(None, Arc::new(|| 0))
}

fn open(dir: &Path) -> DiskBacking {
    DiskBacking::open(dir, &config()).expect("open")
}

/// Opens a directory and begins a session, as the log does.
fn begin(dir: &Path) -> DiskBacking {
    let backing = open(dir);
    backing.begin_session().expect("begin a session");
    backing
}

/// A batch with one entry.
fn batch(space: Space, key: &str, value: &str) -> Writes {
    let mut writes = Writes::default();
    writes.put(space, key, Bytes::copy_from_slice(value.as_bytes()));
    writes
}

/// The text of an error with its cause.
fn full_text(error: &Error) -> String {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    format!("{error}: {}", cause.unwrap_or_default())
}

fn put(backing: &DiskBacking, key: &str, value: &str) {
    let writes = batch(Space::Records, key, value);
    backing.commit(&writes, Persist::Buffer).expect("commit");
}

/// All rows of the records keyspace.
fn records(backing: &DiskBacking) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let mut found = BTreeMap::new();
    let mut visit = |key: &[u8], value: Bytes| {
        found.insert(text(key), text(&value));
        ControlFlow::Continue(())
    };
    backing.scan(Space::Records, b"", &[u8::MAX], &mut visit).expect("scan");
    found
}

/// Simulates the end of a process that does not close the log.
fn kill(backing: DiskBacking) {
    backing.shared.has_begun.store(false, Ordering::SeqCst);
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen within 30 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Marks the backing as failed, as a failed write does.
fn fail(backing: &DiskBacking) {
    backing.shared.journal_failed.store(true, Ordering::SeqCst);
    let failure = io_failure(&io::ErrorKind::StorageFull.into());
    backing.shared.set(Health::Failed(failure));
}

#[test]
fn unacknowledged_batch_is_gone_after_storage_failed() {
    let dir = tempfile::tempdir().unwrap();
    let backing = begin(dir.path());
    put(&backing, "a", "1");
    // The batch reached the journal, and its commit reported an error.
    let engine = backing.shared.engine("test").unwrap();
    assert!(
        engine
            .write(&batch(Space::Records, "b", "never acknowledged"), PersistMode::Buffer)
            .is_ok()
    );
    drop(engine);
    fail(&backing);
    let rejected = backing.commit(&batch(Space::Records, "c", "2"), Persist::Buffer);
    let text = rejected.expect_err("it has failed").to_string();
    assert!(
        text.contains("the disk is full") && text.contains(&dir.path().display().to_string()),
        "{text}"
    );
    assert!(backing.check().is_err());

    wait_for("writing again", || backing.check().is_ok());
    let kept = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    assert_eq!(records(&backing), kept);
    put(&backing, "b", "2");
    kill(backing);
    let backing = open(dir.path());
    assert_eq!(backing.recovered().lost, None);
    assert_eq!(records(&backing).get("b").map(String::as_str), Some("2"));
}

/// The system could not write a page of the journal and dropped it, as after a failed sync.
#[test]
fn acknowledged_batch_that_a_failed_sync_dropped_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let backing = begin(dir.path());
    put(&backing, "a", "1");
    put(&backing, "b", "2");
    let journal = dir.path().join("0.jnl");
    let ends = journal::batch_ends(&journal);
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(ends[ends.len() - 2]).unwrap();
    fail(&backing);
    wait_for("a final failure", || {
        matches!(backing.check(), Err(Error::Storage { .. }))
    });
    let error = backing.commit(&batch(Space::Records, "c", "3"), Persist::Buffer);
    let text = full_text(&error.expect_err("writes are lost"));
    assert!(text.contains("restart the process"), "{text}");
    assert!(matches!(backing.get(Space::Records, b"a"), Err(Error::Storage { .. })));
    // Also an orderly end does not hide the loss from the next start.
    drop(backing);
    let backing = begin(dir.path());
    assert!(backing.recovered().lost.is_some());
    assert_eq!(records(&backing), BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    kill(backing);
    assert_eq!(open(dir.path()).recovered().lost, None);
}

#[test]
fn process_killed_after_a_failed_sync_may_have_lost_writes() {
    let dir = tempfile::tempdir().unwrap();
    let backing = begin(dir.path());
    put(&backing, "a", "1");
    backing.shared.mark_loss();
    kill(backing);
    let backing = begin(dir.path());
    assert!(backing.recovered().lost.is_some());
    // The failure is over once the database was opened again with everything.
    backing.shared.mark_loss();
    fail(&backing);
    wait_for("writing again", || backing.check().is_ok());
    kill(backing);
    assert_eq!(open(dir.path()).recovered().lost, None);
}

#[test]
fn failed_storage_is_opened_again_while_readers_hold_it() {
    let dir = tempfile::tempdir().unwrap();
    let backing = begin(dir.path());
    (0..100).for_each(|n| put(&backing, &format!("{n:03}"), "x"));
    let mut visited = 0;
    let mut visit = |_: &[u8], _| {
        if visited == 0 {
            fail(&backing);
            std::thread::sleep(CHECK_INTERVAL + Duration::from_millis(200));
        }
        visited += 1;
        ControlFlow::Continue(())
    };
    backing.scan(Space::Records, b"", &[u8::MAX], &mut visit).unwrap();
    assert_eq!(visited, 100);
    wait_for("writing again", || backing.check().is_ok());
    assert_eq!(records(&backing).len(), 100);
}

#[test]
fn low_space_rejects_writes_except_those_that_may_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    drop(begin(dir.path()));
    config.reserve_bytes = Some(u64::MAX);
    let backing = DiskBacking::open(dir.path(), &config).expect("open with low space");
    backing.begin_session().expect("a session may use the reserve");
    let error = backing.commit(&batch(Space::Records, "a", "1"), Persist::Buffer);
    let error = error.expect_err("low space");
    assert_eq!(error.action(), crate::ErrorAction::Retry);
    assert!(error.to_string().contains("free space"), "{error}");
    assert!(backing.check().is_err());
    let mut removal = Writes::default();
    removal.remove(Space::Records, "a");
    removal.use_reserve();
    backing.commit(&removal, Persist::Buffer).expect("removal");
}

#[test]
fn epoch_may_stay_after_close_and_kill_but_not_after_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    drop(begin(dir.path()));
    let backing = begin(dir.path());
    assert_eq!(backing.recovered().lost, None, "closed");
    kill(backing);
    let backing = begin(dir.path());
    assert_eq!(backing.recovered().lost, None, "killed");
    kill(backing);
    let host_restarts = || {
        let session = Session::read(dir.path()).expect("a session");
        let boot = Some("another".to_owned());
        Session { boot, ..session }.write(dir.path()).expect("write");
    };
    host_restarts();
    let backing = open(dir.path());
    assert!(backing.recovered().lost.is_some(), "host crashed");
    // The process dies before the new epoch is stored.
    drop(backing);
    let backing = begin(dir.path());
    assert!(backing.recovered().lost.is_some(), "still not known");
    drop(backing);
    host_restarts();
    assert_eq!(
        open(dir.path()).recovered().lost,
        None,
        "closed before the host was restarted"
    );
}

#[test]
fn store_that_is_older_than_its_session_has_lost_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    drop(begin(&old));
    drop(begin(&new));
    std::fs::copy(new.join("session.json"), old.join("session.json")).unwrap();
    assert!(open(&old).recovered().lost.is_some());
    std::fs::remove_file(new.join("session.json")).unwrap();
    assert!(open(&new).recovered().lost.is_some());
}

#[test]
fn interval_syncs_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.durability = Durability::Interval(Duration::from_millis(5));
    let backing = DiskBacking::open(dir.path(), &config).unwrap();
    put(&backing, "a", "1");
    wait_for("a sync", || !backing.shared.unsynced.load(Ordering::SeqCst));
}

#[cfg(target_os = "linux")]
mod index {
    use super::*;

    const BLOCKS: u64 = 100_000;

    /// Returns the bytes that this thread has read from files, including the page cache.
    fn bytes_read() -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/io").expect("read the counters of the thread");
        let count = text.lines().find_map(|line| line.strip_prefix("rchar:"));
        let count = count.expect("the counters contain rchar");
        count.trim().parse().expect("rchar is a number")
    }

    #[test]
    fn fetch_of_old_records_reads_no_whole_index() {
        const FETCHES: u64 = 200;
        let dir = tempfile::tempdir().unwrap();
        let mut config = config();
        // Smaller than the table's index of 200 kB.
        config.store_cache_bytes = 64 * 1024;
        let backing = DiskBacking::open(dir.path(), &config).unwrap();
        let engine = backing.shared.engine("test").unwrap();
        let mut table = engine.records.start_ingestion().unwrap();
        for base in 0..BLOCKS {
            let block = base.to_be_bytes().repeat(50);
            table.write(base.to_be_bytes(), block).unwrap();
        }
        table.finish().unwrap();
        let before = bytes_read();
        for fetch in 0..FETCHES {
            let from = (fetch * 7_368_787 % BLOCKS).to_be_bytes();
            let (key, _) = backing.last(Space::Records, &[0; 8], &from).unwrap().unwrap();
            assert_eq!(key, from);
            let mut first = None;
            let mut visit = |key: &[u8], _| {
                first = Some(key.to_vec());
                ControlFlow::Break(())
            };
            backing.scan(Space::Records, &from, &[u8::MAX; 8], &mut visit).unwrap();
            assert_eq!(first.as_deref(), Some(from.as_slice()));
        }
        // Two lookups, each reading one index block and one data block of about 4 kB.
        let bytes = (bytes_read() - before) / FETCHES;
        assert!(bytes < 32 * 1024, "a fetch reads {bytes} bytes");
    }
}
