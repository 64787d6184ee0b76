//! The committed buffer: rows that are committed and not yet in the store, and the rows of the last flush.
//!
//! If each commit were written to the store, a frequently changed key would be written as often as it changes. With
//! this buffer, a key is written once per flush and read from memory until then. Nothing is lost in a crash, because
//! the changelog contains every row (C4). The owner bounds the memory by flushing when [`CommittedBuffer::is_due`]
//! returns true.

use super::layer::{Layer, Value};
use state_store::{Batch, Space};
use std::time::Duration;

/// Maximum age of a committed row that is not flushed.
const FLUSH_AGE: Duration = Duration::from_millis(500);
/// The rows of the last flush are dropped if there was no commit for this long. Otherwise each idle task would keep them.
const IDLE: Duration = Duration::from_secs(5);
/// Approximate overhead of a map entry in bytes.
pub(super) const ENTRY_BYTES: usize = 96;

#[derive(Default)]
pub(crate) struct CommittedBuffer {
    /// Rows that are not in the store yet.
    rows: Layer,
    bytes: usize,
    /// Time of the first commit that has not been flushed.
    since: Option<Duration>,
    /// Rows of the last flush, which are also in the store.
    flushed: Layer,
    /// Since when there has been no commit after the last flush.
    idle_since: Option<Duration>,
}

