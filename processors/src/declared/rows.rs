//! What is remembered of a table's rows: version and contribution, so that a change takes back what the row gave.
//!
//! Guarantees: a version that is not newer changes nothing; deleted rows are remembered until the horizon, and behind
//! it the floor stands for them, as in sync-views.
//! Never: a contribution of a version that was never read.

use super::delta::Part;
use super::readable::named;
use super::values::{json, read_array, read_byte, read_bytes, read_number, write_bytes, write_number};
use crate::sync_views::input::{self, Input};
use event_log::Millis;
use schemas::codec::Datum;
use schemas::version::Version;
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use streams::{Result, State};

/// Format of the values here.
const FORMAT: u8 = 1;
/// Forgotten rows a commit at most.
const FORGET_MAX: usize = 256;

/// A column's name and value.
pub type Kept = (String, Vec<u8>);

/// Rows with their state keys.
pub type Found = Vec<(Vec<u8>, Row)>;

/// State that this release cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A newer release wrote it.
    #[error("state has format {0}, this release reads up to {FORMAT}; update it")]
    Newer(u8),
    /// The bytes are damaged.
    #[error("state is damaged at {0}")]
    Damaged(&'static str),
}

/// What a row gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The key that it gave it to.
    pub key: Vec<u8>,
    /// Order among rows.
    pub order: u128,
    /// When it happened, in ms.
    pub time: Millis,
    /// The values.
    pub values: Vec<u8>,
}

impl Given {
    /// As a part of a delta.
    pub fn part(&self) -> Part<'_> {
        Part {
            key: &self.key,
            order: self.order,
            time: self.time,
            values: &self.values,
        }
    }
}

/// A row as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// Version.
    pub version: Version,
    /// When it was deleted, by the processor's clock in ms.
    pub gone_ms: Option<Millis>,
    /// What it gives.
    pub given: Option<Given>,
    /// Large values that the source may leave out when they do not change, by the column's name; of a deleted row only
    /// until the same row arrives under another key.
    pub kept: Vec<Kept>,
}

impl Row {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&self.version.to_bytes());
        out.extend_from_slice(&self.gone_ms.unwrap_or(i64::MIN).to_be_bytes());
        out.push(u8::from(self.given.is_some()));
        if let Some(given) = &self.given {
            write_bytes(&mut out, &given.key);
            out.extend_from_slice(&given.order.to_be_bytes());
            out.extend_from_slice(&given.time.to_be_bytes());
            write_bytes(&mut out, &given.values);
        }
        write_number(&mut out, u64::try_from(self.kept.len()).unwrap_or(u64::MAX));
        for (name, value) in &self.kept {
            write_bytes(&mut out, name.as_bytes());
            write_bytes(&mut out, value);
        }
        out
    }

    /// Reads its bytes.
    pub fn decode(mut bytes: &[u8]) -> Result<Row, StateError> {
        let rest = &mut bytes;
        match read_byte(rest) {
            Some(FORMAT) => {}
            Some(found) => return Err(StateError::Newer(found)),
            None => return Err(StateError::Damaged("a row")),
        }
        let mut body = || {
            let version = Version::from_bytes(&read_array::<17>(rest)?).ok()?;
            let gone = i64::from_be_bytes(read_array(rest)?);
            let given = match read_byte(rest)? {
                0 => None,
                _ => Some(Given {
                    key: read_bytes(rest)?.to_vec(),
                    order: u128::from_be_bytes(read_array(rest)?),
                    time: i64::from_be_bytes(read_array(rest)?),
                    values: read_bytes(rest)?.to_vec(),
                }),
            };
            let mut kept = Vec::new();
            for _ in 0..read_number(rest)? {
                let name = std::str::from_utf8(read_bytes(rest)?).ok()?.to_owned();
                kept.push((name, read_bytes(rest)?.to_vec()));
            }
            let gone_ms = (gone != i64::MIN).then_some(gone);
            Some(Row {
                version,
                gone_ms,
                given,
                kept,
            })
        };
        body().ok_or(StateError::Damaged("a row"))
    }
}

