//! Checked declarative processors: inputs, computation and output.
//!
//! Expressions are compiled for rows that contain only the used columns, in the order of [`Feed::columns`], so that
//! other columns need not be decoded.

use super::input::{Column, Input};
use crate::expr::{Program, Scalar};
use crate::resource_names::Names;
use schemas::schema::Schema;
use std::sync::Arc;

/// A declarative processor.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Name of the processor.
    pub name: String,
    /// Columns of the output records, key columns first.
    pub columns: Vec<Column>,
    /// Key columns as indexes into `columns`.
    pub key: Vec<usize>,
    /// Avro schema of its records.
    pub schema: Arc<Schema>,
    /// Number of partitions of the output topic.
    pub partitions: i32,
    /// Meaning of its records.
    pub output: OutputKind,
    /// The computation.
    pub work: Work,
    /// Canonical text of the parts of the declaration that determine the contents of the state.
    pub declaration: String,
}

impl Processor {
    /// The inputs with their sides.
    pub fn feeds(&self) -> Vec<(Side, &Feed)> {
        match &self.work {
            Work::Aggregate(aggregate) => vec![(Side::Left, &aggregate.feed)],
            Work::Join(join) => vec![(Side::Left, &join.left), (Side::Right, &join.right)],
        }
    }

    /// Name of the store that contains the groups or pairs.
    pub fn store(&self) -> &'static str {
        match self.work {
            Work::Aggregate(_) => "groups",
            Work::Join(_) => "pairs",
        }
    }

    /// Name of the store of the sub-topology that repartitions a side.
    pub fn repartition_store(&self, side: Side) -> &'static str {
        match (&self.work, side) {
            (Work::Aggregate(_), _) => "repartition",
            (Work::Join(_), Side::Left) => "repartition.left",
            (Work::Join(_), Side::Right) => "repartition.right",
        }
    }

    /// Repartition topic of a side.
    pub fn repartition_topic(&self, names: &Names, side: Side) -> String {
        match self.work {
            Work::Aggregate(_) => names.repartition(&self.name),
            Work::Join(_) => names.repartition_side(&self.name, side.name()),
        }
    }
}

/// A side of a join. The only input of an aggregate is its left side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// `left`, or `from` of an aggregate.
    Left,
    /// `right`.
    Right,
}

impl Side {
    /// Name in a declaration of a join.
    pub fn name(self) -> &'static str {
        match self {
            Side::Left => "left",
            Side::Right => "right",
        }
    }
}

/// Meaning of the records of a processor's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Rows that are written and deleted by key; the topic is compacted.
    Table,
    /// Rows that are written repeatedly while their window is open; the topic has a retention time.
    Windows,
    /// Independent records; the topic has a retention time.
    Stream,
}

/// An input of a processor.
#[derive(Debug, Clone)]
pub struct Feed {
    /// The input.
    pub input: Input,
    /// Names of the used columns, in the order of the rows of expressions.
    pub columns: Vec<String>,
    /// Whether the input's records are changes of rows, rather than events.
    pub is_table: bool,
    /// Whether the key of the group or join is equal to the record key byte for byte (for tables, without the table
    /// name).
    pub is_keyed: bool,
    /// Whether the input is read directly, rather than through a repartition topic.
    pub is_direct: bool,
    /// Number of partitions of the topic that the processor's main sub-topology reads, which is the input or the
    /// repartition topic.
    pub partitions: i32,
}

/// The computation of a processor.
#[derive(Debug, Clone)]
pub enum Work {
    /// Aggregate functions over groups of rows.
    Aggregate(Aggregate),
    /// Join with a table.
    Join(Join),
}

/// An aggregate.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// The input of the aggregate.
    pub feed: Feed,
    /// Condition. `None`: all rows.
    pub filter: Option<Program>,
    /// Group expressions: the first columns of the output.
    pub group: Vec<Scalar>,
    /// Aggregates: the last columns of the output, after the two columns of the window.
    pub fields: Vec<AggregateField>,
    /// Window.
    pub window: Option<Window>,
}

/// An aggregate function with its argument.
#[derive(Debug, Clone)]
pub struct AggregateField {
    /// Function.
    pub function: Function,
    /// Argument; `None` only for `count()`.
    pub arg: Option<Scalar>,
}

/// Aggregate functions. All except `count()` ignore nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Number of rows, or of non-null values.
    Count,
    /// Exact sum of integers.
    SumInt,
    /// Sum of doubles, rounded once.
    SumDouble,
    /// Mean, as a double.
    Avg,
    /// Smallest value.
    Min,
    /// Greatest value.
    Max,
    /// Value of the earliest row.
    First,
    /// Value of the latest row.
    Latest,
}

impl Function {
    /// Name in a declaration.
    pub fn name(self) -> &'static str {
        match self {
            Function::Count => "count",
            Function::SumInt | Function::SumDouble => "sum",
            Function::Avg => "avg",
            Function::Min => "min",
            Function::Max => "max",
            Function::First => "first",
            Function::Latest => "latest",
        }
    }
}

/// Windows of an aggregate.
#[derive(Debug, Clone)]
pub struct Window {
    /// Size, in ms.
    pub size_ms: i64,
    /// Interval between the starts of two windows, in ms; divides the size.
    pub every_ms: i64,
    /// How long a window accepts late records after its end, in ms.
    pub grace_ms: i64,
    /// Event time; `None` for the timestamp of the record.
    pub time: Option<Scalar>,
    /// Whether a window is written only once, when it closes.
    pub is_final: bool,
}

/// A join.
#[derive(Debug, Clone)]
pub struct Join {
    /// Left side.
    pub left: Feed,
    /// Right side, a table.
    pub right: Feed,
    /// Join key of a left row, in the order of the output key.
    pub left_key: Vec<Scalar>,
    /// Join key of a right row.
    pub right_key: Vec<Scalar>,
    /// Whether left rows without a right row are in the output (`type = "left"`).
    pub is_outer: bool,
    /// Condition over pairs. The row of the expression is [left row, right row].
    pub filter: Option<Program>,
    /// Output columns after the key. The row of the expressions is the same.
    pub fields: Vec<Scalar>,
}
