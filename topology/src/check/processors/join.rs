//! Checks joins: sides, key and output columns.
//!
//! The key columns of both sides must have the same encoding in a record key, so that rows with equal values are in the
//! same partition. The right side is looked up by its whole key, so there is at most one right row for each left row.

use super::common::{self, Derived, default_partitions, names_of, reduced, typed};
use crate::check::context::Context;
use crate::check::known_inputs::{self, KnownInput, Meaning};
use crate::check::limits::EVENT_PARTITIONS;
use crate::checked::{Feed, Join, OutputKind, Work};
use crate::expr::{Field, Form, Program, RowType, Scalar, Type};
use crate::model::{self, At, Entries};
use crate::problem::Problem;
use schemas::pg_types::AvroType;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The two inputs, and the join columns of each side in the order of the right side's key.
struct Sides<'k> {
    left: &'k KnownInput,
    right: &'k KnownInput,
    is_outer: bool,
    left_key: Vec<usize>,
    right_key: Vec<usize>,
    names: Vec<At<String>>,
}

/// The columns that are used, for both sides.
struct Rows {
    left: RowType,
    right: RowType,
}

struct Parts {
    filter: Option<Program>,
    fields: Vec<Scalar>,
}

impl Parts {
    /// The columns of a side that the expressions read.
    fn used(&self, side: usize) -> BTreeSet<usize> {
        let filter = self.filter.iter().flat_map(Program::paths);
        let paths = filter.chain(self.fields.iter().flat_map(Scalar::paths));
        let of_side = |path: &Vec<usize>| match path.as_slice() {
            [of, column, ..] if *of == side => Some(*column),
            _ => None,
        };
        paths.filter_map(of_side).collect()
    }
}

pub(super) fn check_join(cx: &Context<'_>, declared: &model::Processor, known: &[KnownInput]) -> Option<Derived> {
    let place = |entries: &Option<At<Entries>>| entries.as_ref().map(|at| at.span.clone());
    let keys = [
        ("from", declared.from.as_ref().map(|at| at.span.clone())),
        ("group", place(&declared.group)),
        ("window", declared.window.as_ref().map(|at| at.span.clone())),
        ("emit", declared.emit.as_ref().map(|at| at.span.clone())),
    ];
    common::reject_keys_of_kind(cx, "aggregate", &keys);
    for (key, missing, example) in [
        ("left", declared.left.is_none(), "\"event:order_viewed\""),
        ("right", declared.right.is_none(), "\"shop.customers\""),
        ("on", declared.on.is_none(), "{ customer_id = \"id\" }"),
        ("fields", declared.fields.is_none(), "{ name = \"right.name\" }"),
    ] {
        if missing {
            common::report_missing_key(cx, declared, key, example);
        }
    }
    let sides = find_sides(cx, declared, known)?;
    let fields = declared.fields.as_ref()?;
    let names: Vec<&At<String>> = sides.names.iter().collect();
    let named = common::check_output_names(cx, &[fields], &names);
    let whole = compile_parts(cx, declared, &pair(&sides, &sides.left.row, &sides.right.row)).filter(|_| named)?;
    let used = |side: usize, key: &[usize]| whole.used(side).into_iter().chain(key.iter().copied()).collect();
    let left = reduced(&sides.left.row, &used(0, &sides.left_key));
    let right = reduced(&sides.right.row, &used(1, &sides.right_key));
    let parts = compile_parts(cx, declared, &pair(&sides, &left, &right))?;
    let rows = Rows { left, right };
    derive(cx, declared, &sides, &rows, parts)
}

