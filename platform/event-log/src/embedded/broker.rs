//! The shared part of an embedded log: store, writer, state, and lookups for which no reader is needed.
//!
//! Lock order: `cleaner`, `writer`, `state`. One writer at a time holds `writer` while the store commits a batch. `state` is
//! never held over IO, so a write does not block readers. The state contains only what the store has committed.

use super::backing::{Backing, Persist, Writes};
use super::config::{Clock, Config, Durability};
use super::format::{Head, PartId};
use super::signal::until;
use super::state::State;
use crate::{Committed, Error, GroupInfo, MemberInfo, Millis, Notice, Offset, OffsetSpec, Result, TopicPartition};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// State that only the writer changes.
pub(super) struct Writer {
    pub head: Head,
}

/// The shared part of an embedded log.
pub(super) struct Broker {
    pub backing: Box<dyn Backing>,
    pub clock: Clock,
    pub request_timeout: Duration,
    pub place: String,
    pub cleaner_keys_max: usize,
    pub offsets_retention_ms: Millis,
    /// Notice for operators if data was cut or lost when the log was opened.
    pub notice: Option<Notice>,
    /// Deleted topics whose entries are not removed completely.
    pub leftovers: Mutex<BTreeSet<u32>>,
    persist: Persist,
    /// Set if the outcome of a batch is unknown. Nothing may be written until the log is opened again.
    outcome_unknown: AtomicBool,
    /// Held by the cleaner during a pass.
    cleaner: Mutex<()>,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    /// Notified after the outcome of pending offsets has been decided. Used with `state`.
    pub decided: Condvar,
    /// The cleaner thread's state, and the condition variable on which it sleeps.
    pub cleaner_thread: (Mutex<CleanerThread>, Condvar),
}

/// State of the cleaner thread.
#[derive(Default)]
pub(super) struct CleanerThread {
    pub sleeps_until: Option<Millis>,
    pub runs: bool,
    /// Whether the thread must start its next round without sleeping.
    pub is_wanted: bool,
    pub stop: bool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Broker {
    pub fn new(backing: Box<dyn Backing>, config: &Config, head: Head, state: State) -> Self {
        let place = match &config.dir {
            Some(dir) => format!("embedded {}", dir.display()),
            None => "embedded memory".to_owned(),
        };
        Broker {
            backing,
            clock: config.clock.clone(),
            request_timeout: config.request_timeout,
            place,
            cleaner_keys_max: config.cleaner_keys_max,
            notice: None,
            leftovers: Mutex::default(),
            persist: match config.durability {
                Durability::Commit => Persist::Sync,
                Durability::Os | Durability::Interval(_) => Persist::Buffer,
            },
            offsets_retention_ms: Millis::try_from(config.offsets_retention.as_millis()).unwrap_or(Millis::MAX),
            outcome_unknown: AtomicBool::new(false),
            cleaner: Mutex::default(),
            writer: Mutex::new(Writer { head }),
            state: Mutex::new(state),
            decided: Condvar::new(),
            cleaner_thread: (Mutex::default(), Condvar::new()),
        }
    }

    /// Returns the log's time.
    pub fn now(&self) -> Millis {
        (self.clock)()
    }

    pub fn cleaner(&self) -> MutexGuard<'_, ()> {
        lock(&self.cleaner)
    }

