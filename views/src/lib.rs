//! Sync views: compiled rules, records of `view.log`, replica, cursor and delta.
//!
//! This is the code that the writer (the sync-views processor) and the reader (an edge) share. It does no IO except to the
//! replica's store. The protocol and its invariants I1 to I13 are specified in docs/protocol/view-sync.md; the simulation
//! in `processors/src/sync_views` runs this code against them.

mod bucket;
mod change;
pub mod cursor;
mod delta;
pub mod record;
pub mod replica;
pub mod rules;

pub use bucket::{Bucket, BucketId, partition_of, row_hash};
pub use change::{Change, ChangeParts};
pub use delta::{DeltaRequest, DeltaResult, Page, SnapshotView, delta};
pub use replica::Replica;
