//! Parts of the checks that aggregates and joins share.

use crate::check::context::Context;
use crate::check::known_inputs::{self, KnownInput, Meaning};
use crate::check::limits::{EVENT_PARTITIONS, EVENT_PARTITIONS_MAX};
use crate::checked::{Feed, OutputKind, Work};
use crate::expr::{ExprError, Program, RowType, Scalar};
use crate::model::{self, At, Entries};
use crate::problem::Problem;
use schemas::pg_types;
use std::ops::Range;

/// A checked processor without its output schema.
pub(super) struct Derived {
    /// The key columns, then the other columns.
    pub(super) columns: Vec<pg_types::Column>,
    /// Number of key columns.
    pub(super) key: usize,
    pub(super) partitions: i32,
    pub(super) output: OutputKind,
    pub(super) work: Work,
    pub(super) declaration: serde_json::Value,
}

/// The input with this name. Reports an error if a processor cannot read it.
pub(super) fn find_input<'k>(cx: &Context<'_>, from: &At<String>, known: &'k [KnownInput]) -> Option<&'k KnownInput> {
    let input = known_inputs::find_input(cx, from, known)?;
    if input.meaning == Meaning::Windows {
        let message = format!(
            "`{}` emits updates of open windows, which a processor cannot read",
            from.value
        );
        let help = "set emit = \"final\" on it, so that it writes one record per window";
        cx.add(Problem::error(from.span.clone(), message).help(help));
        return None;
    }
    input.complete.then_some(input)
}

/// Reports keys that are only valid for the other kind of processor.
pub(super) fn reject_keys_of_kind(cx: &Context<'_>, kind: &str, keys: &[(&str, Option<Range<usize>>)]) {
    for (key, span) in keys.iter().filter_map(|(key, span)| Some((key, span.clone()?))) {
        let message = format!("`{key}` is only valid for processors of kind `{kind}`");
        cx.add(Problem::error(span, message).help(format!("remove it, or write kind = \"{kind}\"")));
    }
}

pub(super) fn report_missing_key(cx: &Context<'_>, declared: &model::Processor, key: &str, example: &str) {
    let message = format!("processor `{}` has no `{key}`", declared.name.value);
    cx.add(Problem::error(declared.name.span.clone(), message).help(format!("add `{key} = {example}`")));
}

/// Compiles a condition; reports errors.
pub(super) fn compile_condition(
    cx: &Context<'_>,
    of: &str,
    text: Option<&At<String>>,
    row: &RowType,
) -> Result<Option<Program>, ()> {
    let Some(text) = text else { return Ok(None) };
    let program = Program::compile(text, row).map_err(|errors| report_expression_errors(cx, of, text, 0, errors))?;
    for warning in program.warnings() {
        let message = format!("processor `{of}`: {}", warning.message);
        let problem = Problem::warning(cx.inside(text, &warning.span), message);
        cx.add(problem.help(warning.help.clone()));
    }
    Ok(Some(program))
}

/// Compiles a scalar expression, which is the given part of a string; reports errors.
pub(super) fn compile_scalar(
    cx: &Context<'_>,
    of: &str,
    written: &At<String>,
    part: Range<usize>,
    row: &RowType,
) -> Option<Scalar> {
    let text = written.get(part.clone())?;
    match Scalar::compile(text, row) {
        Ok(scalar) => Some(scalar),
        Err(errors) => {
            report_expression_errors(cx, of, written, part.start, errors);
            None
        }
    }
}

pub(super) fn report_expression_errors(
    cx: &Context<'_>,
    of: &str,
    text: &At<String>,
    from: usize,
    errors: Vec<ExprError>,
) {
    for error in errors {
        let message = format!("processor `{of}`: {}", error.message);
        let part = from + error.span.start..from + error.span.end;
        cx.add(Problem::error(cx.inside(text, &part), message).help(error.help));
    }
}

/// Checks that output columns have distinct and valid names.
pub(super) fn check_output_names(cx: &Context<'_>, entries: &[&At<Entries>], more: &[&At<String>]) -> bool {
    let before = cx.errors();
    let names = || {
        more.iter()
            .copied()
            .chain(entries.iter().flat_map(|e| e.value.iter().map(|(name, _)| name)))
    };
    cx.unique(names(), "output column");
    for name in names() {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(legal) {
            let message = format!("output column `{}` is not a valid Avro field name", name.value);
            cx.add(Problem::error(name.span.clone(), message).help("use a letter followed by letters, digits or `_`"));
        }
    }
    cx.errors() == before
}

/// The output column of an expression. Reports an error if the type cannot be the type of a column.
pub(super) fn output_column(
    cx: &Context<'_>,
    name: &At<String>,
    written: &At<String>,
    scalar: &Scalar,
) -> Option<pg_types::Column> {
    let Some(pg_type) = scalar.pg_type() else {
        let message = format!(
            "`{}` cannot be an output column: its type is not a scalar",
            scalar.text()
        );
        let help = "use a number, text, bool, bytes, date or timestamp; for a nested record, select one of its fields";
        cx.add(Problem::error(written.span.clone(), message).help(help));
        return None;
    };
    Some(pg_types::Column::new(name, pg_type, scalar.nullable()))
}

pub(super) fn partitions_of(cx: &Context<'_>, declared: &model::Processor, default: i32) -> i32 {
    let what = format!("processor `{}`", declared.name.value);
    cx.partitions(declared.partitions.as_ref(), &what, EVENT_PARTITIONS_MAX, default)
}

/// Default number of partitions of a processor's topic: that of an input that is read directly and has several
/// partitions.
pub(super) fn default_partitions(feeds: &[&Feed]) -> i32 {
    feeds
        .iter()
        .filter(|feed| feed.is_direct && feed.partitions > 1)
        .map(|feed| feed.partitions)
        .max()
        .unwrap_or(EVENT_PARTITIONS)
}

/// A row type with only the used fields, in ascending order of their indexes.
pub(super) fn reduced(row: &RowType, used: &std::collections::BTreeSet<usize>) -> RowType {
    RowType {
        fields: used.iter().filter_map(|at| row.fields.get(*at).cloned()).collect(),
    }
}

pub(super) fn names_of(row: &RowType) -> Vec<String> {
    row.fields.iter().map(|field| field.name.clone()).collect()
}

/// Columns and their types, as part of the text from which a change of the declaration is detected.
pub(super) fn typed(row: &RowType) -> serde_json::Value {
    row.fields
        .iter()
        .map(|field| serde_json::json!([field.name, field.declared]))
        .collect()
}
