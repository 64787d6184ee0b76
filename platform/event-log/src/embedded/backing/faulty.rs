//! In-memory storage with injected faults.
//!
//! A seed determines which commits fail, and which of the failed commits are written nevertheless. A simulated crash of
//! the host keeps a prefix of the batches, because a real host loses what it has not yet written to disk.

use super::{Backing, MemoryBacking, Persist, Recovered, Space, Visit, Writes};
use crate::{Error, Result};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Fault rate per thousand commits, and the state of the random generator.
#[derive(Default)]
struct Dice {
    state: u64,
    wrong: u64,
}

#[derive(Default)]
struct Inside {
    store: MemoryBacking,
    /// All batches that were written, in order.
    history: Vec<Writes>,
    /// Number of batches that survive a crash of the host.
    synced: usize,
    /// Whether the last crash lost batches.
    lost: bool,
    dice: Dice,
    /// Number of further reads that will fail.
    mute: u32,
    live: bool,
}

/// In-memory storage with faults.
#[derive(Default)]
pub(in crate::embedded) struct Faulty(Mutex<Inside>);

fn failed(attempted: &'static str) -> Error {
    Error::Storage {
        attempted,
        source: "injected fault".into(),
    }
}

impl Faulty {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the number of commits per thousand that fail, and the seed.
    pub fn spoil(&self, seed: u64, wrong: u64) {
        self.inside().dice = Dice { state: seed | 1, wrong };
    }

    /// Returns the number of batches written so far.
    pub fn written(&self) -> usize {
        self.inside().history.len()
    }

    /// The next commit is written and returns an error. The next reads fail too.
    pub fn lose_next_result(&self, and_reads: u32) {
        let mut inside = self.inside();
        // With this rate the next commit fails; with this state of the generator it is written nevertheless.
        inside.dice = Dice {
            state: 0,
            wrong: u64::MAX,
        };
        inside.mute = and_reads;
    }

    /// From now on, scans violate their contract, as an iterator over a memtable without a snapshot does: they see
    /// those writes of concurrent batches whose keys they have not passed yet.
    pub fn scan_live(&self) {
        self.inside().live = true;
    }

    /// Returns the first key in a range.
    fn first(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let mut first = None;
        self.inside().store.scan(space, from, to, &mut |key, value| {
            first = Some((key.to_vec(), value));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// Returns the number of batches that survive a crash of the host.
    pub fn synced(&self) -> usize {
        self.inside().synced
    }

    /// Simulates a crash of the host that keeps this number of batches.
    pub fn crash(&self, kept: usize) {
        let mut inside = self.inside();
        inside.lost = kept < inside.history.len();
        inside.synced = inside.synced.min(kept);
        inside.history.truncate(kept);
        inside.store = MemoryBacking::default();
        for writes in &inside.history {
            inside
                .store
                .commit(writes, Persist::Buffer)
                .expect("memory never fails");
        }
    }
}

impl Dice {
    fn roll(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 11
    }
}

impl Backing for Faulty {
    fn commit(&self, writes: &Writes, persist: Persist) -> Result<()> {
        let mut inside = self.inside();
        let fails = inside.dice.wrong > 0 && inside.dice.roll() % 1_000 < inside.dice.wrong;
        let is_written = !fails || inside.dice.roll().is_multiple_of(2);
        if is_written {
            inside.store.commit(writes, persist)?;
            inside.history.push(writes.clone());
        }
        if persist == Persist::Sync && !fails {
            inside.synced = inside.history.len();
        }
        if inside.dice.wrong == u64::MAX {
            inside.dice.wrong = 0;
        }
        match fails {
            true => Err(failed("write a batch")),
            false => Ok(()),
        }
    }

    fn sync(&self) -> Result<()> {
        let mut inside = self.inside();
        if inside.dice.wrong > 0 && inside.dice.roll() % 1_000 < inside.dice.wrong {
            return Err(failed("sync"));
        }
        inside.synced = inside.history.len();
        Ok(())
    }

    fn recovered(&self) -> Recovered {
        let lost = self.inside().lost.then_some("the host crashed");
        Recovered { lost, cut: None }
    }

    fn begin_session(&self) -> Result<()> {
        self.inside().lost = false;
        Ok(())
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>> {
        let mut inside = self.inside();
        if let Some(left) = inside.mute.checked_sub(1).filter(|_| inside.dice.wrong == 0) {
            inside.mute = left;
            return Err(failed("read a key"));
        }
        inside.store.get(space, key)
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<()> {
        if self.inside().live {
            let mut from = from.to_vec();
            while let Some((key, value)) = self.first(space, &from, to)? {
                if visit(&key, value).is_break() {
                    break;
                }
                from = key;
                from.push(0);
            }
            return Ok(());
        }
        // The entry is copied first, because the visitor may access the store.
        let mut found = Vec::new();
        self.inside().store.scan(space, from, to, &mut |key, value| {
            found.push((key.to_vec(), value));
            ControlFlow::Continue(())
        })?;
        for (key, value) in found {
            if visit(&key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn last(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        self.inside().store.last(space, from, to)
    }
}