impl CommittedBuffer {
    /// Newest committed value of a key if it is in the buffer; `Some(None)` if the key was deleted.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.rows.get(key).or_else(|| self.flushed.get(key))
    }

    /// Committed rows that are not flushed to the store yet.
    pub(crate) fn rows(&self) -> &Layer {
        &self.rows
    }

    /// Adds the rows of a commit.
    pub(crate) fn add(&mut self, committed: Layer, now: Duration) {
        self.since.get_or_insert(now);
        if self.rows.is_empty() {
            self.bytes = committed.iter().map(|(key, value)| size(key, value)).sum();
            self.rows = committed;
            return;
        }
        committed.into_iter().for_each(|(key, value)| self.put(key, value));
    }

    /// Adds one committed row.
    pub(crate) fn add_row(&mut self, key: Vec<u8>, value: Value, now: Duration) {
        self.since.get_or_insert(now);
        self.put(key, value);
    }

    fn put(&mut self, key: Vec<u8>, value: Value) {
        let (key_bytes, value_bytes) = (key.len(), value.as_ref().map_or(0, Vec::len));
        match self.rows.insert(key, value) {
            Some(old) => self.bytes = self.bytes + value_bytes - old.map_or(0, |old| old.len()),
            None => self.bytes += key_bytes + value_bytes + ENTRY_BYTES,
        }
    }

    /// Approximate size of the rows that are not flushed, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes and returns the rows that are not flushed. Also clears the rows of the last flush, which may be older.
    pub(crate) fn take_rows(&mut self) -> Vec<(Vec<u8>, Value)> {
        self.flushed.clear();
        self.bytes = 0;
        self.since = None;
        std::mem::take(&mut self.rows).into_iter().collect()
    }

    /// Whether there was a commit since the last flush.
    pub(crate) fn is_dirty(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the rows are old or large enough to be flushed.
    pub(crate) fn is_due(&self, now: Duration, bytes_max: usize) -> bool {
        let is_old = |since: Duration| now.saturating_sub(since) >= FLUSH_AGE;
        self.bytes >= bytes_max || self.since.is_some_and(is_old)
    }

    /// Adds the rows that are not flushed to a batch of the store.
    pub(crate) fn write_into(&self, batch: &mut Batch, space: Space) {
        for (key, value) in self.rows.iter() {
            match value {
                Some(value) => batch.put(space, key.as_slice(), value.as_slice()),
                None => batch.delete(space, key.as_slice()),
            }
        }
    }

    /// Records that the rows are in the store now. They stay readable here until the next flush.
    pub(crate) fn mark_flushed(&mut self) {
        self.flushed = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.since = None;
    }

    /// Drops the rows of the last flush if there was no commit for a while. Called regularly.
    pub(crate) fn release_idle(&mut self, now: Duration) {
        if self.is_dirty() || self.flushed.is_empty() {
            self.idle_since = None;
            return;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.saturating_sub(since) >= IDLE {
            self.flushed = Layer::default();
        }
    }

    /// Removes the rows of the last flush, because the store is about to be written directly.
    pub(crate) fn forget_flushed(&mut self) {
        self.flushed.clear();
    }
}

fn size(key: &[u8], value: &Value) -> usize {
    key.len() + value.as_ref().map_or(0, Vec::len) + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_buffer_drops_the_rows_of_the_last_flush() {
        let at = Duration::from_secs;
        let mut buffer = CommittedBuffer::default();
        buffer.add(rows(&[("a", Some("1"))]), at(0));
        buffer.release_idle(at(60));
        assert!(buffer.get(b"a").is_some(), "the rows are not in the store yet");
        buffer.mark_flushed();
        buffer.release_idle(at(61));
        assert!(buffer.get(b"a").is_some());
        buffer.add(rows(&[("b", Some("1"))]), at(62));
        buffer.release_idle(at(70));
        buffer.mark_flushed();
        buffer.release_idle(at(71));
        buffer.release_idle(at(75));
        assert!(buffer.get(b"b").is_some());
        buffer.release_idle(at(76));
        assert!(buffer.get(b"b").is_none());
    }

    fn rows(of: &[(&str, Option<&str>)]) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in of {
            layer.insert(key.as_bytes().to_vec(), value.map(|v| v.as_bytes().to_vec()));
        }
        layer
    }

    fn value<'s>(buffer: &'s CommittedBuffer, key: &str) -> Option<Option<&'s [u8]>> {
        buffer.get(key.as_bytes()).map(Option::as_deref)
    }

    #[test]
    fn newest_value_is_read_before_and_after_a_flush() {
        let mut buffer = CommittedBuffer::default();
        buffer.add(rows(&[("a", Some("1")), ("b", Some("1"))]), Duration::ZERO);
        buffer.add(rows(&[("a", Some("22")), ("b", None)]), Duration::from_millis(1));
        assert_eq!(value(&buffer, "a"), Some(Some(b"22".as_slice())));
        assert_eq!(value(&buffer, "b"), Some(None));
        assert_eq!(value(&buffer, "c"), None);
        buffer.mark_flushed();
        assert!(!buffer.is_dirty());
        assert_eq!(value(&buffer, "a"), Some(Some(b"22".as_slice())));
        buffer.add(rows(&[("a", Some("3"))]), Duration::from_millis(2));
        assert_eq!(value(&buffer, "a"), Some(Some(b"3".as_slice())));
        buffer.mark_flushed();
        assert_eq!(value(&buffer, "b"), None, "only the last flush is kept");
    }

    #[test]
    fn taken_rows_leave_no_older_value() {
        let mut buffer = CommittedBuffer::default();
        buffer.add(rows(&[("a", Some("1"))]), Duration::ZERO);
        buffer.mark_flushed();
        buffer.add_row(b"a".to_vec(), Some(b"2".to_vec()), Duration::ZERO);
        assert_eq!(buffer.take_rows(), [(b"a".to_vec(), Some(b"2".to_vec()))]);
        assert_eq!(value(&buffer, "a"), None, "the store has the newest");
        assert!(!buffer.is_dirty());
    }

    #[test]
    fn flush_is_due_by_age_and_by_size() {
        let mut buffer = CommittedBuffer::default();
        assert!(!buffer.is_due(Duration::from_secs(9), 1));
        buffer.add(rows(&[("a", Some("1"))]), Duration::from_secs(1));
        buffer.add(rows(&[("a", Some("123"))]), Duration::from_secs(1));
        assert_eq!(buffer.bytes, 1 + 3 + ENTRY_BYTES);
        assert!(!buffer.is_due(Duration::from_millis(1499), 1000));
        assert!(buffer.is_due(Duration::from_millis(1500), 1000));
        assert!(buffer.is_due(Duration::from_secs(1), 4 + ENTRY_BYTES));
    }
}
