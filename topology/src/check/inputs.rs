//! Checks connectors, tables and event types.
//!
//! A table or event type with errors becomes a known input too, so that its views are not reported as views of an
//! unknown input.

use super::context::Context;
use super::known_inputs::{KnownInput, Meaning};
use super::limits::{EVENT_PARTITIONS, EVENT_PARTITIONS_MAX};
use super::masks::check_masks;
use crate::checked::{Column, Event, Input, Source, SourceKind, Table};
use crate::columns;
use crate::expr::{RowType, Type};
use crate::model::{self, At, Declared, Entries};
use crate::names;
use crate::problem::Problem;
use schemas::ids::{EventName, SourceName, TableName};
use schemas::pg_types::{self, ColumnError};
use schemas::schema::{Schema, SchemaError};
use serde_json::Value;
use std::ops::Range;
use std::sync::Arc;

pub(super) fn check_connectors(cx: &Context<'_>, declared: &[model::Connector]) -> Vec<Source> {
    cx.unique(declared.iter().map(|connector| &connector.name), "connector");
    let mut sources = Vec::with_capacity(declared.len());
    for connector in declared {
        cx.name(&connector.name, "connector");
        let kind = match connector.kind.as_str() {
            "postgres" => SourceKind::Postgres,
            "http" => SourceKind::Http,
            _ => {
                cx.unknown(&connector.kind, "connector kind", ["postgres", "http"], "");
                continue;
            }
        };
        if let Ok(name) = SourceName::new(&connector.name) {
            sources.push(Source {
                name,
                kind,
                tables: Vec::new(),
            });
        }
    }
    sources
}

pub(super) fn check_tables(cx: &Context<'_>, declared: &Declared, sources: &mut [Source], known: &mut Vec<KnownInput>) {
    let (tables, connectors) = (&declared.tables, &declared.connectors);
    check_duplicate_tables(cx, tables);
    for table in tables {
        if connectors
            .iter()
            .all(|connector| connector.name.value != table.source.value)
        {
            let names = connectors.iter().map(|connector| connector.name.as_str());
            cx.unknown(
                &table.source,
                "connector",
                names,
                "declare the connector: [[connector]] name = \"…\", kind = \"postgres\"",
            );
        }
        let at = sources
            .iter()
            .position(|source| source.name.as_str() == table.source.value);
        let kind = at.and_then(|at| sources.get(at)).map(|source| source.kind);
        let checked = check_table(cx, table, kind);
        let input = Input::Table {
            source: at.unwrap_or_default(),
            table: at
                .and_then(|at| sources.get(at))
                .map_or(0, |source| source.tables.len()),
        };
        known.push(KnownInput {
            from: format!("{}.{}", table.source.value, table.name.value),
            input,
            row: checked
                .as_ref()
                .map(|table| row_type(&table.schema, table.columns.len()))
                .unwrap_or_default(),
            key: checked.as_ref().and_then(|table| table.key.clone()),
            complete: checked.is_some(),
            meaning: Meaning::Rows,
            partitions: 1,
        });
        if let (Some(source), Some(table)) = (at.and_then(|at| sources.get_mut(at)), checked) {
            source.tables.push(table);
        }
    }
    for connector in connectors {
        if tables.iter().all(|table| table.source.value != connector.name.value) {
            let message = format!(
                "connector `{}` has no tables, so it publishes nothing",
                connector.name.value
            );
            let help = format!(
                "declare a table: [[table]] source = \"{}\", name = \"…\"",
                connector.name.value
            );
            cx.add(Problem::warning(connector.name.span.clone(), message).help(help));
        }
    }
}

/// Reports tables that are declared twice or map to the same Avro record name.
fn check_duplicate_tables(cx: &Context<'_>, declared: &[model::Table]) {
    for (at, table) in declared.iter().enumerate() {
        let record = |table: &model::Table| {
            let (source, name) = (SourceName::new(&table.source).ok()?, TableName::new(&table.name).ok()?);
            Some(pg_types::record_name(&source, &name))
        };
        let this = record(table);
        let same = |other: &&model::Table| {
            (other.source.value == table.source.value && other.name.value == table.name.value)
                || (this.is_some() && record(other) == this)
        };
        let Some(first) = declared.iter().take(at).find(same) else {
            continue;
        };
        let (message, help) = if first.name.value == table.name.value {
            (
                format!("table `{}` is declared twice", table.name.value),
                "remove one of them",
            )
        } else {
            let names = (&first.name.value, &table.name.value);
            let help = "Avro record names consist of letters, digits and `_` only, so both names map to one; rename one of the tables";
            (
                format!(
                    "tables `{}` and `{}` map to the same Avro record name",
                    names.0, names.1
                ),
                help,
            )
        };
        let problem = Problem::error(table.name.span.clone(), message).label("declared again here");
        cx.add(problem.also(first.name.span.clone(), "first declared here").help(help));
    }
}

