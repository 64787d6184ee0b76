//! What sync views and the declarative processors share: reading change records, the state keys of rows, and the
//! schemas that records were written with.

mod change;
pub mod keys;
mod schema;

pub use change::{Change, ChangeRecord, ChunkEnd, KeyChange, Kind, Replayed, row_of, table_of};
pub use schema::{FetchSchema, Unavailable, schema_id};
