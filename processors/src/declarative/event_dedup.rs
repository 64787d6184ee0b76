//! Counting each event exactly once, although replays and redrives write it again.
//!
//! An event that failed gets an entry in the state under its original offset. A replayed event has already been
//! counted. A redriven event is counted only if its entry exists, and the entry is then removed. A timer removes an entry
//! that outlives the dead letter.

use super::delta::{Contribution, Delta};
use super::relation::Relation;
use super::sink::{Change, Pipeline};
use crate::dead_letter::{RecordError, StepError};
use crate::input::dead_letter_offset;
use event_log::{Millis, Offset, RecordRef};
use schemas::codec::Row;
use schemas::headers;
use streams::{Result, Stage, State, Timer, TimerClock};

/// How long an entry is kept: a day longer than a dead letter.
pub const ENTRY_MS: Millis = 31 * 24 * 60 * 60 * 1000;
/// Format of an entry, followed by the time at which it expires.
const FORMAT: u8 = 2;
/// Start of the names of the timers that remove entries, followed by the offset.
const TIMER: &str = "failed/";

/// Processes an event record.
pub fn process(relation: &Relation, record: &RecordRef<'_>, pipeline: &mut Pipeline<'_>) -> Result<(), StepError> {
    let Some(offset) = countable_offset(record) else {
        return Ok(());
    };
    if record.header(headers::REPLAYED).is_some() {
        let key = failed_key(offset);
        if pipeline.step.state.get(&key)?.is_none() {
            return Ok(());
        }
        pipeline.step.state.delete(&key);
    }
    match count(relation, record, pipeline) {
        Ok(None) => Ok(()),
        // The event was counted, so it gets no entry: a redrive must not count it again.
        Ok(Some(reason)) => Err(RecordError::new(Stage::Transformation, reason).into()),
        Err(StepError::Record(error)) => {
            note_failed(offset, pipeline.step.context.now, pipeline.step.state);
            Err(StepError::Record(error))
        }
        Err(StepError::Task(error)) => Err(StepError::Task(error)),
    }
}

/// Adds an entry for an event that was not counted because the log or the store rejected its effects.
pub fn note_rejected(record: &RecordRef<'_>, now: Millis, state: &mut State) {
    if let Some(offset) = countable_offset(record) {
        note_failed(offset, now, state);
    }
}

fn note_failed(offset: Offset, now: Millis, state: &mut State) {
    let expires = now.saturating_add(ENTRY_MS);
    let mut entry = vec![FORMAT];
    entry.extend_from_slice(&expires.to_be_bytes());
    state.put(&failed_key(offset), entry);
    state.set_timer(Timer::new(TimerClock::Wall, expires, format!("{TIMER}{offset}")));
}

/// Removes the entry of a timer. Returns whether the timer is one of an entry.
pub fn expire(timer: &Timer, state: &mut State) -> Result<bool> {
    let Some(offset) = timer.key.strip_prefix(TIMER).and_then(|offset| offset.parse().ok()) else {
        return Ok(false);
    };
    let key = failed_key(offset);
    // An event that failed again after a redrive has a later timer.
    if state
        .get(&key)?
        .is_some_and(|entry| expiry(&entry).is_none_or(|expires| expires <= timer.at))
    {
        state.delete(&key);
    }
    Ok(true)
}

/// The time at which an entry expires.
pub fn expiry(entry: &[u8]) -> Option<Millis> {
    let (FORMAT, expires) = entry.split_first().map(|(format, rest)| (*format, rest))? else {
        return None;
    };
    expires.try_into().ok().map(i64::from_be_bytes)
}

/// Applies the event. Returns a reason if the event becomes a dead letter although it was counted.
fn count(
    relation: &Relation,
    record: &RecordRef<'_>,
    pipeline: &mut Pipeline<'_>,
) -> Result<Option<String>, StepError> {
    let key = record
        .key()
        .ok_or_else(|| RecordError::new(Stage::KeyConverter, "the key is null"))?;
    schemas::key::check(key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
    let row_key = key.get(1..key.len().saturating_sub(1)).unwrap_or_default();
    let row_key = std::str::from_utf8(row_key).map_err(|e| RecordError::new(Stage::KeyConverter, e))?;
    let Some(value) = record.value() else { return Ok(None) };
    let bound = relation
        .bound(value)
        .map_err(|e| RecordError::new(Stage::ValueConverter, e))?;
    let mut row: Row<'_> = Vec::new();
    bound
        .decode(value, &mut row)
        .map_err(|e| RecordError::new(Stage::ValueConverter, e))?;
    let contributes = relation.shape.evaluate(row_key, &row, pipeline.shaped);
    if !contributes.map_err(|e| RecordError::new(Stage::Transformation, e))? {
        return Ok(None);
    }
    let at = record.timestamp();
    let new = Contribution {
        key: &pipeline.shaped.key,
        order: order_by_time(at, record.offset()),
        time: relation.shape.time_of(pipeline.shaped, at),
        values: &pipeline.shaped.values,
    };
    let delta = Delta {
        row: b"",
        old: None,
        new: Some(new),
    };
    let change = Change {
        side: relation.side,
        delta,
        at,
    };
    Ok(pipeline.sink.apply(change, &mut pipeline.step)?)
}

/// Order of records without a source position: by timestamp, then by offset.
pub fn order_by_time(at: Millis, offset: Offset) -> u128 {
    // Inverting the sign bit makes negative timestamps the smallest.
    u128::from(at.cast_unsigned() ^ (1 << 63)) << 64 | u128::from(offset.cast_unsigned())
}

/// The original offset of an event that may have to be counted; `None` for a replayed event.
fn countable_offset(record: &RecordRef<'_>) -> Option<Offset> {
    match record.header(headers::REPLAYED) {
        None => Some(record.offset()),
        Some(how) => original_offset(record).filter(|_| how == headers::REDRIVE.as_bytes()),
    }
}

fn original_offset(record: &RecordRef<'_>) -> Option<Offset> {
    if let Some(tx) = record.header(headers::TX) {
        return i64::try_from(headers::Tx::parse(tx).ok()?.position.0).ok();
    }
    dead_letter_offset(record)
}

fn failed_key(offset: Offset) -> Vec<u8> {
    format!("[\"failed\",\"{offset}\"]").into_bytes()
}