fn check_table(cx: &Context<'_>, table: &model::Table, kind: Option<SourceKind>) -> Option<Table> {
    let what = format!("table `{}`", table.name.value);
    let name = TableName::new(&table.name)
        .map_err(|error| {
            let message = format!("table name `{}` is invalid", table.name.value);
            cx.add(Problem::error(table.name.span.clone(), message).help(error.reason));
        })
        .ok();
    let columns = check_columns(cx, &what, &table.columns, kind == Some(SourceKind::Http));
    let key = match &table.key {
        Some(key) => check_key(cx, &what, key, &columns).map(Some),
        None if kind == Some(SourceKind::Http) => {
            let message = format!(
                "{what} has no `key`; tables of an http source must declare one, because there is no primary key to use"
            );
            let first = table.columns.first().map_or("id", |(name, _)| name.value.as_str());
            cx.add(Problem::error(table.name.span.clone(), message).help(format!("add `key = [\"{first}\"]`")));
            None
        }
        None => Some(None),
    };
    let masks = check_masks(cx, table, kind, &columns);
    let source = SourceName::new(&table.source).ok()?;
    let schema = pg_types::table_schema(&source, &name.clone()?, &columns);
    let schema = schema
        .map_err(|error| report_column_error(cx, &table.columns, &error))
        .ok()?;
    let schema = derived_schema(cx, &schema, &table.columns.span)?;
    let columns = columns_of(&schema, columns.len());
    Some(Table {
        name: name?,
        columns,
        key: key?,
        schema,
        masks: masks?,
    })
}

fn report_column_error(cx: &Context<'_>, columns: &At<Entries>, error: &ColumnError) {
    if columns.is_empty() {
        // A missing `columns` key was already reported while the file was read, but an empty map was not.
        if cx.source_text(&columns.span).starts_with('{') {
            let help = "declare at least the key columns: columns = { id = \"int8\" }";
            cx.add(Problem::error(columns.span.clone(), "the table has no columns").help(help));
        }
        return;
    }
    cx.add(Problem::error(columns.span.clone(), error.to_string()).help("only the columns listed here are published"));
}

/// Parses a schema that was derived from columns.
fn derived_schema(cx: &Context<'_>, text: &str, span: &Range<usize>) -> Option<Arc<Schema>> {
    match Schema::parse(text) {
        Ok(schema) => Some(Arc::new(schema)),
        Err(error) => {
            let problem = Problem::error(
                span.clone(),
                format!("cannot derive an Avro schema from the columns: {error}"),
            );
            cx.add(problem.help("use column names of letters, digits and `_`, and built-in types"));
            None
        }
    }
}

/// Checks declared columns. A column with an invalid type is treated as text, so that its name is known.
fn check_columns(
    cx: &Context<'_>,
    what: &str,
    declared: &[(At<String>, At<String>)],
    built_in_only: bool,
) -> Vec<pg_types::Column> {
    let mut columns = Vec::with_capacity(declared.len());
    for (name, ty) in declared {
        if name.trim().is_empty() || name.chars().any(char::is_control) {
            let message = format!("{what} has a column whose name is empty or contains control characters");
            cx.add(Problem::error(name.span.clone(), message).help("write the column's name as in the database"));
            continue;
        }
        let Some(parsed) = columns::parse(ty) else {
            let message = format!("`{}` is not a valid column type", ty.value);
            let help = "write a PostgreSQL type; append `?` if the column is nullable: \"int8\", \"text?\"";
            cx.add(Problem::error(ty.span.clone(), message).help(help));
            columns.push(pg_types::Column::new(name, "text", ty.trim_end().ends_with('?')));
            continue;
        };
        if !parsed.is_built_in() {
            let message = format!("`{}` is not a built-in PostgreSQL type", parsed.name);
            if built_in_only {
                let help = names::known(&parsed.name, columns::built_in(), "");
                cx.add(Problem::error(ty.span.clone(), message).help(help));
            } else if let Some(meant) = parsed.meant() {
                let help = format!("did you mean `{meant}`? A user-defined type is published as text");
                cx.add(Problem::warning(ty.span.clone(), message).help(help));
            }
        }
        columns.push(pg_types::Column::new(name, &parsed.name, parsed.nullable));
    }
    columns
}

