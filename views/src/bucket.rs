//! Buckets: where a view row lives, and which partition of `view.log` that is.
//!
//! Guarantees: the same name gives the same id and partition on every machine and in every release.
//! Never: a look at rows.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::fmt;

/// A bucket's 64-bit id: the first 8 bytes of the SHA-256 of its name, big endian. A device and a cursor know a
/// bucket by it. Two names of one id are refused by the replica, never mixed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketId(pub u64);

impl BucketId {
    /// The id of a bucket's name.
    pub fn of(name: &str) -> Self {
        let hash = digest::digest(&digest::SHA256, name.as_bytes());
        let first: [u8; 8] = hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes");
        BucketId(u64::from_be_bytes(first))
    }
}

impl fmt::Display for BucketId {
    /// URL-safe base64 without padding: 11 characters, as devices see it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

impl fmt::Debug for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A bucket that somebody may read: its name, id and partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Name, such as `user:42`.
    pub name: String,
    /// Id.
    pub id: BucketId,
    /// Partition of `view.log`, from its scope.
    pub partition: i32,
}

impl Bucket {
    /// A bucket of a scope, in a `view.log` of so many partitions.
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

/// The partition of a scope: Kafka's default partitioner over the scope's text.
pub fn partition_of(scope: &str, partitions: i32) -> i32 {
    event_log::partitioner::partition(scope.as_bytes(), partitions)
}

/// A row's share of its bucket's hash: the first 16 bytes, little endian, of the SHA-256 over view, key and version,
/// each view and key ended by a zero byte. A bucket's hash is the sum of its visible rows' shares modulo 2^128, so it
/// does not depend on their order or history.
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
