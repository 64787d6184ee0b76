//! Checks of a single page against its request.

use super::{BUCKETS, HORIZON, bucket_of, partition_of};
use event_log::Millis;
use std::collections::BTreeSet;
use views::cursor::{Covered, Cursor};
use views::{BucketId, Page};

pub type CheckResult<T = ()> = Result<T, String>;

pub fn id(bucket: char) -> BucketId {
    BucketId::of(&bucket_of(bucket))
}

pub fn check(holds: bool, violation: impl FnOnce() -> String) -> CheckResult {
    if holds { Ok(()) } else { Err(violation()) }
}

/// Invariants I5, I9 and I11: a page has no unreadable bucket and no row twice, and resets everything exactly if the
/// cursor is beyond the horizon or not the device's own. It resets the buckets that came from another partition.
pub fn check_page(page: &Page, cursor: Option<&Cursor>, claims: &str, now: Millis) -> CheckResult {
    let may: BTreeSet<BucketId> = claims.chars().map(id).collect();
    let named = page.resets.iter().map(|r| r.0);
    let mut named = named.chain(page.changes.iter().map(|c| c.bucket));
    check(named.all(|b| may.contains(&b)), || {
        "I5: a page contains an unreadable bucket".to_owned()
    })?;
    let mut seen = BTreeSet::new();
    let fresh = |c: &views::Change| seen.insert((c.bucket, c.parts().view.to_owned(), c.parts().key.to_owned()));
    let once = page.changes.iter().all(fresh);
    check(once, || "I11: a page contains a row twice".to_owned())?;
    let is_moved = |c: &&Covered| {
        BUCKETS
            .iter()
            .any(|b| id(*b) == c.id && partition_of(*b) != c.partition)
    };
    let covered = cursor
        .iter()
        .filter(|c| c.round.is_none() && page.complete)
        .flat_map(|c| &c.covered);
    let mut moved = covered.filter(is_moved).filter(|c| may.contains(&c.id));
    check(moved.all(|c| page.resets.iter().any(|(b, _)| *b == c.id)), || {
        "I2: a bucket of another scope is not read again".to_owned()
    })?;
    let old = cursor.is_none_or(|c| oldest(c) < now - HORIZON);
    check(page.reset_all == old, || {
        format!(
            "I9, I11: reset_all is {}, but the cursor is unusable or beyond the horizon: {old}",
            page.reset_all
        )
    })
}

/// The oldest time in a cursor: of its base and of its round.
pub fn oldest(cursor: &Cursor) -> Millis {
    let round = cursor.round.iter().flat_map(|r| r.points.values());
    let times = cursor.points.values().chain(round).map(|p| p.time);
    times.min().unwrap_or(Millis::MAX)
}
