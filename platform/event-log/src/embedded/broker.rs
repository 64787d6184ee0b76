//! The embedded log's heart: its store, its writer and its state, and the look-ups that need no reader.
//!
//! One writer at a time (`writer`), held while the store takes a batch; `state` is held for moments only and never
//! over IO, so that readers are not held up by a write. `writer` is always taken before it, and `cleaner` before both.
//! Guarantees: what `state` shows is in the store, and what the store refused is not. Never: a callback.

use super::backing::{Backing, Writes};
use super::format::{Head, PartId};
use super::signal::until;
use super::state::State;
use super::{Clock, Config};
use crate::{Committed, Error, GroupInfo, MemberInfo, Millis, Offset, OffsetSpec, Result, TopicPartition};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the writer alone changes beside the state.
pub(super) struct Writer {
    pub head: Head,
}

/// The shared inside of an embedded log.
pub(super) struct Broker {
    pub backing: Box<dyn Backing>,
    pub clock: Clock,
    pub request_timeout: Duration,
    pub place: String,
    pub cleaner_keys_max: usize,
    pub offsets_retention_ms: Millis,
    /// Nobody knows what is in the store, so that nothing may be written over it.
    in_doubt: AtomicBool,
    /// Held by the one pass that removes records.
    cleaner: Mutex<()>,
    writer: Mutex<Writer>,
    state: Mutex<State>,
    /// Rung under `state`'s lock when pending offsets were decided.
    pub decided: Condvar,
    /// What the background pass sleeps on, and until when (by the clock).
    pub janitor: (Mutex<Janitor>, Condvar),
}

/// The background pass's own state.
#[derive(Default)]
pub(super) struct Janitor {
    pub sleeps_until: Option<Millis>,
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
            offsets_retention_ms: Millis::try_from(config.offsets_retention.as_millis()).unwrap_or(Millis::MAX),
            in_doubt: AtomicBool::new(false),
            cleaner: Mutex::default(),
            writer: Mutex::new(Writer { head }),
            state: Mutex::new(state),
            decided: Condvar::new(),
            janitor: (Mutex::default(), Condvar::new()),
        }
    }

    /// The log's time.
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

    /// Makes writes durable; under the writer's lock. Where the store fails it is asked whether it has them all the same:
    /// then they count. Where it does not even say that, nothing is written any more.
    pub fn store(&self, writes: &Writes) -> Result<()> {
        self.check_certain("write: it did not say what became of an earlier batch; open the log again")?;
        let Err(error) = self.backing.commit(writes) else {
            return Ok(());
        };
        match self.backing.holds(writes) {
            Ok(true) => {
                tracing::warn!(%error, "the store failed, and has written the batch all the same");
                Ok(())
            }
            Ok(false) => Err(error),
            Err(silent) => {
                tracing::error!(%error, %silent, "the store failed, and does not say whether it has written the batch");
                self.in_doubt.store(true, Ordering::SeqCst);
                Err(error)
            }
        }
    }

    /// Fails when an earlier batch may or may not be in the store.
    pub fn check_certain(&self, attempted: &'static str) -> Result<()> {
        match self.in_doubt.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::Storage {
                attempted,
                source: "the store has failed".into(),
            }),
        }
    }

    /// Makes sure that the background pass looks again by then.
    pub fn remind_janitor(&self, deadline: Millis) {
        let (janitor, bell) = &self.janitor;
        let mut janitor = lock(janitor);
        if janitor.sleeps_until.is_some_and(|until| until > deadline) {
            janitor.sleeps_until = None;
            bell.notify_all();
        }
    }

    /// Looks an offset up.
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

    /// Stable committed offsets: waits for those that are being decided.
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
                    reason: "a transaction with offsets of these partitions was not decided in time".to_owned(),
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
            let member = |seen: super::group::Seen| MemberInfo {
                name: seen.instance.as_ref().map_or_else(
                    || format!("member-{}", seen.id),
                    |instance| format!("member-{} {instance}", seen.id),
                ),
                instance: seen.instance,
                partitions: seen.held,
            };
            infos.push(GroupInfo {
                group: name.clone(),
                state: group.state().to_owned(),
                members: group.seen().into_iter().map(member).collect(),
                committed: group.offsets.clone(),
            });
        }
        state.groups.retain(|_, group| !group.is_gone());
        infos
    }
}
