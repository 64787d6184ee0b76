//! Decides when a thread commits: as soon as its input is drained, and no later than its limits.
//!
//! Each transaction leaves a control record in every partition to which it wrote. A thread that processes more than
//! 1,000 records a second therefore commits at most 50 times a second unless a limit is reached. The code is pure:
//! times are passed in, as durations since a fixed instant.

use std::time::Duration;

/// Rate in records per second above which commits are limited.
const BUSY_RECORDS_PER_SECOND: f64 = 1000.0;
/// Minimum time between two commits of a busy thread.
const BUSY_GAP: Duration = Duration::from_millis(20);
/// Half-life of the measured rate.
const RATE_HALF_LIFE: Duration = Duration::from_millis(500);
/// Maximum age of a transaction that writes `view.log`, because it holds back readers. The commit itself takes up to 10 ms
/// more.
const VIEW_LOG_AGE: Duration = Duration::from_millis(40);

/// Limits of a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub interval: Duration,
    pub bytes: usize,
}

impl Limits {
    pub(crate) fn new(interval: Duration, bytes: usize, touches_view_log: bool) -> Self {
        let interval = if touches_view_log {
            interval.min(VIEW_LOG_AGE)
        } else {
            interval
        };
        Limits { interval, bytes }
    }
}

/// What to do with uncommitted work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// There is no uncommitted work.
    Nothing,
    /// Commit now.
    Commit,
    /// Read more input, waiting up to this long.
    Read(Duration),
}

/// Commit pacing of one thread.
#[derive(Debug)]
pub(crate) struct Pace {
    limits: Limits,
    /// Decayed count of records, as of `counted_at`.
    records: f64,
    counted_at: Duration,
    last_commit: Option<Duration>,
    first_uncommitted: Option<Duration>,
    bytes: usize,
}

impl Pace {
    pub(crate) fn new(limits: Limits) -> Self {
        Pace {
            limits,
            records: 0.0,
            counted_at: Duration::ZERO,
            last_commit: None,
            first_uncommitted: None,
            bytes: 0,
        }
    }

    /// Records that input was processed and bytes of output were sent.
    pub(crate) fn processed(&mut self, now: Duration, records: usize, sent_bytes: usize) {
        self.decay(now);
        self.records += f64::from(u32::try_from(records).unwrap_or(u32::MAX));
        self.first_uncommitted.get_or_insert(now);
        self.bytes += sent_bytes;
    }

    /// Records that nothing is uncommitted, after a commit or a rollback.
    pub(crate) fn reset(&mut self, now: Duration) {
        self.last_commit = Some(now);
        self.first_uncommitted = None;
        self.bytes = 0;
    }

    /// Decides what to do now. `state_bytes` is the size of changed state; `drained` is whether the last read found no records.
    pub(crate) fn advise(&mut self, now: Duration, state_bytes: usize, drained: bool) -> Advice {
        let Some(first) = self.first_uncommitted else {
            return Advice::Nothing;
        };
        let left = self.limits.interval.saturating_sub(now.saturating_sub(first));
        if left.is_zero() || self.bytes + state_bytes >= self.limits.bytes {
            return Advice::Commit;
        }
        if !drained {
            return Advice::Read(Duration::ZERO);
        }
        self.decay(now);
        let gap = self.last_commit.map_or(Duration::MAX, |last| now.saturating_sub(last));
        if self.rate() <= BUSY_RECORDS_PER_SECOND || gap >= BUSY_GAP {
            Advice::Commit
        } else {
            Advice::Read(left.min(BUSY_GAP.saturating_sub(gap)))
        }
    }

    /// Records per second: the exponentially decayed count divided by half-life / ln 2, the length of the corresponding
    /// window.
    fn rate(&self) -> f64 {
        self.records * std::f64::consts::LN_2 / RATE_HALF_LIFE.as_secs_f64()
    }

    fn decay(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.counted_at).as_secs_f64() / RATE_HALF_LIFE.as_secs_f64();
        self.records *= 0.5_f64.powf(passed);
        self.counted_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn pace(touches_view_log: bool) -> Pace {
        Pace::new(Limits::new(ms(100), 1000, touches_view_log))
    }

    #[test]
    fn no_uncommitted_work_needs_nothing() {
        assert_eq!(pace(false).advise(ms(0), 0, true), Advice::Nothing);
    }

    #[test]
    fn quiet_thread_commits_when_drained() {
        let mut pace = pace(false);
        for i in 0..100 {
            let now = ms(5 * i);
            pace.processed(now, 1, 10);
            assert_eq!(pace.advise(now, 0, false), Advice::Read(ms(0)));
            assert_eq!(pace.advise(now, 0, true), Advice::Commit);
            pace.reset(now);
        }
    }

    #[test]
    fn busy_thread_commits_at_most_50_times_a_second() {
        let mut pace = pace(false);
        let mut commits = 0;
        for i in 0..2000 {
            let now = ms(i);
            pace.processed(now, 5, 0);
            if pace.advise(now, 0, true) == Advice::Commit {
                pace.reset(now);
                commits += u32::from(i >= 1000);
            }
        }
        assert!((45..=50).contains(&commits), "{commits}");
    }

    #[test]
    fn limits_force_a_commit_before_the_input_is_drained() {
        let mut pace = pace(false);
        pace.processed(ms(0), 1, 400);
        assert_eq!(pace.advise(ms(1), 599, false), Advice::Read(ms(0)));
        assert_eq!(pace.advise(ms(1), 600, false), Advice::Commit);
        assert_eq!(pace.advise(ms(100), 0, false), Advice::Commit);
    }

    #[test]
    fn view_log_transaction_is_committed_after_40_ms() {
        let mut pace = pace(true);
        pace.processed(ms(0), 1, 0);
        assert_eq!(pace.advise(ms(39), 0, false), Advice::Read(ms(0)));
        assert_eq!(pace.advise(ms(40), 0, false), Advice::Commit);
    }
}