fn derive(
    cx: &Context<'_>,
    declared: &model::Processor,
    sides: &Sides<'_>,
    rows: &Rows,
    parts: Parts,
) -> Option<Derived> {
    let Rows { left, right } = rows;
    let key = |of: &KnownInput, row: &RowType, key: &[usize]| -> Option<Vec<Scalar>> {
        let names = key.iter().filter_map(|at| of.row.fields.get(*at));
        names
            .map(|field| Scalar::compile(&format!("row[{}]", json!(field.name)), row).ok())
            .collect()
    };
    let (left_key, right_key) = (
        key(sides.left, left, &sides.left_key)?,
        key(sides.right, right, &sides.right_key)?,
    );
    let mut columns = Vec::new();
    for (name, scalar) in sides.names.iter().zip(&left_key) {
        columns.push(common::output_column(cx, name, name, scalar)?);
    }
    let key_count = columns.len();
    for ((name, written), scalar) in declared.fields.as_ref()?.iter().zip(&parts.fields) {
        columns.push(common::output_column(cx, name, written, scalar)?);
    }
    let (left_feed, right_feed) = feeds(
        sides,
        left,
        right,
        common::partitions_of(cx, declared, EVENT_PARTITIONS),
    );
    let partitions = common::partitions_of(cx, declared, default_partitions(&[&left_feed, &right_feed]));
    let output = if left_feed.is_table {
        OutputKind::Table
    } else {
        OutputKind::Stream
    };
    let declaration = json!([
        1,
        "join",
        [
            json!(sides.left.from),
            typed(left),
            json!(left_feed.is_direct),
            json!(left_feed.partitions)
        ],
        [
            json!(sides.right.from),
            typed(right),
            json!(right_feed.is_direct),
            json!(right_feed.partitions)
        ],
        left_key.iter().map(Scalar::text).collect::<Vec<_>>(),
        right_key.iter().map(Scalar::text).collect::<Vec<_>>(),
        sides.is_outer,
        parts.filter.as_ref().map(Program::text),
        parts.fields.iter().map(Scalar::text).collect::<Vec<_>>(),
        columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(),
    ]);
    let work = Work::Join(Join {
        left: left_feed,
        right: right_feed,
        left_key,
        right_key,
        is_outer: sides.is_outer,
        filter: parts.filter,
        fields: parts.fields,
    });
    Some(Derived {
        columns,
        key: key_count,
        partitions,
        output,
        work,
        declaration,
    })
}

fn compile_parts(cx: &Context<'_>, declared: &model::Processor, row: &RowType) -> Option<Parts> {
    let of = declared.name.as_str();
    let filter = common::compile_condition(cx, of, declared.filter.as_ref(), row);
    let fields = declared.fields.as_ref()?.iter();
    let fields: Vec<Option<Scalar>> = fields
        .map(|(_, written)| common::compile_scalar(cx, of, written, 0..written.len(), row))
        .collect();
    Some(Parts {
        filter: filter.ok()?,
        fields: fields.into_iter().collect::<Option<_>>()?,
    })
}

fn find_sides<'k>(cx: &Context<'_>, declared: &model::Processor, known: &'k [KnownInput]) -> Option<Sides<'k>> {
    let is_outer = match declared.join_type.as_ref().map(|at| (at, at.value.as_str())) {
        None | Some((_, "inner")) => Some(false),
        Some((_, "left")) => Some(true),
        Some((at, _)) => {
            cx.unknown(at, "join type", ["inner", "left"], "");
            None
        }
    };
    let (left_from, right_from) = (declared.left.as_ref()?, declared.right.as_ref()?);
    let (left, right) = (
        common::find_input(cx, left_from, known),
        common::find_input(cx, right_from, known),
    );
    let (left, right) = (left?, right?);
    if left.input == right.input {
        let problem = Problem::error(right_from.span.clone(), "both sides of the join read the same input");
        cx.add(problem.help("set `left` or `right` to another input"));
        return None;
    }
    if right.meaning != Meaning::Rows {
        let message = format!(
            "`{}` is not a table; the right side of a join is looked up by key",
            right_from.value
        );
        let help = "use a table or an aggregate without a window on the right, and events on the left";
        cx.add(Problem::error(right_from.span.clone(), message).help(help));
        return None;
    }
    let (left_key, right_key, names) = resolve_on(cx, declared, left, right)?;
    Some(Sides {
        left,
        right,
        is_outer: is_outer?,
        left_key,
        right_key,
        names,
    })
}

/// The join columns of both sides, in the order of the right side's key.
#[expect(
    clippy::type_complexity,
    reason = "two lists of columns and their names, taken apart at once"
)]
fn resolve_on(
    cx: &Context<'_>,
    declared: &model::Processor,
    left: &KnownInput,
    right: &KnownInput,
) -> Option<(Vec<usize>, Vec<usize>, Vec<At<String>>)> {
    let on = declared.on.as_ref()?;
    let mut pairs = Vec::new();
    for (left_name, right_name) in on.iter() {
        let left_at = known_inputs::find_column(cx, left_name, &left.from, &left.row);
        let right_at = known_inputs::find_column(cx, right_name, &right.from, &right.row);
        let (Some(left_at), Some(right_at)) = (left_at, right_at) else {
            continue;
        };
        let fields = (left.row.fields.get(left_at)?, right.row.fields.get(right_at)?);
        if check_key_types(cx, left_name, fields.0, fields.1) {
            pairs.push((left_at, right_at, left_name.clone()));
        }
    }
    if pairs.len() != on.len() {
        return None;
    }
    let key = check_whole_key(cx, on, right, &pairs.iter().map(|(_, at, _)| *at).collect::<Vec<_>>())?;
    if left.meaning == Meaning::Rows {
        check_whole_key(cx, on, left, &pairs.iter().map(|(at, ..)| *at).collect::<Vec<_>>())?;
    }
    let in_order = key
        .iter()
        .filter_map(|at| pairs.iter().find(|(_, right, _)| right == at));
    let (mut left_key, mut names) = (Vec::new(), Vec::new());
    for (at, _, name) in in_order {
        left_key.push(*at);
        names.push(name.clone());
    }
    Some((left_key, key, names))
}

