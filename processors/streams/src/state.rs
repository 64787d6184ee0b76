//! A task's state: the store, over it what was committed since its last flush, and over both what the steps since the
//! last commit have written.
//!
//! Guarantees: reads see the steps' own writes; a rolled-back overlay leaves no trace; each changed key goes once to
//! the changelog at the next commit. Keys are canonical JSON arrays, such as `["row","orders",17]`, and never begin
//! with `["~`, which is the runtime's own.
//! Never: a write to the store by itself; the runtime's commit does that.

mod layer;
mod settled;

use crate::Result;
use crate::timer::{Timer, TimerClock};
use event_log::Millis;
pub(crate) use layer::{Layer, Merged};
pub(crate) use settled::Settled;
use state_store::{Direction, KeyRange, Visit};
use std::borrow::Cow;
use std::ops::ControlFlow;

/// State of one task: an overlay over what was committed, over its store.
///
/// What a step writes it reads again at once, and others see it after the commit; what was not committed is gone after
/// any failure, in the store as in here. Each key that changed costs one changelog record a commit, however often it was
/// written; a value that is put as it was costs one too.
///
/// **Keys** are bytes, ordered as bytes, from 1 to [`state_store::KEY_BYTES_MAX`] of them. By convention they are JSON arrays
/// whose first element says what kind of row it is, such as `["row","orders",17]`, so that two kinds are never mistaken
/// for each other and a kind can be scanned by its prefix. Those that begin with `["~` are the runtime's: a write to one
/// is a bug and panics, which ends the process. **Values** are bytes; a key and its value are together one record of
/// the changelog, which takes about 1 MB unless its `max.message.bytes` was raised. A write with a key of another length,
/// or with a larger value, is never committed: the record or timer that it was made of becomes a dead letter, and the
/// others are processed again without it.
///
/// Give values a format version if they may outlive the program that wrote them: state is never wiped.
///
/// # Errors
/// Every error here is the store's and stops the task: pass it on with `?`.
pub struct State {
    pub(crate) overlay: Layer,
    pub(crate) settled: Settled,
    pub(crate) overlay_bytes: usize,
    pub(crate) store: state_store::SharedStore,
    pub(crate) space: state_store::Space,
    /// The time of the first timer of each clock, as far as it is known.
    timers: [First; 2],
    /// The earliest timer of each clock that was set since somebody last asked.
    set: [Option<Millis>; 2],
    /// Length of the first key since the last commit that no store takes.
    refused: Option<usize>,
}

/// The first timer of a clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum First {
    /// It must be looked up.
    #[default]
    Unknown,
    None,
    At(Millis),
    /// It was taken away: the next one is not before its time.
    NotBefore(Millis),
}

impl State {
    /// State over a store's space; for tests and for the runtime.
    pub fn new(store: state_store::SharedStore, space: state_store::Space) -> Self {
        State {
            overlay: Layer::default(),
            settled: Settled::default(),
            overlay_bytes: 0,
            store,
            space,
            timers: [First::Unknown; 2],
            set: [None; 2],
            refused: None,
        }
    }

