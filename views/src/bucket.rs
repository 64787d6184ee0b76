//! Buckets: ids, partitions and row hashes.
//!
//! Ids, partitions and hashes are part of the protocol: they must be the same on every machine and in every release,
//! because they are stored in `view.log`, in cursors and on devices.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;

/// 64-bit id of a bucket: the first 8 bytes of the SHA-256 of its name, big endian. Cursors and devices identify buckets by
/// it. If two names have the same id, the replica shows only the first one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketId(pub u64);

impl BucketId {
    /// Id of the bucket with this name.
    pub fn of(name: &str) -> Self {
        let hash = digest::digest(&digest::SHA256, name.as_bytes());
        let first: [u8; 8] = hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes");
        BucketId(u64::from_be_bytes(first))
    }
}

impl fmt::Display for BucketId {
    /// URL-safe base64 without padding: 11 characters, the form in pages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

impl fmt::Debug for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Name, such as `user:42`.
    pub name: String,
    /// Id.
    pub id: BucketId,
    /// Partition of `view.log`, determined by the scope.
    pub partition: i32,
}

impl Bucket {
    /// Creates a bucket of a scope; `partitions` is the partition count of `view.log`.
    pub fn new(name: impl Into<String>, scope: &str, partitions: i32) -> Self {
        let name = name.into();
        let id = BucketId::of(&name);
        Bucket {
            name,
            id,
            partition: partition_of(scope, partitions),
        }
    }
}

/// Partition of a scope, by Kafka's default partitioner.
pub fn partition_of(scope: &str, partitions: i32) -> i32 {
    event_log::partitioner::partition(scope.as_bytes(), partitions)
}

/// Hash of a row: the first 16 bytes, little endian, of `SHA-256(view ‖ 0x00 ‖ key ‖ 0x00 ‖ version)`. The hash of a bucket is
/// the sum of the hashes of its visible rows modulo 2^128, so it does not depend on order or history (I10).
pub fn row_hash(view: &str, key: &[u8], version: &[u8; 17]) -> u128 {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(view.as_bytes());
    context.update(&[0]);
    context.update(key);
    context.update(&[0]);
    context.update(version);
    let hash = context.finish();
    u128::from_le_bytes(hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes"))
}
