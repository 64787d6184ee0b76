//! The cursor: it states which buckets a device has, and up to which offset of each partition of `view.log`.
//!
//! A device stores the cursor as an opaque token. It is encrypted and authenticated (AES-256-GCM), so that a device can
//! neither read nor forge it. Its offsets are those of `view.log`, so it is valid on every replica, including one that
//! was rebuilt. Offsets are only compared, never added or subtracted, because a log has gaps. The fields are specified
//! in docs/protocol/view-sync.md, "The cursor".

use crate::{Bucket, BucketId};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use event_log::{Millis, Offset};
use std::collections::BTreeMap;
use std::fmt;

/// Format. Format 1 had no partitions of buckets.
const FORMAT: u8 = 2;
/// Bytes of the authenticated, unencrypted header: format and key id.
const HEAD: usize = 2;

/// Owner of a cursor: hash of principal and device id. Another principal's cursor is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u64);

impl Owner {
    /// Owner of a principal (issuer alias and subject) and a device id.
    pub fn new(principal: &str, device: &str) -> Self {
        Owner(hash_of(&[principal, device]))
    }
}

/// First 8 bytes of the SHA-256 over the parts with length prefixes, which keep (`a`, `bc`) and (`ab`, `c`) apart.
pub(crate) fn hash_of(parts: &[&str]) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&part.len().to_be_bytes());
        context.update(part.as_bytes());
    }
    let hash = context.finish();
    u64::from_be_bytes(hash.as_ref().first_chunk().copied().expect("SHA-256 has 32 bytes"))
}

/// How far a device has received one partition of `view.log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// T: offset of the last transaction end marker that the state contains.
    pub end_marker: Offset,
    /// Smallest offset at or below T whose record was still pending, else T + 1. The next delta starts at this offset
    /// (invariant I2, correct delta).
    pub low: Offset,
    /// Lower bound of the append times, as broker timestamps in ms, of all records that the reader has not received.
    /// Compared with the horizon: a cursor older than it leads to a reset (invariant I9).
    pub time: Millis,
}

/// Position in a round: bucket and offset of the last reset or change that was sent. Offset -1 is the bucket's reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoundPosition {
    /// Bucket.
    pub bucket: BucketId,
    /// Offset.
    pub offset: Offset,
}

/// A bucket that a device has, with the partition from which its rows came. If the scope of the bucket changes, its rows are
/// in another partition, and the bucket is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Covered {
    /// Bucket.
    pub id: BucketId,
    /// Partition of `view.log`.
    pub partition: i32,
}

impl Covered {
    /// A bucket in its current partition.
    pub fn of(bucket: &Bucket) -> Self {
        Covered {
            id: bucket.id,
            partition: bucket.partition,
        }
    }
}

/// A round in progress. Points and buckets are fixed at its first page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Points of the cursor after the round.
    pub points: BTreeMap<i32, Point>,
    /// Covered buckets of the cursor after the round, sorted.
    pub covered: Vec<Covered>,
    /// Last position that was sent.
    pub at: RoundPosition,
}

/// A decrypted cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Hash of log epoch and topic id.
    pub log: u64,
    /// Principal and device.
    pub owner: Owner,
    /// State in each partition that was ever read.
    pub points: BTreeMap<i32, Point>,
    /// Per partition, the greatest T of all replicas that served a page of this cursor. A replica with a smaller T may
    /// not answer (invariant I4, no return to an older state).
    pub seen: BTreeMap<i32, Offset>,
    /// Buckets that the device has, sorted.
    pub covered: Vec<Covered>,
    /// The round in progress.
    pub round: Option<Round>,
    /// Whether the cursor was issued with a complete page. Only such a cursor may be answered with 304.
    pub complete: bool,
    /// Whether the device has received a complete page with the covered buckets. If so, a view that is added later and is not
    /// loaded yet does not delay its complete pages.
    pub settled: bool,
}

/// A key that encrypts cursors.
#[derive(Clone)]
pub struct Key {
    /// Id, 0 to 255.
    pub id: u8,
    /// AES-256 key.
    pub secret: [u8; 32],
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}, ***)", self.id)
    }
}

