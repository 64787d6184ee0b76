//! `[[processor]]`: streams that are made of streams, as they are declared.
//!
//! Guarantees: as the rest of the model: every value keeps its place, nothing is resolved.
//! Never: decides which keys fit which kind (`check` does).

use super::reader::Table as Reader;
use super::{At, Entries};
use std::ops::Range;

/// A declared processor: an aggregate or a join.
#[derive(Debug, Clone)]
pub struct Processor {
    /// `name`: its consumer group, and what `from = "processor:<name>"` refers to. Its topic is `processor.<name>`.
    pub name: At<String>,
    /// `kind`: `aggregate` or `join`.
    pub kind: At<String>,
    /// `from`: what an aggregate reads.
    pub from: Option<At<String>>,
    /// `left`: what a join reads on its left.
    pub left: Option<At<String>>,
    /// `right`: the table that a join looks up.
    pub right: Option<At<String>>,
    /// `on`: left column to right column.
    pub on: Option<At<Entries>>,
    /// `type` of a join: `inner` (the default) or `left`.
    pub join_type: Option<At<String>>,
    /// `where`: an expression (CEL); rows for which it is false do not count.
    pub filter: Option<At<String>>,
    /// `group` of an aggregate: output column to expression.
    pub group: Option<At<Entries>>,
    /// `fields`: output column to aggregate, or to expression in a join.
    pub fields: Option<At<Entries>>,
    /// `window` of an aggregate.
    pub window: Option<Window>,
    /// `emit` of an aggregate: `updates` (the default) or `final`.
    pub emit: Option<At<String>>,
    /// `partitions` of its topic, and of the topics in which it repartitions.
    pub partitions: Option<At<i64>>,
    /// Where the table stands.
    pub span: Range<usize>,
}

/// `window = { size = "1h", every = "15m", grace = "5m", time = "placed_at" }`
#[derive(Debug, Clone)]
pub struct Window {
    /// `size`: how long a window is.
    pub size: Option<At<String>>,
    /// `every`: how often one begins. Default: `size`.
    pub every: Option<At<String>>,
    /// `grace`: how long a window takes what comes late. Default: none.
    pub grace: Option<At<String>>,
    /// `time`: an expression that says when a row happened. Default: the record's timestamp.
    pub time: Option<At<String>>,
    /// Where the table stands.
    pub span: Range<usize>,
}

pub(super) fn processor(mut table: Reader<'_, '_>) -> Option<Processor> {
    let name = table.required("name", "\"orders_by_customer\"");
    table.called(name.as_ref());
    let kind = table.required("kind", "\"aggregate\"");
    let from = table.text("from");
    let (left, right, on) = (table.text("left"), table.text("right"), table.map("on"));
    let (join_type, filter) = (table.text("type"), table.text("where"));
    let (group, fields) = (table.map("group"), table.map("fields"));
    let (window, emit) = (table.table("window").map(window), table.text("emit"));
    let partitions = table.integer("partitions");
    let span = table.span.clone();
    table.finish();
    Some(Processor {
        name: name?,
        kind: kind?,
        from,
        left,
        right,
        on,
        join_type,
        filter,
        group,
        fields,
        window,
        emit,
        partitions,
        span,
    })
}

fn window(table: Reader<'_, '_>) -> Window {
    table.expect("size", "\"1h\"");
    let window = Window {
        size: table.text("size"),
        every: table.text("every"),
        grace: table.text("grace"),
        time: table.text("time"),
        span: table.span.clone(),
    };
    table.finish();
    window
}
