//! Checks processors in dependency order, because the types of a processor follow from those of its inputs.

mod aggregate;
mod common;
mod join;

use super::context::Context;
use super::inputs;
use super::known_inputs::{KnownInput, Meaning};
use crate::checked::{Column, Input, OutputKind, Processor, SYNC_VIEWS};
use crate::expr::RowType;
use crate::model::{self, At};
use crate::problem::Problem;
use schemas::pg_types;
use schemas::schema::Schema;
use std::sync::Arc;

/// First parts, after the topology's prefix, of the names that Trunkline derives. A processor must not have one of
/// these names: its topics and consumer group begin with the processor's name, so they could collide with derived
/// names.
const RESERVED: [&str; 10] = [
    SYNC_VIEWS,
    "analytics",
    "change",
    "command",
    "connector",
    "device",
    "event",
    "processor",
    "push",
    "view",
];

/// Checks all processors and adds their outputs to the known inputs.
pub(super) fn check_processors(
    cx: &Context<'_>,
    declared: &[model::Processor],
    known: &mut Vec<KnownInput>,
) -> Vec<Processor> {
    cx.unique(declared.iter().map(|processor| &processor.name), "processor");
    for processor in declared {
        check_name(cx, &processor.name);
    }
    let mut checked: Vec<Option<Processor>> = declared.iter().map(|_| None).collect();
    let mut pending: Vec<usize> = (0..declared.len()).collect();
    while !pending.is_empty() {
        let waits = |at: &usize| {
            let reads = declared.get(*at).map(reads).unwrap_or_default();
            let own = |other: &usize| declared.get(*other).map(|p| format!("processor:{}", p.name.value));
            reads
                .iter()
                .any(|from| pending.iter().any(|other| own(other).as_ref() == Some(&from.value)))
        };
        let (later, ready): (Vec<usize>, Vec<usize>) = pending.iter().partition(|at| waits(at));
        if ready.is_empty() {
            report_cycle(cx, declared, &later);
        }
        for at in if ready.is_empty() { &later } else { &ready } {
            let Some(processor) = declared.get(*at) else { continue };
            let made = if ready.is_empty() {
                None
            } else {
                check_processor(cx, processor, known)
            };
            known.push(as_input(processor, *at, made.as_ref()));
            if let Some(slot) = checked.get_mut(*at) {
                *slot = made;
            }
        }
        pending = if ready.is_empty() { Vec::new() } else { later };
    }
    checked.into_iter().flatten().collect()
}

fn check_name(cx: &Context<'_>, name: &At<String>) {
    cx.name(name, "processor");
    if RESERVED.contains(&name.value.as_str()) {
        let message = format!(
            "processor name `{}` is reserved: names of Trunkline's own topics begin with it",
            name.value
        );
        cx.add(Problem::error(name.span.clone(), message).help("rename the processor"));
    }
}

fn report_cycle(cx: &Context<'_>, declared: &[model::Processor], within: &[usize]) {
    let names: Vec<&str> = within
        .iter()
        .filter_map(|at| declared.get(*at))
        .map(|p| p.name.value.as_str())
        .collect();
    let Some(first) = within.first().and_then(|at| declared.get(*at)) else {
        return;
    };
    let span = reads(first)
        .iter()
        .find(|from| names.iter().any(|name| from.value == format!("processor:{name}")))
        .map_or(first.name.span.clone(), |from| from.span.clone());
    let message = match names.as_slice() {
        [only] => format!("processor `{only}` reads its own output"),
        _ => format!("processors form a cycle: {}", names.join(", ")),
    };
    cx.add(Problem::error(span, message).help("break the cycle: change one of them to read a table or an event"));
}

/// The output of a processor as an input.
fn as_input(declared: &model::Processor, at: usize, made: Option<&Processor>) -> KnownInput {
    KnownInput {
        from: format!("processor:{}", declared.name.value),
        input: Input::Processor(at),
        row: made.map(|p| RowType::of(&p.schema)).unwrap_or_default(),
        key: made.map(|p| p.key.clone()),
        complete: made.is_some(),
        meaning: match made.map(|p| p.output) {
            Some(OutputKind::Stream) => Meaning::Events,
            Some(OutputKind::Windows) => Meaning::Windows,
            Some(OutputKind::Table) | None => Meaning::Rows,
        },
        partitions: made.map_or(1, |p| p.partitions),
    }
}

fn check_processor(cx: &Context<'_>, declared: &model::Processor, known: &[KnownInput]) -> Option<Processor> {
    let made = match declared.kind.as_str() {
        "aggregate" => aggregate::check_aggregate(cx, declared, known),
        "join" => join::check_join(cx, declared, known),
        _ => {
            cx.unknown(&declared.kind, "processor kind", ["aggregate", "join"], "");
            None
        }
    }?;
    let schema = output_schema(cx, declared, &made.columns)?;
    let columns = made.columns.iter().map(|column| Column {
        name: column.name.clone(),
        declared: column.pg_type.clone(),
        nullable: column.nullable,
    });
    Some(Processor {
        name: declared.name.value.clone(),
        columns: columns.collect(),
        key: (0..made.key).collect(),
        schema,
        partitions: made.partitions,
        output: made.output,
        work: made.work,
        declaration: made.declaration.to_string(),
    })
}

fn output_schema(cx: &Context<'_>, declared: &model::Processor, columns: &[pg_types::Column]) -> Option<Arc<Schema>> {
    let at = declared
        .fields
        .as_ref()
        .map_or(declared.span.clone(), |f| f.span.clone());
    inputs::row_schema(cx, "processor", &declared.name, columns, &at)
}

/// The declared inputs of a processor.
fn reads(processor: &model::Processor) -> Vec<&At<String>> {
    [&processor.from, &processor.left, &processor.right]
        .into_iter()
        .flatten()
        .collect()
}
