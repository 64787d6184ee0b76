//! Delta: the page with what a device lacks, computed from its cursor, a replica and the buckets that it may read now
//! (docs/protocol/view-sync.md, "The delta").
//!
//! A delta that does not fit into a page is sent in a round. T, low, time and the covered buckets are fixed at the
//! round's first page. The pages contain the live rows, ordered by bucket and offset. A row that is superseded during
//! the round is skipped, because the next round sends its successor. A page is `complete` only if it is the only page
//! of its round, because then all its rows were read at one instant, and the device has the state at T (I2). The first
//! complete page of a device also waits for the first snapshots of the tables that its views read, because the state at T
//! is only a part of them until then. A replica whose T is below one that the device has seen answers
//! [`DeltaResult::Behind`] (I4).

use crate::change::Change;
use crate::cursor::{Covered, Cursor, Owner, Point, Round, RoundPosition};
use crate::replica::bytes::{RowValue, decode_row, row_range, space};
use crate::replica::{Error, NotReady, PartitionState, Replica, check_ready};
use crate::{Bucket, BucketId};
use event_log::{Millis, Offset};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::{Arc, RwLockReadGuard};

/// A view that has no complete state before first snapshots of tables have ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotView {
    /// Name.
    pub name: Arc<str>,
    /// Number of writers that write its rows, of which each writes a loaded mark.
    pub writers: usize,
}

/// Input of a delta.
#[derive(Debug)]
pub struct DeltaRequest<'a> {
    /// Principal and device.
    pub owner: Owner,
    /// Buckets that the principal may read now.
    pub readable: &'a [Bucket],
    /// Views of these buckets whose tables have a first snapshot.
    pub snapshot_views: &'a [SnapshotView],
    /// The cursor; `None` if the device sent none or it could not be decrypted.
    pub cursor: Option<Cursor>,
    /// Maximum resets and changes of a page; at least 1.
    pub rows_max: usize,
    /// Approximate maximum bytes of rows of a page. One row is always sent.
    pub bytes_max: usize,
    /// Current time in ms.
    pub now: Millis,
    /// Whether the caller can wait for a change of the buckets. If so, a page is not sent only because the set of stale
    /// views changed.
    pub patient: bool,
}

/// Result of a delta.
#[derive(Debug)]
pub enum DeltaResult {
    /// Page to send.
    Page(Box<Page>),
    /// Nothing changed, and the cursor needs no replacement.
    NotModified,
    /// There is nothing to send before a view is loaded. Only for a patient request: the caller waits for a change.
    Loading,
    /// The replica is behind the cursor. Retry soon, or use another replica.
    Behind,
    /// The replica cannot be served now.
    NotReady(NotReady),
}

/// A page. A device applies the fields in order and stores the changes together with the cursor.
#[derive(Debug)]
pub struct Page {
    /// Delete all rows before applying the page.
    pub reset_all: bool,
    /// Buckets to delete, because they are no longer readable (I5).
    pub drops: Vec<BucketId>,
    /// Buckets to empty before applying the changes, with their names. All their rows follow.
    pub resets: Vec<(BucketId, String)>,
    /// Changed rows, in order of bucket and offset.
    pub changes: Vec<Change>,
    /// Names of the views that are stale or not loaded now.
    pub stale: Vec<String>,
    /// Hashes of the buckets that the page changed; only with `complete` (I10).
    pub hashes: Vec<(BucketId, u128)>,
    /// Next cursor of the device.
    pub cursor: Cursor,
    /// Whether the device has a consistent snapshot after applying this page.
    pub complete: bool,
    /// Whether the page is not complete only because a view is not loaded.
    pub loading: bool,
}

impl Page {
    /// Whether the page changes nothing on the device except the cursor and the stale views.
    pub fn is_empty(&self) -> bool {
        !self.reset_all && self.drops.is_empty() && self.resets.is_empty() && self.changes.is_empty()
    }
}

/// Read locks on the partitions that a delta reads, held until the page is complete.
type LockedPartitions<'a> = BTreeMap<i32, RwLockReadGuard<'a, PartitionState>>;

