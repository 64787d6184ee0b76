//! Code that sync views and the declarative processors share: it reads change records, the state keys of rows, and the
//! schemas with which records were written, and it runs durable jobs.

mod change;
mod chunk;
mod jobs;
pub mod keys;
mod loaded;
mod schema;
mod sweep;

pub use change::{
    Change, ChangeRecord, KeyChange, Kind, Replayed, dead_letter_offset, is_redriven_for_another, row_of,
    swept_table_of, table_of, tx_of,
};
pub use chunk::KeySpan;
pub use jobs::{AfterRejection, Job, JobError, JobQueue};
pub use loaded::{LoadedMark, LoadedWriters};
pub use schema::{BoundSchemas, FetchSchema, Unavailable, patient, schema_id};
pub use sweep::{Found, StepLimits, Sweep, find};
