//! A store in memory that fails by chance, and of which a crash leaves a beginning only.
//!
//! Guarantees: the seed says which commits fail, and which of those are written all the same; a crash keeps the batches up
//! to one of them, all of each, and none behind it, as a machine does that loses what it had not yet put on its disk.
//! Never: a fault where none was asked for.

use super::{Backing, MemoryBacking, Space, Visit, Writes};
use crate::{Error, Result};
use bytes::Bytes;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How often something goes wrong, in a thousand commits, and what chance has come to.
#[derive(Default)]
struct Dice {
    state: u64,
    wrong: u64,
}

#[derive(Default)]
struct Inside {
    store: MemoryBacking,
    /// Every batch that was written, in order.
    history: Vec<Writes>,
    dice: Dice,
    /// Reads that fail before the next one does not.
    mute: u32,
    live: bool,
}

/// A store with faults.
#[derive(Default)]
pub(in crate::embedded) struct Faulty(Mutex<Inside>);

fn failed(attempted: &'static str) -> Error {
    Error::Storage {
        attempted,
        source: "the dice say so".into(),
    }
}

impl Faulty {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on so many commits in a thousand fail; the seed says which.
    pub fn spoil(&self, seed: u64, wrong: u64) {
        self.inside().dice = Dice { state: seed | 1, wrong };
    }

    /// Batches that were written so far.
    pub fn written(&self) -> usize {
        self.inside().history.len()
    }

    /// The next commit is written and fails, and so does the next read.
    pub fn lose_the_next_answer(&self, and_reads: u32) {
        let mut inside = self.inside();
        // A rate over the whole says that the next one fails, and a state of the dice that it is written.
        inside.dice = Dice {
            state: 0,
            wrong: u64::MAX,
        };
        inside.mute = and_reads;
    }

    /// From now on scans break their contract as an iterator over an engine's memory table does that has no snapshot: they
    /// see the part ahead of them of each batch that is committed while they run.
    pub fn scan_live(&self) {
        self.inside().live = true;
    }

    /// The first key in a range.
    fn first(&self, space: Space, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>> {
        let mut first = None;
        self.inside().store.scan(space, from, to, &mut |key, value| {
            first = Some((key.to_vec(), value));
            ControlFlow::Break(())
        })?;
        Ok(first)
    }

    /// A crash of the machine: only so many batches are left.
    pub fn crash(&self, kept: usize) {
        let mut inside = self.inside();
        inside.history.truncate(kept);
        inside.store = MemoryBacking::default();
        for writes in &inside.history {
            inside.store.commit(writes).expect("memory takes everything");
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
    fn commit(&self, writes: &Writes) -> Result<()> {
        let mut inside = self.inside();
        let fails = inside.dice.wrong > 0 && inside.dice.roll() % 1_000 < inside.dice.wrong;
        let is_written = !fails || inside.dice.roll().is_multiple_of(2);
        if is_written {
            inside.store.commit(writes)?;
            inside.history.push(writes.clone());
        }
        if inside.dice.wrong == u64::MAX {
            inside.dice.wrong = 0;
        }
        match fails {
            true => Err(failed("write a batch")),
            false => Ok(()),
        }
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
        // What is visited is taken out first: a visitor may read from the store, or write to it.
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
