//! Storage in a directory, with fjall.
//!
//! A batch has been passed to the operating system when `commit` returns, so it survives `kill -9` of the process. Whether
//! it survives a crash of the host depends on [`Durability`]. One process at a time can open the directory.
//!
//! If a write fails because the disk is full or a file operation failed, fjall rejects all further writes. As soon as
//! there is free space, the keeper thread removes unacknowledged batches from the journal and opens the database again.
//! The contents do not change, so clients of the log notice only failed calls.

mod engine;
mod errors;
mod journal;
mod keeper;
mod last_write;
mod session;
mod space;

use super::{Backing, Cut, Persist, Recovered, Space, Visit, Writes};
use crate::embedded::config::{Config, Durability};
use crate::embedded::format;
use crate::{Error, Result};
use bytes::Bytes;
use engine::{Engine, OpenError, WriteError};
use errors::{FIX_DISK, FREE_SPACE, Failure, RESTART, io_failure, io_refused, locked, lost, open_error, read_failed};
use fjall::{LsmError, PersistMode, Readable};
use last_write::LastWrite;
use session::Session;
use space::{DiskSpace, WriteLimits};
use std::fs::{OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use uuid::Uuid;

/// Minimum free space for opening a failed database again. It is needed for the copy of a journal and the next flush.
const WORK_BYTES: u64 = 96 * 1024 * 1024;
/// A file of this size is written to find out whether the disk accepts writes.
const PROBE_BYTES: usize = 64 * 1024;

/// Whether batches are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Health {
    Writable,
    /// Less free space than the reserve: only batches that may use it are accepted.
    LowSpace(Failure),
    /// The database accepts no writes, or is closed, until it is opened again.
    Failed(Failure),
    /// The database that was opened again lacks acknowledged batches, so it differs from the log in memory. Only a start
    /// of the process helps: it gives the log a new epoch.
    Lost,
}

struct Shared {
    dir: PathBuf,
    cache_bytes: u64,
    reserve_bytes: Option<u64>,
    limits: WriteLimits,
    durability: Durability,
    recovered: Recovered,
    session: Session,
    has_begun: AtomicBool,
    /// `None` while the database is being opened again.
    engine: RwLock<Option<Arc<Engine>>>,
    /// Held while a batch is written, so that none is written to a journal that is being replaced. Contains the last
    /// acknowledged write.
    writing: Mutex<Option<LastWrite>>,
    health: Mutex<Health>,
    is_writable: AtomicBool,
    /// Sequence numbers of acknowledged batches are below this value; those of later batches are not.
    acknowledged_below: AtomicU64,
    /// A write to the journal failed, so the journal may contain batches that were not acknowledged.
    journal_failed: AtomicBool,
    /// Whether there are batches that are not synced.
    unsynced: AtomicBool,
    unchecked_bytes: AtomicU64,
    stop: (Mutex<bool>, Condvar),
}

/// A fjall database with one fjall keyspace for each keyspace of the log.
pub(in crate::embedded) struct DiskBacking {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(attempted: &'static str) -> impl FnOnce(fjall::Error) -> Error {
    move |source| Error::Storage {
        attempted,
        source: Box::new(source),
    }
}

/// Removes the files of an interrupted creation, because fjall neither opens them nor creates them again. The version
/// file is written after the first journal and before everything else, so there is no data.
fn remove_unfinished_creation(dir: &Path) -> io::Result<()> {
    let (version, journal) = (dir.join("version"), dir.join("0.jnl"));
    let is_created = std::fs::metadata(&version).is_ok_and(|file| file.len() > 0);
    let has_tables = std::fs::read_dir(dir.join("keyspaces")).is_ok_and(|mut entries| entries.next().is_some());
    if is_created || has_tables || !journal::are_empty(dir)? {
        return Ok(());
    }
    for file in [version, journal] {
        if file.exists() {
            std::fs::remove_file(file)?;
        }
    }
    Ok(())
}

/// Repairs the journals while no other process has opened the directory.
fn prepare(dir: &Path) -> Result<Option<Cut>> {
    let rejected = |source: io::Error| io_refused(dir, &source);
    std::fs::create_dir_all(dir).map_err(rejected)?;
    // This is the lock file of fjall, which locks it again when it opens the directory.
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let lock = options.open(dir.join("lock")).map_err(rejected)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(locked(dir)),
        Err(TryLockError::Error(source)) => return Err(rejected(source)),
    }
    remove_unfinished_creation(dir).map_err(rejected)?;
    // The loss must be known to the next start too, if this one ends before it has stored a new epoch. The store does not
    // contain the id of this session, so it counts as older than the last session.
    let cut = journal::repair(dir, || Session::begin(Durability::Os).write(dir));
    lock.unlock().map_err(rejected)?;
    cut
}

