//! Tests of the stream runtime with the drivers of this crate.

mod at_least_once;
mod scenarios;
mod timers;