/// A row's state as JSON, `names` those of the values that it gives; `None` of other bytes.
pub fn readable(bytes: &[u8], names: &[String]) -> Option<Value> {
    let row = Row::decode(bytes).ok()?;
    let gives = match &row.given {
        Some(given) => json!({
            "key": serde_json::from_slice::<Value>(&given.key).ok()?,
            "time_ms": given.time,
            "values": named(names, &given.values)?,
        }),
        None => Value::Null,
    };
    let kept = row.kept.into_iter().map(|(name, value)| {
        let value = String::from_utf8(value).map_or_else(|e| json(&Datum::Bytes(e.as_bytes())), Value::from);
        (name, value)
    });
    Some(json!({
        "version": readable_version(row.version),
        "deleted_ms": row.gone_ms,
        "gives": gives,
        "kept": kept.collect::<Map<_, _>>(),
    }))
}

/// Where a table's line stands, as JSON; `None` of other bytes.
pub fn readable_line(bytes: &[u8]) -> Option<Value> {
    let (incarnation, floor, topic_id) = read_line(bytes).ok()?;
    Some(json!({
        "incarnation": incarnation,
        "floor": readable_version(floor),
        "topic_id": String::from_utf8(topic_id).ok()?,
    }))
}

fn readable_version(version: Version) -> Value {
    json!({ "incarnation": version.incarnation, "position": version.position, "ordinal": version.ordinal })
}

/// Incarnation, floor and topic id.
fn read_line(mut bytes: &[u8]) -> Result<(u32, Version, Vec<u8>), StateError> {
    let rest = &mut bytes;
    match read_byte(rest) {
        Some(FORMAT) => {}
        Some(found) => return Err(StateError::Newer(found)),
        None => return Err(StateError::Damaged("a line")),
    }
    let mut body = || {
        let incarnation = u32::from_be_bytes(read_array(rest)?);
        let floor = Version::from_bytes(&read_array::<17>(rest)?).ok()?;
        Some((incarnation, floor, read_bytes(rest)?.to_vec()))
    };
    body().ok_or(StateError::Damaged("a line"))
}

/// The rows of one table in one task, and where its line stands.
#[derive(Debug)]
pub struct Rows {
    /// What the state calls the table: its side.
    name: &'static str,
    /// Incarnation of the source, or of the topic.
    pub incarnation: u32,
    /// A row that is not known is newer than this, or is ignored.
    pub floor: Version,
    topic_id: String,
    horizon_ms: i64,
    /// The newest record has left its source transaction open.
    open: bool,
    dirty: bool,
}

impl Rows {
    /// Rows of a side; `topic_id` is its topic's.
    pub fn new(name: &'static str, topic_id: String, horizon_ms: i64) -> Self {
        Rows {
            name,
            incarnation: 1,
            floor: Version::default(),
            topic_id,
            horizon_ms,
            open: false,
            dirty: false,
        }
    }

    /// Prefix of its rows' state keys.
    pub fn prefix(&self) -> Vec<u8> {
        input::table_prefix(self.name)
    }

    /// State key of a row.
    pub fn state_key(&self, row_key: &str) -> Vec<u8> {
        let mut key = self.prefix();
        key.extend_from_slice(row_key.as_bytes());
        key.push(b']');
        key
    }

    fn line_key(&self) -> Vec<u8> {
        format!("[\"line\",\"{}\"]", self.name).into_bytes()
    }

    /// A row that is remembered.
    pub fn get(&self, state_key: &[u8], state: &State) -> Result<Option<Result<Row, StateError>>> {
        Ok(state.get(state_key)?.map(|bytes| Row::decode(&bytes)))
    }

    /// Remembers a row, and lists it among the deleted ones while it is one.
    pub fn put(&self, state_key: &[u8], was_gone: Option<Millis>, row: &Row, state: &mut State) {
        if let Some(at) = was_gone {
            state.delete(&input::gone_key(at, state_key));
        }
        if let Some(at) = row.gone_ms {
            state.put(&input::gone_key(at, state_key), vec![1]);
        }
        state.put(state_key, row.encode());
    }