impl DiskBacking {
    /// Opens or creates the directory. Truncates the corrupt end of a journal.
    ///
    /// # Errors
    /// [`Error::Rejected`] if another process has opened it or files cannot be written; [`Error::Corrupt`] if files are
    /// corrupt in any other place.
    pub fn open(dir: &Path, config: &Config) -> Result<Self> {
        let cut = prepare(dir)?;
        let last = Session::read(dir);
        let limits = WriteLimits::of(dir);
        let engine = Engine::open(dir, config.store_cache_bytes, limits).map_err(|error| open_error(dir, error))?;
        let stored = engine.get(Space::Meta, format::SESSION);
        let stored = stored.map_err(|error| open_error(dir, OpenError::Fjall(error)))?;
        let stored = stored.map_or(Ok(Vec::new()), |value| format::decode_session(&value))?;
        let session = Session::begin(config.durability);
        let lost = match &last {
            Some(last) => last.possible_loss(&session, &stored),
            None if stored.is_empty() => None,
            None => Some("the file session.json is missing or corrupt"),
        };
        let damaged = cut.as_ref().is_some_and(|cut| !cut.is_unfinished_write);
        let recovered = Recovered {
            lost: lost.or(damaged.then_some("a journal was corrupt")),
            cut,
        };
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            cache_bytes: config.store_cache_bytes,
            reserve_bytes: config.reserve_bytes,
            limits,
            durability: config.durability,
            recovered,
            session,
            has_begun: AtomicBool::new(false),
            acknowledged_below: AtomicU64::new(engine.db.seqno()),
            engine: RwLock::new(Some(Arc::new(engine))),
            writing: Mutex::default(),
            health: Mutex::new(Health::Writable),
            is_writable: AtomicBool::new(true),
            journal_failed: AtomicBool::new(false),
            unsynced: AtomicBool::new(false),
            unchecked_bytes: AtomicU64::new(limits.check_bytes),
            stop: (Mutex::new(false), Condvar::new()),
        });
        let keeper = shared.clone();
        let thread = std::thread::Builder::new().name("log-disk".to_owned());
        let keeper = thread
            .spawn(move || keeper.keep())
            .map_err(|source| io_refused(dir, &source))?;
        Ok(DiskBacking {
            shared,
            keeper: Some(keeper),
        })
    }

    /// Stores a session's id, then writes its file. `before` is the session whose file is replaced.
    fn write_session(&self, session: &Session, before: Option<&Session>) -> Result<()> {
        let mut writes = Writes::default();
        let ids: Vec<_> = [Some(session), before]
            .into_iter()
            .flatten()
            .map(|session| session.id)
            .collect();
        writes.put(Space::Meta, format::SESSION, format::encode_session(&ids));
        writes.use_reserve();
        self.shared.commit(&writes, Persist::Sync)?;
        session
            .write(&self.shared.dir)
            .map_err(|source| io_refused(&self.shared.dir, &source))
    }
}

impl Drop for DiskBacking {
    fn drop(&mut self) {
        let (stop, wake) = &self.shared.stop;
        *lock(stop) = true;
        wake.notify_all();
        if let Some(keeper) = self.keeper.take() {
            // A panic of the thread was reported when it happened.
            drop(keeper.join());
        }
        let shared = &self.shared;
        if !shared.has_begun.load(Ordering::Acquire) || *lock(&shared.health) == Health::Lost {
            // The next opening detects again what the last session may have lost.
            return;
        }
        let closed = Session {
            id: Uuid::new_v4(),
            is_closed: true,
            ..shared.session.clone()
        };
        if let Err(error) = self.write_session(&closed, Some(&shared.session)) {
            tracing::warn!(error = %error, "embedded log could not be marked as closed");
        }
    }
}

