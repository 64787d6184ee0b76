//! A task's state: what the last commit left, and over it what the steps since then have written.
//!
//! Guarantees: reads see the steps' own writes; a rolled-back overlay leaves no trace; each changed key goes once to
//! the changelog at the next commit. Keys are canonical JSON arrays, such as `["row","orders",17]`, and never begin
//! with `["~`, which is the runtime's own.

use crate::Result;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// State of one task: an overlay over its store.
pub struct State {
    pub(crate) overlay: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(crate) overlay_bytes: usize,
    pub(crate) store: store::SharedStore,
    pub(crate) space: store::Space,
}

impl State {
    /// State over a store's space; for tests and for the runtime.
    pub fn new(store: store::SharedStore, space: store::Space) -> Self {
        State { overlay: BTreeMap::new(), overlay_bytes: 0, store, space }
    }

    /// Reads a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>> {
        if let Some(written) = self.overlay.get(key) {
            return Ok(written.as_deref().map(Cow::Borrowed));
        }
        Ok(self.store.get(self.space, key)?.map(Cow::Owned))
    }

    /// Writes a key.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.overlay_bytes += key.len() + value.len();
        self.overlay.insert(key.to_vec(), Some(value));
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) {
        self.overlay_bytes += key.len();
        self.overlay.insert(key.to_vec(), None);
    }

    /// Calls `visit` for each key that begins with `prefix`, in byte order, until it breaks.
    pub fn scan(&self, prefix: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<()> {
        let _ = (prefix, visit);
        unimplemented!()
    }
}
