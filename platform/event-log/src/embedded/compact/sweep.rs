//! What becomes of each block, in offset order.
//!
//! Guarantees: a record goes only when a newer one of its key is below the pass's end, when its transaction was
//! aborted, when it is a tombstone whose time is over, or when it has no key; a marker only when nothing of its
//! transaction is left and its time is over. Never: IO, a clock.

use super::super::block::{Block, Item};
use super::keys::Keys;
use crate::{Millis, Offset, Result};
use std::collections::{BTreeMap, HashSet};

/// What becomes of a block.
#[derive(Debug)]
pub(super) enum Verdict {
    Keep,
    Replace(Block),
    Remove,
}

pub(super) struct Sweep<'a> {
    keys: &'a Keys,
    aborted: &'a BTreeMap<u64, Offset>,
    pub now: Millis,
    /// Until when tombstones and markers stay that this pass is the first to reach.
    horizon: Millis,
    /// Transactions with records that are kept, of which the marker has not come: no more than were ever open at once, and
    /// those of large blocks whose marker became a part of another block.
    alive: HashSet<u64>,
    /// When the first tombstone or marker that is left may go.
    pub due: Millis,
}

impl<'a> Sweep<'a> {
    pub fn new(keys: &'a Keys, aborted: &'a BTreeMap<u64, Offset>, now: Millis, horizon: Millis) -> Self {
        Sweep {
            keys,
            aborted,
            now,
            horizon,
            alive: HashSet::new(),
            due: Millis::MAX,
        }
    }

    /// Judges the next block.
    pub fn judge(&mut self, block: &Block) -> Result<Verdict> {
        let transaction = block.head.transaction;
        if block.head.control.is_some() {
            let is_alive = self.alive.remove(&transaction);
            return Ok(if is_alive { Verdict::Keep } else { self.marker(block) });
        }
        if self.aborted.contains_key(&transaction) {
            return Ok(Verdict::Remove);
        }
        let is_over = self.is_over(block.head.horizon);
        let mut kept = Vec::new();
        let mut tombstones = false;
        for item in block.items() {
            let item = item?;
            if self.keeps(&item) && !(item.tombstone && is_over) {
                tombstones |= item.tombstone;
                kept.push(item);
            }
        }
        if kept.is_empty() {
            return Ok(Verdict::Remove);
        }
        if transaction != 0 {
            self.alive.insert(transaction);
        }
        let horizon = tombstones.then(|| block.head.horizon.unwrap_or(self.horizon));
        self.due = self.due.min(horizon.unwrap_or(Millis::MAX));
        let same = kept.len() == usize::try_from(block.head.count).unwrap_or(usize::MAX);
        Ok(match same && horizon == block.head.horizon {
            true => Verdict::Keep,
            false => Verdict::Replace(block.rewritten(&kept, horizon)),
        })
    }

    fn keeps(&self, item: &Item<'_>) -> bool {
        let newest = |key| self.keys.newest(key).unwrap_or(Offset::MIN);
        item.key.is_some_and(|key| newest(key) <= item.offset)
    }

    fn is_over(&self, horizon: Option<Millis>) -> bool {
        horizon.is_some_and(|horizon| horizon <= self.now)
    }

    /// A marker of a transaction of which nothing is left.
    fn marker(&mut self, block: &Block) -> Verdict {
        if self.is_over(block.head.horizon) {
            return Verdict::Remove;
        }
        self.due = self.due.min(block.head.horizon.unwrap_or(self.horizon));
        match block.head.horizon {
            Some(_) => Verdict::Keep,
            None => Verdict::Replace(block.rewritten(&[], Some(self.horizon))),
        }
    }
}