/// Resolves key columns to indexes.
fn check_key(
    cx: &Context<'_>,
    what: &str,
    key: &At<Vec<At<String>>>,
    columns: &[pg_types::Column],
) -> Option<Vec<usize>> {
    cx.unique(key.iter(), "key column");
    if key.is_empty() {
        cx.add(Problem::error(key.span.clone(), format!("the key of {what} is empty")).help("list the key columns"));
        return None;
    }
    let mut indexes = Vec::with_capacity(key.len());
    let mut good = true;
    for name in key.iter() {
        let Some(at) = columns.iter().position(|column| column.name == name.value) else {
            let names = columns.iter().map(|column| column.name.as_str());
            let fix = match names::nearest(name, names) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!(
                    "add it to `columns`: {} = \"int8\"; key columns are always published",
                    name.value
                ),
            };
            let message = format!("key column `{}` of {what} is not in its `columns`", name.value);
            cx.add(Problem::error(name.span.clone(), message).help(fix));
            good = false;
            continue;
        };
        indexes.push(at);
        good &= columns
            .get(at)
            .is_some_and(|column| check_key_column(cx, what, name, column));
    }
    good.then_some(indexes)
}

fn check_key_column(cx: &Context<'_>, what: &str, name: &At<String>, column: &pg_types::Column) -> bool {
    if column.nullable {
        let message = format!("key column `{}` of {what} is nullable", column.name);
        let help = format!(
            "key columns cannot be null: write {} = \"{}\"",
            column.name, column.pg_type
        );
        cx.add(Problem::error(name.span.clone(), message).help(help));
        return false;
    }
    if matches!(column.pg_type.as_str(), "float4" | "float8" | "json" | "jsonb") {
        let message = format!(
            "key column `{}` of {what} has type {}, which has no unique text form",
            column.name, column.pg_type
        );
        let help =
            "equal values can have different texts and would become different rows; use another column as the key";
        cx.add(Problem::warning(name.span.clone(), message).help(help));
    }
    true
}

pub(super) fn check_events(cx: &Context<'_>, declared: &[model::Event], known: &mut Vec<KnownInput>) -> Vec<Event> {
    cx.unique(declared.iter().map(|event| &event.name), "event");
    let mut events = Vec::with_capacity(declared.len());
    for event in declared {
        cx.name(&event.name, "event");
        let checked = check_event(cx, event);
        known.push(KnownInput {
            from: format!("event:{}", event.name.value),
            input: Input::Event(events.len()),
            row: checked
                .as_ref()
                .map(|event| row_type(&event.schema, event.columns.len()))
                .unwrap_or_default(),
            key: checked.as_ref().map(|event| event.key.clone()),
            complete: checked.is_some(),
            meaning: Meaning::Events,
            partitions: checked.as_ref().map_or(1, |event| event.partitions),
        });
        events.extend(checked);
    }
    events
}

fn check_event(cx: &Context<'_>, event: &model::Event) -> Option<Event> {
    let what = format!("event `{}`", event.name.value);
    let partitions = cx.partitions(event.partitions.as_ref(), &what, EVENT_PARTITIONS_MAX, EVENT_PARTITIONS);
    let schema = match (&event.schema, &event.fields) {
        (Some(path), None) => read_schema(cx, path),
        (None, Some(fields)) => schema_of_fields(cx, event, fields),
        (Some(schema), Some(fields)) => {
            let message = format!("{what} has both `schema` and `fields`");
            let problem =
                Problem::error(fields.span.clone(), message).also(schema.span.clone(), "`schema` is set here");
            cx.add(problem.help("remove one of them"));
            None
        }
        (None, None) => {
            let message = format!("{what} has neither `schema` nor `fields`");
            let help = "add `schema = \"schemas/….avsc\"`, or list the fields: `fields = { id = \"int8\" }`";
            cx.add(Problem::error(event.name.span.clone(), message).help(help));
            None
        }
    };
    let Some(key) = &event.key else {
        let message = format!("{what} has no `key`");
        let help = "add `key = [\"…\"]`; events with the same key are delivered in order";
        cx.add(Problem::error(event.name.span.clone(), message).help(help));
        return None;
    };
    let schema = schema?;
    let columns = columns_of(&schema, schema.fields().len());
    let as_declared: Vec<pg_types::Column> = columns
        .iter()
        .map(|column| pg_types::Column {
            name: column.name.clone(),
            pg_type: column.declared.clone(),
            nullable: column.nullable,
        })
        .collect();
    let key_columns = check_key(cx, &what, key, &as_declared)?;
    let row = RowType::of(&schema);
    for (name, at) in key.iter().zip(&key_columns) {
        let Some(field) = row.fields.get(*at) else { continue };
        if matches!(
            field.ty,
            Type::List(_) | Type::Row(_) | Type::Json | Type::Opaque(_) | Type::Bytes | Type::Double
        ) {
            let message = format!("key field `{}` of {what} has type {}", name.value, field.declared);
            cx.add(Problem::error(name.span.clone(), message).help("use integer and string fields in a key"));
        }
    }
    Some(Event {
        name: EventName::new(&event.name).ok()?,
        columns,
        key: key_columns,
        partitions,
        schema,
    })
}