    pub fn writer(&self) -> MutexGuard<'_, Writer> {
        lock(&self.writer)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Commits writes; requires the writer lock. With [`Durability::Commit`](super::Durability::Commit) they are synced
    /// before this returns.
    ///
    /// After an error, reads the store to find out whether it contains the batch. If that fails too, the outcome is
    /// unknown and the log rejects all further writes, because a wrong assumption about the batch could lead to offsets
    /// that are assigned twice.
    pub fn store(&self, writes: &Writes) -> Result<()> {
        self.check_outcomes_known("write: the outcome of an earlier batch is unknown; open the log again")?;
        let error = match self.backing.commit(writes, self.persist) {
            Ok(()) => return Ok(()),
            // Nothing was written.
            Err(error @ Error::StorageUnavailable { .. }) => return Err(error),
            Err(error) => error,
        };
        let found = match (self.backing.holds(writes), self.persist) {
            (Ok(true), Persist::Sync) => self.backing.sync().map(|()| true),
            (found, _) => found,
        };
        match found {
            Ok(true) => {
                tracing::warn!(%error, "store reported an error but has written the batch");
                Ok(())
            }
            Ok(false) => Err(error),
            Err(later_error) => {
                tracing::error!(%error, %later_error, "outcome of a batch is unknown; rejecting all writes");
                self.outcome_unknown.store(true, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Fails if the outcome of an earlier batch is unknown.
    pub fn check_outcomes_known(&self, attempted: &'static str) -> Result<()> {
        match self.outcome_unknown.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::Storage {
                attempted,
                source: "the store has failed".into(),
            }),
        }
    }

    /// Fails while writes are rejected.
    pub fn check_storage(&self) -> Result<()> {
        self.check_outcomes_known("write: the outcome of an earlier batch is unknown; restart the process")?;
        self.backing.check()
    }

    /// Wakes the cleaner thread if it would otherwise sleep beyond this time.
    pub fn wake_cleaner_by(&self, deadline: Millis) {
        let (thread, wake) = &self.cleaner_thread;
        let mut thread = lock(thread);
        if thread.sleeps_until.is_some_and(|until| until > deadline) {
            thread.sleeps_until = None;
            wake.notify_all();
        }
    }

    /// Wakes the cleaner thread. Returns false if there is none.
    pub fn wake_cleaner(&self) -> bool {
        let (thread, wake) = &self.cleaner_thread;
        let mut thread = lock(thread);
        thread.is_wanted = true;
        wake.notify_all();
        thread.runs
    }

    /// Looks up an offset.
    pub fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        self.expire()?;
        let state = self.state();
        let part = state.part(at)?;
        match which {
            OffsetSpec::Earliest => Ok(part.start),
            OffsetSpec::LogEnd => Ok(part.end),
            OffsetSpec::LastStable => Ok(part.stable()),
            OffsetSpec::Timestamp(time) => {
                if part.max_timestamp.is_none_or(|greatest| greatest < time) {
                    return Ok(part.end);
                }
                let below = part.index.partition_point(|entry| entry.max_timestamp < time);
                let indexed = below
                    .checked_sub(1)
                    .and_then(|last| part.index.get(last))
                    .map(|entry| entry.offset);
                let (start, end, id) = (part.start, part.end, state.resolve(at)?);
                let from = indexed.unwrap_or(start).max(start);
                drop(state);
                self.first_at(id, from, end, time)
            }
        }
    }

    fn first_at(&self, id: PartId, from: Offset, end: Offset, time: Millis) -> Result<Offset> {
        let mut found = None;
        self.blocks_holding(id, from..end, &mut |block| {
            if block.head.control.is_none() && block.head.max_timestamp >= time {
                found = block.first_at(from, time)?;
            }
            Ok(match found {
                None => ControlFlow::Continue(()),
                Some(_) => ControlFlow::Break(()),
            })
        })?;
        Ok(found.unwrap_or(end))
    }

    /// Returns the stable committed offsets. Waits while a transaction with offsets of these partitions is being committed.
    pub fn committed(&self, group: &str, partitions: &[TopicPartition]) -> Result<Committed> {
        let until = until(self.request_timeout);
        let mut state = self.state();
        loop {
            let known = state.groups.get(group);
            let pending = known.is_some_and(|g| g.pending.values().flatten().any(|at| partitions.contains(at)));
            if !pending {
                let offset = |at: &TopicPartition| known.and_then(|g| g.offsets.get(at)).copied();
                return Ok(partitions.iter().map(|at| (at.clone(), offset(at))).collect());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Unavailable {
                    attempted: format!("read the committed offsets of group {group}"),
                    reason: "a transaction with offsets of these partitions is still undecided".to_owned(),
                });
            }
            failpoint::hit("log.committed.waits");
            (state, _) = self
                .decided
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lists the groups.
    pub fn groups(&self) -> Vec<GroupInfo> {
        let now = self.now();
        let mut state = self.state();
        let mut infos = Vec::new();
        for (name, group) in &mut state.groups {
            group.tick(now);
            let describe = |member: super::group::MemberDescription| MemberInfo {
                name: member.instance.as_ref().map_or_else(
                    || format!("member-{}", member.id),
                    |instance| format!("member-{} {instance}", member.id),
                ),
                instance: member.instance,
                partitions: member.owned,
            };
            infos.push(GroupInfo {
                group: name.clone(),
                state: group.state().to_owned(),
                members: group.describe_members().into_iter().map(describe).collect(),
                committed: group.offsets.clone(),
            });
        }
        state.groups.retain(|_, group| !group.is_unused());
        infos
    }
}
