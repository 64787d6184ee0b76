//! How a replica's store is laid out: keys and values of its spaces.
//!
//! Numbers in keys are big endian, so that they sort. A space's layout is versioned as a whole by `meta`/`format`.
//! Guarantees: writing then reading gives the same back; bytes of another layout are an error, never a panic.

use super::{Error, Result};
use crate::BucketId;
use event_log::{Millis, Offset};
use state_store::{Batch, Store};

/// Layout version of the store.
const FORMAT: u8 = 2;

/// The spaces, in the order of [`super::SPACES`].
pub mod space {
    use state_store::Space;

    /// Where each partition stands, and the layout's version.
    pub const META: Space = Space(0);
    /// Visible rows and tombstones: partition, bucket, offset.
    pub const ROWS: Space = Space(1);
    /// The newest visible offset of a row: partition, bucket, view, key.
    pub const INDEX: Space = Space(2);
    /// Buckets: partition, bucket.
    pub const BUCKETS: Space = Space(3);
    /// Held-back rows: partition, writer, offset.
    pub const HELD: Space = Space(4);
    /// Tombstones by age: partition, time, bucket, offset.
    pub const TOMBSTONES: Space = Space(5);
}

/// Refuses a store of a newer layout or of another log; marks a new one.
pub fn check_format(store: &dyn Store, log: u64) -> Result<()> {
    let mut want = vec![FORMAT];
    want.extend_from_slice(&log.to_be_bytes());
    match store.get(space::META, b"format")? {
        None => {
            let mut batch = Batch::default();
            batch.put(space::META, *b"format", want);
            Ok(store.commit(batch)?)
        }
        Some(found) if found == want => Ok(()),
        Some(found) if found.first() != Some(&FORMAT) => {
            let found = found.first().copied().unwrap_or_default();
            Err(Error::Foreign(format!(
                "its layout is {found}, this release understands {FORMAT}"
            )))
        }
        Some(_) => Err(Error::Foreign("it belongs to another log".into())),
    }
}

fn part_bytes(partition: i32) -> [u8; 2] {
    u16::try_from(partition).unwrap_or_default().to_be_bytes()
}

/// An offset or a time as sortable bytes; both are never negative in a store.
fn sortable(number: i64) -> [u8; 8] {
    u64::try_from(number).unwrap_or_default().to_be_bytes()
}

/// Everything of a partition in a space: from, to.
pub fn part_range(partition: i32) -> (Vec<u8>, Vec<u8>) {
    (part_bytes(partition).to_vec(), part_bytes(partition + 1).to_vec())
}

/// Key of where a partition stands.
pub fn meta_key(partition: i32) -> Vec<u8> {
    [b"p".as_slice(), &part_bytes(partition)].concat()
}

/// Key of a row.
pub fn row_key(partition: i32, bucket: BucketId, offset: Offset) -> Vec<u8> {
    [
        part_bytes(partition).as_slice(),
        &bucket.0.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Rows of a bucket with `from ≤ offset ≤ through`: from, to.
pub fn row_range(partition: i32, bucket: BucketId, from: Offset, through: Offset) -> (Vec<u8>, Vec<u8>) {
    (
        row_key(partition, bucket, from),
        row_key(partition, bucket, through.saturating_add(1)),
    )
}

/// Bucket and offset of a row's key.
pub fn row_place(key: &[u8]) -> Option<(BucketId, Offset)> {
    let (_, rest) = key.split_first_chunk::<2>()?;
    let (bucket, rest) = rest.split_first_chunk::<8>()?;
    let offset = <[u8; 8]>::try_from(rest).ok()?;
    Some((
        BucketId(u64::from_be_bytes(*bucket)),
        Offset::try_from(u64::from_be_bytes(offset)).ok()?,
    ))
}

/// Key of a row's newest offset.
pub fn index_key(partition: i32, bucket: BucketId, view: &str, key: &str) -> Vec<u8> {
    [
        part_bytes(partition).as_slice(),
        &bucket.0.to_be_bytes(),
        view.as_bytes(),
        &[0],
        key.as_bytes(),
    ]
    .concat()
}

/// The newest visible offset of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// Its offset.
    pub offset: Offset,
    /// Whether it is a row, not a tombstone.
    pub live: bool,
    /// Its version.
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
        parsed().ok_or_else(|| Error::Foreign("an index entry is damaged".into()))
    }
}

