//! Delays between the attempts of a connector.
//!
//! Only progress beyond the failed position resets the delay. Otherwise an error that recurs at one position would be
//! retried without delay indefinitely, because each attempt commits the records before that position.

use super::Position;
use service::backoff::Backoff;
use std::time::Duration;

/// Delays between attempts.
const FIRST: Duration = Duration::from_millis(100);
pub(super) const MAX: Duration = Duration::from_secs(10);

/// The attempts of one connector.
pub(super) struct Retry<P> {
    backoff: Backoff,
    /// Position that the current attempt has reached.
    at: Option<P>,
    /// The furthest position at which an attempt failed, until there is progress beyond it.
    failed_at: Option<P>,
}

impl<P: Position> Retry<P> {
    pub(super) fn new() -> Self {
        Retry {
            backoff: Backoff::new(FIRST, MAX),
            at: None,
            failed_at: None,
        }
    }

    /// Called when an attempt begins at a stored position.
    pub(super) fn begin(&mut self, at: Option<&P>) {
        self.at = at.cloned();
    }

    /// Called when a position was committed.
    pub(super) fn committed(&mut self, position: &P) {
        if self.failed_at.as_ref().is_none_or(|failed| position.is_beyond(failed)) {
            self.failed_at = None;
            self.backoff.reset();
        }
        self.at = Some(position.clone());
    }

    /// Called when the attempt failed; returns the delay before the next one.
    pub(super) fn failed(&mut self) -> Duration {
        if let Some(at) = self.at.take() {
            let further = self.failed_at.as_ref().is_none_or(|failed| at.is_beyond(failed));
            if further {
                self.failed_at = Some(at);
            }
        }
        self.backoff.next_delay()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Unreadable;
    use std::fmt;

    /// A test position: the progress.
    #[derive(Debug, Clone, PartialEq)]
    struct At(u64);

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
            self.0 > other.0
        }
    }

    #[test]
    fn delay_grows_until_there_is_progress_beyond_the_failed_position() {
        let mut retry = Retry::new();
        for _ in 0..30 {
            retry.begin(Some(&At(3)));
            // The records before the failing record are committed again at each attempt.
            retry.committed(&At(5));
            retry.failed();
        }
        let long = retry.failed();
        assert!(long > MAX / 3, "{long:?}");
        retry.begin(Some(&At(5)));
        retry.committed(&At(6));
        let short = retry.failed();
        assert!(short <= FIRST * 2, "{short:?}");
    }
}
