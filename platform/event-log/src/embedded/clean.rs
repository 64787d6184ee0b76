//! Retention, and the cleaner thread that runs retention, compaction and transaction timeouts.
//!
//! A block is deleted when all its records are too old, or when the blocks after it already exceed `retention.bytes`.
//! Nothing at or above the last stable offset is deleted. A partition's start moves before its blocks are deleted, so
//! that a reader gets an out-of-range error and never a gap. Blocks are looked up without the writer lock, so an append
//! waits for at most one batch of the cleaner.

use super::backing::{Space, Writes};
use super::block::Block;
use super::broker::{Broker, lock};
use super::format::{self, PartId, PartRecord};
use super::settings::Rules;
use super::signal::until;
use super::topics::REMOVALS_MAX;
use crate::{Millis, Offset, Result};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Bytes of the blocks that one batch removes.
const STEP_BYTES: u64 = 64 * 1024 * 1024;

/// Blocks that retention removes from a partition in one batch.
struct Deletion {
    /// Start of the partition when this was planned.
    from: Offset,
    start: Offset,
    start_bytes: u64,
    bytes: u64,
    blocks: Vec<Offset>,
}

impl Deletion {
    /// Returns whether the batch ends here. Blocks must be read to decide whether to remove them, so the bytes that are
    /// read are limited too.
    fn is_full(&self) -> bool {
        self.blocks.len() >= REMOVALS_MAX || self.bytes >= STEP_BYTES
    }
}

impl Broker {
    /// Removes what retention and compaction do not keep at the time `now`. Cleans all partitions even if some fail,
    /// and returns the first error.
    pub fn clean(&self, now: Millis) -> Result<()> {
        let _cleaner = self.cleaner();
        let offsets = self.remove_leftovers().and(self.expire_offsets(now));
        let topics: Vec<_> = self.state().topics.values().cloned().collect();
        let parts = topics.iter().flat_map(|topic| topic.parts().map(move |id| (topic, id)));
        parts
            .map(|(topic, id)| self.clean_part(id, &topic.rules, now))
            .fold(offsets, Result::and)
    }

    fn clean_part(&self, id: PartId, rules: &Rules, now: Millis) -> Result<()> {
        if rules.deletes {
            while self.delete_batch(id, rules, now)? {}
        }
        if rules.compacts {
            self.compact(id, rules, now)?;
        }
        self.merge(id, rules)
    }

    /// Deletes one batch of a partition's blocks. Returns whether there may be more.
    fn delete_batch(&self, id: PartId, rules: &Rules, now: Millis) -> Result<bool> {
        if self.is_closing() {
            return Ok(false);
        }
        let Some(cut) = self.plan_deletion(id, rules, now)? else {
            return Ok(false);
        };
        let _writer = self.writer();
        if self.state().parts.get(&id).is_none_or(|part| part.start != cut.from) {
            // The topic was deleted. Only the cleaner moves the start, and one pass runs at a time.
            return Ok(false);
        }
        let (mut writes, mut before) = (Writes::default(), (0, 0));
        writes.use_reserve();
        for base in &cut.blocks {
            writes.remove(Space::Records, format::block_key(id, *base));
        }
        {
            let mut state = self.state();
            if let Some(part) = state.parts.get_mut(&id) {
                let record = PartRecord {
                    start: cut.start,
                    start_bytes: cut.start_bytes,
                    cleaned: part.cleaned,
                };
                let key = format::part_key(format::PARTITIONS, id);
                writes.put(Space::Meta, key, record.encode());
                for entry in part.index.iter().take_while(|entry| entry.offset < cut.start) {
                    writes.remove(Space::Meta, format::index_key(id, entry.offset));
                }
                for (transaction, _) in part.aborted.iter().filter(|(_, marker)| **marker < cut.start) {
                    writes.remove(Space::Meta, format::aborted_key(id, *transaction));
                }
                before = (part.start, part.start_bytes);
                (part.start, part.start_bytes) = (cut.start, cut.start_bytes);
            }
        }
        let stored = self.store(&writes);
        let mut state = self.state();
        match stored {
            Ok(()) => state.cut(id, cut.start, cut.start_bytes),
            // The blocks still exist. A later pass will delete them.
            Err(_) => {
                if let Some(part) = state.parts.get_mut(&id) {
                    (part.start, part.start_bytes) = before;
                }
            }
        }
        stored.map(|()| cut.is_full())
    }

