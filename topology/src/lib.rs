//! What exists and who is wired to whom: the declared graph of `topology.toml`, checked before anything runs.
//!
//! [`load`] reads a file and gives an [`Outcome`]: a [`Topology`] with every name resolved and every condition
//! compiled, or a [`Report`] whose errors point into the file and say the fix.
//!
//! Guarantees: the topology says *what* runs; where it runs is process configuration. The check is offline and finds
//! all errors at once. Never: a connection, a clock, a thread.

mod check;
mod checked;
mod columns;
pub mod expr;
pub mod infer;
mod load;
pub mod model;
mod names;
mod problem;
pub mod render;
pub mod samples;
pub mod template;
pub mod wiring;

pub use check::{EVENT_PARTITIONS, EVENT_PARTITIONS_MAX, VIEW_LOG_PARTITIONS, VIEW_LOG_PARTITIONS_MAX};
pub use checked::{
    Aggregate, AggregateField, BUCKETS_MAX, Bucket, ClaimError, Column, Event, Feed, Function, Input, Join, Membership,
    Node, OutputKind, Processor, Role, SYNC_VIEWS, Segment, Side, Source, SourceKind, Table, Topology, VIEW_LOG, View,
    ViewField, Window, Work,
};
pub use load::{Embedded, Files, Folder, LoadError, Outcome, check, load};
pub use problem::{Finding, Report, Severity};
