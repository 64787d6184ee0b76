//! Checks processors: in the order in which they read one another, since a reader's types follow from what it reads.
//!
//! Guarantees: a processor that comes out reads inputs that exist, and none that is made of its own output.
//! Never: a topic name that another part of the house has.

mod aggregate;
mod join;

use super::{Check, EVENT_PARTITIONS, EVENT_PARTITIONS_MAX, KnownInput, Meaning};
use crate::checked::{Column, Feed, Input, OutputKind, Processor, SYNC_VIEWS};
use crate::expr::{Program, RowType, Scalar};
use crate::model::{self, At, Entries};
use crate::problem::Problem;
use schemas::pg_types;
use schemas::schema::Schema;
use std::ops::Range;
use std::sync::Arc;

/// First words of topics that are not a processor's own: a processor of such a name could make a topic of that name.
const RESERVED: [&str; 12] = [
    SYNC_VIEWS,
    "analytics",
    "change",
    "command",
    "connect",
    "control",
    "device",
    "event",
    "members",
    "processor",
    "push",
    "view",
];

/// What a checked processor is made of; its output follows.
struct Made {
    /// The key's columns, then the others.
    columns: Vec<pg_types::Column>,
    key: usize,
    partitions: i32,
    output: OutputKind,
    work: crate::checked::Work,
    declaration: serde_json::Value,
}

