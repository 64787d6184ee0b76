//! Keys and values of a replica's store.
//!
//! Numbers in keys are big endian, so that keys sort by number. The record `format` in the keyspace `META` contains the
//! version of the whole layout. Bytes of another layout are an error, not a panic. The layout is private to the edge:
//! after a change, [`FORMAT`] increases and edges read `view.log` from its start.

use super::error::{Error, Result};
use crate::BucketId;
use event_log::{Millis, Offset};
use state_store::{Batch, Store};

/// Version of the layout.
const FORMAT: u8 = 3;

/// Names of the keyspaces, in the order of `space`.
pub const SPACES: [&str; 6] = ["meta", "rows", "index", "buckets", "pending", "tombstones"];

/// Ids of the keyspaces, in the order of [`SPACES`].
pub mod space {
    use state_store::Space;

    /// Meta record of each partition, and the version of the layout.
    pub const META: Space = Space(0);
    /// Visible rows and tombstones: partition, bucket, offset.
    pub const ROWS: Space = Space(1);
    /// The newest visible offset of a row: partition, bucket, view, key.
    pub const INDEX: Space = Space(2);
    /// Buckets: partition, bucket.
    pub const BUCKETS: Space = Space(3);
    /// Pending rows: partition, writer, offset.
    pub const PENDING: Space = Space(4);
    /// Tombstones by time: partition, time, bucket, offset.
    pub const TOMBSTONES: Space = Space(5);
}

/// Rejects a store of another layout or another log; initializes an empty one.
pub fn check_format(store: &dyn Store, log: u64) -> Result<()> {
    let mut expected = vec![FORMAT];
    expected.extend_from_slice(&log.to_be_bytes());
    match store.get(space::META, b"format")? {
        None => {
            let mut batch = Batch::default();
            batch.put(space::META, *b"format", expected);
            Ok(store.commit(batch)?)
        }
        Some(found) if found == expected => Ok(()),
        Some(found) if found.first() != Some(&FORMAT) => {
            let found = found.first().copied().unwrap_or_default();
            Err(Error::Unusable(format!(
                "it has layout {found} but this release requires {FORMAT}"
            )))
        }
        Some(_) => Err(Error::Unusable("it belongs to another log or topic id".into())),
    }
}

fn partition_bytes(partition: i32) -> [u8; 2] {
    u16::try_from(partition).unwrap_or_default().to_be_bytes()
}

/// Encodes an offset or a time so that bytes sort by number. Neither is negative in a store.
fn sortable(number: i64) -> [u8; 8] {
    u64::try_from(number).unwrap_or_default().to_be_bytes()
}

/// Key range of a partition in any keyspace: start, end (exclusive).
pub fn partition_range(partition: i32) -> (Vec<u8>, Vec<u8>) {
    (
        partition_bytes(partition).to_vec(),
        partition_bytes(partition + 1).to_vec(),
    )
}

/// Key of the meta record of a partition.
pub fn meta_key(partition: i32) -> Vec<u8> {
    [b"p".as_slice(), &partition_bytes(partition)].concat()
}

/// Key of a row.
pub fn row_key(partition: i32, bucket: BucketId, offset: Offset) -> Vec<u8> {
    [
        partition_bytes(partition).as_slice(),
        &bucket.0.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Key range of the rows of a bucket with `from ≤ offset ≤ through`: start, end (exclusive).
pub fn row_range(partition: i32, bucket: BucketId, from: Offset, through: Offset) -> (Vec<u8>, Vec<u8>) {
    (
        row_key(partition, bucket, from),
        row_key(partition, bucket, through.saturating_add(1)),
    )
}

/// Bucket and offset of a row key.
pub fn decode_row_key(key: &[u8]) -> Option<(BucketId, Offset)> {
    let (_, rest) = key.split_first_chunk::<2>()?;
    let (bucket, rest) = rest.split_first_chunk::<8>()?;
    let offset = <[u8; 8]>::try_from(rest).ok()?;
    Some((
        BucketId(u64::from_be_bytes(*bucket)),
        Offset::try_from(u64::from_be_bytes(offset)).ok()?,
    ))
}

/// Key of the index entry of a row.
pub fn index_key(partition: i32, bucket: BucketId, view: &str, key: &str) -> Vec<u8> {
    [
        partition_bytes(partition).as_slice(),
        &bucket.0.to_be_bytes(),
        view.as_bytes(),
        &[0],
        key.as_bytes(),
    ]
    .concat()
}

/// Index entry: newest visible version of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Offset of the record.
    pub offset: Offset,
    /// False for a tombstone.
    pub live: bool,
    /// Version of the row.
    pub version: [u8; 17],
}

impl Newest {
    pub fn to_bytes(self) -> Vec<u8> {
        [sortable(self.offset).as_slice(), &[u8::from(self.live)], &self.version].concat()
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let parsed = || {
            let (offset, rest) = bytes.split_first_chunk::<8>()?;
            let (live, version) = rest.split_first()?;
            let offset = Offset::try_from(u64::from_be_bytes(*offset)).ok()?;
            Some(Newest {
                offset,
                live: *live == 1,
                version: version.try_into().ok()?,
            })
        };
        parsed().ok_or_else(|| Error::Unusable("an index entry is corrupt".into()))
    }
}

/// A visible row or tombstone, decoded from the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowValue<'a> {
    /// Offset of the transaction end marker that made the row visible in this replica. Another replica may store a later
    /// marker, because compaction removes older markers.
    pub end_marker: Offset,
    /// Append time of the record in ms.
    pub time: Millis,
    /// Version.
    pub version: [u8; 17],
    /// View.
    pub view: &'a str,
    /// Elements of the key's JSON array, without brackets.
    pub key: &'a str,
    /// Row as JSON; `None` for a tombstone.
    pub json: Option<&'a [u8]>,
}

