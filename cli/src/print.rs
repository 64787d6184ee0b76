//! Prints results to stdout, as a table or as JSON. With `--output json`, stdout contains JSON only.

use crate::args::Output;
use crate::exit::StdoutClosed;
use anyhow::Result;

use comfy_table::{ContentArrangement, Table, TableStyle};
use serde::Serialize;
use serde_json::Value;
use std::io::{ErrorKind, IsTerminal, Write};

/// Prints a list as a table with these columns, or as a JSON array.
pub fn list<T: Serialize>(
    output: Output,
    items: &[T],
    columns: &[&str],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<()> {
    if output == Output::Json {
        return json(items);
    }
    let mut table = Table::new();
    table
        .load_style(TableStyle::new())
        .set_content_arrangement(ContentArrangement::Dynamic);
    if output == Output::Wide || !std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table.set_header(columns.iter().map(|c| c.to_uppercase()));
    for item in items {
        table.add_row(row(item));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    bytes(text.as_bytes())
}

/// The text of a field in a table.
pub fn cell(item: &Value, name: &str) -> String {
    match item.get(name) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Prints JSON objects as a table of these fields, or as a JSON array.
pub fn items(output: Output, items: &[Value], columns: &[&str]) -> Result<()> {
    list(output, items, columns, |item| {
        columns.iter().map(|c| cell(item, c)).collect()
    })
}

/// Prints a value as one line of JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    bytes(&text)
}

/// Prints a line.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    bytes(format!("{}\n", text.as_ref()).as_bytes())
}

/// Writes to stdout.
///
/// # Errors
/// [`StdoutClosed`] if the reader of a pipe has closed it.
pub fn bytes(text: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        result => Ok(result?),
    }
}
