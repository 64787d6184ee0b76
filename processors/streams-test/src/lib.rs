//! Test kit of stream processors and of the stream runtime itself. Only a dev-dependency.
//!
//! - [`StepDriver`] tests the output and the state of a processor for given records.
//! - [`TopologyDriver`] tests that an application's output is the same after crashes, lost disks and rebalances.
//! - [`ThreadDriver`] runs one stream thread over the test's own log, clock and stores.
//! - [`FaultyLog`] is a log with requested and random faults, for the drivers.
//! - [`simulation`] runs processes over a simulated Kafka that loses, delays and expires data.
//!
//! All except the first run production code, including the commit protocol. Nothing sleeps, and only the simulation
//! starts threads. This crate also contains the tests of `processors/streams` that need a driver. A unit test of a
//! crate cannot use another crate that depends on it, because the types of the two builds differ.

mod faulty_log;
mod log;
pub mod simulation;
mod step;
mod topology;

pub use faulty_log::{CommitFault, Faults, FaultyLog, ReadError};
pub use log::OutputRecord;
pub use step::{StepDriver, Written, record, records, written};
pub use streams::testing::{Environment, ThreadDriver};
pub use topology::{DriverError, FIRST, Moment, START, TopologyDriver};

#[cfg(test)]
mod tests;
