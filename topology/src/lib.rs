//! The declared data flow of a `topology.toml`: sources, event types, processors, buckets, views, memberships and
//! nodes.
//!
//! [`load`] reads and checks a file. The [`Outcome`] contains a [`Topology`], in which all names are resolved and all
//! conditions are compiled, or a [`Report`] whose errors have a position in the file and a fix.
//!
//! A topology declares what runs; where it runs is process configuration. The check works offline and reports all errors
//! at once.

pub mod changes;
mod check;
mod checked;
mod columns;
pub mod expr;
mod files;
pub mod infer;
mod load;
pub mod model;
mod names;
mod outcome;
mod problem;
pub mod render;
mod resource_names;
pub mod samples;
pub mod template;
pub mod wiring;

pub use check::{EVENT_PARTITIONS, EVENT_PARTITIONS_MAX, VIEW_LOG_PARTITIONS, VIEW_LOG_PARTITIONS_MAX};
pub use checked::{
    Aggregate, AggregateField, BUCKETS_MAX, Bucket, ClaimError, Column, Event, Feed, Function, Input, Join, Mask,
    Membership, Node, OutputKind, Processor, Role, SYNC_VIEWS, Segment, Side, Source, SourceKind, Table, Topology,
    View, ViewField, Window, Work,
};
pub use files::{Embedded, Files, Folder};
pub use load::{LoadError, check, load};
pub use outcome::Outcome;
pub use problem::{Finding, Report, Severity};
pub use resource_names::Names;
