//! Checks aggregates: group, functions and their types, windows.
//!
//! A function is accepted only if, for every value of its argument's type, it can be computed, and a value can be
//! removed again when a row changes. Numbers that are published as text (`numeric`) are rejected, because their text
//! has another order.

use super::common::{self, Derived, default_partitions, names_of, reduced, typed};
use crate::check::context::Context;
use crate::check::known_inputs::{KnownInput, Meaning};
use crate::checked::{Aggregate, AggregateField, Feed, Function, OutputKind, Window, Work};
use crate::expr::{Program, RowType, Scalar, Type, time};
use crate::model::{self, At, Entries};
use crate::problem::Problem;
use schemas::pg_types::Column;
use serde_json::json;
use std::collections::BTreeSet;
use std::ops::Range;

/// Maximum number of windows per row.
const HOPS_MAX: i64 = 300;
/// Maximum window size: 400 days.
const SIZE_MS_MAX: i64 = 400 * 86_400_000;

const FUNCTIONS: [&str; 7] = ["count", "sum", "min", "max", "avg", "first", "latest"];

/// The compiled expressions of an aggregate.
struct Parts {
    filter: Option<Program>,
    group: Vec<Scalar>,
    fields: Vec<(AggregateField, Column)>,
    time: Option<Scalar>,
}

impl Parts {
    fn scalars(&self) -> impl Iterator<Item = &Scalar> {
        let args = self.fields.iter().filter_map(|(field, _)| field.arg.as_ref());
        self.group.iter().chain(args).chain(&self.time)
    }

    /// The top-level columns that the expressions read.
    fn used(&self) -> BTreeSet<usize> {
        let filter = self.filter.iter().flat_map(Program::columns).copied();
        let paths = self.scalars().flat_map(Scalar::paths);
        filter.chain(paths.filter_map(|path| path.first().copied())).collect()
    }
}

/// A window without its time expression.
#[derive(Clone, Copy)]
struct WindowSpec {
    size_ms: i64,
    every_ms: i64,
    grace_ms: i64,
    is_final: bool,
}

/// An aggregate whose expressions are compiled.
struct Compiled<'k> {
    input: &'k KnownInput,
    /// The used columns of the input.
    row: RowType,
    parts: Parts,
    feed: Feed,
    window: Option<WindowSpec>,
}

pub(super) fn check_aggregate(cx: &Context<'_>, declared: &model::Processor, known: &[KnownInput]) -> Option<Derived> {
    let spans = [&declared.left, &declared.right, &declared.join_type].map(|at| at.as_ref().map(|at| at.span.clone()));
    let [left, right, join_type] = spans;
    let on = declared.on.as_ref().map(|on| on.span.clone());
    common::reject_keys_of_kind(
        cx,
        "join",
        &[("left", left), ("right", right), ("on", on), ("type", join_type)],
    );
    for (key, missing, example) in [
        ("from", declared.from.is_none(), "\"shop.orders\""),
        ("group", declared.group.is_none(), "{ customer_id = \"customer_id\" }"),
        ("fields", declared.fields.is_none(), "{ orders = \"count()\" }"),
    ] {
        if missing {
            common::report_missing_key(cx, declared, key, example);
        }
    }
    let window = parse_window(cx, declared);
    let input = common::find_input(cx, declared.from.as_ref()?, known)?;
    let (group, fields) = (declared.group.as_ref()?, declared.fields.as_ref()?);
    let named = check_names(cx, group, fields, window.as_ref().ok()?.is_some());
    let whole = compile_parts(cx, declared, &input.row);
    let (whole, window) = (whole.filter(|_| named)?, window.ok()?);
    // The expressions are compiled again with only the used columns, so that the other columns need not be decoded at
    // run time.
    let row = reduced(&input.row, &whole.used());
    let parts = compile_parts(cx, declared, &row)?;
    let feed = feed(input, &row, &whole.group, window.is_some_and(|_| whole.time.is_some()));
    let compiled = Compiled {
        input,
        row,
        parts,
        feed,
        window,
    };
    derive(cx, declared, compiled)
}

