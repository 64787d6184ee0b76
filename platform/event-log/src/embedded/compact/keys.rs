//! The newest offset of each key of a range, in a bounded number of bytes whatever the keys' length.
//!
//! A key stands here as 128 bits: two SipHashes whose secrets are drawn anew for each map. Kafka keeps MD5 sums and
//! has the same property: that two keys of one pass meet is possible, and for a million keys has a chance below 1 in
//! 10^26. An entry costs 24 bytes, the table for 400,000 keys 13 MB.
//! Guarantees: what was put last of a key is what is found. Never: a key's bytes.

use crate::Offset;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

#[derive(Default)]
pub(super) struct Keys {
    secrets: (RandomState, RandomState),
    newest: HashMap<(u64, u64), Offset>,
}

impl Keys {
    /// Notes a record; they come in offset order.
    pub fn put(&mut self, key: &[u8], offset: Offset) {
        self.newest.insert(self.hash(key), offset);
    }

    /// The newest offset of a key, if it is in the range.
    pub fn newest(&self, key: &[u8]) -> Option<Offset> {
        self.newest.get(&self.hash(key)).copied()
    }

    pub fn len(&self) -> usize {
        self.newest.len()
    }

    fn hash(&self, key: &[u8]) -> (u64, u64) {
        (self.secrets.0.hash_one(key), self.secrets.1.hash_one(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_offset_of_a_key_is_found() {
        let mut keys = Keys::default();
        keys.put(b"a", 1);
        keys.put(b"", 2);
        keys.put(b"a", 3);
        assert_eq!(
            ([&b"a"[..], b"", b"b"]).map(|key| keys.newest(key)),
            [Some(3), Some(2), None]
        );
        assert_eq!(keys.len(), 2);
    }
}
