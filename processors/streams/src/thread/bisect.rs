//! Poison-record isolation by bisection (C13), for records and for timers.

pub(crate) mod records;
pub(crate) mod timers;
