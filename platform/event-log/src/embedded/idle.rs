//! Groups without members: after a while their offsets go, as in Kafka.
//!
//! Since when a group has no member is known in memory, and put into the store by the pass that removes old records, or
//! with offsets that are set from outside; it is taken from there when somebody joins. A log that was not opened for long
//! counts from its opening where that pass did not come before the end.
//!
//! Guarantees: a group that has a member, or a seat that is kept for one, keeps its offsets; so does one whose offsets are
//! being decided. Whoever asks while they go waits for that. Never: an offset that goes alone.

use super::backing::{Space, Writes};
use super::broker::Broker;
use super::format;
use super::group::Group;
use crate::{Millis, Result};

impl Broker {
    /// Removes the offsets of groups that have had no member for longer than offsets are kept.
    pub fn expire_offsets(&self, now: Millis) -> Result<()> {
        let names: Vec<String> = self.state().groups.keys().cloned().collect();
        names.iter().try_for_each(|name| self.expire_group(name, now))
    }

    fn expire_group(&self, name: &str, now: Millis) -> Result<()> {
        let _writer = self.writer();
        let mut state = self.state();
        let number = state.number();
        let Some(group) = state.groups.get_mut(name) else {
            return Ok(());
        };
        group.tick(now);
        let idle = group.idle.filter(|_| group.pending.is_empty());
        let Some(since) = idle.filter(|_| !group.offsets.is_empty()) else {
            return Ok(());
        };
        if now.saturating_sub(since) < self.offsets_retention_ms {
            let is_stored = group.idle_stored == Some(since);
            drop(state);
            return if is_stored { Ok(()) } else { self.note_idle(name, since) };
        }
        let partitions: Vec<_> = group.offsets.keys().cloned().collect();
        group.pending.insert(number, partitions.clone());
        let mut writes = Writes::default();
        for part in partitions.iter().filter_map(|at| state.resolve(at).ok()) {
            writes.remove(Space::Meta, format::committed_key(name, part));
        }
        writes.remove(Space::Meta, format::idle_key(name));
        drop(state);
        let removed = self.store(&writes);
        let mut state = self.state();
        if let Some(group) = state.groups.get_mut(name) {
            group.pending.remove(&number);
            if removed.is_ok() {
                tracing::info!(group = name, "its offsets go: it has had no member for long");
                group.offsets.clear();
                group.idle_stored = None;
            }
            if group.is_gone() {
                state.groups.remove(name);
            }
        }
        drop(state);
        self.decided.notify_all();
        removed
    }

    fn note_idle(&self, name: &str, since: Millis) -> Result<()> {
        let mut writes = Writes::default();
        writes.put(Space::Meta, format::idle_key(name), format::encode_offset(since));
        self.store(&writes)?;
        if let Some(group) = self.state().groups.get_mut(name) {
            group.idle_stored = Some(since);
        }
        self.forget_idle(name)
    }

    /// Forgets in the store since when a group has no member: somebody has joined it.
    pub fn awaken(&self, name: &str) -> Result<()> {
        if !self.state().groups.get(name).is_some_and(Group::woke) {
            return Ok(());
        }
        let _writer = self.writer();
        self.forget_idle(name)
    }

    /// The same under the writer's lock, for whoever has just put it there: somebody may have joined meanwhile.
    pub fn forget_idle(&self, name: &str) -> Result<()> {
        if !self.state().groups.get(name).is_some_and(Group::woke) {
            return Ok(());
        }
        let mut writes = Writes::default();
        writes.remove(Space::Meta, format::idle_key(name));
        self.store(&writes)?;
        if let Some(group) = self.state().groups.get_mut(name) {
            group.idle_stored = None;
        }
        Ok(())
    }
}