fn derive(cx: &Context<'_>, declared: &model::Processor, compiled: Compiled<'_>) -> Option<Derived> {
    let Compiled {
        input,
        row,
        parts,
        mut feed,
        window,
    } = compiled;
    let group = declared.group.as_ref()?;
    let named = group.iter().zip(&parts.group);
    let columns = named.map(|((name, written), scalar)| group_column(cx, name, written, scalar));
    let mut columns: Vec<Column> = columns.collect::<Option<_>>()?;
    let mut key = columns.len();
    if window.is_some() {
        columns.extend(["window_start", "window_end"].map(|name| Column::new(name, "timestamptz", false)));
        key += 1;
    }
    columns.extend(parts.fields.iter().map(|(_, column)| column.clone()));
    let partitions = common::partitions_of(cx, declared, default_partitions(&[&feed]));
    if !feed.is_direct {
        feed.partitions = partitions;
    }
    let is_final = window.is_some_and(|window| window.is_final);
    let output = match window {
        None => OutputKind::Table,
        Some(_) if is_final => OutputKind::Stream,
        Some(_) => OutputKind::Windows,
    };
    let functions = parts.fields.iter().map(|(field, column)| {
        let arg = field.arg.as_ref().map(|arg| (arg.text(), arg.pg_type()));
        json!([column.name, field.function.name(), arg])
    });
    let declaration = json!([
        1,
        "aggregate",
        input.from,
        typed(&row),
        parts.filter.as_ref().map(Program::text),
        parts.group.iter().map(Scalar::text).collect::<Vec<_>>(),
        functions.collect::<Vec<_>>(),
        window.map(|w| json!([w.size_ms, w.every_ms, w.grace_ms, w.is_final])),
        parts.time.as_ref().map(Scalar::text),
        feed.is_direct,
        feed.partitions,
    ]);
    let window = window.map(|window| Window {
        size_ms: window.size_ms,
        every_ms: window.every_ms,
        grace_ms: window.grace_ms,
        time: parts.time,
        is_final: window.is_final,
    });
    let work = Work::Aggregate(Aggregate {
        feed,
        filter: parts.filter,
        group: parts.group,
        fields: parts.fields.into_iter().map(|(field, _)| field).collect(),
        window,
    });
    Some(Derived {
        columns,
        key,
        partitions,
        output,
        work,
        declaration,
    })
}

fn check_names(cx: &Context<'_>, group: &At<Entries>, fields: &At<Entries>, windowed: bool) -> bool {
    let mut good = common::check_output_names(cx, &[group, fields], &[]);
    for (what, entries) in [("group", group), ("fields", fields)] {
        if entries.is_empty() {
            let message = format!("`{what}` is empty");
            cx.add(Problem::error(entries.span.clone(), message).help("add at least one output column"));
            good = false;
        }
    }
    let taken = |name: &&At<String>| matches!(name.value.as_str(), "window_start" | "window_end");
    let names = group.iter().chain(fields.iter()).map(|(name, _)| name);
    for name in names.filter(taken).filter(|_| windowed) {
        let message = format!(
            "output column `{}` conflicts with the column that the window adds",
            name.value
        );
        cx.add(Problem::error(name.span.clone(), message).help("rename the output column"));
        good = false;
    }
    good
}

fn group_column(cx: &Context<'_>, name: &At<String>, written: &At<String>, scalar: &Scalar) -> Option<Column> {
    let column = common::output_column(cx, name, written, scalar)?;
    if matches!(scalar.ty(), Type::Double | Type::Bytes | Type::Json | Type::Opaque(_)) {
        let message = format!(
            "cannot group by `{}`: values of type {} have no unique text form",
            scalar.text(),
            column.pg_type
        );
        let help = "group by an integer, text, bool, date or timestamp";
        cx.add(Problem::error(written.span.clone(), message).help(help));
        return None;
    }
    Some(column)
}

fn compile_parts(cx: &Context<'_>, declared: &model::Processor, row: &RowType) -> Option<Parts> {
    let of = declared.name.as_str();
    let filter = common::compile_condition(cx, of, declared.filter.as_ref(), row);
    let scalar = |written: &At<String>| common::compile_scalar(cx, of, written, 0..written.len(), row);
    let group: Vec<Option<Scalar>> = declared
        .group
        .as_ref()?
        .iter()
        .map(|(_, written)| scalar(written))
        .collect();
    let fields = declared.fields.as_ref()?.iter();
    let fields: Vec<_> = fields
        .map(|(name, written)| compile_field(cx, of, name, written, row))
        .collect();
    let time = declared.window.as_ref().and_then(|window| window.time.as_ref());
    let time = time.map(|written| compile_time(cx, of, written, row));
    Some(Parts {
        filter: filter.ok()?,
        group: group.into_iter().collect::<Option<_>>()?,
        fields: fields.into_iter().collect::<Option<_>>()?,
        time: match time {
            Some(time) => Some(time?),
            None => None,
        },
    })
}

