//! The window of a snapshot chunk: which rows of the table changed in the stream between the two watermarks of the chunk.
//!
//! The chunk is read between the watermarks, so the stream contains a newer state of these rows. They are dropped from
//! the chunk. An update may omit unchanged TOAST values, which readers do not have if the snapshot has not reached the
//! row before. Such a row is published with the chunk: the values that the stream has, completed from the chunk, because
//! a value that no change in the window contains is the same at both watermarks.

use super::parts::EncodedRow;
use super::pgoutput::Value;
use super::rows::Table;
use std::collections::{HashMap, VecDeque};

/// Maximum size of the changed keys and values of a window. Beyond it, the chunk is read again.
const CHANGED_BYTES_MAX: usize = 8 << 20;
/// Estimated overhead of an entry.
const ENTRY_BYTES: usize = 64;
/// Number of recent transactions that are remembered; see [`Window::hides_streamed_transaction`].
const TRANSACTIONS_MAX: usize = 16_384;
/// Maximum number of rows that wait to be read by key. Beyond it, the snapshot of the table starts again.
const MOVED_MAX: usize = 1_000;

/// The values of a row's key columns, as text, in key order.
pub(super) type KeyTexts = Vec<String>;

/// The state of a row that changed in the window.
#[derive(Debug)]
enum Changed {
    /// Readers know the whole row, or that it is deleted.
    Complete,
    /// The last values; `None` for a value that no change in the window contained.
    Partial(Vec<Option<Cell>>),
}

/// A value that a change contained; `None` is null.
type Cell = Option<Box<[u8]>>;

/// The transactions that were in progress when a chunk was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct InProgress {
    /// Ids below `from`.
    pub(super) listed: Vec<u32>,
    /// All transactions from this id on (the snapshot's `xmax`). The newest transaction is not listed while it ends.
    pub(super) from: Option<u32>,
}

impl InProgress {
    fn contains(&self, xid: u32) -> bool {
        // Ids wrap around: the half of them after `from` is newer.
        let is_newer = |from: u32| xid.wrapping_sub(from) < 1 << 31;
        self.from.is_some_and(is_newer) || self.listed.contains(&xid)
    }
}

/// The window. It belongs to the table whose snapshot is running.
#[derive(Debug, Default)]
pub(super) struct Window {
    table: Option<String>,
    is_open: bool,
    changed: HashMap<Vec<u8>, Changed>,
    /// Whether the table was truncated in the window, so that no row of the chunk exists any more.
    truncated: bool,
    bytes: usize,
    /// Rows whose key changed and whose unchanged TOAST values were not sent. Such a row may move behind the rows that
    /// the snapshot has still to read, so it is read by its new key.
    moved: Vec<KeyTexts>,
    moved_overflow: bool,
    /// Ids of the last transactions of the stream.
    transactions: VecDeque<u32>,
    /// How many of them were received since the window opened.
    since_open: usize,
}

impl Window {
    /// Starts to follow the changes of a table whose snapshot runs.
    pub(super) fn follow(&mut self, table: &str) {
        self.unfollow();
        self.table = Some(table.to_owned());
    }

    /// Stops following.
    pub(super) fn unfollow(&mut self) {
        self.table = None;
        self.moved.clear();
        self.moved_overflow = false;
        self.close();
    }

    /// Whether the changes of this table are followed.
    pub(super) fn follows(&self, table: &str) -> bool {
        self.table.as_deref() == Some(table)
    }

    /// Opens the window at the low watermark.
    pub(super) fn open(&mut self) {
        self.close();
        self.is_open = true;
    }

    /// Closes the window and forgets its changes.
    pub(super) fn close(&mut self) {
        self.is_open = false;
        self.changed.clear();
        self.truncated = false;
        self.bytes = 0;
        self.since_open = 0;
    }

    /// Whether the window is open and its changes are known.
    pub(super) fn is_usable(&self) -> bool {
        self.is_open && self.bytes <= CHANGED_BYTES_MAX
    }

    /// Called for each transaction of the stream, also for those that are already published.
    pub(super) fn begin(&mut self, xid: u32) {
        if self.transactions.len() == TRANSACTIONS_MAX {
            self.transactions.pop_front();
        }
        self.transactions.push_back(xid);
        if self.is_open {
            self.since_open += 1;
        }
    }

    /// Whether one of these transactions, which were in progress when the chunk was read, precedes the window in the
    /// stream.
    ///
    /// A transaction becomes visible only some time after its commit record was written; with synchronous replication,
    /// after the standby has answered. Such a transaction can precede the low watermark although the chunk does not
    /// contain its changes. The rows of the chunk would then replace newer ones.
    pub(super) fn hides_streamed_transaction(&self, in_progress: &InProgress) -> bool {
        let before = self.transactions.len().saturating_sub(self.since_open);
        self.transactions
            .iter()
            .take(before)
            .any(|xid| in_progress.contains(*xid))
    }

