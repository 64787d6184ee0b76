//! What the commands make of their measurements, the same way in each.

use std::time::Duration;

/// Rows a second.
#[expect(clippy::as_conversions, reason = "a figure for people")]
pub fn rate(rows: usize, elapsed: Duration) -> f64 {
    rows as f64 / elapsed.as_secs_f64()
}

/// Times, in order.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn new(mut all: Vec<Duration>) -> Times {
        all.sort_unstable();
        Times(all)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The time that so many in a thousand do not exceed; zero when there is none.
    pub fn at(&self, per_mille: usize) -> Duration {
        self.0.get(self.0.len() * per_mille / 1000).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}
