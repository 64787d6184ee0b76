//! Changed rows in memory: found by hash, and in the order of their keys where somebody asks for it.
//!
//! Most processors only look keys up, and a tree of keys costs a cache miss a level. So rows are hashed; the runtime's
//! own rows, which are scanned, and all rows of a layer that is scanned again and again, are in a tree.
//!
//! Guarantees: the same answers either way; the order in which rows are gone through follows from the calls alone.
//! Never: IO.

use indexmap::IndexMap;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::RESERVED;

/// A row's value; `None` where it was deleted.
pub(crate) type Value = Option<Vec<u8>>;

/// A row of a layer.
pub(crate) type Entry<'r> = (&'r Vec<u8>, &'r Value);

/// So many scans of hashed rows, and the next write puts them in order.
const SCANS_MAX: u32 = 4;

/// Rows that were changed since some moment.
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

    /// Puts a row and returns what stood there.
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

    /// All rows, in an order of their own.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        self.hashed.iter().chain(&self.ordered)
    }

    /// The rows from a key up to another, which is left out, in the order of their keys.
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

    /// Whether no hashed row can lie there, as all such keys are the runtime's own.
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

/// Two ordered rows of entries as one: where both have a key, the upper one's entry counts.
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
    fn a_range_is_in_order_whether_rows_are_hashed_or_not() {
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
    fn scans_of_the_runtimes_own_rows_leave_the_others_hashed() {
        let mut layer = layer(&[("[1]", None), ("[\"~t\",1]", Some(""))]);
        for _ in 0..10 {
            assert_eq!(shown(layer.range(b"[\"~t\",", Some(b"[\"~t\"-"))), "[\"~t\",1]=");
            layer.insert(b"[2]".to_vec(), None);
        }
        assert!(!layer.is_ordered);
    }

    #[test]
    fn of_two_layers_the_upper_one_counts() {
        let (upper, lower) = (
            layer(&[("d", None), ("b", Some("u"))]),
            layer(&[("e", Some("l")), ("a", None), ("b", None)]),
        );
        let merged = Merged::new(upper.range(b"", None), lower.range(b"", None));
        assert_eq!(shown(merged), "a=- b=u d=- e=l");
    }
}