/// Keys for cursors: the first one encrypts, all decrypt. Two keys allow a key rotation on many edges without resets of
/// devices: add the new key as the second one everywhere, then make it the first one, then remove the old one.
pub struct Keyring {
    keys: Vec<(u8, LessSafeKey)>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl Keyring {
    /// Creates a keyring of one or two keys with different ids; else `None`.
    pub fn new(keys: &[Key]) -> Option<Self> {
        let duplicate = matches!(keys, [a, b] if a.id == b.id);
        if keys.is_empty() || keys.len() > 2 || duplicate {
            return None;
        }
        let keys = keys.iter().map(|key| {
            let unbound = UnboundKey::new(&AES_256_GCM, &key.secret).ok()?;
            Some((key.id, LessSafeKey::new(unbound)))
        });
        Some(Keyring {
            keys: keys.collect::<Option<_>>()?,
        })
    }

    /// Encrypts a cursor to URL-safe text.
    pub fn seal(&self, cursor: &Cursor) -> String {
        let (id, key) = self.keys.first().expect("a keyring has a key");
        // A random 96-bit nonce is safe for 2^32 cursors per key.
        let mut nonce = [0_u8; NONCE_LEN];
        rand::fill(&mut nonce).expect("the operating system has a random source");
        let mut body = Vec::with_capacity(128);
        encode(cursor, &mut body);
        let head = [FORMAT, *id];
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(head), &mut body)
            .expect("a cursor is smaller than the limit of AES-GCM");
        let mut all = Vec::with_capacity(HEAD + NONCE_LEN + body.len());
        all.extend_from_slice(&head);
        all.extend_from_slice(&nonce);
        all.extend_from_slice(&body);
        URL_SAFE_NO_PAD.encode(all)
    }

    /// Decrypts a cursor; `None` if it was not encrypted with one of these keys, was modified, or has another format.
    pub fn open(&self, text: &str) -> Option<Cursor> {
        let all = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, rest) = all.split_first_chunk::<HEAD>()?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
        let [FORMAT, id] = *head else { return None };
        let (_, key) = self.keys.iter().find(|(k, _)| *k == id)?;
        let mut body = body.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = key.open_in_place(nonce, Aad::from(*head), &mut body).ok()?;
        decode(&mut Bytes(plain))
    }
}

fn encode(cursor: &Cursor, out: &mut Vec<u8>) {
    let flags = [cursor.round.is_some(), cursor.complete, cursor.settled];
    let flag = |(bit, is_set): (u32, bool)| u8::from(is_set) << bit;
    out.push((0..).zip(flags).map(flag).sum());
    for hash in [cursor.log, cursor.owner.0] {
        out.extend_from_slice(&hash.to_be_bytes());
    }
    push_points(out, &cursor.points);
    push(out, from_len(cursor.seen.len()));
    for (partition, seen) in &cursor.seen {
        push_signed(out, i64::from(*partition));
        push_signed(out, *seen);
    }
    push_buckets(out, &cursor.covered);
    if let Some(round) = &cursor.round {
        push_points(out, &round.points);
        push_buckets(out, &round.covered);
        out.extend_from_slice(&round.at.bucket.0.to_be_bytes());
        push_signed(out, round.at.offset);
    }
}

fn push_points(out: &mut Vec<u8>, points: &BTreeMap<i32, Point>) {
    push(out, from_len(points.len()));
    for (partition, point) in points {
        push_signed(out, i64::from(*partition));
        // The difference between T and `low` is small, usually -1, and so takes fewer bytes than `low` itself.
        push_signed(out, point.end_marker);
        push_signed(out, point.end_marker.wrapping_sub(point.low));
        push_signed(out, point.time);
    }
}

fn push_buckets(out: &mut Vec<u8>, buckets: &[Covered]) {
    push(out, from_len(buckets.len()));
    for Covered { id, partition } in buckets {
        out.extend_from_slice(&id.0.to_be_bytes());
        push_signed(out, i64::from(*partition));
    }
}

fn from_len(len: usize) -> u64 {
    u64::try_from(len).expect("a length fits 64 bits")
}

fn push(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits fit a byte") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits fit a byte"));
}

fn push_signed(out: &mut Vec<u8>, value: i64) {
    push(out, u64::from_ne_bytes(((value << 1) ^ (value >> 63)).to_ne_bytes()));
}