/// Encodes a row: live flag, end_marker, time, version, view, key, JSON.
pub fn encode_row(row: &RowValue<'_>) -> Vec<u8> {
    let json = row.json.unwrap_or_default();
    let mut out = Vec::with_capacity(42 + row.view.len() + row.key.len() + json.len());
    out.push(u8::from(row.json.is_some()));
    out.extend_from_slice(&row.end_marker.to_be_bytes());
    out.extend_from_slice(&row.time.to_be_bytes());
    out.extend_from_slice(&row.version);
    push_text(&mut out, row.view);
    push_text(&mut out, row.key);
    out.extend_from_slice(json);
    out
}

/// Decodes a row.
pub fn decode_row(bytes: &[u8]) -> Option<RowValue<'_>> {
    let (live, rest) = bytes.split_first()?;
    let (end_marker, rest) = rest.split_first_chunk::<8>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<17>()?;
    let (view, rest) = take_text(rest)?;
    let (key, json) = take_text(rest)?;
    Some(RowValue {
        end_marker: i64::from_be_bytes(*end_marker),
        time: i64::from_be_bytes(*time),
        version: *version,
        view,
        key,
        json: (*live == 1).then_some(json),
    })
}

/// Appends a string with a length prefix.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Splits off a string with a length prefix.
pub fn take_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Key of a bucket.
pub fn bucket_key(partition: i32, bucket: BucketId) -> Vec<u8> {
    [partition_bytes(partition).as_slice(), &bucket.0.to_be_bytes()].concat()
}

/// Bucket id in a bucket key.
pub fn bucket_of(key: &[u8]) -> Option<BucketId> {
    let id = <[u8; 8]>::try_from(key.get(2..)?).ok()?;
    Some(BucketId(u64::from_be_bytes(id)))
}

/// Key of a pending row.
pub fn pending_key(partition: i32, writer: u64, offset: Offset) -> Vec<u8> {
    [
        partition_bytes(partition).as_slice(),
        &writer.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Key range of the pending rows of a writer from an offset: start, end (exclusive).
pub fn pending_range(partition: i32, writer: u64, from: Offset) -> (Vec<u8>, Vec<u8>) {
    let to = [pending_key(partition, writer, Offset::MAX).as_slice(), &[0xff]].concat();
    (pending_key(partition, writer, from), to)
}

/// Writer and offset of a pending row's key, which has the form of a row key.
pub fn decode_pending_key(key: &[u8]) -> Option<(u64, Offset)> {
    decode_row_key(key).map(|(writer, offset)| (writer.0, offset))
}

/// Key of a tombstone entry.
pub fn tombstone_key(partition: i32, time: Millis, bucket: BucketId, offset: Offset) -> Vec<u8> {
    [
        partition_bytes(partition).as_slice(),
        &sortable(time),
        &bucket.0.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Bucket and offset of a tombstone entry's key.
pub fn decode_tombstone_key(key: &[u8]) -> Option<(BucketId, Offset)> {
    let bucket = <[u8; 8]>::try_from(key.get(10..18)?).ok()?;
    let offset = <[u8; 8]>::try_from(key.get(18..26)?).ok()?;
    Some((
        BucketId(u64::from_be_bytes(bucket)),
        Offset::try_from(u64::from_be_bytes(offset)).ok()?,
    ))
}

/// Key range of the tombstones of a partition older than a time: start, end (exclusive).
pub fn tombstone_range(partition: i32, before: Millis) -> (Vec<u8>, Vec<u8>) {
    let partition = partition_bytes(partition);
    (partition.to_vec(), [partition.as_slice(), &sortable(before)].concat())
}
