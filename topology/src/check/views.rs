//! Checks views: input, fields, bucket, condition.
//!
//! The rows of a view of an event type have the key of the event, so that all changes of a row are in one partition.

use super::buckets::KnownBucket;
use super::context::Context;
use super::known_inputs::KnownInput;
use super::{buckets, known_inputs};
use crate::checked::{Segment, View, ViewField, resolve};
use crate::expr::{Field, Form, Program, RowType, Type};
use crate::model::{self, At};
use crate::problem::Problem;
use crate::template::{Part, Template};
use schemas::ids::ViewName;

pub(super) fn check_views(
    cx: &Context<'_>,
    declared: &[model::View],
    known: &[KnownInput],
    buckets: &[KnownBucket],
) -> Vec<View> {
    cx.unique(declared.iter().map(|view| &view.name), "view");
    let mut views = Vec::with_capacity(declared.len());
    for view in declared {
        cx.name(&view.name, "view");
        let input = known_inputs::find_input(cx, &view.from, known);
        let template = cx.template(&view.bucket);
        let bucket = template
            .as_ref()
            .and_then(|template| buckets::find_bucket(cx, &view.bucket, template, buckets));
        // If the columns are not known, the rest of the view cannot be checked.
        let Some(input) = input.filter(|input| input.complete) else {
            continue;
        };
        let fields = view_fields(cx, view, &input.row);
        let filter = compile_filter(cx, view, &input.row);
        check_key(cx, view, input);
        let bucket_name = template.and_then(|template| resolve_bucket(cx, view, &template, &input.row));
        let scope_name = bucket
            .and_then(|at| buckets.get(at)?.bucket.as_ref())
            .and_then(|bucket| scope_name(&bucket.scope, bucket_name.as_ref()?));
        let (Ok(name), Some(fields), Ok(filter)) = (ViewName::new(&view.name), fields, filter) else {
            continue;
        };
        if let (Some(bucket), Some(bucket_name), Some(scope_name)) = (bucket, bucket_name, scope_name) {
            let input = input.input;
            views.push(View {
                name,
                input,
                fields,
                bucket,
                bucket_name,
                scope_name,
                filter,
                rules_version: 0,
            });
        }
    }
    views
}

/// The fields of a view: the listed columns or all columns, with their new names.
fn view_fields(cx: &Context<'_>, view: &model::View, row: &RowType) -> Option<Vec<ViewField>> {
    let mut good = true;
    let mut fields: Vec<ViewField> = match &view.fields {
        None => row
            .fields
            .iter()
            .enumerate()
            .map(|(at, f)| ViewField {
                column: at,
                name: f.name.clone(),
            })
            .collect(),
        Some(named) => {
            cx.unique(named.iter(), "field");
            if named.is_empty() {
                let message = format!("view `{}` has no fields", view.name.value);
                let help = "list at least one field, or remove `fields` to send all columns";
                cx.add(Problem::error(named.span.clone(), message).help(help));
            }
            let column = |name: &At<String>| {
                known_inputs::find_column(cx, name, &view.from, row).map(|column| ViewField {
                    column,
                    name: name.value.clone(),
                })
            };
            let found: Vec<ViewField> = named.iter().filter_map(column).collect();
            good = found.len() == named.len() && !named.is_empty();
            found
        }
    };
    for (from, to) in view.rename.iter().flat_map(|rename| rename.value.iter()) {
        if known_inputs::find_column(cx, from, &view.from, row).is_none() {
            good = false;
            continue;
        }
        let Some(at) = fields
            .iter()
            .position(|field| row.fields.get(field.column).is_some_and(|c| c.name == from.value))
        else {
            let message = format!(
                "view `{}` renames `{}`, which is not in its `fields`",
                view.name.value, from.value
            );
            let help = format!("add \"{}\" to `fields`, or remove it from `rename`", from.value);
            cx.add(Problem::error(from.span.clone(), message).help(help));
            continue;
        };
        let taken = fields
            .iter()
            .enumerate()
            .any(|(other, field)| other != at && field.name == to.value);
        if taken || to.is_empty() {
            let message = format!(
                "view `{}` cannot rename `{}` to `{}`: the name is empty or already used",
                view.name.value, from.value, to.value
            );
            cx.add(Problem::error(to.span.clone(), message).help("choose a name that no other field of the view uses"));
        }
        if let Some(field) = fields.get_mut(at) {
            field.name.clone_from(&to.value);
        }
    }
    good.then_some(fields)
}

