//! The last acknowledged write, which shows whether a database that was opened again contains everything that was
//! acknowledged.
//!
//! After a failed sync, the system may drop what it could not write, and a later read of the journal returns other bytes.
//! Journals are cut only at their end, so if the last acknowledged batch is there, all earlier ones are there too.

use super::engine::Engine;
use crate::embedded::backing::{Space, Writes};
use bytes::Bytes;

/// The last write of the last acknowledged batch.
pub(super) struct LastWrite {
    space: Space,
    key: Vec<u8>,
    value: Option<Bytes>,
}

impl LastWrite {
    /// `None` if the batch is empty.
    pub fn of(writes: &Writes) -> Option<LastWrite> {
        writes.all().last().map(|write| LastWrite {
            space: write.space,
            key: write.key.clone(),
            value: write.value.clone(),
        })
    }

    /// Whether the database contains the write.
    pub fn is_in(&self, engine: &Engine) -> fjall::Result<bool> {
        Ok(engine.get(self.space, &self.key)? == self.value)
    }
}
