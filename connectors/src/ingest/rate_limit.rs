//! Limits the requests of a credential per second (generic cell rate algorithm).

use serde::Deserialize;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The rate that a credential may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Requests per second in the long run.
    pub requests_per_s: NonZeroU32,
    /// Requests that are accepted at once after a pause. Default: as many as in a second.
    #[serde(default)]
    pub burst: Option<NonZeroU32>,
}

/// The requests of a credential.
#[derive(Debug, Default)]
pub(super) struct RateLimit {
    /// When the burst will be available completely again.
    full_at: Mutex<Option<Instant>>,
}

impl RateLimit {
    /// Counts a request.
    ///
    /// # Errors
    /// The request exceeds the rate; the duration after which the next request is accepted. It is not counted.
    pub(super) fn admit(&self, rate: Rate, now: Instant) -> Result<(), Duration> {
        let interval = Duration::from_secs(1) / rate.requests_per_s.get();
        let burst = interval * rate.burst.unwrap_or(rate.requests_per_s).get();
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let next = full_at.map_or(now, |at| at.max(now)) + interval;
        let excess = next.saturating_duration_since(now).saturating_sub(burst);
        if !excess.is_zero() {
            return Err(excess);
        }
        *full_at = Some(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(requests_per_s: u32, burst: Option<u32>) -> Rate {
        Rate {
            requests_per_s: NonZeroU32::new(requests_per_s).unwrap(),
            burst: burst.map(|burst| NonZeroU32::new(burst).unwrap()),
        }
    }

    #[test]
    fn burst_is_followed_by_the_rate() {
        let (limit, start) = (RateLimit::default(), Instant::now());
        let at = |ms| limit.admit(rate(10, Some(3)), start + Duration::from_millis(ms));
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!(at(0), Err(Duration::from_millis(100)));
        assert_eq!(at(99), Err(Duration::from_millis(1)));
        assert_eq!(at(100), Ok(()));
        assert_eq!(at(100), Err(Duration::from_millis(100)));
        // A pause of any length restores the burst, and not more.
        let accepted = (0..10).filter(|_| at(60_000).is_ok()).count();
        assert_eq!(accepted, 3);
    }

    #[test]
    fn default_burst_is_the_rate() {
        let (limit, now) = (RateLimit::default(), Instant::now());
        let accepted = (0..100).filter(|_| limit.admit(rate(20, None), now).is_ok()).count();
        assert_eq!(accepted, 20);
    }
}