fn compile_filter(cx: &Context<'_>, view: &model::View, row: &RowType) -> Result<Option<Program>, ()> {
    let Some(text) = &view.filter else { return Ok(None) };
    match Program::compile(text, row) {
        Ok(program) => {
            for warning in program.warnings() {
                let message = format!("view `{}`: {}", view.name.value, warning.message);
                let problem = Problem::warning(cx.inside(text, &warning.span), message);
                cx.add(problem.help(warning.help.clone()));
            }
            Ok(Some(program))
        }
        Err(errors) => {
            for error in errors {
                let message = format!("view `{}`: {}", view.name.value, error.message);
                cx.add(Problem::error(cx.inside(text, &error.span), message).help(error.help));
            }
            Err(())
        }
    }
}

/// Checks that a view has the key of its input. Otherwise the changes of one row could come from several partitions, and
/// a tombstone of the input could not be mapped to a row.
fn check_key(cx: &Context<'_>, view: &model::View, input: &KnownInput) {
    let (Some(key), Some(of_input)) = (&view.key, &input.key) else {
        if let Some(key) = &view.key {
            let problem = Problem::error(key.span.clone(), format!("view `{}` cannot set `key`", view.name.value));
            cx.add(problem.help("remove `key`; the rows of a view keep the key of the table"));
        }
        return;
    };
    let names: Vec<&str> = of_input
        .iter()
        .filter_map(|at| input.row.fields.get(*at))
        .map(|f| f.name.as_str())
        .collect();
    if key.iter().map(|name| name.as_str()).ne(names.iter().copied()) {
        let list = names
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let message = format!(
            "the key of view `{}` differs from the key of its input `{}`",
            view.name.value, input.from
        );
        let help = format!("remove `key`, or write key = [{list}]; to use another key, change the key of the event");
        cx.add(Problem::error(key.span.clone(), message).help(help));
    }
}

/// Resolves the parameters of a view's bucket to columns.
fn resolve_bucket(cx: &Context<'_>, view: &model::View, template: &Template, row: &RowType) -> Option<Vec<Segment>> {
    let mut good = true;
    for part in template.parts() {
        let Part::Param(name, span) = part else { continue };
        let place = At {
            value: name.clone(),
            span: cx.inside(&view.bucket, span),
        };
        let Some(field) = known_inputs::find_column(cx, &place, &view.from, row).and_then(|at| row.fields.get(at))
        else {
            good = false;
            continue;
        };
        if let Some(fix) = unfit(field) {
            let message = format!("`{name}` is {}, which cannot be a bucket parameter", field.declared);
            cx.add(Problem::error(place.span, message).help(fix));
            good = false;
        }
    }
    let segments = resolve(template, |name| row.fields.iter().position(|field| field.name == name))?;
    good.then_some(segments)
}

/// The fix for a column that cannot be a bucket parameter.
fn unfit(field: &Field) -> Option<&'static str> {
    match (&field.ty, field.form) {
        (Type::Text | Type::Decimal | Type::Int | Type::Bool, _) | (Type::Timestamp, Form::Date) => None,
        (Type::Timestamp, _) => {
            Some("use a date, an integer or a text; a timestamp would create a bucket for almost every row")
        }
        (Type::Double, _) => Some("use an integer or a text; a floating-point number has no unique text form"),
        _ => Some("use an integer, text, uuid, bool or date"),
    }
}

/// The scope of a view's bucket, with the columns of the view as parameters.
fn scope_name(scope: &[Segment], bucket_name: &[Segment]) -> Option<Vec<Segment>> {
    let segment = |segment: &Segment| match segment {
        Segment::Literal(word) => Some(Segment::Literal(word.clone())),
        Segment::Param(part) => bucket_name.get(*part).cloned(),
    };
    scope.iter().map(segment).collect()
}