    fn plan_deletion(&self, id: PartId, rules: &Rules, now: Millis) -> Result<Option<Deletion>> {
        let (mut cut, mut kept_bytes, stable) = {
            let state = self.state();
            let Some(part) = state.parts.get(&id) else {
                return Ok(None);
            };
            let cut = Deletion {
                from: part.start,
                start: part.start,
                start_bytes: part.start_bytes,
                bytes: 0,
                blocks: Vec::new(),
            };
            (cut, part.bytes.saturating_sub(part.gone_bytes()), part.stable())
        };
        let mut bad = None;
        let (from, to) = (format::block_key(id, cut.start), format::block_key(id, stable));
        self.backing.scan(Space::Records, &from, &to, &mut |key, value| {
            let block = match format::block_base(key).and_then(|base| Block::parse(base, value)) {
                Ok(block) => block,
                Err(error) => {
                    bad = Some(error);
                    return ControlFlow::Break(());
                }
            };
            let age = now.saturating_sub(block.head.max_timestamp);
            let too_old = rules.retention_ms >= 0 && age > rules.retention_ms;
            let rest = kept_bytes.saturating_sub(block.size());
            let too_much = u64::try_from(rules.retention_bytes).is_ok_and(|kept| rest >= kept);
            if !too_old && !too_much {
                return ControlFlow::Break(());
            }
            kept_bytes = rest;
            cut.start = block.next();
            cut.start_bytes += block.size();
            cut.bytes += block.size();
            cut.blocks.push(block.base);
            match cut.is_full() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        match bad {
            Some(error) => Err(error),
            None => Ok((!cut.blocks.is_empty()).then_some(cut)),
        }
    }
}

/// Runs the cleaner thread: cleans at this interval and aborts transactions when they time out.
pub(super) fn run(broker: &Weak<Broker>, every: Duration) {
    let mut next_clean = until(every);
    while let Some(broker) = broker.upgrade() {
        if let Err(error) = broker.remove_leftovers() {
            tracing::warn!(%error, "removing a deleted topic failed");
        }
        if Instant::now() >= next_clean {
            if let Err(error) = broker.clean(broker.now()) {
                tracing::warn!(%error, "cleaning failed");
            }
            next_clean = until(every);
        }
        if let Err(error) = broker.expire() {
            tracing::warn!(%error, "aborting a timed-out transaction failed");
        }
        if !sleep(&broker, next_clean) {
            return;
        }
    }
}

/// Sleeps until the next cleaning or transaction timeout. Returns false if the log is being closed.
fn sleep(broker: &Arc<Broker>, next_clean: Instant) -> bool {
    let (thread, wake) = &broker.cleaner_thread;
    let mut thread = lock(thread);
    if thread.stop || std::mem::take(&mut thread.is_wanted) {
        return !thread.stop;
    }
    let now = broker.now();
    let left = next_clean.saturating_duration_since(Instant::now());
    let deadline = broker.state().next_deadline();
    let due = deadline.and_then(|deadline| u64::try_from(deadline.saturating_sub(now).max(1)).ok());
    let left = due.map_or(left, |ms| left.min(Duration::from_millis(ms)));
    let ms = Millis::try_from(left.as_millis()).unwrap_or(Millis::MAX);
    thread.sleeps_until = Some(now.saturating_add(ms));
    let woken = wake.wait_timeout_while(thread, left, |thread| {
        !thread.stop && !thread.is_wanted && thread.sleeps_until.is_some()
    });
    let (mut thread, _) = woken.unwrap_or_else(PoisonError::into_inner);
    (thread.sleeps_until, thread.is_wanted) = (None, false);
    !thread.stop
}
