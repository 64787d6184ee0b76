//! [`State`]: the key-value state of one task.
//!
//! Three layers, newest first: the uncommitted buffer (writes of the steps since the last commit), the committed buffer (rows
//! that are committed and not yet flushed), and the store on disk. Reads see all three. Nothing here writes to the store; the
//! runtime does that after a known commit (C4). Each changed key is written once to the changelog by the next commit.

mod committed;
pub(crate) mod keys;
mod layer;

use crate::api::error::Result;
use crate::api::timer::{Timer, TimerClock};
pub(crate) use committed::CommittedBuffer;
use event_log::Millis;
use keys::{RESERVED, after_prefix};
pub(crate) use layer::Layer;
use layer::Merged;
use state_store::{Direction, KeyRange, Visit};
use std::borrow::Cow;
use std::ops::ControlFlow;

/// State of one task.
///
/// A step reads its own writes immediately. Queries see them after the commit. A failure discards what was not
/// committed. Each key that was written costs one changelog record per commit, regardless of how often it was written
/// and whether the value changed.
///
/// **Keys** are bytes in byte order, 1 to [`state_store::KEY_BYTES_MAX`] long. By convention they are JSON arrays whose
/// first element is the kind of row, such as `["row","orders",17]`, so that rows of different kinds cannot collide and
/// all rows of a kind can be scanned by their prefix. Keys that begin with `["~` are reserved for the runtime: writing
/// one is a bug and panics. **Values** are bytes. Key and value together form one changelog record, which is limited to
/// about 1 MB unless `max.message.bytes` of the changelog is raised. A write with an invalid key length or a larger
/// value is never committed: the record or timer that caused it becomes a dead letter, and the others are processed
/// again without it.
///
/// Give values a format version if a later version of the program may have to read them: state is never wiped (C11).
///
/// # Errors
/// Every error of these methods is the store's and stops the task. Return it with `?`.
pub struct State {
    pub(crate) uncommitted: Layer,
    /// Bytes of the uncommitted rows, including the memory overhead.
    pub(crate) uncommitted_bytes: usize,
    pub(crate) committed: CommittedBuffer,
    pub(crate) store: state_store::SharedStore,
    space: state_store::Space,
    /// First timer of each clock.
    timers: [FirstTimer; 2],
    /// Earliest timer of each clock that was set since [`State::take_earliest_set`] was last called.
    earliest_set: [Option<Millis>; 2],
    /// Length of the first key written since the last commit whose length the store does not accept.
    rejected_key: Option<usize>,
}

/// What is known about the first timer of a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum FirstTimer {
    /// Unknown; the timer must be looked up.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// The first timer is due at this time.
    At(Millis),
    /// The first timer was removed; the next one is not due before this time.
    NotBefore(Millis),
}

impl State {
    /// Creates the state of a task in a keyspace of a store; used by the runtime and by tests.
    pub fn new(store: state_store::SharedStore, space: state_store::Space) -> Self {
        State {
            uncommitted: Layer::default(),
            uncommitted_bytes: 0,
            committed: CommittedBuffer::default(),
            store,
            space,
            timers: [FirstTimer::Unknown; 2],
            earliest_set: [None; 2],
            rejected_key: None,
        }
    }

