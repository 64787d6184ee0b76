//! Committed rows that the store has not been given yet, and those that it was given last.
//!
//! A store that takes every commit writes a hot key as often as it changes, and is asked for it as often. Here a key is
//! written once a flush, and read from memory meanwhile. The log has all of it: what a crash takes from here is read
//! again from the changelog.
//!
//! Guarantees: reads see the newest committed value; memory is bounded by the flushes that the owner makes when they
//! are due. Never: an uncommitted row; IO.

use super::layer::{Entry, Layer, Value};
use state_store::{Batch, Space};
use std::time::Duration;

/// The longest that a committed row waits for its flush.
const FLUSH_AGE: Duration = Duration::from_millis(500);
/// What an entry of a map occupies beside its bytes, about.
pub(super) const ENTRY_BYTES: usize = 96;

#[derive(Default)]
pub(crate) struct Settled {
    rows: Layer,
    bytes: usize,
    /// When the first commit was settled that has not been flushed.
    since: Option<Duration>,
    /// What was flushed last: the store has the same.
    last: Layer,
}

impl Settled {
    /// The newest committed value of a key, if it is here; `Some(None)` when it was deleted.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        self.rows.get(key).or_else(|| self.last.get(key))
    }

    /// The rows that the store does not have.
    pub(crate) fn rows(&self) -> &Layer {
        &self.rows
    }

    /// Takes what was committed.
    pub(crate) fn settle(&mut self, committed: Layer, now: Duration) {
        self.since.get_or_insert(now);
        if self.rows.is_empty() {
            self.bytes = committed.iter().map(size).sum();
            self.rows = committed;
            return;
        }
        committed.into_iter().for_each(|(key, value)| self.put(key, value));
    }

    /// Takes one row that was committed.
    pub(crate) fn settle_one(&mut self, key: Vec<u8>, value: Value, now: Duration) {
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

    /// What the rows occupy that wait for their flush, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the rows out for the store, and keeps none of them; nor what they may have replaced.
    pub(crate) fn take_rows(&mut self) -> Vec<(Vec<u8>, Value)> {
        self.last.clear();
        self.bytes = 0;
        self.since = None;
        std::mem::take(&mut self.rows).into_iter().collect()
    }

    /// Whether something was committed that the store has not been told.
    pub(crate) fn is_dirty(&self) -> bool {
        self.since.is_some()
    }

    /// Whether it is time to flush: for age, or for size.
    pub(crate) fn is_due(&self, now: Duration, bytes_max: usize) -> bool {
        let is_old = |since: Duration| now.saturating_sub(since) >= FLUSH_AGE;
        self.bytes >= bytes_max || self.since.is_some_and(is_old)
    }

    /// Adds the rows to a batch of the store.
    pub(crate) fn write_into(&self, batch: &mut Batch, space: Space) {
        for (key, value) in self.rows.iter() {
            match value {
                Some(value) => batch.put(space, key.as_slice(), value.as_slice()),
                None => batch.delete(space, key.as_slice()),
            }
        }
    }

    /// The store has them now; they stay readable from here until the next flush.
    pub(crate) fn flushed(&mut self) {
        self.last = std::mem::take(&mut self.rows);
        self.bytes = 0;
        self.since = None;
    }

    /// Forgets what the store has too, as it is about to be written by another way.
    pub(crate) fn forget_flushed(&mut self) {
        self.last.clear();
    }
}

fn size((key, value): Entry<'_>) -> usize {
    key.len() + value.as_ref().map_or(0, Vec::len) + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(of: &[(&str, Option<&str>)]) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in of {
            layer.insert(key.as_bytes().to_vec(), value.map(|v| v.as_bytes().to_vec()));
        }
        layer
    }

    fn value<'s>(settled: &'s Settled, key: &str) -> Option<Option<&'s [u8]>> {
        settled.get(key.as_bytes()).map(Option::as_deref)
    }

    #[test]
    fn the_newest_value_is_read_before_and_after_a_flush() {
        let mut settled = Settled::default();
        settled.settle(rows(&[("a", Some("1")), ("b", Some("1"))]), Duration::ZERO);
        settled.settle(rows(&[("a", Some("22")), ("b", None)]), Duration::from_millis(1));
        assert_eq!(value(&settled, "a"), Some(Some(b"22".as_slice())));
        assert_eq!(value(&settled, "b"), Some(None));
        assert_eq!(value(&settled, "c"), None);
        settled.flushed();
        assert!(!settled.is_dirty());
        assert_eq!(value(&settled, "a"), Some(Some(b"22".as_slice())));
        settled.settle(rows(&[("a", Some("3"))]), Duration::from_millis(2));
        assert_eq!(value(&settled, "a"), Some(Some(b"3".as_slice())));
        settled.flushed();
        assert_eq!(value(&settled, "b"), None, "only the last flush is kept");
    }

    #[test]
    fn what_is_taken_out_leaves_nothing_older_behind() {
        let mut settled = Settled::default();
        settled.settle(rows(&[("a", Some("1"))]), Duration::ZERO);
        settled.flushed();
        settled.settle_one(b"a".to_vec(), Some(b"2".to_vec()), Duration::ZERO);
        assert_eq!(settled.take_rows(), [(b"a".to_vec(), Some(b"2".to_vec()))]);
        assert_eq!(value(&settled, "a"), None, "the store has the newest");
        assert!(!settled.is_dirty());
    }

    #[test]
    fn it_is_due_by_age_and_by_size() {
        let mut settled = Settled::default();
        assert!(!settled.is_due(Duration::from_secs(9), 1));
        settled.settle(rows(&[("a", Some("1"))]), Duration::from_secs(1));
        settled.settle(rows(&[("a", Some("123"))]), Duration::from_secs(1));
        assert_eq!(settled.bytes, 1 + 3 + ENTRY_BYTES);
        assert!(!settled.is_due(Duration::from_millis(1499), 1000));
        assert!(settled.is_due(Duration::from_millis(1500), 1000));
        assert!(settled.is_due(Duration::from_secs(1), 4 + ENTRY_BYTES));
    }
}