impl Shared {
    fn engine(&self, attempted: &'static str) -> Result<Arc<Engine>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner).clone();
        engine.ok_or_else(|| match &*lock(&self.health) {
            Health::LowSpace(failure) | Health::Failed(failure) => self.unavailable(attempted, failure),
            Health::Writable => self.unavailable(attempted, &reopening()),
            Health::Lost => lost(attempted),
        })
    }

    fn unavailable(&self, attempted: &'static str, failure: &Failure) -> Error {
        Error::StorageUnavailable {
            attempted,
            dir: self.dir.clone(),
            cause: failure.cause.clone(),
            fix: failure.fix,
        }
    }

    fn set(&self, health: Health) {
        self.replace(&mut lock(&self.health), health);
    }

    fn replace(&self, current: &mut Health, health: Health) {
        // Do not log a change of the cause alone. It changes often, because it contains the free space.
        if std::mem::discriminant(current) != std::mem::discriminant(&health) {
            match &health {
                Health::Writable => tracing::info!(dir = %self.dir.display(), "embedded log accepts writes again"),
                Health::LowSpace(Failure { cause, fix }) | Health::Failed(Failure { cause, fix }) => {
                    tracing::error!(dir = %self.dir.display(), cause, fix, "embedded log cannot write");
                }
                Health::Lost => {
                    tracing::error!(dir = %self.dir.display(), fix = RESTART, "embedded log lost acknowledged writes");
                }
            }
        }
        self.is_writable.store(health == Health::Writable, Ordering::Release);
        *current = health;
    }

    /// Fails if a batch is not accepted now.
    fn check_health(&self, uses_reserve: bool) -> Result<()> {
        if self.is_writable.load(Ordering::Acquire) {
            return Ok(());
        }
        match &*lock(&self.health) {
            Health::Writable => Ok(()),
            Health::LowSpace(_) if uses_reserve => Ok(()),
            Health::LowSpace(failure) | Health::Failed(failure) => Err(self.unavailable("write a batch", failure)),
            Health::Lost => Err(lost("write a batch")),
        }
    }

    fn commit(&self, writes: &Writes, persist: Persist) -> Result<()> {
        let bytes = writes.byte_len();
        if self.unchecked_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.limits.check_bytes {
            self.unchecked_bytes.store(0, Ordering::Relaxed);
            self.check_space();
        }
        // Check before taking the lock too, because the keeper holds it while it opens the database again.
        self.check_health(writes.uses_reserve)?;
        let mut last_write = lock(&self.writing);
        self.check_health(writes.uses_reserve)?;
        let engine = self.engine("write a batch")?;
        let mode = match persist {
            Persist::Buffer => PersistMode::Buffer,
            Persist::Sync => PersistMode::SyncData,
        };
        match engine.write(writes, mode) {
            Ok(()) => {
                self.acknowledged_below.store(engine.db.seqno(), Ordering::Release);
                self.unsynced.fetch_or(persist == Persist::Buffer, Ordering::AcqRel);
                *last_write = LastWrite::of(writes);
                Ok(())
            }
            Err(error) => {
                // Before these errors, nothing was written to the journal.
                let is_untouched = matches!(
                    error,
                    WriteError::Fjall(fjall::Error::Poisoned) | WriteError::NoProgress(_)
                );
                self.journal_failed.fetch_or(!is_untouched, Ordering::AcqRel);
                if persist == Persist::Sync && !is_untouched {
                    self.mark_loss();
                }
                let failure = self.failure(&error);
                let error = self.unavailable("write a batch", &failure);
                self.set(Health::Failed(failure));
                Err(error)
            }
        }
    }

