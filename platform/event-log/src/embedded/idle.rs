//! Expiry of committed offsets of groups without members (`offsets.retention.minutes`).
//!
//! The time at which a group lost its last member is kept in memory. It is stored by the next cleaning pass, or when
//! offsets are set from outside the group, and removed from the store when a member joins. If it was not stored, the
//! time at which the log is opened again is used.
//!
//! Offsets are kept while the group has a member or a static membership that has not timed out, and while a transaction is
//! committing offsets of the group. All offsets of a group expire in one batch; `committed` waits for it.

use super::backing::{Space, Writes};
use super::broker::Broker;
use super::format;
use super::group::Group;
use crate::{Millis, Result};

impl Broker {
    /// Removes the offsets of groups that have had no member for the retention time.
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
            return if is_stored {
                Ok(())
            } else {
                self.store_idle(name, since)
            };
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
                tracing::info!(group = name, "committed offsets of a group without members expired");
                group.offsets.clear();
                group.idle_stored = None;
            }
            if group.is_unused() {
                state.groups.remove(name);
            }
        }
        drop(state);
        self.decided.notify_all();
        removed
    }

    fn store_idle(&self, name: &str, since: Millis) -> Result<()> {
        let mut writes = Writes::default();
        writes.put(Space::Meta, format::idle_key(name), format::encode_offset(since));
        self.store(&writes)?;
        if let Some(group) = self.state().groups.get_mut(name) {
            group.idle_stored = Some(since);
        }
        self.clear_idle_locked(name)
    }

    /// Removes the stored idle time of a group that a member has joined.
    pub fn clear_idle(&self, name: &str) -> Result<()> {
        if !self.state().groups.get(name).is_some_and(Group::has_stale_idle_time) {
            return Ok(());
        }
        let _writer = self.writer();
        self.clear_idle_locked(name)
    }

    /// Does the same as [`Broker::clear_idle`] for a caller that holds the writer lock. Called after an idle time has
    /// been stored, because a member may have joined in the meantime.
    pub fn clear_idle_locked(&self, name: &str) -> Result<()> {
        if !self.state().groups.get(name).is_some_and(Group::has_stale_idle_time) {
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
