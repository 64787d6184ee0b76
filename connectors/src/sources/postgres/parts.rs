//! The parts of a source transaction while it is converted: its state, the pending record and the identity of a record.

use super::pgoutput::{Old, Tuple};
use super::relations::Mapping;
use schemas::version::Lsn;

/// The open source transaction.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) commit_lsn: Lsn,
    pub(super) at_ms: i64,
    pub(super) next_ordinal: u32,
    /// Whether all records of the transaction are already published.
    pub(super) published: bool,
}

/// A record that is not emitted yet, because only the next message shows whether it is the last one of its transaction.
#[derive(Debug, Default)]
pub(super) struct PendingRecord {
    pub(super) is_present: bool,
    pub(super) table: String,
    pub(super) ordinal: u32,
    /// Key of the row; empty for all rows of the table.
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) tombstone: bool,
    /// Set if this is a missing record.
    pub(super) missing: Option<Lacking>,
    /// If an update changed the row's key, it produces two records: here the tombstone of the old key contains the new
    /// key, and the row with the new key contains the old key. Empty for other changes.
    pub(super) other_key: Vec<u8>,
}

/// Why a change is published as a missing record.
#[derive(Debug)]
pub(super) enum Lacking {
    /// The row cannot be encoded and becomes a dead letter.
    DeadLetter(String),
    /// The table is stopped.
    Stopped(String),
}

/// The content of a record.
pub(super) enum Content<'v> {
    Row(&'v mut Vec<u8>),
    Tombstone,
    Missing(Lacking),
}

/// A row that cannot be encoded.
pub(super) struct Rejection {
    /// Whether its key could be encoded.
    pub(super) has_key: bool,
    pub(super) reason: String,
}

/// A row as received from the stream.
pub(super) struct Sent<'a> {
    pub(super) old: Option<Old<'a>>,
    pub(super) new: Tuple<'a>,
}

/// Keys and value of an inserted or updated row.
#[derive(Debug, Default)]
pub(super) struct EncodedRow {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// Key before the change; empty if it was not sent.
    pub(super) old_key: Vec<u8>,
}

/// A change that needs a record: the mapping of its table and its first ordinal.
pub(super) struct Change {
    pub(super) mapping: Mapping,
    pub(super) ordinal: u32,
}

/// Identity of a record to emit.
pub(super) struct RecordId<'k> {
    pub(super) table: &'k str,
    pub(super) ordinal: u32,
    pub(super) key: &'k [u8],
    /// See [`PendingRecord`].
    pub(super) other_key: &'k [u8],
}

impl<'k> RecordId<'k> {
    /// Identity of a record whose row keeps its key.
    pub(super) fn new(table: &'k str, ordinal: u32, key: &'k [u8]) -> Self {
        RecordId {
            table,
            ordinal,
            key,
            other_key: &[],
        }
    }
}