    /// Called for an inserted or updated row with its values, in which values that are not known are `Unchanged`.
    pub(super) fn row(&mut self, table: &Table, row: &EncodedRow, values: &[Value<'_>]) {
        if !self.follows(table.name.as_str()) {
            return;
        }
        let is_partial = values.contains(&Value::Unchanged);
        if !row.old_key.is_empty() && row.old_key != row.key {
            if is_partial {
                self.read_by_key(table, values);
            }
            self.complete(&row.old_key);
            self.complete(&row.key);
        } else if is_partial {
            self.partial(&row.key, values);
        } else {
            self.complete(&row.key);
        }
    }

    /// Called for a row that was deleted, or whose new state cannot be published.
    pub(super) fn gone(&mut self, table: &Table, key: &[u8]) {
        if self.follows(table.name.as_str()) {
            self.complete(key);
        }
    }

    /// Called when the table was truncated.
    pub(super) fn truncate(&mut self, table: &Table) {
        if self.follows(table.name.as_str()) {
            self.truncated = self.is_open;
            self.moved.clear();
            self.changed.clear();
        }
    }

    fn complete(&mut self, key: &[u8]) {
        if !self.is_open {
            return;
        }
        match self.changed.get_mut(key) {
            Some(changed) => *changed = Changed::Complete,
            None => {
                self.bytes += key.len() + ENTRY_BYTES;
                self.changed.insert(key.to_vec(), Changed::Complete);
            }
        }
    }

    fn partial(&mut self, key: &[u8], values: &[Value<'_>]) {
        if !self.is_open {
            return;
        }
        let cell = |value: &Value<'_>| match value {
            Value::Unchanged => None,
            Value::Null => Some(None),
            Value::Text(text) => Some(Some(Box::from(*text))),
        };
        let size = values.iter().map(|value| match value {
            Value::Text(text) => text.len() + ENTRY_BYTES,
            _ => ENTRY_BYTES,
        });
        self.bytes += key.len() + size.sum::<usize>();
        match self.changed.get_mut(key) {
            // Readers merge the values that were not sent with those of the preceding change.
            Some(Changed::Complete) => {}
            Some(Changed::Partial(cells)) => {
                for (cell_before, value) in cells.iter_mut().zip(values) {
                    if let Some(now) = cell(value) {
                        *cell_before = Some(now);
                    }
                }
            }
            None => {
                let cells = values.iter().map(cell).collect();
                self.changed.insert(key.to_vec(), Changed::Partial(cells));
            }
        }
    }

    fn read_by_key(&mut self, table: &Table, values: &[Value<'_>]) {
        let Some(key) = table.key_texts(values) else {
            return;
        };
        if self.moved.len() < MOVED_MAX {
            self.moved.push(key);
        } else {
            self.moved_overflow = true;
        }
    }

    /// Prepares a row of the chunk for publication: fills in what changed in the window. Returns `false` if the row must
    /// not be published, because the stream contains its whole newer state.
    pub(super) fn admits<'w>(&'w self, key: &[u8], values: &mut [Value<'w>]) -> bool {
        if self.truncated {
            return false;
        }
        match self.changed.get(key) {
            None => true,
            Some(Changed::Complete) => false,
            Some(Changed::Partial(cells)) => {
                for (value, cell) in values.iter_mut().zip(cells) {
                    match cell {
                        None => {}
                        Some(None) => *value = Value::Null,
                        Some(Some(text)) => *value = Value::Text(text),
                    }
                }
                true
            }
        }
    }

    /// Whether rows wait to be read by their keys.
    pub(super) fn has_moved(&self) -> bool {
        !self.moved.is_empty() || self.moved_overflow
    }

    /// Returns up to `max` keys of rows to read, or `None` if too many rows were moved to remember them.
    pub(super) fn moved(&self, max: usize) -> Option<&[KeyTexts]> {
        let moved = self.moved.get(..max).unwrap_or(&self.moved);
        (!self.moved_overflow).then_some(moved)
    }

    /// Removes the first `count` keys, whose rows were published.
    pub(super) fn remove_moved(&mut self, count: usize) {
        self.moved.drain(..count.min(self.moved.len()));
    }

    /// Forgets the rows to be read by key, because all rows are read again.
    pub(super) fn forget_moved(&mut self) {
        self.moved.clear();
        self.moved_overflow = false;
    }
}