fn compile_time(cx: &Context<'_>, of: &str, written: &At<String>, row: &RowType) -> Option<Scalar> {
    let scalar = common::compile_scalar(cx, of, written, 0..written.len(), row)?;
    if *scalar.ty() != Type::Timestamp || scalar.pg_type() == Some("date") {
        let message = format!("`{}` is not a timestamp", scalar.text());
        let help = "set `time` to a timestamp column or expression, such as \"placed_at\"";
        cx.add(Problem::error(written.span.clone(), message).help(help));
        return None;
    }
    Some(scalar)
}

/// Compiles an aggregate such as `sum(total_cents)`: the function and its argument.
fn compile_field(
    cx: &Context<'_>,
    of: &str,
    name: &At<String>,
    written: &At<String>,
    row: &RowType,
) -> Option<(AggregateField, Column)> {
    let text = written.trim_end();
    let call = text.split_once('(').filter(|_| text.ends_with(')'));
    let Some((function, _)) = call else {
        let message = format!("`{}` is not an aggregate function call", written.value);
        let help = "write count(), or sum, min, max, avg, first or latest with an expression: \"sum(total_cents)\"";
        cx.add(Problem::error(written.span.clone(), message).help(help));
        return None;
    };
    let part = function.len() + 1..text.len() - 1;
    let function_name = At {
        value: String::from(function.trim()),
        span: cx.inside(written, &(0..function.len())),
    };
    if !FUNCTIONS.contains(&function_name.as_str()) {
        cx.unknown(&function_name, "aggregate function", FUNCTIONS, "");
        return None;
    }
    let empty = written.get(part.clone()).is_none_or(|arg| arg.trim().is_empty());
    if empty && function_name.value == "count" {
        let field = AggregateField {
            function: Function::Count,
            arg: None,
        };
        return Some((field, Column::new(name, "int8", false)));
    }
    let arg = common::compile_scalar(cx, of, written, part, row)?;
    let typed = resolve_function(cx, &function_name, &arg, written.span.clone())?;
    let (function, pg_type) = typed;
    // A group contains at least one row, so a result is null only if the argument can be null.
    let nullable = function != Function::Count && arg.nullable();
    let column = Column::new(name, &pg_type, nullable);
    Some((
        AggregateField {
            function,
            arg: Some(arg),
        },
        column,
    ))
}

/// The function for the type of its argument, and the result type.
fn resolve_function(
    cx: &Context<'_>,
    name: &At<String>,
    arg: &Scalar,
    span: Range<usize>,
) -> Option<(Function, String)> {
    let declared = arg.pg_type();
    let reject = |message: String, help: String| {
        cx.add(Problem::error(span, message).help(help));
        None
    };
    let text_number = matches!(declared, Some("numeric" | "money" | "interval"));
    let (function, ty) = match (name.value.as_str(), arg.ty()) {
        ("count", _) => (Function::Count, "int8"),
        ("sum", Type::Int) => (Function::SumInt, "int8"),
        ("sum", Type::Double) => (Function::SumDouble, "float8"),
        ("avg", Type::Int | Type::Double) => (Function::Avg, "float8"),
        ("sum" | "avg", _) => {
            let help = if declared == Some("numeric") {
                format!(
                    "numeric values are published as text; convert them: {}(double({}))",
                    name.value,
                    arg.text()
                )
            } else {
                String::from("use an integer or a double, or convert with int(…) or double(…)")
            };
            let what = declared.unwrap_or("not a scalar");
            return reject(
                format!("`{}` is {what}, which {}() does not accept", arg.text(), name.value),
                help,
            );
        }
        ("min" | "max", _) if text_number => {
            let what = declared.unwrap_or_default();
            let help = format!("convert it: {}(double({}))", name.value, arg.text());
            return reject(
                format!(
                    "cannot apply {}() to `{}`: it is {what}, which is published and would be compared as text",
                    name.value,
                    arg.text()
                ),
                help,
            );
        }
        ("min" | "max", Type::Int | Type::Double | Type::Text | Type::Bool | Type::Timestamp) => {
            let function = if name.value == "min" {
                Function::Min
            } else {
                Function::Max
            };
            (function, declared?)
        }
        ("first" | "latest", _) if declared.is_some() => {
            let function = if name.value == "first" {
                Function::First
            } else {
                Function::Latest
            };
            (function, declared?)
        }
        _ => {
            let what = declared.unwrap_or("not a scalar");
            let help = "use a number, text, bool, date or timestamp";
            return reject(
                format!("`{}` is {what}, which {}() does not accept", arg.text(), name.value),
                help.into(),
            );
        }
    };
    Some((function, String::from(ty)))
}

