//! Declared processors, checked: what they read, what they compute, and what their topic carries.
//!
//! Guarantees: every expression is compiled over a row of the used columns alone, in the order that [`Feed::columns`]
//! gives, so that the rest of a record need not be decoded.
//! Never: a name that still has to be looked up.

use super::{Column, Input};
use crate::expr::{Program, Scalar};
use schemas::schema::Schema;
use std::sync::Arc;

/// A declared processor: its topic is `processor.<name>`.
#[derive(Debug, Clone)]
pub struct Processor {
    /// Its name, and its consumer group.
    pub name: String,
    /// The columns of its records: those of the key first.
    pub columns: Vec<Column>,
    /// The key's columns as indexes into `columns`.
    pub key: Vec<usize>,
    /// The Avro schema of its records.
    pub schema: Arc<Schema>,
    /// Partitions of its topic.
    pub partitions: i32,
    /// What its records mean to who reads them.
    pub output: OutputKind,
    /// What it does.
    pub work: Work,
    /// The declaration as far as it decides what the state holds, as canonical text.
    pub declaration: String,
}

impl Processor {
    /// Its topic: `processor.<name>`.
    pub fn topic(&self) -> String {
        format!("processor.{}", self.name)
    }

    /// The inputs, each with the side that it has in a join.
    pub fn feeds(&self) -> Vec<(Side, &Feed)> {
        match &self.work {
            Work::Aggregate(aggregate) => vec![(Side::Left, &aggregate.feed)],
            Work::Join(join) => vec![(Side::Left, &join.left), (Side::Right, &join.right)],
        }
    }

    /// The store of its groups or pairs.
    pub fn store(&self) -> &'static str {
        match self.work {
            Work::Aggregate(_) => "groups",
            Work::Join(_) => "pairs",
        }
    }

    /// The store of what keys a side anew.
    pub fn rekey_store(&self, side: Side) -> &'static str {
        match (&self.work, side) {
            (Work::Aggregate(_), _) => "rekey",
            (Work::Join(_), Side::Left) => "rekey.left",
            (Work::Join(_), Side::Right) => "rekey.right",
        }
    }

    /// The topic in which a side is keyed anew: `<name>.repartition`, in a join with the side's name behind it.
    pub fn repartition_topic(&self, side: Side) -> String {
        match (&self.work, side) {
            (Work::Aggregate(_), _) => format!("{}.repartition", self.name),
            (Work::Join(_), Side::Left) => format!("{}.repartition.left", self.name),
            (Work::Join(_), Side::Right) => format!("{}.repartition.right", self.name),
        }
    }
}

/// A side of a join; an aggregate has a left one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// `left`, or an aggregate's `from`.
    Left,
    /// `right`.
    Right,
}

/// What the records of a processor's topic mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Rows by key, put and deleted; the topic is compacted.
    Table,
    /// Rows by key that are put again while their window is open; the topic is kept by age.
    Windows,
    /// Each record stands for itself; the topic is kept by age.
    Stream,
}

/// An input of a processor.
#[derive(Debug, Clone)]
pub struct Feed {
    /// What it reads.
    pub input: Input,
    /// Names of the columns that are used, in the order of the rows that expressions see.
    pub columns: Vec<String>,
    /// Whether its records are rows that are put and deleted, not events.
    pub is_table: bool,
    /// Whether the group's or join's key is the record's key, byte for byte (of a table: without the table's name).
    pub is_keyed: bool,
    /// Whether it is read where its state is; else it is keyed anew through a topic of its own.
    pub is_direct: bool,
    /// Partitions of the topic that it is read from in the end: its own, or the repartition topic's.
    pub partitions: i32,
}

/// What a processor does.
#[derive(Debug, Clone)]
pub enum Work {
    /// Groups rows and computes over each group.
    Aggregate(Aggregate),
    /// Looks a table up.
    Join(Join),
}

/// An aggregate.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// What it reads.
    pub feed: Feed,
    /// Which rows count; `None` = all.
    pub filter: Option<Program>,
    /// The group: the output's first columns.
    pub group: Vec<Scalar>,
    /// The aggregates: the output's last columns, behind the window's two if there is one.
    pub fields: Vec<AggregateField>,
    /// The window.
    pub window: Option<Window>,
}

/// One aggregate of a group.
#[derive(Debug, Clone)]
pub struct AggregateField {
    /// Which.
    pub function: Function,
    /// Over what; `None` only for `count()`.
    pub arg: Option<Scalar>,
}

/// The aggregate functions. All but `count()` pass over nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Rows, or values that are not null.
    Count,
    /// Of integers, exactly.
    SumInt,
    /// Of doubles, rounded once.
    SumDouble,
    /// The mean, as a double.
    Avg,
    /// The least value.
    Min,
    /// The greatest value.
    Max,
    /// The value of the earliest row.
    First,
    /// The value of the latest row.
    Latest,
}

impl Function {
    /// Its name, as it is declared.
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
    /// Length in ms.
    pub size_ms: i64,
    /// Distance of two beginnings in ms; divides the size.
    pub every_ms: i64,
    /// How long after its end a window takes records, in ms.
    pub grace_ms: i64,
    /// When a row happened; `None` = the record's timestamp.
    pub time: Option<Scalar>,
    /// Whether a window is written once, when it closes.
    pub is_final: bool,
}

/// A join.
#[derive(Debug, Clone)]
pub struct Join {
    /// The left side.
    pub left: Feed,
    /// The right side, a table.
    pub right: Feed,
    /// The key in a row of the left side, in the order of the output's key.
    pub left_key: Vec<Scalar>,
    /// The key in a row of the right side.
    pub right_key: Vec<Scalar>,
    /// Whether a left row without a right one counts (`type = "left"`).
    pub is_outer: bool,
    /// Which pairs count; the row is [left row, right row].
    pub filter: Option<Program>,
    /// The output's columns behind the key, over the same row.
    pub fields: Vec<Scalar>,
}
