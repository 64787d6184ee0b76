//! Groups without members: after a while their offsets go, as in Kafka.
//!
//! Since when a group has no member is known in memory, and put into the store by the pass that removes old records; it is
//! taken from there before somebody joins. A log that was not opened for long counts from its opening where that pass did
//! not come before the end.
//!
//! Guarantees: a group that has a member, or a seat that is kept for one, keeps its offsets; so does one whose offsets are
//! being decided. Never: an offset that goes alone.

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
        let mut writes = Writes::default();
        let (since, over) = {
            let mut state = self.state();
            let Some(group) = state.groups.get_mut(name) else {
                return Ok(());
            };
            group.tick(now);
            let Some(since) = group
                .idle
                .filter(|_| group.pending.is_empty() && !group.offsets.is_empty())
            else {
                return Ok(());
            };
            let over = now.saturating_sub(since) >= self.offsets_retention_ms;
            let partitions: Vec<_> = group.offsets.keys().cloned().collect();
            let stored = group.idle_stored == Some(since);
            if over {
                for at in partitions {
                    if let Ok(part) = state.resolve(&at) {
                        writes.remove(Space::Meta, format::committed_key(name, part));
                    }
                }
                writes.remove(Space::Meta, format::idle_key(name));
            } else if !stored {
                writes.put(Space::Meta, format::idle_key(name), format::encode_offset(since));
            }
            (since, over)
        };
        if writes.is_empty() {
            return Ok(());
        }
        self.store(&writes)?;
        let mut state = self.state();
        let Some(group) = state.groups.get_mut(name) else {
            return Ok(());
        };
        group.idle_stored = (!over).then_some(since);
        if over {
            tracing::info!(
                group = name,
                "its offsets are removed, as it has had no member for long"
            );
            group.offsets.clear();
            if group.is_gone() {
                state.groups.remove(name);
            }
        }
        Ok(())
    }

    /// Forgets in the store since when a group has no member: somebody is about to join it.
    pub fn awaken(&self, name: &str) -> Result<()> {
        let is_stored = |group: &Group| group.idle_stored.is_some();
        if !self.state().groups.get(name).is_some_and(is_stored) {
            return Ok(());
        }
        let _writer = self.writer();
        let mut writes = Writes::default();
        writes.remove(Space::Meta, format::idle_key(name));
        self.store(&writes)?;
        if let Some(group) = self.state().groups.get_mut(name) {
            group.idle_stored = None;
        }
        Ok(())
    }
}