    /// Reads a key. A key of invalid length has no value.
    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        if !state_store::takes_key(key) {
            return Ok(None);
        }
        if let Some(written) = self.uncommitted.get(key).or_else(|| self.committed.get(key)) {
            return Ok(written.as_deref().map(Cow::Borrowed));
        }
        Ok(self.store.get(self.space, key)?.map(Cow::Owned))
    }

    /// Writes a key.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.write(key, Some(value));
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }

    /// Sets a timer: [`crate::Processor::on_timer`] is called when it is due. Has no effect if the timer is already set.
    pub fn set_timer(&mut self, timer: Timer) {
        let first = &mut self.timers[timer.clock.index()];
        match first {
            FirstTimer::None => *first = FirstTimer::At(timer.at),
            FirstTimer::At(at) => *at = timer.at.min(*at),
            FirstTimer::NotBefore(at) if timer.at < *at => *first = FirstTimer::At(timer.at),
            FirstTimer::NotBefore(_) | FirstTimer::Unknown => {}
        }
        let set = &mut self.earliest_set[timer.clock.index()];
        *set = Some(set.map_or(timer.at, |at| at.min(timer.at)));
        self.write_any(&timer.row(), Some(Vec::new()));
    }

    /// Cancels a timer. Has no effect if the timer is not set.
    pub fn cancel_timer(&mut self, timer: &Timer) {
        let first = &mut self.timers[timer.clock.index()];
        if *first == FirstTimer::At(timer.at) {
            *first = FirstTimer::NotBefore(timer.at);
        }
        self.write_any(&timer.row(), None);
    }

    /// Returns and clears the time of the earliest timer of a clock that was set since the last call.
    pub(crate) fn take_earliest_set(&mut self, clock: TimerClock) -> Option<Millis> {
        self.earliest_set[clock.index()].take()
    }

    /// Removes a timer and returns whether it was set.
    pub(crate) fn take_timer(&mut self, timer: &Timer) -> Result<bool> {
        let is_set = self.get(&timer.row())?.is_some();
        if is_set {
            self.cancel_timer(timer);
        }
        Ok(is_set)
    }

    /// Due time of the first timer of a clock.
    pub(crate) fn first_timer(&mut self, clock: TimerClock) -> Result<Option<Millis>> {
        let from = match self.timers[clock.index()] {
            FirstTimer::At(at) => return Ok(Some(at)),
            FirstTimer::None => return Ok(None),
            FirstTimer::Unknown => 0,
            FirstTimer::NotBefore(at) => at,
        };
        let found = self.timers_between(clock, from, Millis::MAX, 1)?;
        let first = found.first().map(|timer| timer.at);
        self.timers[clock.index()] = first.map_or(FirstTimer::None, FirstTimer::At);
        Ok(first)
    }

    /// The first timers of a clock that are due at `now`.
    pub(crate) fn due_timers(&mut self, clock: TimerClock, now: Millis, count_max: usize) -> Result<Vec<Timer>> {
        match self.first_timer(clock)? {
            Some(at) if at <= now => self.timers_between(clock, at, now, count_max),
            _ => Ok(Vec::new()),
        }
    }

    fn timers_between(&self, clock: TimerClock, from: Millis, until: Millis, count_max: usize) -> Result<Vec<Timer>> {
        let (mut found, prefix) = (Vec::new(), clock.prefix());
        let first = clock.rows_from(from);
        self.scan_between(
            &first,
            after_prefix(&prefix).as_deref(),
            &mut |row, _| match Timer::of_row(clock, row) {
                Some(timer) if timer.at <= until && found.len() < count_max => {
                    found.push(timer);
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Break(()),
            },
        )?;
        Ok(found)
    }

    /// Discards everything that is not committed (C7).
    pub(crate) fn roll_back(&mut self) {
        self.uncommitted.clear();
        self.uncommitted_bytes = 0;
        self.timers = [FirstTimer::Unknown; 2];
        self.earliest_set = [None; 2];
        self.rejected_key = None;
    }

    /// The first write since the last commit that the store would reject. If there is one, the transaction must not be
    /// committed.
    pub(crate) fn rejection(&self) -> Option<state_store::Error> {
        self.rejected_key.map(|bytes| state_store::Error::KeyLength { bytes })
    }

    fn write(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        assert!(
            !key.starts_with(RESERVED),
            "keys that begin with [\"~ are reserved for the runtime"
        );
        self.write_any(key, value);
    }

    fn write_any(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        if !state_store::takes_key(key) {
            self.rejected_key.get_or_insert(key.len());
            return;
        }
        self.uncommitted_bytes += value.as_ref().map_or(0, Vec::len);
        if let Some(slot) = self.uncommitted.get_mut(key) {
            self.uncommitted_bytes -= slot.as_ref().map_or(0, Vec::len);
            *slot = value;
        } else {
            self.uncommitted_bytes += key.len() + committed::ENTRY_BYTES;
            self.uncommitted.insert(key.to_vec(), value);
        }
    }

    /// Calls `visit` for each key with this prefix, in byte order, until it returns `Break`. Skips timers.
    pub fn scan(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.scan_any(prefix, &mut |key, value| {
            if key.starts_with(RESERVED) {
                ControlFlow::Continue(())
            } else {
                visit(key, value)
            }
        })
    }

    /// Like [`State::scan`], for the keys from `from` up to but excluding `end`; without `end` there is no upper limit.
    pub fn scan_range(&self, from: &[u8], end: Option<&[u8]>, visit: Visit<'_>) -> Result<()> {
        self.scan_between(from, end, &mut |key, value| {
            if key.starts_with(RESERVED) {
                ControlFlow::Continue(())
            } else {
                visit(key, value)
            }
        })
    }

    /// Like [`State::scan`], but includes the keys that the runtime reserves.
    pub(crate) fn scan_any(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.scan_between(prefix, after_prefix(prefix).as_deref(), visit)
    }

    /// Like [`State::scan_any`], for the keys from `from` up to but excluding `end`.
    fn scan_between(&self, from: &[u8], end: Option<&[u8]>, visit: Visit<'_>) -> Result<()> {
        let committed = self.committed.rows().range(from, end);
        let mut written = Merged::new(self.uncommitted.range(from, end), committed).peekable();
        let mut stopped = false;
        self.store.scan(
            self.space,
            KeyRange::new(from, end),
            Direction::Forward,
            &mut |key, value| {
                let mut flow = ControlFlow::Continue(());
                while let Some((over, new)) = written.next_if(|(over, _)| over.as_slice() < key) {
                    flow = new.as_ref().map_or(ControlFlow::Continue(()), |new| visit(over, new));
                    if flow.is_break() {
                        break;
                    }
                }
                if flow.is_continue() {
                    flow = match written.next_if(|(over, _)| over.as_slice() == key) {
                        Some((over, Some(new))) => visit(over, new),
                        Some((_, None)) => ControlFlow::Continue(()),
                        None => visit(key, value),
                    };
                }
                stopped = flow.is_break();
                flow
            },
        )?;
        if !stopped {
            for (over, new) in written {
                if let Some(new) = new
                    && visit(over, new).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Bytes of uncommitted keys and values, including the memory overhead.
    pub fn pending_bytes(&self) -> usize {
        self.uncommitted_bytes
    }
}
