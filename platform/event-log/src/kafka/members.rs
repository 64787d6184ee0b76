//! The group members in this process, so that offsets can be committed through one of them.
//!
//! While a group has active members, a coordinator accepts offsets only from a member.

use super::client::Handle;
use super::client::list::List;
use super::coordinator;
use crate::{Error, Offset, Result, TopicPartition};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The group members in this process.
#[derive(Debug, Default)]
pub struct Members {
    by_group: Mutex<HashMap<String, Vec<Weak<LocalMember>>>>,
}

/// A member in this process.
#[derive(Debug)]
pub struct LocalMember {
    handle: Arc<Handle>,
    /// Partitions for which `start` was called.
    started: Mutex<BTreeSet<TopicPartition>>,
}

impl LocalMember {
    /// Creates a member that has started no partition.
    pub fn new(handle: Arc<Handle>) -> LocalMember {
        LocalMember {
            handle,
            started: Mutex::default(),
        }
    }

    /// Returns the partitions for which `start` was called.
    pub fn started(&self) -> MutexGuard<'_, BTreeSet<TopicPartition>> {
        self.started.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Members {
    /// Adds a member.
    pub fn add(&self, group: &str, member: &Arc<LocalMember>) {
        let mut by_group = self.by_group.lock().unwrap_or_else(PoisonError::into_inner);
        by_group.retain(|_, members| members.iter().any(|member| member.strong_count() > 0));
        let members = by_group.entry(group.to_owned()).or_default();
        members.retain(|member| member.strong_count() > 0);
        members.push(Arc::downgrade(member));
    }

    /// Commits offsets through a member in this process; `None` if none is currently in the group.
    pub fn commit(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Option<Result<()>> {
        let members: Vec<_> = {
            let by_group = self.by_group.lock().unwrap_or_else(PoisonError::into_inner);
            by_group.get(group)?.iter().filter_map(Weak::upgrade).collect()
        };
        let read = |at: &TopicPartition| members.iter().any(|member| member.started().contains(at));
        if let Some((at, _)) = offsets.iter().find(|(at, _)| read(at)) {
            let attempted = format!("set offsets of group {group}");
            let reason = format!("an active member reads {at}; stop it first");
            return Some(Err(Error::Rejected { attempted, reason }));
        }
        let member = members
            .iter()
            .find(|member| member.handle.group_metadata().is_some_and(|now| now.generation() >= 0))?;
        let list = List::of(offsets.iter().map(|(at, offset)| (at, *offset)));
        let done = member
            .handle
            .commit(&list)
            .and_then(|()| list.check().map_err(|(_, found)| found));
        Some(done.map_err(|found| coordinator::set_error(group, &found)))
    }
}
