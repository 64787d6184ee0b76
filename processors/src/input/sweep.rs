//! Sweeps: which rows a TRUNCATE or the end of a snapshot chunk removes, and finding them in bounded steps.
//!
//! A table can have any number of rows, and a step must fit a Kafka transaction. A processor therefore stores a [`Sweep`]
//! with the key at which the next step continues, and calls [`find`] once per step.

use super::change::{ChangeRecord, ChunkEnd, Kind};
use super::chunk::KeySpan;
use schemas::version::Version;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::ops::ControlFlow;
use streams::{Result, State};

/// Removal of the rows of a table that a record shows to be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sweep {
    /// Table.
    pub table: String,
    /// Version of the record. Removed rows get this version.
    #[serde(serialize_with = "write_version", deserialize_with = "read_version")]
    pub at: Version,
    /// The end of a snapshot chunk; `None` for a TRUNCATE.
    pub chunk: Option<ChunkEnd>,
}

impl Sweep {
    /// The sweep of a record; `None` if the record concerns one row only.
    pub fn of(input: &ChangeRecord<'_>) -> Option<Sweep> {
        let chunk = match &input.kind {
            Kind::Truncate => None,
            Kind::ChunkEnd(end) => Some(end.clone()),
            Kind::Row(_) | Kind::Loaded(_) | Kind::Missing { .. } => return None,
        };
        Some(Sweep {
            table: input.table.to_owned(),
            at: input.version,
            chunk,
        })
    }

    /// Whether a row with this version, which exists, is removed.
    ///
    /// The versions are compared first, because that is cheap. A row of the chunk has exactly the chunk's position, which
    /// may be just below `low`. The snapshot found that row, so it is not removed (ADR 3).
    pub fn removes(&self, row_key: &str, version: Version) -> bool {
        let Some(end) = &self.chunk else {
            return version < self.at;
        };
        let in_chunk = (version.source_epoch, version.position) == (self.at.source_epoch, self.at.position);
        version < self.at && version < self.low(end) && !in_chunk && end.contains(row_key)
    }

    /// Whether the state of the row after the sweep is known to lack nothing up to this version, so that its missing entry is
    /// removed. The row key of an entry of the whole table is empty.
    pub fn covers(&self, row_key: &str, newest: Version) -> bool {
        let is_whole_table = self.chunk.as_ref().is_none_or(ChunkEnd::is_whole_table);
        (is_whole_table || !row_key.is_empty()) && self.removes(row_key, newest)
    }

    /// The version from which on a row is not removed by the end of a chunk.
    pub fn low(&self, end: &ChunkEnd) -> Version {
        Version {
            source_epoch: self.at.source_epoch,
            position: end.low,
            ordinal: 0,
        }
    }

    /// Ranges of state keys, in order and without overlap, that contain all rows that may be removed.
    pub fn spans(&self) -> Vec<KeySpan> {
        match &self.chunk {
            Some(end) => end.spans(&self.table),
            None => vec![KeySpan::of_table(&self.table)],
        }
    }
}

/// What one step may do at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Number of keys that are read.
    pub visited: usize,
    /// Number of keys that are found.
    pub found: usize,
    /// Bytes of the keys and values that are found. The last one may exceed it.
    pub bytes: usize,
}

impl Default for StepLimits {
    /// A step takes some 10 ms, and its output is a small part of a transaction.
    fn default() -> Self {
        StepLimits {
            visited: 20_000,
            found: 2_000,
            bytes: 1 << 20,
        }
    }
}

impl StepLimits {
    /// Whether a limit is reached.
    pub fn is_reached(&self) -> bool {
        self.visited == 0 || self.found == 0 || self.bytes == 0
    }
}

/// What [`find`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// Keys and values.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// Key at which the next step continues; `None` if all keys were visited.
    pub next: Option<Vec<u8>>,
}

/// Whether to select a key with a value.
type Selects<'s> = dyn FnMut(&[u8], &[u8]) -> Result<bool> + 's;

/// Finds the keys of ordered spans, from the key `from` on, that `selects` selects by key and value. Reduces `limits` by
/// what it did, and stops when one is reached, or at the first error of `selects`.
pub fn find(
    state: &State,
    spans: &[KeySpan],
    from: &[u8],
    limits: &mut StepLimits,
    selects: &mut Selects<'_>,
) -> Result<Found> {
    let (mut out, mut failed) = (Found::default(), None);
    for span in spans.iter().filter(|span| span.end.as_slice() > from) {
        let from = span.from.as_slice().max(from);
        state.scan_range(from, Some(&span.end), &mut |key, value| {
            if limits.is_reached() {
                out.next = Some(key.to_vec());
                return ControlFlow::Break(());
            }
            limits.visited -= 1;
            match selects(key, value) {
                Ok(true) => {
                    limits.found -= 1;
                    limits.bytes = limits.bytes.saturating_sub(key.len() + value.len());
                    out.rows.push((key.to_vec(), value.to_vec()));
                }
                Ok(false) => {}
                Err(error) => {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if out.next.is_some() {
            break;
        }
    }
    Ok(out)
}

fn write_version<S: Serializer>(version: &Version, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(version)
}

fn read_version<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Version, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}
