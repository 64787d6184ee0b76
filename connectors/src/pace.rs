//! How often to commit.
//!
//! Guarantees: at low load nothing is delayed; under load there are at most about 50 transactions a second.
//! Never: a wait of its own.

use std::time::{Duration, Instant};

/// Records a second from which commits are paced: every transaction leaves markers on the topics that it touches.
const PACED_FROM_PER_SECOND: f64 = 1_000.0;
const INTERVAL: Duration = Duration::from_millis(20);

/// Paces commits by the recent rate.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<Instant>,
    per_second: f64,
}

impl Pace {
    /// How long to gather on before the next commit; zero at low load.
    pub(crate) fn left(&self) -> Duration {
        match self.last {
            Some(last) if self.per_second > PACED_FROM_PER_SECOND => INTERVAL.saturating_sub(last.elapsed()),
            _ => Duration::ZERO,
        }
    }

    /// Notes a commit.
    pub(crate) fn committed(&mut self, records: usize) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let seconds = (now - last).as_secs_f64().max(1e-6);
            let records = u32::try_from(records).map_or(f64::MAX, f64::from);
            // The weight of the past falls to half in about a third of a second, whatever the interval.
            let keep = (-2.0 * seconds).exp();
            self.per_second = self.per_second * keep + (records / seconds) * (1.0 - keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_delayed_at_low_load() {
        let mut pace = Pace::default();
        assert_eq!(pace.left(), Duration::ZERO);
        pace.committed(1);
        assert_eq!(pace.left(), Duration::ZERO);
        pace.per_second = 10.0 * PACED_FROM_PER_SECOND;
        assert!(pace.left() > Duration::ZERO);
    }
}
