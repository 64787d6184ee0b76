//! What a device is sent: the difference between what its cursor says it has and what the replica shows now.
//!
//! Paging goes in rounds: T, low, time and the covered buckets are fixed at a round's first page; pages run in order
//! (bucket, offset) over the live rows. A row superseded meanwhile is passed over, since the next round sends it.
//! Guarantees: state(cursor) with the page applied = the view at the round's T, bucket by bucket; `complete` is said
//! only of a page that is a whole round, read at one instant.
//! Never: an answer from a T older than any that this device has been served from.

use crate::cursor::{Cursor, Owner, Place, Point, Round};
use crate::replica::{Error, NotReady, Replica, RowValue, Shown};
use crate::replica::{part_ready, row_range, row_value, spaces};
use crate::{Bucket, BucketId};
use event_log::{Millis, Offset};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::RwLockReadGuard;

/// A question.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub owner: Owner,
    /// Buckets that the principal may read now.
    pub readable: &'a [Bucket],
    /// The cursor; `None` when there is none or it could not be opened.
    pub cursor: Option<Cursor>,
    /// Hash of the rules in force.
    pub rules: u64,
    /// At most so many resets and changes a page; at least 1.
    pub rows_max: usize,
    /// At most about so many bytes of rows a page; one row is always sent.
    pub bytes_max: usize,
    /// Now, in ms.
    pub now: Millis,
    /// That other views are stale than before is no news yet: the question can wait for a change of its buckets.
    pub patient: bool,
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// A page of the delta.
    Page(Box<Page>),
    /// Nothing new, and the cursor is good as it is.
    NotModified,
    /// This replica is behind the cursor: try again shortly, or another one.
    Behind,
    /// The replica may not be shown now.
    NotReady(NotReady),
}

/// A page. A device applies it in the order of its fields, and stores it together with the cursor.
#[derive(Debug)]
pub struct Page {
    /// Forget everything first.
    pub reset_all: bool,
    /// Buckets to forget.
    pub drops: Vec<BucketId>,
    /// Buckets to begin anew, with their names.
    pub resets: Vec<(BucketId, String)>,
    /// Rows put and deleted, in order.
    pub changes: Vec<Change>,
    /// Views that are stale now.
    pub stale: Vec<String>,
    /// Per bucket that this page changed, the hash of all its rows; only with `complete`.
    pub hashes: Vec<(BucketId, u128)>,
    /// The device's next cursor.
    pub cursor: Cursor,
    /// The device now holds the state of one instant: commit.
    pub complete: bool,
}

impl Page {
    /// Whether the page changes nothing on the device but its cursor.
    pub fn is_empty(&self) -> bool {
        !self.reset_all && self.drops.is_empty() && self.resets.is_empty() && self.changes.is_empty()
    }
}

/// A row put or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Bucket.
    pub bucket: BucketId,
    /// Offset in `view.log`.
    pub offset: Offset,
    value: Vec<u8>,
}

/// The parts of a change, borrowed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeParts<'a> {
    /// View.
    pub view: &'a str,
    /// Inside of the row key's JSON array.
    pub key: &'a str,
    /// Version.
    pub version: [u8; 17],
    /// JSON of the row; `None` when it is deleted.
    pub json: Option<&'a [u8]>,
}

impl Change {
    pub(crate) fn from_store(key: &[u8], value: &[u8]) -> Option<Self> {
        let (bucket, offset) = crate::replica::row_place(key)?;
        row_value(value)?;
        Some(Change {
            bucket,
            offset,
            value: value.to_vec(),
        })
    }

    /// Its parts.
    pub fn parts(&self) -> ChangeParts<'_> {
        let row = row_value(&self.value).expect("a change was checked when it was read");
        ChangeParts {
            view: row.view,
            key: row.key,
            version: row.version,
            json: row.json,
        }
    }
}

type Shows<'a> = BTreeMap<i32, RwLockReadGuard<'a, Shown>>;

/// Answers a question from a replica, at one instant.
///
/// # Errors
/// The store's errors.
pub fn delta(replica: &Replica, request: &Request<'_>) -> Result<Answer, Error> {
    let cursor = request
        .cursor
        .as_ref()
        .filter(|c| c.owner == request.owner && c.log == replica.log());
    let mut numbers: Vec<i32> = request.readable.iter().map(|b| b.partition).collect();
    if let Some(cursor) = cursor {
        numbers.extend(cursor.points.keys().chain(cursor.seen.keys()));
        numbers.extend(cursor.round.iter().flat_map(|r| r.points.keys()));
    }
    numbers.sort_unstable();
    numbers.dedup();
    let mut shows = Shows::new();
    for partition in numbers {
        let Some(shown) = replica.shown(partition) else {
            return Ok(Answer::NotReady(NotReady::NotServed { partition }));
        };
        if let Err(why) = part_ready(partition, &shown, replica.times(), request.now) {
            return Ok(Answer::NotReady(why));
        }
        shows.insert(partition, shown);
    }
    let horizon = request.now - replica.times().horizon_ms();
    let old = cursor.is_some_and(|c| oldest(c) < horizon);
    if cursor.is_some_and(|c| behind(c, &shows)) {
        return Ok(Answer::Behind);
    }
    let base = match cursor {
        Some(cursor) if !old => cursor.clone(),
        _ => empty(replica, request, cursor),
    };
    Pager {
        replica,
        request,
        shows,
        reset_all: cursor.is_none() || old,
        base,
    }
    .page()
}