/// A visible row or tombstone, as it stands in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowValue<'a> {
    /// Offset of the closing that made it visible, as this replica knows it.
    pub closed: Offset,
    /// Append time of the row in ms.
    pub time: Millis,
    /// Version.
    pub version: [u8; 17],
    /// View.
    pub view: &'a str,
    /// Inside of the key's JSON array.
    pub key: &'a str,
    /// JSON for the device; `None` for a tombstone.
    pub json: Option<&'a [u8]>,
}

/// Writes a row's value: live flag, closed, time, version, view, key, JSON.
pub fn put_row(row: &RowValue<'_>) -> Vec<u8> {
    let json = row.json.unwrap_or_default();
    let mut out = Vec::with_capacity(42 + row.view.len() + row.key.len() + json.len());
    out.push(u8::from(row.json.is_some()));
    out.extend_from_slice(&row.closed.to_be_bytes());
    out.extend_from_slice(&row.time.to_be_bytes());
    out.extend_from_slice(&row.version);
    push_text(&mut out, row.view);
    push_text(&mut out, row.key);
    out.extend_from_slice(json);
    out
}

/// Reads a row's value.
pub fn row_value(bytes: &[u8]) -> Option<RowValue<'_>> {
    let (live, rest) = bytes.split_first()?;
    let (closed, rest) = rest.split_first_chunk::<8>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (version, rest) = rest.split_first_chunk::<17>()?;
    let (view, rest) = take_text(rest)?;
    let (key, json) = take_text(rest)?;
    Some(RowValue {
        closed: i64::from_be_bytes(*closed),
        time: i64::from_be_bytes(*time),
        version: *version,
        view,
        key,
        json: (*live == 1).then_some(json),
    })
}

/// Writes a text with its length before it.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Takes a text off the front.
pub fn take_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Key of a bucket.
pub fn bucket_key(partition: i32, bucket: BucketId) -> Vec<u8> {
    [part_bytes(partition).as_slice(), &bucket.0.to_be_bytes()].concat()
}

/// Bucket of a bucket's key.
pub fn bucket_of(key: &[u8]) -> Option<BucketId> {
    let id = <[u8; 8]>::try_from(key.get(2..)?).ok()?;
    Some(BucketId(u64::from_be_bytes(id)))
}

/// Key of a held-back row.
pub fn held_key(partition: i32, writer: u64, offset: Offset) -> Vec<u8> {
    [
        part_bytes(partition).as_slice(),
        &writer.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Held-back rows of a writer from an offset on: from, to.
pub fn held_range(partition: i32, writer: u64, from: Offset) -> (Vec<u8>, Vec<u8>) {
    let to = [held_key(partition, writer, Offset::MAX).as_slice(), &[0xff]].concat();
    (held_key(partition, writer, from), to)
}

/// Writer and offset of a held-back row's key.
pub fn held_place(key: &[u8]) -> Option<(u64, Offset)> {
    row_place(key).map(|(writer, offset)| (writer.0, offset))
}

/// Key of a tombstone by age.
pub fn tombstone_key(partition: i32, time: Millis, bucket: BucketId, offset: Offset) -> Vec<u8> {
    [
        part_bytes(partition).as_slice(),
        &sortable(time),
        &bucket.0.to_be_bytes(),
        &sortable(offset),
    ]
    .concat()
}

/// Bucket and offset of a tombstone's key.
pub fn tombstone_place(key: &[u8]) -> Option<(BucketId, Offset)> {
    let bucket = <[u8; 8]>::try_from(key.get(10..18)?).ok()?;
    let offset = <[u8; 8]>::try_from(key.get(18..26)?).ok()?;
    Some((
        BucketId(u64::from_be_bytes(bucket)),
        Offset::try_from(u64::from_be_bytes(offset)).ok()?,
    ))
}

/// Tombstones older than a time: from, to.
pub fn tombstone_range(partition: i32, before: Millis) -> (Vec<u8>, Vec<u8>) {
    let part = part_bytes(partition);
    (part.to_vec(), [part.as_slice(), &sortable(before)].concat())
}
