//! The stream runtime: what a processor is, and the threads that run it exactly once.
//!
//! A processor is a value with a `step`; the runtime gives it batches of its inputs, a state that survives crashes,
//! and a place for what it wants to say. Outputs, state, markers and consumed offsets are committed in one
//! transaction of the log; the store on disk is never ahead of the log, only behind, and is never wiped.
//!
//! Guarantees: read_committed output equals one sequential run over each task's inputs.
//! Never: IO, a clock or async inside `step`; a second way to commit or to recover.

mod app;
mod checkpoint;
mod clock;
mod commit_record;
pub mod driver;
mod error;
pub mod members;
mod metrics;
pub mod offsets;
mod output;
mod pace;
mod plan;
mod processor;
pub mod query;
mod recovery;
mod restore;
mod run;
mod sample;
mod standby;
mod state;
mod status;
mod stores;
mod task;
mod thread;
mod timer;
mod writer;

pub use app::{
    Application, Config, Factory, FirstStart, InputTopic, ProcessingGuarantee, SubTopology, TaskId, TaskInfo,
    changelog_topic, dead_letter_topic,
};
pub use checkpoint::{Checkpoint, Origin};
pub use clock::{Clock, ProcessClock};
pub use commit_record::{CHANGELOG_VERSION, COMMIT_RECORD_KEY, CommitRecord, FormatError};
pub use error::{Error, Result};
pub use output::Output;
pub use processor::{Context, Processor, Stage};
pub use query::Handle;
pub use run::run;
pub use state::State;
pub use stores::{Directory, StoreName, Stores};
pub use timer::{Timer, TimerClock};
