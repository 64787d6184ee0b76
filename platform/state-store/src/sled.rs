//! The sled engine: one tree, a byte for the space before each key.
//!
//! Guarantees: a batch goes through `Tree::apply_batch`, which sled's log recovers whole or not at all, so one tree
//! makes it atomic over spaces; after kill -9 up to half a second of the last batches may be missing (sled buffers its
//! log in the process), never one in the middle; a scan or snapshot shows one moment.
//! Never: keeps to its memory limit. sled counts its page cache only; expect several times as much. Right for small
//! state. Nor is it certain to go on: sled 0.34 may stand still for ever where its file shrinks and grows at once, as the
//! writer that grows it holds what the work in front of the shrinking waits for; seen once, in a test that writes without
//! a pause.
//!
//! sled has no snapshots. Ours are made of the tree and of what commits changed since: while a snapshot lives, a commit
//! first notes the old value of each key that it writes, and the snapshot reads the note before the tree. So a
//! snapshot costs nothing until something is overwritten, and then memory for what is.

use crate::dir::{Held, guarded, hold, opening};
use crate::{
    Batch, Direction, Error, Options, Result, Snapshot, Space, Stats, Store, Visit, check_keys, is_empty_range,
};
use sled::IVec;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// Rows read under the gate at a time: a long scan holds a writer off for so many rows only.
const CHUNK_ROWS: usize = 256;
/// sled gives its lock up a little after its last handle is dropped.
const RELEASE: Duration = Duration::from_secs(5);

/// A store over sled 0.34.
pub struct SledStore {
    shared: Arc<Shared>,
}

/// Old values of the keys that were written since a moment; `None` = was absent.
type Undo = BTreeMap<IVec, Option<IVec>>;

struct Shared {
    rows: sled::Tree,
    /// Byte of each space, by its name, so that spaces may be declared in another order later.
    prefixes: Vec<u8>,
    /// A commit holds it for writing, a read of more than one row for reading.
    gate: RwLock<()>,
    moments: Mutex<Vec<Weak<Mutex<Undo>>>>,
    memory_bytes: u64,
    db: sled::Db,
    _held: Held,
}

