//! Changed rows in memory, found by hash or in key order.
//!
//! Most processors only look up keys, and a lookup in a tree costs a cache miss per level, so rows are hashed. Rows
//! with reserved keys, which are scanned, and all rows of a layer that is scanned repeatedly are kept in a tree. The
//! iteration order depends on the sequence of calls only, so that simulations are deterministic.

use indexmap::IndexMap;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::keys::RESERVED;

/// Value of a row; `None` if it was deleted.
pub(crate) type Value = Option<Vec<u8>>;

/// A row of a layer.
pub(crate) type Entry<'r> = (&'r Vec<u8>, &'r Value);

/// After this number of scans of hashed rows, the next write moves all rows to the tree.
const SCANS_MAX: u32 = 4;

/// A set of changed rows.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    hashed: IndexMap<Vec<u8>, Value>,
    ordered: BTreeMap<Vec<u8>, Value>,
    /// Whether all rows are ordered.
    is_ordered: bool,
    scans: Cell<u32>,
}

impl Layer {
    fn hashes(&self, key: &[u8]) -> bool {
        !self.is_ordered && !key.starts_with(RESERVED)
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Value> {
        if self.hashes(key) {
            self.hashed.get(key)
        } else {
            self.ordered.get(key)
        }
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Value> {
        if self.hashes(key) {
            self.hashed.get_mut(key)
        } else {
            self.ordered.get_mut(key)
        }
    }

    /// Inserts a row and returns the value that it replaces.
    pub(crate) fn insert(&mut self, key: Vec<u8>, value: Value) -> Option<Value> {
        if self.scans.get() > SCANS_MAX && !self.is_ordered {
            self.is_ordered = true;
            self.ordered.extend(std::mem::take(&mut self.hashed));
        }
        if self.hashes(&key) {
            self.hashed.insert(key, value)
        } else {
            self.ordered.insert(key, value)
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hashed.is_empty() && self.ordered.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        *self = Layer::default();
    }

    /// All rows: first the hashed rows in insertion order, then the other rows in key order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.hashed.iter().chain(&self.ordered)
    }

    /// Rows from `from` up to but excluding `to`, in key order.
    pub(crate) fn range<'r>(&'r self, from: &[u8], to: Option<&[u8]>) -> Box<dyn Iterator<Item = Entry<'r>> + 'r> {
        if to.is_some_and(|to| to <= from) {
            return Box::new(std::iter::empty());
        }
        let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
        let ordered = self.ordered.range::<[u8], _>((Bound::Included(from), upper));
        if self.hashed.is_empty() || self.holds_none(from, to) {
            return Box::new(ordered);
        }
        self.scans.set(self.scans.get() + 1);
        let inside = |(key, _): &Entry<'_>| key.as_slice() >= from && to.is_none_or(|to| key.as_slice() < to);
        let mut hashed: Vec<Entry<'r>> = self.hashed.iter().filter(inside).collect();
        hashed.sort_unstable_by_key(|(key, _)| *key);
        Box::new(Merged::new(hashed.into_iter(), ordered))
    }

    /// Whether the range contains only reserved keys, which are never hashed.
    fn holds_none(&self, from: &[u8], to: Option<&[u8]>) -> bool {
        from.starts_with(RESERVED) && to.is_some_and(|to| to.starts_with(RESERVED))
    }
}

impl IntoIterator for Layer {
    type Item = (Vec<u8>, Value);
    type IntoIter = std::iter::Chain<
        indexmap::map::IntoIter<Vec<u8>, Value>,
        std::collections::btree_map::IntoIter<Vec<u8>, Value>,
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.hashed.into_iter().chain(self.ordered)
    }
}

/// Merges two sequences of entries in key order. If a key is in both, the entry of `upper` is used.
pub(crate) struct Merged<U: Iterator, L: Iterator> {
    upper: std::iter::Peekable<U>,
    lower: std::iter::Peekable<L>,
}

impl<'r, U: Iterator<Item = Entry<'r>>, L: Iterator<Item = Entry<'r>>> Merged<U, L> {
    pub(crate) fn new(upper: U, lower: L) -> Self {
        Merged {
            upper: upper.peekable(),
            lower: lower.peekable(),
        }
    }
}

impl<'r, U: Iterator<Item = Entry<'r>>, L: Iterator<Item = Entry<'r>>> Iterator for Merged<U, L> {
    type Item = Entry<'r>;

    fn next(&mut self) -> Option<Entry<'r>> {
        let Some((upper, _)) = self.upper.peek() else {
            return self.lower.next();
        };
        match self.lower.peek() {
            Some((lower, _)) if lower < upper => self.lower.next(),
            Some((lower, _)) if lower == upper => {
                self.lower.next();
                self.upper.next()
            }
            _ => self.upper.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(of: &[(&str, Option<&str>)]) -> Layer {
        let mut layer = Layer::default();
        for (key, value) in of {
            layer.insert(key.as_bytes().to_vec(), value.map(|v| v.as_bytes().to_vec()));
        }
        layer
    }

    fn shown<'r>(rows: impl Iterator<Item = Entry<'r>>) -> String {
        let row = |(key, value): Entry<'r>| {
            let value = value
                .as_ref()
                .map_or("-".into(), |value| String::from_utf8_lossy(value).into_owned());
            format!("{}={value}", String::from_utf8_lossy(key))
        };
        rows.map(row).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn range_is_in_key_order_hashed_or_not() {
        let mut layer = layer(&[
            ("[3]", Some("c")),
            ("[\"~t\",1]", Some("")),
            ("[1]", None),
            ("[2]", Some("b")),
        ]);
        let all = "[\"~t\",1]= [1]=- [2]=b [3]=c";
        for _ in 0..10 {
            assert_eq!(shown(layer.range(b"[", None)), all);
            assert_eq!(shown(layer.range(b"[2]", Some(b"[3]"))), "[2]=b");
            assert_eq!(shown(layer.range(b"[3]", Some(b"[2]"))), "");
            layer.insert(b"[3]".to_vec(), Some(b"c".to_vec()));
        }
        assert!(
            layer.is_ordered && layer.hashed.is_empty(),
            "scanned often, it is kept in order"
        );
        assert_eq!(layer.get(b"[2]"), Some(&Some(b"b".to_vec())));
        assert_eq!(layer.get(b"[4]"), None);
    }

    #[test]
    fn scans_of_reserved_keys_keep_other_rows_hashed() {
        let mut layer = layer(&[("[1]", None), ("[\"~t\",1]", Some(""))]);
        for _ in 0..10 {
            assert_eq!(shown(layer.range(b"[\"~t\",", Some(b"[\"~t\"-"))), "[\"~t\",1]=");
            layer.insert(b"[2]".to_vec(), None);
        }
        assert!(!layer.is_ordered);
    }

    #[test]
    fn upper_layer_wins_in_a_merge() {
        let (upper, lower) = (
            layer(&[("d", None), ("b", Some("u"))]),
            layer(&[("e", Some("l")), ("a", None), ("b", None)]),
        );
        let merged = Merged::new(upper.range(b"", None), lower.range(b"", None));
        assert_eq!(shown(merged), "a=- b=u d=- e=l");
    }
}
