//! Removal of tombstones that are older than the horizon.

use super::apply::{ApplyState, Target};
use super::bytes::{self, space};
use super::error::Result;
use super::locks::write;
use super::meta::Meta;
use event_log::Millis;
use state_store::{Batch, Direction};
use std::ops::ControlFlow;

/// Removes at most `max` old tombstones; see [`super::Replica::prune`].
pub fn prune(apply: &mut ApplyState, target: &Target<'_>, now: Millis, max: usize) -> Result<usize> {
    let (store, partition) = (target.store, apply.partition);
    let (from, to) = bytes::tombstone_range(partition, now - target.options.times.horizon_ms());
    let mut old = Vec::new();
    store.scan(
        space::TOMBSTONES,
        state_store::KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut |key, _| {
            old.push(key.to_vec());
            if old.len() < max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        },
    )?;
    let mut batch = Batch::default();
    for key in &old {
        batch.delete(space::TOMBSTONES, key.clone());
        let Some((bucket, offset)) = bytes::decode_tombstone_key(key) else {
            continue;
        };
        let row_key = bytes::row_key(partition, bucket, offset);
        // If the row was written again, the visible row has another offset, and only the tombstone entry is removed.
        // The index entry then belongs to the newer row and must stay.
        let Some(value) = store.get(space::ROWS, &row_key)? else {
            continue;
        };
        if let Some(row) = bytes::decode_row(&value) {
            batch.delete(space::INDEX, bytes::index_key(partition, bucket, row.view, row.key));
        }
        batch.delete(space::ROWS, row_key);
    }
    let state = write(target.state);
    if old.is_empty() && !apply.meta_dirty {
        return Ok(0);
    }
    Meta::of(&state).put(partition, &mut batch);
    store.commit(batch)?;
    apply.meta_dirty = false;
    Ok(old.len())
}