impl SledStore {
    /// Opens or creates a store.
    ///
    /// # Errors
    /// As [`crate::open`].
    pub fn open(options: &Options) -> Result<Self> {
        let held = hold(&options.dir, "sled")?;
        let (db, rows, prefixes) = guarded(&held.dir, || {
            let db = open_db(&held, options.memory_bytes)?;
            let broken = |source| open_error(&held.dir, source);
            let rows = db.open_tree("rows").map_err(broken)?;
            let names = db.open_tree("spaces").map_err(broken)?;
            let prefixes = options.spaces.iter().map(|name| prefix(&names, name).map_err(broken));
            let prefixes = prefixes.collect::<Result<Vec<u8>>>()?;
            Ok((db, rows, prefixes))
        })?;
        let shared = Shared {
            rows,
            prefixes,
            gate: RwLock::new(()),
            moments: Mutex::new(Vec::new()),
            memory_bytes: options.memory_bytes,
            db,
            _held: held,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

fn open_db(held: &Held, memory_bytes: u64) -> Result<sled::Db> {
    let config = sled::Config::new().path(&held.engine).cache_capacity(memory_bytes);
    let since = Instant::now();
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            // The directory is ours, so this is the last holder's handle that is about to go.
            Err(sled::Error::Io(source)) if source.to_string().contains("could not acquire lock") => {
                if since.elapsed() > RELEASE {
                    return Err(Error::Locked { dir: held.dir.clone() });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(source) => return Err(open_error(&held.dir, source)),
        }
    }
}

/// The byte of a space, given out when its name is first seen.
fn prefix(names: &sled::Tree, name: &str) -> sled::Result<u8> {
    if let Some(known) = names.get(name)?.and_then(|bytes| bytes.first().copied()) {
        return Ok(known);
    }
    let next = u8::try_from(names.len()).expect("a store has fewer than 256 spaces");
    names.insert(name, &[next])?;
    names.flush()?;
    Ok(next)
}

fn open_error(dir: &Path, source: sled::Error) -> Error {
    match source {
        sled::Error::Io(source) => opening(dir, source),
        source => Error::Broken {
            dir: dir.to_owned(),
            source: Box::new(source),
        },
    }
}

fn engine_error(attempted: &'static str) -> impl Fn(sled::Error) -> Error {
    move |source| match source {
        sled::Error::Io(source) => Error::Io { attempted, source },
        source => Error::Engine {
            attempted,
            source: Box::new(source),
        },
    }
}

/// Bounds of a scan, in prefixed keys.
#[derive(Clone)]
struct Range {
    from: Bound<IVec>,
    to: Bound<IVec>,
}

impl Shared {
    fn prefix(&self, space: Space) -> u8 {
        *self
            .prefixes
            .get(usize::from(space.0))
            .expect("a space is declared when the store is opened")
    }

    fn key(&self, space: Space, key: &[u8]) -> IVec {
        let mut bytes = Vec::with_capacity(key.len() + 1);
        bytes.push(self.prefix(space));
        bytes.extend_from_slice(key);
        bytes.into()
    }

    fn range(&self, space: Space, from: &[u8], to: Option<&[u8]>) -> Range {
        let end = || {
            self.prefix(space)
                .checked_add(1)
                .map_or(Bound::Unbounded, |p| Bound::Excluded(IVec::from(&[p])))
        };
        Range {
            from: Bound::Included(self.key(space, from)),
            to: to.map_or_else(end, |to| Bound::Excluded(self.key(space, to))),
        }
    }

    /// Begins to keep old values. To be called under the gate.
    fn moment(&self) -> Arc<Mutex<Undo>> {
        let undo = Arc::new(Mutex::new(Undo::new()));
        self.moments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(&undo));
        undo
    }

    /// Notes the old values of what a batch writes for each living snapshot.
    fn note(&self, batch: &Batch) -> Result<()> {
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        moments.retain(|moment| moment.strong_count() > 0);
        if moments.is_empty() {
            return Ok(());
        }
        let living: Vec<_> = moments.iter().filter_map(Weak::upgrade).collect();
        for (space, key, _) in &batch.writes {
            let key = self.key(*space, key);
            let old = self
                .rows
                .get(&key)
                .map_err(engine_error("note a value for a snapshot"))?;
            for undo in &living {
                let mut undo = undo.lock().unwrap_or_else(PoisonError::into_inner);
                undo.entry(key.clone()).or_insert_with(|| old.clone());
            }
        }
        Ok(())
    }

    /// The next rows of a range, as they were before `undo`. To be called under the gate.
    fn chunk(&self, range: &Range, direction: Direction, undo: Option<&Undo>) -> Result<Vec<(IVec, IVec)>> {
        let bounds = (range.from.clone(), range.to.clone());
        let empty = Undo::new();
        let mut rows = Vec::new();
        let live = self
            .rows
            .range::<IVec, _>(bounds.clone())
            .map(|row| row.map_err(engine_error("scan a space")));
        let old = undo.unwrap_or(&empty).range::<IVec, _>(bounds);
        match direction {
            Direction::Forward => merge(live.peekable(), old.peekable(), |a, b| a < b, &mut rows)?,
            Direction::Backward => merge(live.rev().peekable(), old.rev().peekable(), |a, b| a > b, &mut rows)?,
        }
        Ok(rows)
    }

    /// Visits the rest of a range, chunk by chunk, each read under the gate and visited outside.
    fn visit_chunks(
        &self,
        mut range: Range,
        direction: Direction,
        mut moment: Option<Arc<Mutex<Undo>>>,
        visit: Visit<'_>,
    ) -> Result<()> {
        loop {
            let rows = {
                let _gate = self.gate.read().unwrap_or_else(PoisonError::into_inner);
                let undo = moment
                    .as_ref()
                    .map(|undo| undo.lock().unwrap_or_else(PoisonError::into_inner));
                let rows = self.chunk(&range, direction, undo.as_deref())?;
                drop(undo);
                if rows.len() == CHUNK_ROWS && moment.is_none() {
                    moment = Some(self.moment());
                }
                rows
            };
            for (key, value) in &rows {
                let Some((_, key)) = key.split_first() else { continue };
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == CHUNK_ROWS => match direction {
                    Direction::Forward => range.from = Bound::Excluded(last.clone()),
                    Direction::Backward => range.to = Bound::Excluded(last.clone()),
                },
                _ => return Ok(()),
            }
            if is_used_up(&range) {
                return Ok(());
            }
        }
    }
}

/// Whether nothing can lie in the range any more; neither sled nor a map takes such bounds.
fn is_used_up(range: &Range) -> bool {
    match (&range.from, &range.to) {
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        _ => false,
    }
}

/// Merges the tree's rows with older values, which win, up to [`CHUNK_ROWS`] rows.
fn merge<'a>(
    mut live: Peekable<impl Iterator<Item = Result<(IVec, IVec)>>>,
    mut old: Peekable<impl Iterator<Item = (&'a IVec, &'a Option<IVec>)>>,
    before: impl Fn(&IVec, &IVec) -> bool,
    rows: &mut Vec<(IVec, IVec)>,
) -> Result<()> {
    while rows.len() < CHUNK_ROWS {
        let live_first = match (live.peek(), old.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(Err(_)), _) => true,
            (Some(Ok((key, _))), Some((old_key, _))) => before(key, old_key),
        };
        if live_first {
            rows.extend(live.next().transpose()?);
            continue;
        }
        let Some((key, value)) = old.next() else { continue };
        if matches!(live.peek(), Some(Ok((live_key, _))) if live_key == key) {
            live.next();
        }
        rows.extend(value.clone().map(|value| (key.clone(), value)));
    }
    Ok(())
}

