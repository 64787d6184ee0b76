//! Crash tests of a replica: the replica is killed at each failpoint in turn, opened again from its store, and compared
//! with the rows that are computed from the records (I8).

use super::bytes::{self, space};
use super::{Error, Options, Replica, SPACES, Times};
use crate::record::{SchemaIds, VERSION, WRITER, Writer};
use crate::{BucketId, row_hash};
use event_log::{Header, Millis, NewRecord, Offset, RecordBatch, TimestampType, TopicPartition};
use schemas::version::Version;
use state_store::{Batch, Direction, KeyRange, MemoryStore, SharedStore, Snapshot, Space, Stats, Store, Visit};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const NOW: Millis = 1_000_000;
const BUCKET: &str = "b";
const VIEW: &str = "v";
const IDS: SchemaIds = SchemaIds {
    row: 1,
    transaction_end: 2,
    transaction_begin: 3,
    stale: 4,
    loaded: 5,
};

/// A log with one record per word: `xa` is row `a` of writer `x`, `x-a` removes it, `x!` is a transaction end marker of
/// `x`. Each string is one polled batch; after a restart a batch may begin later.
struct TestLog<'a> {
    reads: &'a [&'a str],
}

enum Record {
    Row { key: String, live: bool },
    TransactionEnd,
}

impl TestLog<'_> {
    /// Writer and record, by offset.
    fn records(&self) -> Vec<(char, Record)> {
        let words = self.reads.iter().flat_map(|read| read.split_whitespace());
        words
            .map(|word| {
                let writer = word.chars().next().expect("a word has a writer");
                let record = match &word[1..] {
                    "!" => Record::TransactionEnd,
                    key => Record::Row {
                        key: format!("\"{writer}{}\"", key.trim_start_matches('-')),
                        live: !key.starts_with('-'),
                    },
                };
                (writer, record)
            })
            .collect()
    }

    /// Offset after the batch that contains `position`.
    fn read_end(&self, position: usize) -> Option<usize> {
        let mut ends = self.reads.iter().scan(0_usize, |end, read| {
            *end += read.split_whitespace().count();
            Some(*end)
        });
        ends.find(|end| *end > position)
    }

    fn apply_all(&self, replica: &Replica) -> super::Result<()> {
        loop {
            let position = replica.positions()[0].1;
            let from = usize::try_from(position).unwrap();
            let Some(end) = self.read_end(from) else {
                return replica.at_end(0, position, position, NOW);
            };
            let mut batch = RecordBatch::default();
            for (offset, (writer, record)) in self.records().into_iter().enumerate().take(end).skip(from) {
                push(&mut batch, offset.try_into().unwrap(), writer, &record);
            }
            let applied = replica.apply(0, batch.iter(), NOW)?;
            assert_eq!(applied.rejected, 0);
        }
    }

    /// Visible rows by key with their offsets, and the number of pending records.
    fn expected(&self) -> (BTreeMap<String, Offset>, usize) {
        let (mut rows, mut pending) = (BTreeMap::new(), BTreeMap::<char, Vec<_>>::new());
        for (offset, (writer, record)) in (0..).zip(self.records()) {
            match record {
                Record::Row { key, live } => pending.entry(writer).or_default().push((key, offset, live)),
                Record::TransactionEnd => {
                    for (key, offset, live) in pending.remove(&writer).into_iter().flatten() {
                        rows.remove(&key);
                        rows.extend(live.then_some((key, offset)));
                    }
                }
            }
        }
        (rows, pending.values().map(Vec::len).sum())
    }

    fn check(&self, store: &SharedStore, replica: &Replica, context: &str) {
        let (want, pending) = self.expected();
        let rows = replica.rows(0, BucketId::of(BUCKET)).unwrap();
        let live = rows.iter().filter(|row| row.parts().json.is_some());
        let got: BTreeMap<_, _> = live.map(|row| (row.parts().key.to_owned(), row.offset)).collect();
        assert_eq!(
            got, want,
            "rows of the replica (left) and of the log (right), {context}"
        );
        let state = replica.state(0).unwrap();
        let bucket = &state.buckets[&BucketId::of(BUCKET)];
        let hash = |(key, offset): (&String, &Offset)| row_hash(VIEW, key.as_bytes(), &version(*offset));
        let hash = want.iter().map(hash).fold(0, u128::wrapping_add);
        let count = u64::try_from(want.len()).unwrap();
        assert_eq!((bucket.rows, bucket.hash), (count, hash), "count and hash, {context}");
        assert_eq!(state.complete(), pending == 0, "completeness, {context}");
        assert_eq!(stored_pending(store), pending, "pending rows in the store, {context}");
    }
}