/// The key of a side. Reports an error if `on` does not contain exactly the key columns.
fn check_whole_key(cx: &Context<'_>, on: &At<Entries>, of: &KnownInput, named: &[usize]) -> Option<Vec<usize>> {
    let Some(key) = &of.key else {
        let message = format!("cannot check the join, because `{}` does not declare its key", of.from);
        let help = "add `key = [\"…\"]` to its [[table]]";
        cx.add(Problem::error(on.span.clone(), message).help(help));
        return None;
    };
    let whole = key.len() == named.len() && key.iter().all(|at| named.contains(at));
    if !whole {
        let names = key.iter().filter_map(|at| of.row.fields.get(*at));
        let names: Vec<&str> = names.map(|field| field.name.as_str()).collect();
        let message = format!("`on` does not match the key of `{}`", of.from);
        let help = format!("a join must use exactly the key columns: {}", names.join(", "));
        cx.add(Problem::error(on.span.clone(), message).help(help));
        return None;
    }
    Some(key.clone())
}

fn check_key_types(cx: &Context<'_>, name: &At<String>, left: &Field, right: &Field) -> bool {
    let (left_form, right_form) = (key_form(left), key_form(right));
    if left_form.is_some() && left_form == right_form {
        return true;
    }
    let message = format!(
        "`{}` is {} and `{}` is {}: the keys are encoded differently and never match",
        left.name, left.declared, right.name, right.declared
    );
    let help = "declare both columns with the same type, for example both int8 or both text";
    cx.add(Problem::error(name.span.clone(), message).help(help));
    false
}

/// The encoding of a column in a record key; `None` if the column cannot be part of a key.
fn key_form(field: &Field) -> Option<AvroType> {
    let scalar = Scalar::compile(
        &format!("row[{}]", json!(field.name)),
        &RowType {
            fields: vec![field.clone()],
        },
    );
    let scalar = scalar.ok()?;
    match scalar.ty() {
        Type::Double | Type::Bytes | Type::Json | Type::Opaque(_) => None,
        _ => match AvroType::of(scalar.pg_type()?) {
            AvroType::Uuid => Some(AvroType::Text),
            form => Some(form),
        },
    }
}

/// The row type of a join's expressions: the records `left` and `right`.
fn pair(sides: &Sides<'_>, left: &RowType, right: &RowType) -> RowType {
    let side = |name: &str, row: &RowType, nullable| Field {
        name: String::from(name),
        ty: Type::Row(Arc::new(row.clone())),
        form: Form::Plain,
        nullable,
        declared: String::from("record"),
    };
    RowType {
        fields: vec![side("left", left, false), side("right", right, sides.is_outer)],
    }
}

/// How the two inputs are read: directly, if both have one partition or are co-partitioned by the join key. Otherwise,
/// a side that is not partitioned by the join key is repartitioned.
fn feeds(sides: &Sides<'_>, left: &RowType, right: &RowType, declared: i32) -> (Feed, Feed) {
    let keyed = |of: &KnownInput, key: &[usize]| of.key.as_deref() == Some(key);
    let (left_keyed, right_keyed) = (keyed(sides.left, &sides.left_key), keyed(sides.right, &sides.right_key));
    let both_single = sides.left.partitions == 1 && sides.right.partitions == 1;
    let counts = [(left_keyed, sides.left), (right_keyed, sides.right)];
    let of_keyed = counts
        .iter()
        .filter(|(keyed, of)| *keyed && of.partitions > 1)
        .map(|(_, of)| of.partitions);
    let count = if both_single {
        1
    } else {
        of_keyed.max().unwrap_or(declared)
    };
    let feed = |of: &KnownInput, row: &RowType, is_keyed: bool| Feed {
        input: of.input,
        columns: names_of(row),
        is_table: of.meaning == Meaning::Rows,
        is_keyed,
        is_direct: of.partitions == count && (is_keyed || count == 1),
        partitions: count,
    };
    (
        feed(sides.left, left, left_keyed),
        feed(sides.right, right, right_keyed),
    )
}
