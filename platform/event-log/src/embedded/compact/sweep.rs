//! Decides for each block, in offset order, what compaction does with it. Pure: no IO, no clock.
//!
//! A record is removed if a newer record of its key is below the end of the pass, if its transaction was aborted, if it is
//! an expired tombstone, or if it has no key. A control record is removed if it has expired and no record of its
//! transaction is left.

use super::super::block::{Block, Item};
use super::keys::Keys;
use crate::{Millis, Offset, Result};
use std::collections::{BTreeMap, HashSet};

/// What compaction does with a block.
#[derive(Debug)]
pub(super) enum Decision {
    Keep,
    Replace(Block),
    Remove,
}

pub(super) struct Sweep<'a> {
    keys: &'a Keys,
    aborted: &'a BTreeMap<u64, Offset>,
    pub now: Millis,
    /// Expiry time of the tombstones and control records that this pass is the first to visit.
    horizon: Millis,
    /// Transactions with kept records whose control record has not been visited. Bounded by the number of transactions
    /// open at the same time, plus the number of large blocks whose control record was merged into another block.
    alive: HashSet<u64>,
    /// Time when the first remaining tombstone or control record expires.
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

    /// Decides about the next block.
    pub fn decide(&mut self, block: &Block) -> Result<Decision> {
        let transaction = block.head.transaction;
        if block.head.control.is_some() {
            let is_alive = self.alive.remove(&transaction);
            return Ok(if is_alive { Decision::Keep } else { self.marker(block) });
        }
        if self.aborted.contains_key(&transaction) {
            return Ok(Decision::Remove);
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
            return Ok(Decision::Remove);
        }
        if transaction != 0 {
            self.alive.insert(transaction);
        }
        let horizon = tombstones.then(|| block.head.horizon.unwrap_or(self.horizon));
        self.due = self.due.min(horizon.unwrap_or(Millis::MAX));
        let same = kept.len() == usize::try_from(block.head.count).unwrap_or(usize::MAX);
        Ok(match same && horizon == block.head.horizon {
            true => Decision::Keep,
            false => Decision::Replace(block.rewritten(&kept, horizon)),
        })
    }

    fn keeps(&self, item: &Item<'_>) -> bool {
        let newest = |key| self.keys.newest(key).unwrap_or(Offset::MIN);
        item.key.is_some_and(|key| newest(key) <= item.offset)
    }

    fn is_over(&self, horizon: Option<Millis>) -> bool {
        horizon.is_some_and(|horizon| horizon <= self.now)
    }

    /// Decides what to do with the control record of a transaction without remaining records.
    fn marker(&mut self, block: &Block) -> Decision {
        if self.is_over(block.head.horizon) {
            return Decision::Remove;
        }
        self.due = self.due.min(block.head.horizon.unwrap_or(self.horizon));
        match block.head.horizon {
            Some(_) => Decision::Keep,
            None => Decision::Replace(block.rewritten(&[], Some(self.horizon))),
        }
    }
}