fn version(offset: Offset) -> [u8; 17] {
    [u8::try_from(offset).unwrap(); 17]
}

fn push(batch: &mut RecordBatch, offset: Offset, writer: char, record: &Record) {
    let id = format!("p/{writer}/0/0");
    let mut writer = Writer::new(id.as_str(), IDS);
    let version = version(offset);
    let headers: [Header<'_>; 2] = [(WRITER, Some(id.as_bytes())), (VERSION, Some(&version))];
    let (key, value) = match record {
        Record::Row { key, live } => writer.row(BUCKET, VIEW, key, live.then_some(b"{}".as_slice())),
        Record::TransactionEnd => writer.transaction_end(Version::default(), 0),
    };
    let at = batch.intern(&TopicPartition::new("shop.view.log", 0));
    let time = TimestampType::LogAppend;
    batch.push(
        at,
        NewRecord {
            offset,
            timestamp: NOW,
            timestamp_type: time,
            key: Some(key),
            value,
        },
        headers.iter().copied(),
    );
}

fn stored_pending(store: &SharedStore) -> usize {
    let (from, to) = bytes::partition_range(0);
    let mut count = 0;
    let mut visit = |_: &[u8], _: &[u8]| {
        count += 1;
        ControlFlow::Continue(())
    };
    let scanned = store.scan(
        space::PENDING,
        state_store::KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut visit,
    );
    scanned.unwrap();
    count
}

fn options(pending_bytes_max: usize, flush_bytes: usize) -> Options {
    Options {
        partitions: vec![0],
        times: Times::default(),
        log: 1,
        pending_bytes_max,
        flush_bytes,
        now: NOW,
    }
}

fn memory() -> SharedStore {
    Arc::new(MemoryStore::new(SPACES.len()))
}

/// Runs `work` and unwinds at a failpoint, after it has passed `hits` failpoints. Returns the name of the failpoint.
fn killed_after(hits: usize, work: impl FnOnce()) -> Option<&'static str> {
    let (left, point) = (Cell::new(hits), Rc::new(Cell::new(None)));
    let own = point.clone();
    failpoint::watch(move |name| match left.get().checked_sub(1) {
        Some(less) => left.set(less),
        None => {
            own.set(Some(name));
            std::panic::resume_unwind(Box::new("killed"));
        }
    });
    let done = catch_unwind(AssertUnwindSafe(work));
    failpoint::watch(|_| {});
    if let (Err(cause), None) = (done, point.get()) {
        std::panic::resume_unwind(cause);
    }
    point.get()
}