/// Computes a page from one instant of a replica.
///
/// # Errors
/// An error of the store.
pub fn delta(replica: &Replica, request: &DeltaRequest<'_>) -> Result<DeltaResult, Error> {
    let cursor = request
        .cursor
        .as_ref()
        .filter(|c| c.owner == request.owner && c.log == replica.log());
    // Includes the partitions of the cursor in which no bucket is readable now, because their T must not decrease
    // either (invariant I4, no return to an older state).
    let mut numbers: Vec<i32> = request.readable.iter().map(|b| b.partition).collect();
    if let Some(cursor) = cursor {
        numbers.extend(cursor.points.keys().chain(cursor.seen.keys()));
        numbers.extend(cursor.round.iter().flat_map(|r| r.points.keys()));
    }
    numbers.sort_unstable();
    numbers.dedup();
    // Partitions are locked in ascending order.
    let mut partitions = LockedPartitions::new();
    for partition in numbers {
        let Some(state) = replica.state(partition) else {
            return Ok(DeltaResult::NotReady(NotReady::NotServed { partition }));
        };
        if let Err(reason) = check_ready(partition, &state, replica.times(), request.now) {
            return Ok(DeltaResult::NotReady(reason));
        }
        partitions.insert(partition, state);
    }
    let horizon = request.now - replica.times().horizon_ms();
    let old = cursor.is_some_and(|c| oldest(c) < horizon);
    // Checked before the horizon: a full reset to an older T would return the device to an older state (I4).
    if cursor.is_some_and(|c| behind(c, &partitions)) {
        return Ok(DeltaResult::Behind);
    }
    let base = match cursor {
        Some(cursor) if !old => cursor.clone(),
        _ => empty_cursor(replica, request, cursor),
    };
    Pager {
        replica,
        request,
        partitions,
        reset_all: cursor.is_none() || old,
        base,
    }
    .page()
}

/// The oldest time in a cursor: of its base and of its round. The base counts in mid-round too, because the round
/// started from it and the replica may have removed tombstones that were written since (invariant I9, horizon).
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

/// Whether the replica's T is below a T of which this device has received rows. `seen` counts too: a page omits a row
/// that was superseded later than the T of the round, and only a replica with at least that T sends its successor.
fn behind(cursor: &Cursor, partitions: &LockedPartitions<'_>) -> bool {
    let end_marker = |partition: &i32| partitions.get(partition).map_or(-1, |s| s.end_marker);
    let round = cursor.round.iter().flat_map(|r| r.points.iter());
    cursor
        .points
        .iter()
        .chain(round)
        .any(|(p, point)| end_marker(p) < point.end_marker)
        || cursor.seen.iter().any(|(p, seen)| end_marker(p) < *seen)
}

/// The base of a full reset. Keeps `seen`, so that the reset is not followed by a page of an older T.
fn empty_cursor(replica: &Replica, request: &DeltaRequest<'_>, old: Option<&Cursor>) -> Cursor {
    Cursor {
        log: replica.log(),
        owner: request.owner,
        points: BTreeMap::new(),
        seen: old.map(|c| c.seen.clone()).unwrap_or_default(),
        covered: Vec::new(),
        round: None,
        complete: false,
        settled: false,
    }
}

/// Builds one page.
struct Pager<'a> {
    replica: &'a Replica,
    request: &'a DeltaRequest<'a>,
    partitions: LockedPartitions<'a>,
    reset_all: bool,
    /// The device's state: its cursor, or an empty one for a full reset.
    base: Cursor,
}

/// Contents of the page that is being built.
struct Draft {
    drops: Vec<BucketId>,
    resets: Vec<(BucketId, String)>,
    changes: Vec<Change>,
    bytes: usize,
    /// The last reset or change in the page.
    last: RoundPosition,
    /// The page is full and the round continues.
    more: bool,
}