/// Decodes the output of `encode`. The bytes were authenticated, so `None` means that another release wrote them.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn fixed(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*bytes))
    }

    fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn signed(&mut self) -> Option<i64> {
        let raw = self.number()?;
        let magnitude = i64::from_ne_bytes((raw >> 1).to_ne_bytes());
        Some(if raw & 1 == 0 { magnitude } else { !magnitude })
    }

    fn partition(&mut self) -> Option<i32> {
        i32::try_from(self.signed()?).ok()
    }

    fn points(&mut self) -> Option<BTreeMap<i32, Point>> {
        let count = self.number()?;
        let mut points = BTreeMap::new();
        for _ in 0..count {
            let partition = self.partition()?;
            let end_marker = self.signed()?;
            let low = end_marker.wrapping_sub(self.signed()?);
            points.insert(
                partition,
                Point {
                    end_marker,
                    low,
                    time: self.signed()?,
                },
            );
        }
        Some(points)
    }

    fn buckets(&mut self) -> Option<Vec<Covered>> {
        let count = self.number()?;
        let mut covered = || {
            Some(Covered {
                id: BucketId(self.fixed()?),
                partition: self.partition()?,
            })
        };
        (0..count).map(|_| covered()).collect()
    }
}

fn decode(bytes: &mut Bytes<'_>) -> Option<Cursor> {
    let flags = bytes.byte()?;
    let (log, owner) = (bytes.fixed()?, Owner(bytes.fixed()?));
    let points = bytes.points()?;
    let mut seen = BTreeMap::new();
    for _ in 0..bytes.number()? {
        seen.insert(bytes.partition()?, bytes.signed()?);
    }
    let covered = bytes.buckets()?;
    let round = if flags & 1 == 1 {
        let (points, covered) = (bytes.points()?, bytes.buckets()?);
        let at = RoundPosition {
            bucket: BucketId(bytes.fixed()?),
            offset: bytes.signed()?,
        };
        Some(Round { points, covered, at })
    } else {
        None
    };
    let all_read = bytes.0.is_empty();
    all_read.then_some(Cursor {
        log,
        owner,
        points,
        seen,
        covered,
        round,
        complete: flags & 2 == 2,
        settled: flags & 4 == 4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> Cursor {
        let point = |end_marker, low, time| Point { end_marker, low, time };
        let covered = |id, partition| Covered {
            id: BucketId(id),
            partition,
        };
        Cursor {
            log: 7,
            owner: Owner::new("main/42", "phone"),
            points: [(0, point(12, 13, 1_700_000_000_000)), (5, point(-1, 0, 4))].into(),
            seen: [(0, 12), (5, i64::MAX)].into(),
            covered: vec![covered(1, 0), covered(u64::MAX, 5)],
            round: Some(Round {
                points: [(0, point(40, 11, 9))].into(),
                covered: vec![covered(3, 300)],
                at: RoundPosition {
                    bucket: BucketId(3),
                    offset: -1,
                },
            }),
            complete: false,
            settled: true,
        }
    }

    fn ring(ids: &[u8]) -> Keyring {
        let keys: Vec<Key> = ids
            .iter()
            .map(|id| Key {
                id: *id,
                secret: [*id; 32],
            })
            .collect();
        Keyring::new(&keys).unwrap()
    }

    #[test]
    fn cursor_survives_key_rotation_but_no_forgery() {
        let old = ring(&[1]);
        let both = ring(&[2, 1]);
        let text = old.seal(&cursor());
        assert_eq!(both.open(&text), Some(cursor()));
        assert_eq!(ring(&[2]).open(&text), None);
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(both.open(&String::from_utf8(forged).unwrap()), None, "byte {at}");
        }
        assert_eq!(both.open(""), None);
        assert_eq!(both.open("not a cursor"), None);
    }

    #[test]
    fn principal_and_device_are_separated_in_owner() {
        assert_ne!(Owner::new("main/4", "2phone"), Owner::new("main/42", "phone"));
    }

    #[test]
    fn keyring_has_one_or_two_keys_with_different_ids() {
        let key = |id| Key { id, secret: [id; 32] };
        assert!(Keyring::new(&[]).is_none());
        assert!(Keyring::new(&[key(1), key(1)]).is_none());
        assert!(Keyring::new(&[key(1), key(2), key(3)]).is_none());
    }
}