    /// Reads a key. One that no store takes has no value.
    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        if !state_store::takes_key(key) {
            return Ok(None);
        }
        if let Some(written) = self.overlay.get(key).or_else(|| self.settled.get(key)) {
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

    /// Sets a timer: [`crate::Processor::timer`] is called when its time has come. One that is set already stays.
    pub fn set_timer(&mut self, timer: Timer) {
        let first = &mut self.timers[timer.clock.index()];
        match first {
            First::None => *first = First::At(timer.at),
            First::At(at) => *at = timer.at.min(*at),
            First::NotBefore(at) if timer.at < *at => *first = First::At(timer.at),
            First::NotBefore(_) | First::Unknown => {}
        }
        let set = &mut self.set[timer.clock.index()];
        *set = Some(set.map_or(timer.at, |at| at.min(timer.at)));
        self.write_any(&timer.row(), Some(Vec::new()));
    }

    /// Takes a timer back; one that is not set may be taken back too.
    pub fn cancel_timer(&mut self, timer: &Timer) {
        let first = &mut self.timers[timer.clock.index()];
        if *first == First::At(timer.at) {
            *first = First::NotBefore(timer.at);
        }
        self.write_any(&timer.row(), None);
    }

    /// The earliest timer of a clock that was set since this was last asked.
    pub(crate) fn was_set(&mut self, clock: TimerClock) -> Option<Millis> {
        self.set[clock.index()].take()
    }

    /// Removes a timer; says whether it was there.
    pub(crate) fn take_timer(&mut self, timer: &Timer) -> Result<bool> {
        let is_set = self.get(&timer.row())?.is_some();
        if is_set {
            self.cancel_timer(timer);
        }
        Ok(is_set)
    }

    /// When the first timer of a clock is due.
    pub(crate) fn first_timer(&mut self, clock: TimerClock) -> Result<Option<Millis>> {
        let from = match self.timers[clock.index()] {
            First::At(at) => return Ok(Some(at)),
            First::None => return Ok(None),
            First::Unknown => 0,
            First::NotBefore(at) => at,
        };
        let found = self.timers_between(clock, from, Millis::MAX, 1)?;
        let first = found.first().map(|timer| timer.at);
        self.timers[clock.index()] = first.map_or(First::None, First::At);
        Ok(first)
    }

    /// The first timers of a clock that are due at a time.
    pub(crate) fn due(&mut self, clock: TimerClock, now: Millis, at_most: usize) -> Result<Vec<Timer>> {
        match self.first_timer(clock)? {
            Some(at) if at <= now => self.timers_between(clock, at, now, at_most),
            _ => Ok(Vec::new()),
        }
    }

    fn timers_between(&self, clock: TimerClock, from: Millis, until: Millis, at_most: usize) -> Result<Vec<Timer>> {
        let (mut found, prefix) = (Vec::new(), clock.prefix());
        let first = clock.rows_from(from);
        self.scan_between(
            &first,
            after_prefix(&prefix).as_deref(),
            &mut |row, _| match Timer::of_row(clock, row) {
                Some(timer) if timer.at <= until && found.len() < at_most => {
                    found.push(timer);
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Break(()),
            },
        )?;
        Ok(found)
    }

    /// Drops everything that is not committed.
    pub(crate) fn roll_back(&mut self) {
        self.overlay.clear();
        self.overlay_bytes = 0;
        self.timers = [First::Unknown; 2];
        self.set = [None; 2];
        self.refused = None;
    }

    /// What was written since the last commit that no store takes: nothing of the transaction may be committed.
    pub(crate) fn refusal(&self) -> Option<state_store::Error> {
        self.refused.map(|bytes| state_store::Error::KeyLength { bytes })
    }

    fn write(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        assert!(
            !key.starts_with(RESERVED),
            "a key that begins with [\"~ is the runtime's own"
        );
        self.write_any(key, value);
    }

    fn write_any(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        if !state_store::takes_key(key) {
            self.refused.get_or_insert(key.len());
            return;
        }
        self.overlay_bytes += value.as_ref().map_or(0, Vec::len);
        if let Some(slot) = self.overlay.get_mut(key) {
            self.overlay_bytes -= slot.as_ref().map_or(0, Vec::len);
            *slot = value;
        } else {
            self.overlay_bytes += key.len() + settled::ENTRY_BYTES;
            self.overlay.insert(key.to_vec(), value);
        }
    }

    /// Calls `visit` for each key that begins with `prefix`, in byte order, until it breaks.
    pub fn scan(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.scan_any(prefix, &mut |key, value| {
            if key.starts_with(RESERVED) {
                ControlFlow::Continue(())
            } else {
                visit(key, value)
            }
        })
    }

    /// The same with the runtime's own keys.
    pub(crate) fn scan_any(&self, prefix: &[u8], visit: Visit<'_>) -> Result<()> {
        self.scan_between(prefix, after_prefix(prefix).as_deref(), visit)
    }

    /// The same from a key to another, which is left out.
    fn scan_between(&self, from: &[u8], end: Option<&[u8]>, visit: Visit<'_>) -> Result<()> {
        let settled = self.settled.rows().range(from, end);
        let mut written = Merged::new(self.overlay.range(from, end), settled).peekable();
        let mut stopped = false;
        let keys = KeyRange::new(from, end);
        self.store
            .scan(self.space, keys, Direction::Forward, &mut |key, value| {
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
            })?;
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

    /// Bytes of keys and values that wait for the next commit, with what it costs to hold them.
    pub fn pending_bytes(&self) -> usize {
        self.overlay_bytes
    }
}

/// What the runtime's own keys begin with.
pub(crate) const RESERVED: &[u8] = b"[\"~";

/// The least key above all keys with this prefix; `None` when there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b != u8::MAX)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end)
}