    /// The living rows that `goes` says.
    pub fn select(&self, state: &State, goes: &dyn Fn(&str, &Row) -> bool) -> Result<Result<Found, StateError>> {
        let prefix = self.prefix();
        let (mut found, mut damaged) = (Vec::new(), None);
        state.scan(&prefix, &mut |key, value| {
            match Row::decode(value) {
                Ok(row) if row.gone_ms.is_none() && goes(input::row_key_of(key, prefix.len()), &row) => {
                    found.push((key.to_vec(), row));
                }
                Ok(_) => {}
                Err(error) => damaged = Some(error),
            }
            ControlFlow::Continue(())
        })?;
        Ok(damaged.map_or(Ok(found), Err))
    }

    /// Notes the incarnation of a record, and whether its source transaction is open after it.
    pub fn begin(&mut self, input: &Input<'_>) {
        let incarnation = input.version.incarnation;
        if input.again.is_none() {
            self.open = !input.last;
        }
        if incarnation > self.incarnation {
            self.incarnation = incarnation;
            self.dirty = true;
        }
    }

    /// Reads where the line stands.
    pub fn reset(&mut self, state: &State) -> Result<Result<(), StateError>> {
        (self.open, self.dirty) = (false, false);
        (self.incarnation, self.floor) = (1, Version::default());
        let Some(bytes) = state.get(&self.line_key())? else {
            return Ok(Ok(()));
        };
        let (incarnation, floor, topic_id) = match read_line(&bytes) {
            Ok(line) => line,
            Err(error) => return Ok(Err(error)),
        };
        (self.incarnation, self.floor) = (incarnation, floor);
        if topic_id != self.topic_id.as_bytes() {
            // The topic was made anew: its offsets begin again, so what they version begins a new incarnation.
            self.incarnation += 1;
            self.dirty = true;
        }
        Ok(Ok(()))
    }

    /// Forgets rows that were deleted before the horizon, and writes down where the line stands.
    pub fn before_commit(&mut self, now: Millis, state: &mut State) -> Result<Result<(), StateError>> {
        let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let (before, prefix) = (now - self.horizon_ms, self.prefix());
        state.scan(input::GONE, &mut |key, _| {
            match input::gone_of(key) {
                Some((at, state_key)) if at < before && old.len() < FORGET_MAX => {
                    // The two tables of a join may have one list.
                    if state_key.starts_with(&prefix) {
                        old.push((key.to_vec(), state_key));
                    }
                }
                _ => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        })?;
        for (gone, state_key) in old {
            match self.get(&state_key, state)? {
                // The next record of an open transaction may be the row under its new key.
                Some(Ok(row)) if self.open && !row.kept.is_empty() => continue,
                Some(Ok(row)) => self.floor = self.floor.max(row.version),
                Some(Err(error)) => return Ok(Err(error)),
                None => {}
            }
            state.delete(&gone);
            state.delete(&state_key);
            self.dirty = true;
        }
        if self.dirty {
            let mut out = vec![FORMAT];
            out.extend_from_slice(&self.incarnation.to_be_bytes());
            out.extend_from_slice(&self.floor.to_bytes());
            write_bytes(&mut out, self.topic_id.as_bytes());
            state.put(&self.line_key(), out);
            self.dirty = false;
        }
        Ok(Ok(()))
    }

    /// Says that a first line must be written, so that another topic of the same name is noticed.
    pub fn note(&mut self) {
        self.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_reads_back_and_a_cut_is_an_error() {
        let given = Given {
            key: b"[1]".to_vec(),
            order: 77,
            time: -3,
            values: vec![3, 1],
        };
        let row = Row {
            version: Version {
                incarnation: 1,
                position: 9,
                ordinal: 2,
            },
            gone_ms: Some(5),
            given: Some(given),
            kept: vec![("note".into(), b"long".to_vec())],
        };
        for row in [row, Row::default()] {
            let bytes = row.encode();
            assert_eq!(Row::decode(&bytes), Ok(row));
            for cut in 0..bytes.len() {
                assert!(Row::decode(&bytes[..cut]).is_err(), "{cut} bytes");
            }
        }
        assert_eq!(Row::decode(&[2]), Err(StateError::Newer(2)));
    }
}
