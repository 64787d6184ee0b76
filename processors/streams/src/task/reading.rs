//! How the consumer reads the inputs of a task, and how often the task was paused or stopped without progress.

use std::time::Duration;

/// First and longest pause while the processor is not ready.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// First and longest delay until a stopped task retries. A broker that has just started does not know all topics for a
/// moment, so the first delay is short. Operators can resolve most other causes without a restart.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// State of reading the inputs.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub paused: bool,
    /// Whether the task stopped because an input could not be read.
    pub failed: bool,
    /// Reason of the last stop since the task processed a record.
    pub last_stop: Option<String>,
    /// Pauses since then, because the processor was not ready.
    pauses: u32,
    /// Stops since then.
    stops: u32,
}

impl Reading {
    /// The task has processed records.
    pub fn progressed(&mut self) {
        (self.pauses, self.stops, self.last_stop) = (0, 0, None);
    }

    /// Length of the next pause.
    pub fn next_pause(&mut self) -> Duration {
        next_delay(&mut self.pauses, PAUSE_MIN, PAUSE_MAX)
    }

    /// Delay until the task retries after the next stop.
    pub fn next_retry(&mut self) -> Duration {
        next_delay(&mut self.stops, RETRY_MIN, RETRY_MAX)
    }
}

/// Doubles with each attempt.
fn next_delay(attempts: &mut u32, min: Duration, max: Duration) -> Duration {
    let delay = min.saturating_mul(1 << (*attempts).min(10)).min(max);
    *attempts = attempts.saturating_add(1);
    delay
}