/// Reads the Avro schema of an event type from its file.
fn read_schema(cx: &Context<'_>, path: &At<String>) -> Option<Arc<Schema>> {
    let (file, text) = cx.read(path)?;
    if let Err(error) = serde_json::from_str::<Value>(&text) {
        let at = offset_of(&text, error.line(), error.column());
        let problem = Problem::error(at..at, format!("the schema is not valid JSON: {error}")).in_file(file);
        cx.add(problem.help("fix the JSON syntax"));
        return None;
    }
    let schema = match Schema::parse(&text) {
        Ok(schema) => schema,
        Err(error) => {
            let place = match &error {
                SchemaError::Default { field, .. } => field.rsplit('.').next().and_then(|name| find(&text, name)),
                _ => None,
            };
            let problem = Problem::error(place.unwrap_or(0..1), error.to_string()).in_file(file);
            cx.add(problem.help("write an Avro record schema (avro.apache.org, \"Schema Declaration\")"));
            return None;
        }
    };
    if let Err(error) = schema.record() {
        let problem = Problem::error(0..1, error.to_string()).in_file(file);
        cx.add(
            problem.help(
                "the schema of an event must be a record: {\"type\": \"record\", \"name\": \"…\", \"fields\": […]}",
            ),
        );
        return None;
    }
    Some(Arc::new(schema))
}

/// The schema of an event type that lists its fields.
fn schema_of_fields(cx: &Context<'_>, event: &model::Event, fields: &At<Entries>) -> Option<Arc<Schema>> {
    let what = format!("event `{}`", event.name.value);
    let columns = check_columns(cx, &what, fields, true);
    if fields.is_empty() {
        report_column_error(
            cx,
            fields,
            &ColumnError::None {
                table: event.name.value.clone(),
            },
        );
        return None;
    }
    row_schema(cx, "event", &event.name, &columns, &fields.span)
}

/// The schema of a table of this source, without its last field `_unchanged`.
pub(super) fn row_schema(
    cx: &Context<'_>,
    source: &str,
    name: &str,
    columns: &[pg_types::Column],
    span: &Range<usize>,
) -> Option<Arc<Schema>> {
    let (source, table) = (SourceName::new(source).ok()?, TableName::new(name).ok()?);
    let schema = pg_types::table_schema(&source, &table, columns).map_err(|error| {
        let problem = Problem::error(span.clone(), error.to_string());
        cx.add(problem.help("only the columns listed here are published"));
    });
    let mut schema: Value = serde_json::from_str(&schema.ok()?).ok()?;
    schema.get_mut("fields")?.as_array_mut()?.pop();
    derived_schema(cx, &schema.to_string(), span)
}

/// The columns of a schema: its first fields.
fn columns_of(schema: &Schema, count: usize) -> Vec<Column> {
    let fields = row_type(schema, count).fields.into_iter();
    fields
        .map(|field| Column {
            name: field.name,
            declared: field.declared,
            nullable: field.nullable,
        })
        .collect()
}

fn row_type(schema: &Schema, count: usize) -> RowType {
    let mut row = RowType::of(schema);
    row.fields.truncate(count);
    row
}

/// Byte offset of a line and column, which start at 1.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text
        .split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum();
    (before + column.saturating_sub(1)).min(text.len())
}

/// Byte range of a field name in the text of a schema.
fn find(text: &str, name: &str) -> Option<Range<usize>> {
    let quoted = format!("\"{name}\"");
    text.find(&quoted).map(|at| at..at + quoted.len())
}
