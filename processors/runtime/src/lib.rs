//! The stream runtime: what a processor is, and the threads that run it exactly once.
//!
//! A processor is a value with a `step`; the runtime gives it batches of its inputs, a state that survives crashes,
//! and a place for what it wants to say. Outputs, state, markers and consumed offsets are committed in one
//! transaction of the log; the store on disk is never ahead of the log, only behind, and is never wiped.
//!
//! Guarantees: read_committed output equals one sequential run over each task's inputs.
//! Never: IO, a clock or async inside `step`; a second way to commit or to recover.

mod effects;
mod error;
mod processor;
mod state;

pub use effects::Effects;
pub use error::{Error, Result};
pub use processor::{Context, Processor, Stage};
pub use state::State;
