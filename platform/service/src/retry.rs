//! Repeats an operation until it succeeds, fails permanently or the process drains.
//!
//! The operation decides which failures are temporary, and reports them (log, readiness) itself. A loop whose attempts
//! differ uses [`Backoff`] directly.

use crate::Drain;
use crate::backoff::Backoff;
use std::time::Duration;

/// Delays between attempts. They double from `first` to `max`, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// First delay.
    pub first: Duration,
    /// Maximum delay.
    pub max: Duration,
}

impl RetryPolicy {
    /// Policy for the dependencies that a process needs to start: 200 ms to 5 s.
    pub const START: RetryPolicy = RetryPolicy {
        first: Duration::from_millis(200),
        max: Duration::from_secs(5),
    };

    /// The delays of one operation.
    pub fn backoff(self) -> Backoff {
        Backoff::new(self.first, self.max)
    }
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AttemptError<E> {
    /// The next attempt may succeed.
    Temporary,
    /// Every further attempt would fail.
    Permanent(E),
}

/// Repeats an operation in a task. `Ok(None)` if the drain starts before an attempt succeeds.
///
/// # Errors
/// The permanent error.
pub async fn retry<T, E, F: Future<Output = Result<T, AttemptError<E>>>>(
    policy: RetryPolicy,
    drain: &Drain,
    mut operation: impl FnMut() -> F,
) -> Result<Option<T>, E> {
    let mut backoff = policy.backoff();
    loop {
        match operation().await {
            Ok(value) => return Ok(Some(value)),
            Err(AttemptError::Permanent(error)) => return Err(error),
            Err(AttemptError::Temporary) if backoff.pause(drain).await => {}
            Err(AttemptError::Temporary) => return Ok(None),
        }
    }
}

/// Repeats a blocking operation on the calling thread. `Ok(None)` if the drain starts before an attempt succeeds.
///
/// # Errors
/// The permanent error.
pub fn retry_blocking<T, E>(
    policy: RetryPolicy,
    drain: &Drain,
    mut operation: impl FnMut() -> Result<T, AttemptError<E>>,
) -> Result<Option<T>, E> {
    let mut backoff = policy.backoff();
    loop {
        match operation() {
            Ok(value) => return Ok(Some(value)),
            Err(AttemptError::Permanent(error)) => return Err(error),
            Err(AttemptError::Temporary) if backoff.pause_blocking(drain) => {}
            Err(AttemptError::Temporary) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: RetryPolicy = RetryPolicy {
        first: Duration::from_micros(1),
        max: Duration::from_micros(10),
    };

    /// Fails temporarily `failures` times, then ends with `last`.
    fn attempts(
        failures: u32,
        last: Result<u32, &'static str>,
    ) -> impl FnMut() -> Result<u32, AttemptError<&'static str>> {
        let mut made = 0;
        move || {
            made += 1;
            match last {
                _ if made <= failures => Err(AttemptError::Temporary),
                Ok(_) => Ok(made),
                Err(error) => Err(AttemptError::Permanent(error)),
            }
        }
    }

    #[test]
    fn temporary_failures_are_retried_and_a_permanent_one_ends() {
        let drain = Drain::new();
        assert_eq!(retry_blocking(FAST, &drain, attempts(3, Ok(0))), Ok(Some(4)));
        assert_eq!(retry_blocking(FAST, &drain, attempts(2, Err("denied"))), Err("denied"));
    }

    #[test]
    fn drain_ends_the_attempts() {
        let drain = Drain::new();
        drain.start();
        assert_eq!(retry_blocking(FAST, &drain, attempts(1, Ok(0))), Ok(None));
        assert_eq!(
            retry_blocking(FAST, &drain, attempts(0, Ok(0))),
            Ok(Some(1)),
            "one attempt is always made"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_retry_in_the_same_way() {
        let drain = Drain::new();
        let mut next = attempts(3, Ok(0));
        assert_eq!(
            retry(RetryPolicy::START, &drain, || std::future::ready(next())).await,
            Ok(Some(4))
        );
        let mut next = attempts(0, Err("denied"));
        assert_eq!(
            retry(RetryPolicy::START, &drain, || std::future::ready(next())).await,
            Err("denied")
        );
        drain.start();
        let mut next = attempts(1, Ok(0));
        assert_eq!(
            retry(RetryPolicy::START, &drain, || std::future::ready(next())).await,
            Ok(None)
        );
    }
}
