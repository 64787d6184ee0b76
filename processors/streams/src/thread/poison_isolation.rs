//! Poison-record isolation by bisection (C13), for records and for timers.

pub(crate) mod record_bisection;
pub(crate) mod timer_bisection;