/// Applies a log to an empty store and kills the replica twice, each time after the given number of failpoints. Returns
/// the names of the failpoints.
fn run_with_kills(log: &TestLog<'_>, options: &Options, kills: [usize; 2]) -> Vec<&'static str> {
    let (store, mut killed) = (memory(), Vec::new());
    let open = || Replica::open(store.clone(), options.clone()).unwrap();
    for hits in kills {
        let replica = open();
        killed.extend(killed_after(hits, || log.apply_all(&replica).unwrap()));
    }
    let replica = open();
    log.apply_all(&replica).unwrap();
    log.check(
        &store,
        &replica,
        &format!("killed after {kills:?} failpoints at {killed:?}"),
    );
    killed
}

/// A row takes 63 bytes while it is pending and 129 while it is staged.
#[test]
fn crash_between_pieces_loses_no_row() {
    let cases = [
        // The first rows of the writer are spilled; the last one is in memory only when the end marker is applied.
        (options(100, 200), ["xa xb xc xd xe", "xf x-a x!", "xg x!"]),
        // No row is spilled, but a staged row is larger than a pending one.
        (options(10_000, 200), ["xa xb xc x!", "xa xd xe x!", ""]),
        // While one writer's transaction is applied in pieces, another writer has rows that are not stored yet, before
        // and after its own marker.
        (options(100, 150), ["ya xa xb xc", "yb y! xd yc x!", "xe yd y-a x!"]),
        (options(100, 10_000), ["ya xa xb xc", "yb y! xd yc x!", "xe yd y-a x!"]),
    ];
    let mut killed_at = BTreeSet::new();
    for (options, reads) in &cases {
        let log = TestLog { reads };
        let (mut first, mut second) = (0, 0);
        loop {
            let killed = run_with_kills(&log, options, [first, second]);
            killed_at.extend(killed.iter().copied());
            match killed.len() {
                0 => break,
                1 => (first, second) = (first + 1, 0),
                _ => second += 1,
            }
        }
    }
    let all = ["replica.after_commit", "replica.before_commit", "replica.mid_apply"];
    assert_eq!(killed_at, BTreeSet::from(all));
}

/// A store whose disk can be full.
struct FullDisk {
    store: MemoryStore,
    full: AtomicBool,
}

impl Store for FullDisk {
    fn get(&self, space: Space, key: &[u8]) -> state_store::Result<Option<Vec<u8>>> {
        self.store.get(space, key)
    }

    fn scan(
        &self,
        space: Space,
        keys: KeyRange<'_>,
        direction: Direction,
        visit: Visit<'_>,
    ) -> state_store::Result<()> {
        self.store.scan(space, keys, direction, visit)
    }

    fn commit(&self, batch: Batch) -> state_store::Result<()> {
        if self.full.load(Ordering::Relaxed) {
            return Err(state_store::Error::Io {
                attempted: "write",
                source: std::io::ErrorKind::StorageFull.into(),
            });
        }
        self.store.commit(batch)
    }

    fn snapshot(&self) -> state_store::Result<Box<dyn Snapshot>> {
        self.store.snapshot()
    }

    fn persist(&self) -> state_store::Result<()> {
        self.store.persist()
    }

    fn stats(&self) -> Stats {
        self.store.stats()
    }
}

#[test]
fn failed_commit_publishes_nothing() {
    let disk = Arc::new(FullDisk {
        store: MemoryStore::new(SPACES.len()),
        full: AtomicBool::new(false),
    });
    let open = || Replica::open(disk.clone(), options(100, 200)).unwrap();
    let replica = open();
    let log = TestLog {
        reads: &["xa xb x!", "xc x-a x!"],
    };
    TestLog { reads: &log.reads[..1] }.apply_all(&replica).unwrap();
    disk.full.store(true, Ordering::Relaxed);
    assert!(matches!(log.apply_all(&replica), Err(Error::Store(_))));
    let health = &replica.health(NOW)[0];
    assert_eq!(
        (health.position, health.end_marker),
        (3, 2),
        "position and T after a failed commit"
    );
    disk.full.store(false, Ordering::Relaxed);
    assert!(matches!(log.apply_all(&replica), Err(Error::Unfinished(0))));
    assert!(matches!(replica.at_end(0, 6, 6, NOW), Err(Error::Unfinished(0))));
    assert!(matches!(replica.prune(NOW, 1), Err(Error::Unfinished(0))));
    drop(replica);
    let replica = open();
    log.apply_all(&replica).unwrap();
    let store: SharedStore = disk.clone();
    log.check(&store, &replica, "after it was opened again");
}
