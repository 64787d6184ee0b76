//! Retries of a connector: delays between attempts, and the maximum number of failed snapshots.
//!
//! Only progress beyond the failed position resets the delay. Otherwise an error that recurs at one position would be
//! retried without delay indefinitely, because each attempt commits the records before that position. A failed snapshot
//! restarts from its beginning and is published again, so the number of these attempts is limited.

use super::Position;
use service::backoff::Backoff;
use std::time::Duration;

/// Delays between attempts.
const FIRST: Duration = Duration::from_millis(100);
pub(super) const MAX: Duration = Duration::from_secs(10);
/// Delay after the first failed snapshot; doubled after each further failure.
const SNAPSHOT_FIRST: Duration = Duration::from_secs(1);
const SNAPSHOT_MAX: Duration = Duration::from_mins(10);
/// Number of consecutive failed snapshots after which a connector stops until an operator requests a new attempt.
pub(super) const SNAPSHOTS_MAX: u32 = 10;

/// The attempts of one connector.
pub(super) struct Retry<P> {
    backoff: Backoff,
    /// Position at which the current attempt started.
    at: Option<P>,
    /// The furthest position at which an attempt failed, until there is progress beyond it.
    failed_at: Option<P>,
    /// Whether the current attempt has committed records.
    published: bool,
    snapshots_failed: u32,
}

/// Action after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after this delay.
    After(Duration),
    /// Wait for an operator, because the snapshot failed too often.
    Operator,
}

impl<P: Position> Retry<P> {
    pub(super) fn new() -> Self {
        Retry {
            backoff: Backoff::new(FIRST, MAX),
            at: None,
            failed_at: None,
            published: false,
            snapshots_failed: 0,
        }
    }

    /// Called when an attempt begins at a stored position.
    pub(super) fn begin(&mut self, at: Option<&P>) {
        self.at = at.cloned();
        self.published = false;
    }

    /// Called when a position was committed, with or without records. An announced snapshot has a position but no records,
    /// so if the slot cannot be created, nothing is published again.
    pub(super) fn committed(&mut self, position: &P, has_records: bool) {
        self.published |= has_records;
        if self.failed_at.as_ref().is_none_or(|failed| position.is_beyond(failed)) {
            self.failed_at = None;
            self.snapshots_failed = 0;
            self.backoff.reset();
        }
        self.at = Some(position.clone());
    }

    /// Called when the attempt failed; returns what to do next.
    pub(super) fn failed(&mut self) -> Next {
        let in_snapshot = self.at.as_ref().is_some_and(P::is_unfinished_snapshot);
        if let Some(at) = self.at.take() {
            let further = self.failed_at.as_ref().is_none_or(|failed| at.is_beyond(failed));
            if further {
                self.failed_at = Some(at);
            }
        }
        let delay = self.backoff.next_delay();
        if !in_snapshot || !self.published {
            return Next::After(delay);
        }
        self.snapshots_failed += 1;
        if self.snapshots_failed >= SNAPSHOTS_MAX {
            self.snapshots_failed = 0;
            return Next::Operator;
        }
        let doubled = SNAPSHOT_FIRST.saturating_mul(1 << (self.snapshots_failed - 1).min(16));
        Next::After(delay.max(doubled.min(SNAPSHOT_MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Unreadable;
    use std::fmt;

    /// A test position: whether the snapshot is finished, and the progress.
    #[derive(Debug, Clone, PartialEq)]
    struct At(bool, u64);

    impl fmt::Display for At {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{self:?}")
        }
    }

    impl Position for At {
        fn to_json(&self) -> String {
            String::new()
        }
        fn complete(&self) -> String {
            String::new()
        }
        fn from_json(_: &str, _: Option<&str>) -> Result<Self, Unreadable> {
            Err(Unreadable::StartOver(String::new()))
        }
        fn is_beyond(&self, other: &Self) -> bool {
            self.0 && (!other.0 || self.1 > other.1)
        }
        fn is_unfinished_snapshot(&self) -> bool {
            !self.0
        }
    }

    fn delay(next: Next) -> Duration {
        match next {
            Next::After(delay) => delay,
            Next::Operator => panic!("stopped"),
        }
    }

    #[test]
    fn delay_grows_until_there_is_progress_beyond_the_failed_position() {
        let mut retry = Retry::new();
        for _ in 0..30 {
            retry.begin(Some(&At(true, 3)));
            // The records before the failing record are committed again at each attempt.
            retry.committed(&At(true, 5), true);
            delay(retry.failed());
        }
        let long = delay(retry.failed());
        assert!(long > MAX / 3, "{long:?}");
        retry.begin(Some(&At(true, 5)));
        retry.committed(&At(true, 6), true);
        let short = delay(retry.failed());
        assert!(short <= FIRST * 2, "{short:?}");
    }

    #[test]
    fn snapshots_that_fail_are_limited() {
        let mut retry = Retry::new();
        let mut total = Duration::ZERO;
        for n in 1..=SNAPSHOTS_MAX {
            retry.begin(None);
            retry.committed(&At(false, u64::from(n)), true);
            match retry.failed() {
                Next::After(delay) => total += delay,
                Next::Operator => {
                    assert_eq!(n, SNAPSHOTS_MAX);
                    assert!(total > Duration::from_mins(5), "{total:?}");
                    return;
                }
            }
        }
        panic!("never stopped");
    }

    #[test]
    fn snapshot_that_published_nothing_does_not_count() {
        let mut retry = Retry::new();
        for _ in 0..3 * SNAPSHOTS_MAX {
            retry.begin(Some(&At(false, 1)));
            // The announcement of the snapshot.
            retry.committed(&At(false, 1), false);
            delay(retry.failed());
        }
    }
}
