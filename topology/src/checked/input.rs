//! Inputs of views and processors, and their columns.

/// The input of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A table.
    Table {
        /// Index into `Topology::sources`.
        source: usize,
        /// Index into `Source::tables`.
        table: usize,
    },
    /// An event type: index into `Topology::events`. The view contains the newest event of each key.
    Event(usize),
    /// The output of a declarative processor: index into `Topology::processors`.
    Processor(usize),
}

/// A column of a table, or a field of an event type.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Declared type: a PostgreSQL type (`int8`, `numeric`), or the Avro type of a field of an event type.
    pub declared: String,
    /// Whether the column is nullable.
    pub nullable: bool,
}

/// What a connector publishes instead of the values of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Null.
    Null,
    /// A keyed hash (HMAC-SHA-256) of the value's text, in hexadecimal. Equal values have equal hashes.
    Hash,
    /// The first character of the value's text.
    Partial,
}