/// Parses the window of a declaration; reports errors.
fn parse_window(cx: &Context<'_>, declared: &model::Processor) -> Result<Option<WindowSpec>, ()> {
    let is_final = match declared.emit.as_ref().map(|emit| (emit, emit.value.as_str())) {
        None | Some((_, "updates")) => false,
        Some((emit, "final")) if declared.window.is_none() => {
            let problem = Problem::error(
                emit.span.clone(),
                "`emit = \"final\"` requires a window; without one a group never ends",
            );
            cx.add(problem.help("add window = { size = \"1h\" }, or write emit = \"updates\""));
            return Err(());
        }
        Some((_, "final")) => true,
        Some((emit, _)) => {
            cx.unknown(emit, "emit mode", ["updates", "final"], "");
            return Err(());
        }
    };
    let Some(window) = &declared.window else {
        return Ok(None);
    };
    let size = window.size.as_ref().ok_or(())?;
    let size_ms = parse_duration_ms(cx, size, 1)?;
    let every_ms = window
        .every
        .as_ref()
        .map_or(Ok(size_ms), |every| parse_duration_ms(cx, every, 1))?;
    let grace_ms = window
        .grace
        .as_ref()
        .map_or(Ok(0), |grace| parse_duration_ms(cx, grace, 0))?;
    let place = window
        .every
        .as_ref()
        .map_or(window.span.clone(), |every| every.span.clone());
    let reject = |span, message: String, help: String| {
        cx.add(Problem::error(span, message).help(help));
        Err(())
    };
    if every_ms > size_ms {
        let message = String::from("`every` is longer than `size`: rows between two windows would be lost");
        return reject(place, message, String::from("set `every` to at most `size`"));
    }
    if size_ms % every_ms != 0 {
        let message = String::from("`size` is not a multiple of `every`");
        return reject(
            place,
            message,
            String::from("use an `every` that divides `size`, such as size = \"1h\", every = \"15m\""),
        );
    }
    if size_ms / every_ms > HOPS_MAX {
        let message = format!(
            "each row would belong to {} windows; the limit is {HOPS_MAX}",
            size_ms / every_ms
        );
        return reject(
            place,
            message,
            format!("reduce `size` or increase `every`, so that `size` is at most {HOPS_MAX} times `every`"),
        );
    }
    Ok(Some(WindowSpec {
        size_ms,
        every_ms,
        grace_ms,
        is_final,
    }))
}

fn parse_duration_ms(cx: &Context<'_>, text: &At<String>, least: i64) -> Result<i64, ()> {
    let ms = time::parse_duration(text).map(|micros| micros / 1000);
    match ms.filter(|ms| (least..=SIZE_MS_MAX).contains(ms)) {
        Some(ms) => Ok(ms),
        None => {
            let message = format!("`{}` is not a duration from {least} ms to 400 days", text.value);
            cx.add(
                Problem::error(text.span.clone(), message)
                    .help("write a duration such as \"36h\", \"1h30m\" or \"90s\""),
            );
            Err(())
        }
    }
}

/// How the input is read: directly if all rows of a group are in one partition, else through a repartition topic.
fn feed(input: &KnownInput, row: &RowType, group: &[Scalar], has_time: bool) -> Feed {
    let columns: Option<Vec<usize>> = group.iter().map(Scalar::as_column).collect();
    let is_keyed = columns.is_some() && columns == input.key;
    Feed {
        input: input.input,
        columns: names_of(row),
        is_table: input.meaning == Meaning::Rows,
        is_keyed,
        is_direct: (is_keyed || input.partitions == 1) && !has_time,
        partitions: input.partitions,
    }
}