/// The oldest time of a cursor: of its base as well as of its round.
fn oldest(cursor: &Cursor) -> Millis {
    let round = cursor.round.iter().flat_map(|r| r.points.values());
    cursor
        .points
        .values()
        .chain(round)
        .map(|p| p.time)
        .min()
        .unwrap_or(Millis::MAX)
}

/// Whether the replica's T is below what this device was already served from.
fn behind(cursor: &Cursor, shows: &Shows<'_>) -> bool {
    let closed = |partition: &i32| shows.get(partition).map_or(-1, |s| s.closed);
    let round = cursor.round.iter().flat_map(|r| r.points.iter());
    cursor
        .points
        .iter()
        .chain(round)
        .any(|(p, point)| closed(p) < point.closed)
        || cursor.seen.iter().any(|(p, seen)| closed(p) < *seen)
}

fn empty(replica: &Replica, request: &Request<'_>, old: Option<&Cursor>) -> Cursor {
    Cursor {
        log: replica.log(),
        owner: request.owner,
        rules: request.rules,
        points: BTreeMap::new(),
        seen: old.map(|c| c.seen.clone()).unwrap_or_default(),
        covered: Vec::new(),
        round: None,
        complete: false,
    }
}

struct Pager<'a> {
    replica: &'a Replica,
    request: &'a Request<'a>,
    shows: Shows<'a>,
    reset_all: bool,
    base: Cursor,
}

/// What a page has gathered so far.
struct Gathered {
    resets: Vec<(BucketId, String)>,
    changes: Vec<Change>,
    bytes: usize,
    last: Place,
    more: bool,
}

