//! Stored form of a partition's state: the meta record and the bucket summaries.

use super::bytes::{self, space};
use super::error::{Error, Result};
use super::partition::{BucketState, PartitionState};
use event_log::{Millis, Offset};
use state_store::{Batch, Direction, Store};
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The part of a [`PartitionState`] that is committed with each batch. The field names are those of the stored JSON.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Meta {
    pub position: Offset,
    pub end_marker: Offset,
    pub as_of: Millis,
    pub mid_apply: bool,
    pub stale: BTreeSet<(String, u64)>,
    pub stale_changed: Offset,
    #[serde(default)]
    pub loaded: BTreeSet<(String, u64)>,
}

impl Meta {
    pub fn of(state: &PartitionState) -> Self {
        Meta {
            position: state.position,
            end_marker: state.end_marker,
            as_of: state.as_of,
            mid_apply: state.mid_apply,
            stale: state.stale.clone(),
            stale_changed: state.stale_changed,
            loaded: state.loaded.clone(),
        }
    }

    pub fn publish(self, state: &mut PartitionState) {
        state.position = self.position;
        state.end_marker = self.end_marker;
        state.as_of = self.as_of;
        state.mid_apply = self.mid_apply;
        state.stale = self.stale;
        state.stale_changed = self.stale_changed;
        state.loaded = self.loaded;
    }

    pub fn put(&self, partition: i32, batch: &mut Batch) {
        let json = serde_json::to_vec(self).expect("numbers and strings have a JSON form");
        batch.put(space::META, bytes::meta_key(partition), json);
    }
}

/// Loads the state of a partition, except for its pending rows.
pub fn load(store: &dyn Store, partition: i32, now: Millis) -> Result<PartitionState> {
    let mut state = PartitionState::empty(now);
    if let Some(meta) = store.get(space::META, &bytes::meta_key(partition))? {
        let meta: Meta =
            serde_json::from_slice(&meta).map_err(|e| Error::Unusable(format!("its meta record is corrupt: {e}")))?;
        meta.publish(&mut state);
    }
    let (from, to) = bytes::partition_range(partition);
    let mut damaged = false;
    store.scan(
        space::BUCKETS,
        state_store::KeyRange::new(&from, Some(&to)),
        Direction::Forward,
        &mut |key, value| {
            match (bytes::bucket_of(key), decode_bucket(value)) {
                (Some(id), Some(bucket)) => drop(state.buckets.insert(id, bucket)),
                _ => damaged = true,
            }
            ControlFlow::Continue(())
        },
    )?;
    if damaged {
        return Err(Error::Unusable("a bucket entry is corrupt".into()));
    }
    Ok(state)
}

pub fn encode_bucket(bucket: &BucketState) -> Vec<u8> {
    let mut out = bucket.changed.to_be_bytes().to_vec();
    out.extend_from_slice(&bucket.rows.to_be_bytes());
    out.extend_from_slice(&bucket.hash.to_be_bytes());
    out.extend_from_slice(bucket.name.as_bytes());
    out
}

fn decode_bucket(value: &[u8]) -> Option<BucketState> {
    let (changed, rest) = value.split_first_chunk::<8>()?;
    let (rows, rest) = rest.split_first_chunk::<8>()?;
    let (hash, name) = rest.split_first_chunk::<16>()?;
    Some(BucketState {
        name: std::str::from_utf8(name).ok()?.into(),
        changed: i64::from_be_bytes(*changed),
        rows: u64::from_be_bytes(*rows),
        hash: u128::from_be_bytes(*hash),
    })
}
