//! Code that sync views and the declarative processors share: it reads change records, the state keys of rows, and the
//! schemas with which records were written.

mod change;
mod chunk;
pub mod keys;
mod schema;
mod sweep;

pub use change::{Change, ChangeRecord, KeyChange, Kind, Replayed, dead_letter_offset, row_of, table_of};
pub use chunk::KeySpan;
pub use schema::{BoundSchemas, FetchSchema, Unavailable, patient, schema_id};
pub use sweep::{StepLimits, Sweep, find};
