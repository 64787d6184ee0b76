//! Time, injected.
use log::Millis;
use std::time::Duration;

/// Time as the runtime sees it.
pub trait Clock: Send + Sync {
    /// Now, in ms since the Unix epoch.
    fn now(&self) -> Millis;
    /// Time since a fixed moment, never going back.
    fn elapsed(&self) -> Duration;
}