impl Pager<'_> {
    fn page(self) -> Result<DeltaResult, Error> {
        let mut readable: Vec<&Bucket> = self.request.readable.iter().collect();
        readable.sort_unstable_by_key(|b| b.id);
        readable.dedup_by_key(|b| b.id);
        let find = |id: &BucketId| readable.binary_search_by_key(id, |b| b.id).ok();
        let is_current = |covered: &&Covered| {
            let bucket = find(&covered.id).and_then(|at| readable.get(at));
            bucket.is_some_and(|bucket| bucket.partition == covered.partition)
        };
        let first = self.base.round.is_none();
        let round = self.base.round.clone().unwrap_or_else(|| Round {
            points: self.partitions.iter().map(|(p, s)| (*p, s.point())).collect(),
            covered: readable.iter().map(|b| Covered::of(b)).collect(),
            at: RoundPosition {
                bucket: BucketId(0),
                offset: Offset::MIN,
            },
        });
        let covered_before = if first { &self.base.covered } else { &round.covered };
        let covered_ids = covered_before.iter().map(|covered| covered.id);
        let drops: Vec<BucketId> = covered_ids.filter(|id| find(id).is_none()).collect();
        // A bucket that is revoked during a round, or moves to another partition, leaves the covered buckets, so that it
        // starts with a reset later. A bucket that is granted during a round is not in `round.covered` and waits for the
        // next round.
        let covered: Vec<Covered> = round.covered.iter().filter(is_current).copied().collect();
        let mut draft = Draft {
            drops,
            resets: vec![],
            changes: vec![],
            bytes: 0,
            last: round.at,
            more: false,
        };
        for bucket in readable
            .iter()
            .filter(|b| covered.binary_search(&Covered::of(b)).is_ok())
        {
            self.add_bucket(bucket, &round, &mut draft)?;
            if draft.more {
                break;
            }
        }
        let empty = draft.resets.is_empty() && draft.changes.is_empty();
        // An idle device needs a new cursor before its times reach the horizon.
        let fresh = self
            .base
            .points
            .values()
            .all(|p| p.time > self.request.now - self.replica.times().refresh_ms);
        let same = covered == self.base.covered && draft.drops.is_empty();
        if first && empty && !self.reset_all && same && fresh {
            if self.base.complete && (self.request.patient || !self.stale_changed()) {
                return Ok(DeltaResult::NotModified);
            }
            if self.request.patient && self.is_loading() {
                return Ok(DeltaResult::Loading);
            }
        }
        Ok(DeltaResult::Page(Box::new(self.finish(first, covered, round, draft))))
    }

    /// Whether the stale views may differ from those in the last page of this cursor.
    fn stale_changed(&self) -> bool {
        let known = |p: &i32| self.base.points.get(p).map_or(-1, |point| point.end_marker);
        self.partitions.iter().any(|(p, state)| state.stale_changed > known(p))
    }

    /// Whether the device has no complete state yet, and a view of its buckets is not loaded.
    fn is_loading(&self) -> bool {
        !self.is_settled() && self.unloaded().next().is_some()
    }

    /// Whether the device has had a complete state of all its buckets. It then keeps getting complete pages: otherwise one
    /// table that cannot be read would stop the views of all others.
    fn is_settled(&self) -> bool {
        let had = |bucket: &Bucket| self.base.covered.binary_search(&Covered::of(bucket)).is_ok();
        self.base.settled && self.request.readable.iter().all(had)
    }

    /// The views whose first snapshot has not ended, in any partition of the device.
    fn unloaded(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_loaded = |view: &SnapshotView| self.partitions.values().all(|state| state.is_loaded(view));
        let unloaded = self.request.snapshot_views.iter().filter(move |view| !is_loaded(view));
        unloaded.map(|view| &view.name)
    }

    fn finish(self, first: bool, covered: Vec<Covered>, round: Round, draft: Draft) -> Page {
        // The last page of a longer round is not complete, because the earlier pages show an older instant.
        let loading = self.is_loading();
        let complete = first && !draft.more && !loading;
        let settled = complete
            || if draft.more {
                self.base.settled
            } else {
                self.is_settled()
            };
        let unloaded: Vec<String> = self.unloaded().map(ToString::to_string).collect();
        let mut seen = self.base.seen.clone();
        for (partition, state) in &self.partitions {
            let seen = seen.entry(*partition).or_insert(-1);
            *seen = (*seen).max(state.end_marker);
        }
        let mut cursor = Cursor {
            seen,
            complete,
            settled,
            round: None,
            ..self.base
        };
        if draft.more {
            cursor.round = Some(Round {
                covered,
                at: draft.last,
                ..round
            });
        } else {
            cursor.points = round.points;
            cursor.covered = covered;
        }
        let hashes = if complete {
            hashes(&self.partitions, self.request.readable, &draft)
        } else {
            Vec::new()
        };
        let mut stale: Vec<String> = self
            .partitions
            .values()
            .flat_map(|s| s.stale.iter().map(|(view, _)| view.clone()))
            .chain(unloaded)
            .collect();
        stale.sort_unstable();
        stale.dedup();
        let Draft {
            drops, resets, changes, ..
        } = draft;
        Page {
            reset_all: self.reset_all,
            drops,
            resets,
            changes,
            stale,
            hashes,
            cursor,
            complete,
            loading: loading && !draft.more,
        }
    }

    /// Adds the changes of a covered bucket after the position where the last page of the round ended.
    fn add_bucket(&self, bucket: &Bucket, round: &Round, draft: &mut Draft) -> Result<(), Error> {
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
        // Also if the bucket was read from another partition, because its scope has changed.
        let new = self.base.covered.binary_search(&Covered::of(bucket)).is_err();
        let none = Point {
            end_marker: -1,
            low: 0,
            time: 0,
        };
        let known = if new {
            none
        } else {
            self.base.points.get(&bucket.partition).copied().unwrap_or(none)
        };
        if new && after < -1 {
            if self.full(draft) {
                draft.more = true;
                return Ok(());
            }
            draft.resets.push((bucket.id, bucket.name.clone()));
            draft.last = RoundPosition {
                bucket: bucket.id,
                offset: -1,
            };
        }
        let partition = self.partitions.get(&bucket.partition);
        let state = partition.and_then(|s| s.buckets.get(&bucket.id));
        // Makes an idle poll cheap: if no marker changed the bucket since the cursor's T, the store is not read. If the
        // stored bucket has a different name, the ids collide and the bucket's rows are not shown.
        if state.is_none_or(|s| *s.name != *bucket.name || s.changed <= known.end_marker) {
            return Ok(());
        }
        // Starts at `low` and not at T + 1, because a row that was pending at T has an offset below T. Ends at T of the
        // round by the row's own offset, because another replica may know a later marker for the same row (I2).
        let from = known.low.max(after.saturating_add(1)).max(0);
        let wanted = |row: &RowValue<'_>| {
            if new {
                row.json.is_some()
            } else {
                row.end_marker > known.end_marker
            }
        };
        self.scan(bucket, from..=point.end_marker, wanted, draft)
    }

    /// Adds the wanted rows of a bucket in offset order until the page is full.
    fn scan(
        &self,
        bucket: &Bucket,
        offsets: RangeInclusive<Offset>,
        wanted: impl Fn(&RowValue<'_>) -> bool,
        draft: &mut Draft,
    ) -> Result<(), Error> {
        let (from, to) = row_range(bucket.partition, bucket.id, *offsets.start(), *offsets.end());
        self.replica.store().scan(
            space::ROWS,
            state_store::KeyRange::new(&from, Some(&to)),
            state_store::Direction::Forward,
            &mut |key, value| {
                if !decode_row(value).is_some_and(|row| wanted(&row)) {
                    return ControlFlow::Continue(());
                }
                if self.full(draft) {
                    draft.more = true;
                    return ControlFlow::Break(());
                }
                if let Some(change) = Change::from_store(key, value) {
                    draft.bytes += value.len();
                    draft.last = RoundPosition {
                        bucket: bucket.id,
                        offset: change.offset,
                    };
                    draft.changes.push(change);
                }
                ControlFlow::Continue(())
            },
        )?;
        Ok(())
    }

    fn full(&self, draft: &Draft) -> bool {
        let count = draft.resets.len() + draft.changes.len();
        count > 0 && (count >= self.request.rows_max || draft.bytes >= self.request.bytes_max)
    }
}

/// Hashes of the buckets that a complete page changed.
fn hashes(partitions: &LockedPartitions<'_>, readable: &[Bucket], draft: &Draft) -> Vec<(BucketId, u128)> {
    let mut ids: Vec<BucketId> = draft.changes.iter().map(|c| c.bucket).collect();
    ids.extend(draft.resets.iter().map(|(id, _)| *id));
    ids.sort_unstable();
    ids.dedup();
    let hash = |id: &BucketId| {
        let bucket = readable.iter().find(|b| b.id == *id)?;
        let state = partitions.get(&bucket.partition)?.buckets.get(id);
        Some((*id, state.map_or(0, |s| s.hash)))
    };
    ids.iter().filter_map(hash).collect()
}
