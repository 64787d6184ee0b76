//! Windows: stream time, late records, and windows that close.
//!
//! Each window has a durable stream-time timer at the window's end plus grace. A record with a timestamp in the future
//! makes timers fire too early, because the stream time of timers is not limited to the wall-clock time. A window whose
//! timer fired too early is stored as pending until [`Windows::clock`], a stream time that is limited to the wall-clock
//! time, has passed its end plus grace.

use crate::dead_letter::stop;
use event_log::Millis;
use std::ops::ControlFlow;
use streams::{Result, State};
use topology::Window;

/// State key of the stream time.
const CLOCK: &[u8] = b"[\"clock\"]";
/// Prefix of the keys of windows whose timers fired early.
const CLOSING: &[u8] = b"[\"closing\",\"";
/// Digits of the time in such a key, so that keys sort by time.
const CLOSING_DIGITS: usize = 20;

/// The windows of an aggregate in one task.
pub struct Windows {
    /// The declaration; `None` if groups have no windows.
    pub declared: Option<Window>,
    /// Stream time: the greatest timestamp of a record, where each is limited to the wall-clock time of its processing.
    clock: Millis,
    clock_moved: bool,
    /// When the first pending window closes; `None` if that must be read from the state.
    first_closing: Option<Millis>,
}

impl Windows {
    /// Creates the windows of a task that has processed no record.
    pub fn new(declared: Option<Window>) -> Self {
        Windows {
            declared,
            clock: 0,
            clock_moved: false,
            first_closing: None,
        }
    }

    /// Whether a window writes only its final result.
    pub fn is_final(&self) -> bool {
        self.declared.as_ref().is_some_and(|window| window.is_final)
    }

    /// Size of a window in ms; 0 without windows.
    pub fn size_ms(&self) -> Millis {
        self.declared.as_ref().map_or(0, |window| window.size_ms)
    }

    /// Advances the stream time.
    pub fn advance(&mut self, at: Millis) {
        if at > self.clock {
            self.clock = at;
            self.clock_moved = true;
        }
    }

    /// Whether a window is closed.
    pub fn is_closed(&self, window: &Window, start: Millis) -> bool {
        closes_at(window, start) <= self.clock
    }

    /// Called when the timer of a group fires. Returns whether its window may be closed now; if not, the window becomes
    /// pending.
    pub fn may_close(&mut self, at: Millis, state_key: &[u8], state: &mut State) -> bool {
        if at <= self.clock {
            return true;
        }
        state.put(&closing_key(at, state_key), Vec::new());
        self.first_closing = self.first_closing.map(|first| first.min(at));
        false
    }

    /// Removes the pending windows whose end plus grace the stream time has passed, and returns the state keys of their
    /// groups.
    pub fn remove_due(&mut self, state: &mut State) -> Result<Vec<Vec<u8>>> {
        let may_be_due = self.first_closing.is_none_or(|first| first <= self.clock);
        if self.declared.is_none() || !may_be_due {
            return Ok(Vec::new());
        }
        let (mut due, mut first, clock) = (Vec::new(), Millis::MAX, self.clock);
        state.scan(CLOSING, &mut |key, _| match parse_closing_key(key) {
            Some((at, group)) if at <= clock => {
                due.push((key.to_vec(), group));
                ControlFlow::Continue(())
            }
            found => {
                first = found.map_or(first, |(at, _)| at);
                ControlFlow::Break(())
            }
        })?;
        self.first_closing = Some(first);
        let remove = |(key, group): (Vec<u8>, Vec<u8>)| {
            state.delete(&key);
            group
        };
        Ok(due.into_iter().map(remove).collect())
    }

    /// Writes the stream time to the state if it advanced.
    pub fn before_commit(&mut self, state: &mut State) {
        if self.clock_moved && self.declared.is_some() {
            state.put(CLOCK, self.clock.to_be_bytes().to_vec());
            self.clock_moved = false;
        }
    }

    /// Reads the stream time of the last commit; `processor` is for the error.
    pub fn restore(&mut self, processor: &str, state: &State) -> Result<()> {
        self.clock_moved = false;
        self.first_closing = None;
        let clock = state.get(CLOCK)?;
        self.clock = match clock.as_deref().map(<[u8; 8]>::try_from) {
            None => 0,
            Some(Ok(bytes)) => i64::from_be_bytes(bytes),
            Some(Err(_)) => return Err(stop(processor, "the stream time in the state is corrupt")),
        };
        Ok(())
    }
}

/// The stream time at which a window closes: its end plus grace.
pub fn closes_at(window: &Window, start: Millis) -> Millis {
    start + window.size_ms + window.grace_ms
}

/// Starts of the windows that contain a time, the oldest first.
pub fn starts(window: &Window, time: Millis) -> impl Iterator<Item = Millis> + use<> {
    let every = window.every_ms;
    let newest = time.div_euclid(every) * every;
    (0..window.size_ms / every).rev().map(move |hop| newest - hop * every)
}

/// Parses a group's state key: the start of the window, and the group's key.
pub fn parse_window_key(state_key: &[u8]) -> Option<(Millis, &[u8])> {
    let rest = state_key.strip_prefix(b"[\"w\",\"")?;
    let end = rest.iter().position(|byte| *byte == b'"')?;
    let start = std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()?;
    let key = rest.get(end..)?.strip_prefix(b"\",")?.strip_suffix(b"]")?;
    Some((start, key))
}

/// `["closing","time with 20 digits",start of the window,group…]`.
fn closing_key(at: Millis, state_key: &[u8]) -> Vec<u8> {
    let mut out = CLOSING.to_vec();
    out.extend_from_slice(format!("{at:0CLOSING_DIGITS$}\",").as_bytes());
    out.extend_from_slice(state_key.strip_prefix(b"[\"w\",").unwrap_or_default());
    out
}

fn parse_closing_key(key: &[u8]) -> Option<(Millis, Vec<u8>)> {
    let (digits, rest) = key.strip_prefix(CLOSING)?.split_at_checked(CLOSING_DIGITS)?;
    let at = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some((at, [b"[\"w\",", rest.strip_prefix(b"\",")?].concat()))
}
