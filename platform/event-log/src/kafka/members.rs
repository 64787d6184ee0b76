//! The group members of this process, so that offsets can be set through one of them.

use super::client::Handle;
use super::client::list::List;
use super::coordinator;
use crate::{Error, Offset, Result, TopicPartition};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The groups' members that live in this process, so that offsets can be set by one of them.
#[derive(Debug, Default)]
pub struct Members {
    by_group: Mutex<HashMap<String, Vec<Weak<LocalMember>>>>,
}

/// A member as others of this process see it.
#[derive(Debug)]
pub struct LocalMember {
    handle: Arc<Handle>,
    /// Partitions that it was told to read.
    started: Mutex<BTreeSet<TopicPartition>>,
}

impl LocalMember {
    /// A member that reads nothing yet.
    pub fn new(handle: Arc<Handle>) -> LocalMember {
        LocalMember {
            handle,
            started: Mutex::default(),
        }
    }

    /// The partitions that it was told to read.
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

    /// Sets offsets as a member of this process; `None` when there is none that is in the group now.
    pub fn commit(&self, group: &str, offsets: &[(TopicPartition, Offset)]) -> Option<Result<()>> {
        let members: Vec<_> = {
            let by_group = self.by_group.lock().unwrap_or_else(PoisonError::into_inner);
            by_group.get(group)?.iter().filter_map(Weak::upgrade).collect()
        };
        let read = |at: &TopicPartition| members.iter().any(|member| member.started().contains(at));
        if let Some((at, _)) = offsets.iter().find(|(at, _)| read(at)) {
            let attempted = format!("set offsets of group {group}");
            let reason = format!("a live member reads {at}; stop that one first");
            return Some(Err(Error::Refused { attempted, reason }));
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