impl Check<'_> {
    /// Checks all processors; they become inputs too.
    pub(super) fn processors(&self, declared: &[model::Processor], known: &mut Vec<KnownInput>) -> Vec<Processor> {
        self.unique(declared.iter().map(|processor| &processor.name), "processor");
        for processor in declared {
            self.processor_name(&processor.name);
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
                self.circle(declared, &later);
            }
            for at in if ready.is_empty() { &later } else { &ready } {
                let Some(processor) = declared.get(*at) else { continue };
                let made = if ready.is_empty() {
                    None
                } else {
                    self.processor(processor, known)
                };
                known.push(self.as_input(processor, *at, made.as_ref()));
                if let Some(slot) = checked.get_mut(*at) {
                    *slot = made;
                }
            }
            pending = if ready.is_empty() { Vec::new() } else { later };
        }
        checked.into_iter().flatten().collect()
    }

    fn processor_name(&self, name: &At<String>) {
        self.name(name, "processor");
        if RESERVED.contains(&name.value.as_str()) {
            let message = format!(
                "processor name `{}` is reserved: names of Trunkline's own topics begin with it",
                name.value
            );
            self.add(Problem::error(name.span.clone(), message).help("rename the processor"));
        }
    }

    fn circle(&self, declared: &[model::Processor], within: &[usize]) {
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
        self.add(Problem::error(span, message).help("break the cycle: change one of them to read a table or an event"));
    }

    /// What others may know of a processor's topic.
    fn as_input(&self, declared: &model::Processor, at: usize, made: Option<&Processor>) -> KnownInput {
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

    fn processor(&self, declared: &model::Processor, known: &[KnownInput]) -> Option<Processor> {
        let made = match declared.kind.as_str() {
            "aggregate" => self.aggregate(declared, known),
            "join" => self.join(declared, known),
            _ => {
                self.unknown(&declared.kind, "processor kind", ["aggregate", "join"], "");
                None
            }
        }?;
        let schema = self.derived_schema(declared, &made.columns)?;
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

    fn derived_schema(&self, declared: &model::Processor, columns: &[pg_types::Column]) -> Option<Arc<Schema>> {
        let at = declared
            .fields
            .as_ref()
            .map_or(declared.span.clone(), |f| f.span.clone());
        self.row_schema("processor", &declared.name, columns, &at)
    }

    /// The input that a processor names, if it can be read by one.
    fn read_by<'k>(&self, from: &At<String>, known: &'k [KnownInput]) -> Option<&'k KnownInput> {
        let input = self.input(from, known)?;
        if input.meaning == Meaning::Windows {
            let message = format!(
                "`{}` emits updates of open windows, which a processor cannot read",
                from.value
            );
            let help = "set emit = \"final\" on it, so that it writes one record per window";
            self.add(Problem::error(from.span.clone(), message).help(help));
            return None;
        }
        input.complete.then_some(input)
    }

    /// Reports keys of the other kind.
    fn only_of(&self, kind: &str, keys: &[(&str, Option<Range<usize>>)]) {
        for (key, span) in keys.iter().filter_map(|(key, span)| Some((key, span.clone()?))) {
            let message = format!("`{key}` is only valid for processors of kind `{kind}`");
            self.add(Problem::error(span, message).help(format!("remove it, or write kind = \"{kind}\"")));
        }
    }

    fn missing(&self, declared: &model::Processor, key: &str, example: &str) {
        let message = format!("processor `{}` has no `{key}`", declared.name.value);
        self.add(Problem::error(declared.name.span.clone(), message).help(format!("add `{key} = {example}`")));
    }

    /// Compiles a condition; `Err` when that was reported.
    fn condition(&self, of: &str, text: Option<&At<String>>, row: &RowType) -> Result<Option<Program>, ()> {
        let Some(text) = text else { return Ok(None) };
        let program = Program::compile(text, row).map_err(|errors| self.expression_errors(of, text, 0, errors))?;
        for warning in program.warnings() {
            let message = format!("processor `{of}`: {}", warning.message);
            let problem = Problem::warning(self.inside(text, &warning.span), message);
            self.add(problem.help(warning.help.clone()));
        }
        Ok(Some(program))
    }

    /// Compiles an expression that gives a value; its text begins `from` bytes inside the string.
    fn scalar(&self, of: &str, written: &At<String>, part: Range<usize>, row: &RowType) -> Option<Scalar> {
        let text = written.get(part.clone())?;
        match Scalar::compile(text, row) {
            Ok(scalar) => Some(scalar),
            Err(errors) => {
                self.expression_errors(of, written, part.start, errors);
                None
            }
        }
    }

    fn expression_errors(&self, of: &str, text: &At<String>, from: usize, errors: Vec<crate::expr::ExprError>) {
        for error in errors {
            let message = format!("processor `{of}`: {}", error.message);
            let part = from + error.span.start..from + error.span.end;
            self.add(Problem::error(self.inside(text, &part), message).help(error.help));
        }
    }

    /// Names of output columns: each once, of letters, digits and `_`.
    fn output_names(&self, entries: &[&At<Entries>], more: &[&At<String>]) -> bool {
        let before = self.problems.errors();
        let names = || {
            more.iter()
                .copied()
                .chain(entries.iter().flat_map(|e| e.value.iter().map(|(name, _)| name)))
        };
        self.unique(names(), "output column");
        for name in names() {
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(legal) {
                let message = format!("output column `{}` is not a valid Avro field name", name.value);
                self.add(
                    Problem::error(name.span.clone(), message).help("use a letter followed by letters, digits or `_`"),
                );
            }
        }
        self.problems.errors() == before
    }

    /// The type of an output column; reports a value that cannot be one.
    fn output_column(&self, name: &At<String>, written: &At<String>, scalar: &Scalar) -> Option<pg_types::Column> {
        let Some(pg_type) = scalar.pg_type() else {
            let message = format!(
                "`{}` cannot be an output column: its type is not a scalar",
                scalar.text()
            );
            let help =
                "use a number, text, bool, bytes, date or timestamp; for a nested record, select one of its fields";
            self.add(Problem::error(written.span.clone(), message).help(help));
            return None;
        };
        Some(pg_types::Column::new(name, pg_type, scalar.nullable()))
    }

    fn partitions_of(&self, declared: &model::Processor, default: i32) -> i32 {
        let topic = format!("processor.{}", declared.name.value);
        self.partitions(declared.partitions.as_ref(), &topic, EVENT_PARTITIONS_MAX, default)
    }
}

/// What a processor says that it reads.
fn reads(processor: &model::Processor) -> Vec<&At<String>> {
    [&processor.from, &processor.left, &processor.right]
        .into_iter()
        .flatten()
        .collect()
}

/// Default partitions of a processor's topic: those of an input that it reads as it stands, if that has several.
fn default_partitions(feeds: &[&Feed]) -> i32 {
    feeds
        .iter()
        .filter(|feed| feed.is_direct && feed.partitions > 1)
        .map(|feed| feed.partitions)
        .max()
        .unwrap_or(EVENT_PARTITIONS)
}

/// The fields of a row that are used, in ascending order of their indexes.
fn reduced(row: &RowType, used: &std::collections::BTreeSet<usize>) -> RowType {
    RowType {
        fields: used.iter().filter_map(|at| row.fields.get(*at).cloned()).collect(),
    }
}

fn names_of(row: &RowType) -> Vec<String> {
    row.fields.iter().map(|field| field.name.clone()).collect()
}

/// Columns and their types, for the text that says whether a declaration is another one.
fn typed(row: &RowType) -> serde_json::Value {
    row.fields
        .iter()
        .map(|field| serde_json::json!([field.name, field.declared]))
        .collect()
}
