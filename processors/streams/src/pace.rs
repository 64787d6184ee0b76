//! When a thread commits: as soon as its input is drained, and never later than its caps.
//!
//! Every transaction leaves markers in the partitions that it touched, so above 1,000 records a second a thread
//! commits at most 50 times a second, unless a cap says otherwise.
//!
//! Guarantees: pure; the same calls give the same answers.
//! Never: a clock of its own. Times are durations since any fixed moment.

use std::time::Duration;

/// Records a second from which on commits are limited.
const BUSY_RECORDS_PER_SECOND: f64 = 1000.0;
/// The least time between two commits of a busy thread: 50 a second.
const BUSY_GAP: Duration = Duration::from_millis(20);
/// How quickly the measured rate forgets.
const RATE_HALF_LIFE: Duration = Duration::from_millis(500);
/// A transaction that holds back readers of `view.log` is committed at this age, so that it is open for at most 50 ms.
const VIEW_LOG_AGE: Duration = Duration::from_millis(40);

/// The caps of a thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caps {
    pub interval: Duration,
    pub bytes: usize,
}

impl Caps {
    pub(crate) fn new(interval: Duration, bytes: usize, touches_view_log: bool) -> Self {
        let interval = if touches_view_log {
            interval.min(VIEW_LOG_AGE)
        } else {
            interval
        };
        Caps { interval, bytes }
    }
}

/// What to do about the uncommitted work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// There is none.
    Nothing,
    /// Commit now.
    Commit,
    /// Read on, and wait at most so long for more.
    ReadOn(Duration),
}

/// The pace of one thread.
#[derive(Debug)]
pub(crate) struct Pace {
    caps: Caps,
    /// Decayed count of records and the time to which it is decayed.
    records: f64,
    counted_at: Duration,
    last_commit: Option<Duration>,
    first_uncommitted: Option<Duration>,
    bytes: usize,
}

impl Pace {
    pub(crate) fn new(caps: Caps) -> Self {
        Pace {
            caps,
            records: 0.0,
            counted_at: Duration::ZERO,
            last_commit: None,
            first_uncommitted: None,
            bytes: 0,
        }
    }

    /// Some records were processed and left so many bytes of output sent.
    pub(crate) fn worked(&mut self, now: Duration, records: usize, sent_bytes: usize) {
        self.decay(now);
        self.records += f64::from(u32::try_from(records).unwrap_or(u32::MAX));
        self.first_uncommitted.get_or_insert(now);
        self.bytes += sent_bytes;
    }

    /// Everything was committed, or dropped.
    pub(crate) fn settled(&mut self, now: Duration) {
        self.last_commit = Some(now);
        self.first_uncommitted = None;
        self.bytes = 0;
    }

    /// What to do now. `state_bytes` are those of changed state; `drained` says that the last read found nothing.
    pub(crate) fn advise(&mut self, now: Duration, state_bytes: usize, drained: bool) -> Advice {
        let Some(first) = self.first_uncommitted else {
            return Advice::Nothing;
        };
        let left = self.caps.interval.saturating_sub(now.saturating_sub(first));
        if left.is_zero() || self.bytes + state_bytes >= self.caps.bytes {
            return Advice::Commit;
        }
        if !drained {
            return Advice::ReadOn(Duration::ZERO);
        }
        self.decay(now);
        let gap = self.last_commit.map_or(Duration::MAX, |last| now.saturating_sub(last));
        if self.rate() <= BUSY_RECORDS_PER_SECOND || gap >= BUSY_GAP {
            Advice::Commit
        } else {
            Advice::ReadOn(left.min(BUSY_GAP.saturating_sub(gap)))
        }
    }

    /// Records a second: a decayed count has a weight of half-life / ln 2.
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
        Pace::new(Caps::new(ms(100), 1000, touches_view_log))
    }

    #[test]
    fn nothing_uncommitted_is_nothing_to_do() {
        assert_eq!(pace(false).advise(ms(0), 0, true), Advice::Nothing);
    }

    #[test]
    fn a_quiet_thread_commits_as_soon_as_its_input_is_drained() {
        let mut pace = pace(false);
        for i in 0..100 {
            let now = ms(5 * i);
            pace.worked(now, 1, 10);
            assert_eq!(pace.advise(now, 0, false), Advice::ReadOn(ms(0)));
            assert_eq!(pace.advise(now, 0, true), Advice::Commit);
            pace.settled(now);
        }
    }

    #[test]
    fn a_busy_thread_commits_at_most_fifty_times_a_second() {
        let mut pace = pace(false);
        let mut commits = 0;
        for i in 0..2000 {
            let now = ms(i);
            pace.worked(now, 5, 0);
            if pace.advise(now, 0, true) == Advice::Commit {
                pace.settled(now);
                commits += u32::from(i >= 1000);
            }
        }
        assert!((45..=50).contains(&commits), "{commits}");
    }

    #[test]
    fn caps_force_a_commit_even_when_more_input_waits() {
        let mut pace = pace(false);
        pace.worked(ms(0), 1, 400);
        assert_eq!(pace.advise(ms(1), 599, false), Advice::ReadOn(ms(0)));
        assert_eq!(pace.advise(ms(1), 600, false), Advice::Commit);
        assert_eq!(pace.advise(ms(100), 0, false), Advice::Commit);
    }

    #[test]
    fn a_transaction_on_the_view_log_is_committed_before_50_ms() {
        let mut pace = pace(true);
        pace.worked(ms(0), 1, 0);
        assert_eq!(pace.advise(ms(39), 0, false), Advice::ReadOn(ms(0)));
        assert_eq!(pace.advise(ms(40), 0, false), Advice::Commit);
    }
}
