//! The keeper thread: checks the database and the free space, syncs in the background, and opens a failed database again.

use super::engine::{Engine, WriteError};
use super::errors::{FIX_DISK, Failure, io_failure, open_error};
use super::last_write::LastWrite;
use super::session::Session;
use super::{Health, Shared, WORK_BYTES, journal, lock};
use crate::Result;
use crate::embedded::config::Durability;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How often the keeper checks the database and the free space.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the keeper waits for running reads to end. If they do not end, it tries again at its next check.
const READS_LIMIT: Duration = Duration::from_secs(2);
/// Maximum pause between two openings of a database that fails again and again. A database that worked for longer than this
/// is opened again without a pause.
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(60);

impl Shared {
    /// Runs the keeper thread until the log is closed.
    pub fn keep(&self) {
        let interval = match self.durability {
            Durability::Interval(interval) => interval.clamp(Duration::from_millis(1), CHECK_INTERVAL),
            Durability::Os | Durability::Commit => CHECK_INTERVAL,
        };
        let mut synced = Instant::now();
        // A database that fails soon after each opening writes much each time.
        let (mut next_reopen, mut pause) = (Instant::now(), CHECK_INTERVAL);
        let (stop, wake) = &self.stop;
        loop {
            let stopped = wake.wait_timeout_while(lock(stop), interval, |stop| !*stop);
            if *stopped.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            if *lock(&self.health) == Health::Lost {
                continue;
            }
            self.check_space();
            let due = matches!(self.durability, Durability::Interval(interval) if synced.elapsed() >= interval);
            let failed = matches!(&*lock(&self.health), Health::Failed(_));
            if failed {
                if Instant::now() < next_reopen {
                    continue;
                }
                let since = Instant::now().saturating_duration_since(next_reopen);
                pause = if since > REOPEN_PAUSE_MAX {
                    CHECK_INTERVAL
                } else {
                    pause
                };
                if self.reopen() {
                    next_reopen = Instant::now() + pause;
                    pause = (pause * 2).min(REOPEN_PAUSE_MAX);
                } else {
                    next_reopen = Instant::now() + CHECK_INTERVAL;
                }
            } else if let Err(error) = self.engine("check the store").and_then(|engine| self.check(&engine)) {
                tracing::debug!(%error, "embedded log failed in the background");
            } else if due && self.unsynced.swap(false, Ordering::AcqRel) {
                synced = Instant::now();
                self.sync_in_background();
            }
        }
    }

    fn check(&self, engine: &Engine) -> Result<()> {
        engine.check().map_err(|error| {
            let failure = self.failure(&WriteError::Fjall(error));
            let error = self.unavailable("check the store", &failure);
            self.set(Health::Failed(failure));
            error
        })
    }

    /// Syncs the journal without fjall's lock, so that writers do not wait.
    fn sync_in_background(&self) {
        if let Err(source) = journal::sync_newest(&self.dir) {
            // The system may have dropped pages that it could not write. Opening the database again writes what it still
            // has to a copy. If the process is killed before, the next start must not assume that nothing is missing.
            self.mark_loss();
            self.unsynced.store(true, Ordering::Release);
            self.journal_failed.store(true, Ordering::Release);
            self.set(Health::Failed(io_failure(&source)));
        }
    }

    /// Makes the next start treat acknowledged batches as lost: the store does not contain the id of this session.
    pub fn mark_loss(&self) {
        if let Err(error) = Session::begin(Durability::Os).write(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "possible loss of writes not recorded");
        }
    }

    /// Accepts a database that was opened again, unless it lacks acknowledged batches.
    fn reopened(&self, engine: Engine, last_write: Option<&LastWrite>) {
        match last_write.map_or(Ok(true), |last| last.is_in(&engine)) {
            Ok(true) => {}
            Ok(false) => {
                self.mark_loss();
                return self.set(Health::Lost);
            }
            Err(error) => {
                let cause = error.to_string();
                return self.set(Health::Failed(Failure { cause, fix: FIX_DISK }));
            }
        }
        if self.has_begun.load(Ordering::Acquire)
            && let Err(error) = self.session.write(&self.dir)
        {
            // A restart then counts as a loss, although nothing is lost.
            tracing::warn!(dir = %self.dir.display(), %error, "session file not written");
        }
        self.acknowledged_below.store(engine.db.seqno(), Ordering::Release);
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(engine));
        self.set(self.space_health());
    }

    /// Opens the database again if the disk accepts writes. Returns whether it tried to open it, with or without success.
    fn reopen(&self) -> bool {
        let copies_journal = self.journal_failed.load(Ordering::Acquire);
        // Without a copy no space is required: files of an interrupted compaction are removed only when the database is
        // opened, so waiting for free space could wait forever.
        if let Some(failure) = self.space_failure(|_| WORK_BYTES).filter(|_| copies_journal) {
            self.set(Health::Failed(failure));
            return false;
        }
        if let Err(source) = self.probe() {
            self.set(Health::Failed(io_failure(&source)));
            return false;
        }
        let last_write = lock(&self.writing);
        if copies_journal {
            // Cut before the database is closed, so that it still serves reads if there is no space for the copy. Bytes
            // that it writes to the old file when it is closed have no effect.
            let below = self.acknowledged_below.load(Ordering::Acquire);
            if let Err(source) = journal::cut_unacknowledged(&self.dir, below) {
                self.set(Health::Failed(io_failure(&source)));
                return false;
            }
        }
        if !self.close_engine() {
            return false;
        }
        self.journal_failed.store(false, Ordering::Release);
        match Engine::open(&self.dir, self.cache_bytes, self.limits) {
            Ok(engine) => self.reopened(engine, last_write.as_ref()),
            Err(error) => {
                let cause = open_error(&self.dir, error).to_string();
                self.set(Health::Failed(Failure { cause, fix: FIX_DISK }));
            }
        }
        true
    }

    /// Closes the database. Returns false if reads do not end; a later call tries again.
    fn close_engine(&self) -> bool {
        let taken = self.engine.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut engine) = taken else {
            return true;
        };
        let until = Instant::now() + READS_LIMIT;
        loop {
            match Arc::try_unwrap(engine) {
                Ok(engine) => {
                    drop(engine);
                    return true;
                }
                Err(shared) if Instant::now() < until => engine = shared,
                Err(shared) => {
                    *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(shared);
                    return false;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
