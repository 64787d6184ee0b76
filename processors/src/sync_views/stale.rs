//! Which views lack changes, and until when.
//!
//! A change that became a dead letter leaves an entry for its row. The entry goes when a change that stands alone puts or
//! deletes the row anew, when the dead letter itself comes back, or when the row is covered by a snapshot's chunk or a
//! truncation that came later. A dead letter that comes back so late that the floor hides its row leaves one too.
//! Guarantees: the views of a table are marked in every partition while a row of it has an entry; marks are closed with
//! the transaction that they are written in.
//! Never: an entry that goes by a guess; a value that left a column out does not mend what it builds on.

use super::input::{self, ChunkEnd, Input, Kind};
use super::state::{self, Row, StateError};
use super::{SyncViews, emit};
use event_log::{Header, RecordRef};
use schemas::version::Version;
use std::ops::ControlFlow;
use streams::{Context, Output, Result, State};
use views::record;

/// What is known of a row whose changes are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    /// The newest of them.
    newest: Version,
    /// It is the only one.
    alone: bool,
}

impl Missing {
    fn encode(self) -> Vec<u8> {
        [
            &[state::FORMAT],
            self.newest.to_bytes().as_slice(),
            &[u8::from(self.alone)],
        ]
        .concat()
    }

    fn decode(bytes: &[u8]) -> Result<Missing, StateError> {
        let read = |rest: &[u8]| {
            let (version, rest) = rest.split_first_chunk::<17>()?;
            let newest = Version::from_bytes(version).ok()?;
            Some(Missing {
                newest,
                alone: rest == [1],
            })
        };
        read(state::open(bytes)?).ok_or(StateError::Damaged("an entry of a missing change"))
    }
}

impl SyncViews {
    /// Notes that a record is a dead letter, if a row can be named that lacks it.
    pub(super) fn missed(
        &mut self,
        record: RecordRef<'_>,
        input: Option<&Input<'_>>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        let rules = self.config.rules.clone();
        let (table, state_key, version) = match input {
            Some(input) => match &input.kind {
                Kind::Row(change) => (input.table, change.state_key.clone(), input.version),
                Kind::Truncate | Kind::ChunkEnd(_) => return Ok(()),
            },
            // What cannot say its version is taken for as new as what came before it.
            None => match input::row_of(&record, rules.event()) {
                Some((table, state_key)) => (table, state_key, self.last.max(self.floor)),
                None => return Ok(()),
            },
        };
        self.miss(table, &state_key, version, state, output)
    }

    /// Notes that a row lacks a change.
    pub(super) fn miss(
        &mut self,
        table: &str,
        state_key: &[u8],
        version: Version,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        if self.config.rules.relation(table).is_none() {
            return Ok(());
        }
        let key = input::missing_key(state_key);
        let known = match state.get(&key)? {
            Some(bytes) => Some(Missing::decode(&bytes).map_err(|e| super::broken(&e))?),
            None => None,
        };
        let missing = match known {
            Some(known) => Missing {
                newest: known.newest.max(version),
                alone: known.alone && known.newest == version,
            },
            None => {
                *self.line.missing.entry(table.to_owned()).or_default() += 1;
                self.line_dirty = true;
                Missing {
                    newest: version,
                    alone: true,
                }
            }
        };
        state.put(&key, missing.encode());
        self.judge(table, output);
        Ok(())
    }

    /// A change was applied to a row; `whole` if it does not build on what was known of it.
    pub(super) fn mend(
        &mut self,
        input: &Input<'_>,
        state_key: &[u8],
        whole: bool,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        if !self.line.missing.contains_key(input.table) {
            return Ok(());
        }
        let key = input::missing_key(state_key);
        let Some(bytes) = state.get(&key)? else { return Ok(()) };
        let missing = Missing::decode(&bytes).map_err(|e| super::broken(&e))?;
        let itself = missing.alone && missing.newest == input.version;
        if itself || (whole && missing.newest <= input.version) {
            self.found(input.table, &key, state, output);
        }
        Ok(())
    }

    /// The rows of the record's table that `covers` says are as they were at `at`, or newer.
    pub(super) fn cover(
        &mut self,
        context: Context,
        (input, at): (&Input<'_>, Version),
        covers: &dyn Fn(&str) -> bool,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        if !self.line.missing.contains_key(input.table) {
            return Ok(());
        }
        let prefix = input::missing_prefix(input.table);
        let (mut found, mut damaged) = (Vec::new(), None);
        state.scan(&prefix, &mut |key, value| {
            match Missing::decode(value) {
                Ok(missing) if missing.newest < at && covers(input::row_key_of(key, prefix.len())) => {
                    found.push(key.to_vec());
                }
                Ok(_) => {}
                Err(error) => damaged = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = damaged {
            return Err(super::broken(&error));
        }
        for key in found {
            // A row that is not there is known to be gone: its dead letter must not bring it back.
            let state_key = input::missing_row(&key);
            if state.get(&state_key)?.is_none() {
                let row = Row {
                    version: input.version,
                    gone_ms: Some(context.now),
                    ..Row::default()
                };
                self.remember(&state_key, None, &row, state);
            }
            self.found(input.table, &key, state, output);
        }
        Ok(())
    }

    /// A chunk of a snapshot has ended; `low` is its low watermark.
    pub(super) fn cover_chunk(
        &mut self,
        context: Context,
        (input, low): (&Input<'_>, Version),
        end: &ChunkEnd,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        // Below the floor a chunk's own rows may have been ignored.
        if low <= self.floor {
            return Ok(());
        }
        self.cover(context, (input, low), &|key| end.holds(key), state, output)?;
        if end.last {
            // What was said to be stale before rows had entries.
            self.judge(input.table, output);
        }
        Ok(())
    }

    fn found(&mut self, table: &str, key: &[u8], state: &mut State, output: &mut Output) {
        state.delete(key);
        self.line_dirty = true;
        if let Some(count) = self.line.missing.get_mut(table) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.line.missing.remove(table);
                self.judge(table, output);
            }
        }
    }

    /// Writes a mark where what is true of a table is not what was last said of it.
    fn judge(&mut self, table: &str, output: &mut Output) {
        let stale = self.line.missing.contains_key(table);
        if stale == self.line.stale.contains(table) {
            return;
        }
        if stale {
            self.line.stale.insert(table.to_owned());
        } else {
            self.line.stale.remove(table);
        }
        self.line_dirty = true;
        self.say_stale(table, stale, output);
    }

    /// Every partition is told: a device learns from those that it reads.
    fn say_stale(&mut self, table: &str, stale: bool, output: &mut Output) {
        let Some(relation) = self.config.rules.relation(table).cloned() else {
            return;
        };
        for view in relation.views() {
            for partition in 0..self.config.partitions {
                let headers: [Header<'_>; 1] = [(record::WRITER, Some(self.config.writer.as_bytes()))];
                let written = self.writer.stale_mark(view, stale);
                emit(&self.config.view_log, partition, written, headers, output);
                self.line.touched.insert(partition);
            }
        }
    }
}