impl Store for SledStore {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self
            .shared
            .rows
            .get(self.shared.key(space, key))
            .map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if is_empty_range(from, to) {
            return Ok(());
        }
        // Short scans fit in the first chunk and need no moment.
        self.shared
            .visit_chunks(self.shared.range(space, from, to), direction, None, visit)
    }

    fn commit(&self, batch: Batch) -> Result<()> {
        check_keys(&batch)?;
        let _gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.note(&batch)?;
        let mut out = sled::Batch::default();
        for (space, key, value) in batch.into_writes() {
            let key = self.shared.key(space, &key);
            match value {
                Some(value) => out.insert(key, value),
                None => out.remove(key),
            }
        }
        self.shared
            .rows
            .apply_batch(out)
            .map_err(engine_error("commit a batch"))
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot>> {
        let _gate = self.shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(SledSnapshot {
            moment: self.shared.moment(),
            shared: Arc::clone(&self.shared),
        }))
    }

    fn persist(&self) -> Result<()> {
        self.shared
            .db
            .flush()
            .map(|_| ())
            .map_err(engine_error("flush the log to disk"))
    }

    fn stats(&self) -> Stats {
        Stats {
            disk_bytes: self.shared.db.size_on_disk().unwrap_or_default(),
            memory_bytes: self.shared.memory_bytes,
        }
    }
}

/// A moment of a sled store.
struct SledSnapshot {
    moment: Arc<Mutex<Undo>>,
    shared: Arc<Shared>,
}

impl Snapshot for SledSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let key = self.shared.key(space, key);
        let _gate = self.shared.gate.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = self.moment.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(old.as_ref().map(|value| value.to_vec()));
        }
        let value = self.shared.rows.get(key).map_err(engine_error("read a key"))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, space: Space, from: &[u8], to: Option<&[u8]>, direction: Direction, visit: Visit<'_>) -> Result<()> {
        if is_empty_range(from, to) {
            return Ok(());
        }
        let range = self.shared.range(space, from, to);
        self.shared
            .visit_chunks(range, direction, Some(Arc::clone(&self.moment)), visit)
    }
}
