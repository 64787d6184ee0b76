//! A device of the random run: it stores pages and the cursor's text, nothing else.

use log::Offset;
use std::collections::{BTreeMap, BTreeSet};
use views::{BucketId, Page, row_hash};

/// A bucket's rows by (view, key): version and JSON.
pub type Rows = BTreeMap<(String, String), ([u8; 17], Vec<u8>)>;

pub struct Device {
    pub id: usize,
    pub who: char,
    pub claims: &'static str,
    pub cursor: Option<String>,
    pub rows: BTreeMap<BucketId, Rows>,
    pub committed: Option<BTreeMap<i32, Offset>>,
    pub asleep_until: i64,
    pub rows_max: usize,
}

impl Device {
    pub fn new(id: usize) -> Self {
        let who = if id.is_multiple_of(2) { 'P' } else { 'Q' };
        let (claims, rows) = ("a", BTreeMap::new());
        Device {
            id,
            who,
            claims,
            cursor: None,
            rows,
            committed: None,
            asleep_until: 0,
            rows_max: id + 1,
        }
    }

    /// Applies a page in the order that the protocol gives, and stores the cursor with it.
    pub fn apply(&mut self, page: &Page, cursor: &str) {
        if page.reset_all {
            self.rows.clear();
        }
        for bucket in &page.drops {
            self.rows.remove(bucket);
        }
        for (bucket, _) in &page.resets {
            self.rows.insert(*bucket, Rows::new());
        }
        for change in &page.changes {
            let parts = change.parts();
            let rows = self.rows.entry(change.bucket).or_default();
            let key = (parts.view.to_owned(), parts.key.to_owned());
            match parts.json {
                Some(json) => drop(rows.insert(key, (parts.version, json.to_vec()))),
                None => drop(rows.remove(&key)),
            }
        }
        self.cursor = Some(cursor.to_owned());
    }

    pub fn buckets(&self) -> BTreeSet<BucketId> {
        self.rows.keys().copied().collect()
    }

    /// The bucket's hash as the device computes it.
    pub fn hash(&self, bucket: BucketId) -> u128 {
        let rows = self.rows.get(&bucket).into_iter().flatten();
        rows.fold(0, |sum, ((view, key), (version, _))| {
            sum.wrapping_add(row_hash(view, key.as_bytes(), version))
        })
    }
}