    /// Finds the cause of an error. fjall reports `Poisoned` after its worker has failed. The usual cause is a full
    /// disk, which a probe file detects.
    fn failure(&self, error: &WriteError) -> Failure {
        let cause = match error {
            WriteError::Fjall(fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source))) => {
                return io_failure(source);
            }
            WriteError::Fjall(fjall::Error::Poisoned) => match self.probe() {
                Err(source) => return io_failure(&source),
                // The disk may have been full when the worker failed, and have some free space again.
                Ok(()) => match self.space_failure(|_| WORK_BYTES) {
                    Some(failure) => return failure,
                    None => "a background write failed".to_owned(),
                },
            },
            WriteError::Fjall(error) => error.to_string(),
            WriteError::NoProgress(text) => text.clone(),
        };
        Failure { cause, fix: FIX_DISK }
    }

    fn probe(&self) -> io::Result<()> {
        let file = self.dir.join("probe");
        let written = std::fs::write(&file, vec![1; PROBE_BYTES]);
        let written = written.and_then(|()| OpenOptions::new().write(true).open(&file)?.sync_data());
        let removed = std::fs::remove_file(&file);
        written.and(removed)
    }

    /// Returns a failure if less than this number of bytes is free.
    fn space_failure(&self, least_bytes: impl FnOnce(DiskSpace) -> u64) -> Option<Failure> {
        let space = match DiskSpace::of(&self.dir) {
            Ok(space) => space?,
            Err(source) => return Some(io_failure(&source)),
        };
        let least_bytes = least_bytes(space);
        (space.free < least_bytes).then(|| Failure {
            cause: format!(
                "the disk has {} MiB of free space left, but the embedded log needs {} MiB",
                space.free >> 20,
                least_bytes >> 20
            ),
            fix: FREE_SPACE,
        })
    }

    /// What the free space permits. The reserve remains free after everything that was accepted is flushed, and after the
    /// writes until the next check, which are written to the journal and flushed.
    fn space_health(&self) -> Health {
        let failure = self.space_failure(|space| match self.reserve_bytes {
            Some(0) => 0,
            reserve => {
                let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner).clone();
                let unflushed = engine.map_or(0, |engine| engine.unflushed_bytes());
                let in_use = unflushed.saturating_add(2 * self.limits.check_bytes);
                reserve
                    .unwrap_or_else(|| space.default_reserve())
                    .saturating_add(in_use)
            }
        });
        failure.map_or(Health::Writable, Health::LowSpace)
    }

    /// Updates the health by the free space. Only the keeper ends a failure, and one may begin while the space is read.
    fn check_space(&self) {
        let found = self.space_health();
        let mut current = lock(&self.health);
        if !matches!(*current, Health::Failed(_) | Health::Lost) {
            self.replace(&mut current, found);
        }
    }
}

fn reopening() -> Failure {
    Failure {
        cause: "the store is being opened again".to_owned(),
        fix: "retry",
    }
}

impl Backing for DiskBacking {
    fn commit(&self, writes: &Writes, persist: Persist) -> Result<()> {
        self.shared.commit(writes, persist)
    }

    fn sync(&self) -> Result<()> {
        let engine = self.shared.engine("sync the store")?;
        engine
            .db
            .persist(PersistMode::SyncData)
            .map_err(failed("sync the store"))
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let engine = self.shared.engine("read a key")?;
        engine.get(space, key).map_err(failed("read a key"))
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        let engine = self.shared.engine("read a range")?;
        // Without a snapshot, fjall's iterator sees the items of a concurrent batch one by one as they reach the
        // memtable. It would miss blocks that are merged into a block that it has already passed.
        for guard in engine.db.snapshot().range(engine.space(space), from..to) {
            let (key, value) = guard.into_inner().map_err(read_failed("read a range"))?;
            if visit(&key, Bytes::from(value)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let engine = self.shared.engine("read the last key of a range")?;
        let Some(guard) = engine.db.snapshot().range(engine.space(space), from..=to).next_back() else {
            return Ok(None);
        };
        let (key, value) = guard
            .into_inner()
            .map_err(read_failed("read the last key of a range"))?;
        Ok(Some((key.to_vec(), Bytes::from(value))))
    }

    fn recovered(&self) -> Recovered {
        self.shared.recovered.clone()
    }

    fn begin_session(&self) -> Result<()> {
        let before = Session::read(&self.shared.dir);
        self.write_session(&self.shared.session, before.as_ref())?;
        self.shared.has_begun.store(true, Ordering::Release);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        match &*lock(&self.shared.health) {
            Health::Writable => Ok(()),
            Health::LowSpace(failure) | Health::Failed(failure) => Err(self.shared.unavailable("write", failure)),
            Health::Lost => Err(lost("write")),
        }
    }
}

#[cfg(test)]
mod tests;