impl Pager<'_> {
    fn page(self) -> Result<Answer, Error> {
        let mut readable: Vec<&Bucket> = self.request.readable.iter().collect();
        readable.sort_unstable_by_key(|b| b.id);
        readable.dedup_by_key(|b| b.id);
        let may_read = |id: &BucketId| readable.binary_search_by_key(id, |b| b.id).is_ok();
        let first = self.base.round.is_none();
        let round = self.base.round.clone().unwrap_or_else(|| Round {
            points: self.shows.iter().map(|(p, s)| (*p, s.point())).collect(),
            covered: readable.iter().map(|b| b.id).collect(),
            at: Place {
                bucket: BucketId(0),
                offset: Offset::MIN,
            },
        });
        let had = if first { &self.base.covered } else { &round.covered };
        let drops: Vec<BucketId> = had.iter().filter(|id| !may_read(id)).copied().collect();
        // A bucket revoked in mid-round is no longer covered: granted again, it begins anew.
        let covered: Vec<BucketId> = round.covered.iter().filter(|id| may_read(id)).copied().collect();
        let mut got = Gathered {
            resets: vec![],
            changes: vec![],
            bytes: 0,
            last: round.at,
            more: false,
        };
        for bucket in readable.iter().filter(|b| covered.binary_search(&b.id).is_ok()) {
            self.gather(bucket, &round, &mut got)?;
            if got.more {
                break;
            }
        }
        let empty = got.resets.is_empty() && got.changes.is_empty();
        let fresh = self
            .base
            .points
            .values()
            .all(|p| p.time > self.request.now - self.replica.times().refresh_ms);
        let same = covered == self.base.covered && drops.is_empty();
        let quiet = self.request.patient || !self.stale_changed();
        if first && empty && !self.reset_all && same && fresh && self.base.complete && quiet {
            return Ok(Answer::NotModified);
        }
        Ok(Answer::Page(Box::new(self.finish(first, drops, covered, round, got))))
    }

    /// Whether other views may be stale than those that the cursor's last page named.
    fn stale_changed(&self) -> bool {
        let known = |p: &i32| self.base.points.get(p).map_or(-1, |point| point.closed);
        self.shows.iter().any(|(p, shown)| shown.stale_changed > known(p))
    }

    fn finish(self, first: bool, drops: Vec<BucketId>, covered: Vec<BucketId>, round: Round, got: Gathered) -> Page {
        let complete = first && !got.more;
        let mut seen = self.base.seen.clone();
        for (partition, shown) in &self.shows {
            let seen = seen.entry(*partition).or_insert(-1);
            *seen = (*seen).max(shown.closed);
        }
        let mut cursor = Cursor {
            seen,
            complete,
            rules: self.request.rules,
            round: None,
            ..self.base
        };
        if got.more {
            cursor.round = Some(Round {
                covered,
                at: got.last,
                ..round
            });
        } else {
            cursor.points = round.points;
            cursor.covered = covered;
        }
        let hashes = if complete {
            hashes(&self.shows, self.request.readable, &got)
        } else {
            Vec::new()
        };
        let mut stale: Vec<String> = self
            .shows
            .values()
            .flat_map(|s| s.stale.iter().map(|(view, _)| view.clone()))
            .collect();
        stale.sort_unstable();
        stale.dedup();
        let Gathered { resets, changes, .. } = got;
        Page {
            reset_all: self.reset_all,
            drops,
            resets,
            changes,
            stale,
            hashes,
            cursor,
            complete,
        }
    }

    /// Adds what a covered bucket has for this round behind the place where the last page ended.
    fn gather(&self, bucket: &Bucket, round: &Round, got: &mut Gathered) -> Result<(), Error> {
        let Some(point) = round.points.get(&bucket.partition) else {
            return Ok(());
        };
        let after = if bucket.id == round.at.bucket {
            round.at.offset
        } else {
            Offset::MIN
        };
        if bucket.id < round.at.bucket {
            return Ok(());
        }
        let new = self.base.covered.binary_search(&bucket.id).is_err();
        let none = Point {
            closed: -1,
            low: 0,
            time: 0,
        };
        let have = if new {
            none
        } else {
            self.base.points.get(&bucket.partition).copied().unwrap_or(none)
        };
        if new && after < -1 {
            if self.full(got) {
                got.more = true;
                return Ok(());
            }
            got.resets.push((bucket.id, bucket.name.clone()));
            got.last = Place {
                bucket: bucket.id,
                offset: -1,
            };
        }
        let shown = self.shows.get(&bucket.partition);
        let state = shown.and_then(|s| s.buckets.get(&bucket.id));
        // The whole of an idle poll is here: nothing closed in this bucket since the cursor's T, no store is read.
        if state.is_none_or(|s| *s.name != *bucket.name || s.changed <= have.closed) {
            return Ok(());
        }
        let from = have.low.max(after.saturating_add(1)).max(0);
        let wanted = |row: &RowValue<'_>| {
            if new {
                row.json.is_some()
            } else {
                row.closed > have.closed
            }
        };
        self.scan(bucket, from..=point.closed, wanted, got)
    }

    /// Adds a bucket's wanted rows in order of their offsets, until the page is full.
    fn scan(
        &self,
        bucket: &Bucket,
        offsets: RangeInclusive<Offset>,
        wanted: impl Fn(&RowValue<'_>) -> bool,
        got: &mut Gathered,
    ) -> Result<(), Error> {
        let (from, to) = row_range(bucket.partition, bucket.id, *offsets.start(), *offsets.end());
        self.replica.store().scan(
            spaces::ROWS,
            state_store::KeyRange::new(&from, Some(&to)),
            state_store::Direction::Forward,
            &mut |key, value| {
                if !row_value(value).is_some_and(|row| wanted(&row)) {
                    return ControlFlow::Continue(());
                }
                if self.full(got) {
                    got.more = true;
                    return ControlFlow::Break(());
                }
                if let Some(change) = Change::from_store(key, value) {
                    got.bytes += value.len();
                    got.last = Place {
                        bucket: bucket.id,
                        offset: change.offset,
                    };
                    got.changes.push(change);
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(())
    }

    fn full(&self, got: &Gathered) -> bool {
        let count = got.resets.len() + got.changes.len();
        count > 0 && (count >= self.request.rows_max || got.bytes >= self.request.bytes_max)
    }
}

/// Hashes of the buckets that a complete page changed.
fn hashes(shows: &Shows<'_>, readable: &[Bucket], got: &Gathered) -> Vec<(BucketId, u128)> {
    let mut ids: Vec<BucketId> = got.changes.iter().map(|c| c.bucket).collect();
    ids.extend(got.resets.iter().map(|(id, _)| *id));
    ids.sort_unstable();
    ids.dedup();
    let hash = |id: &BucketId| {
        let bucket = readable.iter().find(|b| b.id == *id)?;
        let state = shows.get(&bucket.partition)?.buckets.get(id);
        Some((*id, state.map_or(0, |s| s.hash)))
    };
    ids.iter().filter_map(hash).collect()
}
