//! Sync views: what a view is, from the writer's records to the page that a device gets.
//!
//! The writer (a processor) and the reader (an edge) share only what is here: the records of `view.log`, the buckets
//! and their partitions, the cursor and the delta.
//! Guarantees: those of design invariants I1–I4, I6, I8–I11, held by a random run of this very code (tests/it).
//! Never: reading or writing the log, HTTP.

mod bucket;
pub mod cursor;
mod delta;
pub mod record;
pub mod replica;
pub mod rules;

pub use bucket::{Bucket, BucketId, partition_of, row_hash};
pub use delta::{Answer, Change, ChangeParts, Page, Request, delta};
pub use replica::Replica;
