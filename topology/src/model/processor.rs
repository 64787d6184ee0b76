//! `[[processor]]`: declarative processors. Whether the keys are valid for the kind is checked later.

use super::reader::{At, Entries, Table as Reader};
use std::ops::Range;

/// A declared processor: an aggregate or a join.
#[derive(Debug, Clone)]
pub struct Processor {
    /// `name`, used in `from = "processor:<name>"`. The consumer group is `<topology>.<name>`, the output topic
    /// `<topology>.processor.<name>`.
    pub name: At<String>,
    /// `kind`: `aggregate` or `join`.
    pub kind: At<String>,
    /// `from`: input of an aggregate.
    pub from: Option<At<String>>,
    /// `left`: left input of a join.
    pub left: Option<At<String>>,
    /// `right`: right input of a join, a table.
    pub right: Option<At<String>>,
    /// `on`: left column to right column.
    pub on: Option<At<Entries>>,
    /// `type` of a join: `inner` (the default) or `left`.
    pub join_type: Option<At<String>>,
    /// `where`: CEL condition; rows for which it is false are ignored.
    pub filter: Option<At<String>>,
    /// `group` of an aggregate: output column to expression.
    pub group: Option<At<Entries>>,
    /// `fields`: output column to aggregate function, or to expression in a join.
    pub fields: Option<At<Entries>>,
    /// `window` of an aggregate.
    pub window: Option<Window>,
    /// `emit` of an aggregate: `updates` (the default) or `final`.
    pub emit: Option<At<String>>,
    /// `partitions` of its output topic and of its repartition topics.
    pub partitions: Option<At<i64>>,
    /// Byte range of the TOML table in the topology file.
    pub span: Range<usize>,
}

/// `window = { size = "1h", every = "15m", grace = "5m", time = "placed_at" }`
#[derive(Debug, Clone)]
pub struct Window {
    /// `size`: length of a window.
    pub size: Option<At<String>>,
    /// `every`: interval between the starts of windows. Default: `size`.
    pub every: Option<At<String>>,
    /// `grace`: how long a window accepts late records. Default: 0.
    pub grace: Option<At<String>>,
    /// `time`: expression for the event time. Default: the timestamp of the record.
    pub time: Option<At<String>>,
    /// Byte range of the TOML table in the topology file.
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
