//! Limits the commit rate: commits immediately at low load, and at most about 50 times per second at high load.

use std::time::{Duration, Instant};

/// Rate in records per second above which the commit rate is limited. Each transaction writes a control record to every
/// partition to which it writes, so many small transactions enlarge the topics.
const PACED_FROM_PER_SECOND: f64 = 1_000.0;
const INTERVAL: Duration = Duration::from_millis(20);

/// Limits the commit rate, based on the recent record rate.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<Instant>,
    per_second: f64,
}

impl Pace {
    /// How much longer to collect records before the next commit; zero at low load.
    pub(crate) fn left(&self) -> Duration {
        match self.last {
            Some(last) if self.per_second > PACED_FROM_PER_SECOND => INTERVAL.saturating_sub(last.elapsed()),
            _ => Duration::ZERO,
        }
    }

    /// Updates the rate after a commit of this many records.
    pub(crate) fn committed(&mut self, records: usize) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let seconds = (now - last).as_secs_f64().max(1e-6);
            let records = u32::try_from(records).map_or(f64::MAX, f64::from);
            // Exponentially weighted average with a half-life of about a third of a second, independent of the interval.
            let keep = (-2.0 * seconds).exp();
            self.per_second = self.per_second * keep + (records / seconds) * (1.0 - keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_load_is_not_delayed() {
        let mut pace = Pace::default();
        assert_eq!(pace.left(), Duration::ZERO);
        pace.committed(1);
        assert_eq!(pace.left(), Duration::ZERO);
        pace.per_second = 10.0 * PACED_FROM_PER_SECOND;
        assert!(pace.left() > Duration::ZERO);
    }
}
