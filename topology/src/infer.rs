//! From a database's tables to a `topology.toml` to start from (`trunkline init`).
//!
//! Guarantees: the text passes the check (a test, also with random tables), and says in comments what is left to
//! decide. What cannot be published as it is stands there as a comment, with the reason.
//! Never: opens a bucket to everybody: that is for the reader to decide.

use crate::names;
use schemas::ids::{SourceName, TableName};
use schemas::pg_types;
use std::fmt::Write;

/// A column that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundColumn {
    /// Its name.
    pub name: String,
    /// PostgreSQL's name of its type, as `format_type` or the catalog has it.
    pub pg_type: String,
    /// Whether it may be null.
    pub nullable: bool,
}

/// A table that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTable {
    /// Its schema, such as `public`.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its columns, in the table's order.
    pub columns: Vec<FoundColumn>,
    /// Its primary key; empty if it has none.
    pub key: Vec<String>,
}

/// Columns that often say whose a row is, the likeliest first.
const OWNERS: [&str; 12] = [
    "user_id",
    "customer_id",
    "account_id",
    "owner_id",
    "member_id",
    "tenant_id",
    "company_id",
    "store_id",
    "branch_id",
    "bid",
    "org_id",
    "team_id",
];

/// Writes a topology for a database's tables. `name` becomes the topology's and the connector's name.
pub fn topology(name: &str, tables: &[FoundTable]) -> String {
    let name = allowed(name);
    let mut usable: Vec<&FoundTable> = Vec::new();
    let mut refused: Vec<(&FoundTable, String)> = Vec::new();
    for table in tables {
        match unusable(table, &usable) {
            None => usable.push(table),
            Some(reason) => refused.push((table, reason)),
        }
    }
    let mut out = head(&name);
    for table in &usable {
        out.push_str(&unless_keyless(table, table_text(&name, table)));
    }
    for (table, reason) in refused {
        let _ = writeln!(
            out,
            "\n# Left out: table {}: {reason}",
            comment(&format!("{}.{}", table.schema, table.name))
        );
    }
    out.push_str(BUCKETS);
    let mut buckets: Vec<String> = Vec::new();
    let mut views = String::new();
    let mut view_names: Vec<String> = Vec::new();
    for table in &usable {
        let bucket = bucket_of(table);
        if !buckets.contains(&bucket.0) && !table.key.is_empty() {
            buckets.push(bucket.0.clone());
        }
        views.push_str(&unless_keyless(
            table,
            view_text(&name, table, &bucket, &mut view_names),
        ));
    }
    for bucket in &buckets {
        let _ = writeln!(out, "\n[[bucket]]\nname = {}", quoted(bucket));
    }
    out.push_str(VIEWS);
    out.push_str(&views);
    out.push_str(MEMBERSHIPS);
    for bucket in &buckets {
        match membership_of(bucket) {
            Some(opened) => {
                let _ = writeln!(out, "\n[[membership]]\nbucket = {}", quoted(&opened));
            }
            None => {
                let bucket = quoted(bucket);
                let _ = writeln!(
                    out,
                    "\n# DECIDE: may everybody with a valid token read this?\n# [[membership]]\n# bucket = {bucket}"
                );
            }
        }
    }
    out.push_str(NODES);
    let _ = writeln!(
        out,
        "\n[[node]]\nname = \"main\"\nruns = [{}, \"processor:sync-views\", \"edge\"]",
        quoted(&format!("connector:{name}"))
    );
    out
}

const BUCKETS: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Buckets: a row lives in a bucket, and a device sees the buckets that its user may read. A scope (default: the bucket
# itself) is what stays whole: within it no device ever sees half a transaction.
";

const VIEWS: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Views: which rows and columns go to devices, and in which bucket. Add `where = '…'` (CEL over the columns) to send
# fewer rows, and `fields = [\"…\"]` to send fewer columns.
";

const MEMBERSHIPS: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Memberships: who may read which bucket, from the claims of the device's token. DECIDE: which claim holds the value?
";

const NODES: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Nodes: processes, started by `trunkline run <name>`.
";

fn head(name: &str) -> String {
    format!(
        "# Written by `trunkline init` from the tables that were found. It can run as it is; read it through and decide\n\
         # what your devices may see: look for the word DECIDE.\n\
         #   trunkline topology check      is it right?\n\
         #   trunkline topology graph      what does it do?\n\
         name = {0}\n\n\
         # Reads the database by logical replication, into the topic change.{name}.\n\
         [[connector]]\nname = {0}\nkind = \"postgres\"\n\n\
         # Tables: the columns that are published, with their types; `?` = may be null. Remove a line, and the column\n\
         # does not leave the database.\n",
        quoted(name)
    )
}

/// A block as it stands, or in comments if the table's rows cannot be told apart yet.
fn unless_keyless(table: &FoundTable, block: String) -> String {
    if !table.key.is_empty() {
        return block;
    }
    let lines = block.lines().map(|line| {
        if line.is_empty() || line.starts_with('#') {
            String::from(line)
        } else {
            format!("# {line}")
        }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Why a table cannot be declared beside those that are.
fn unusable(table: &FoundTable, beside: &[&FoundTable]) -> Option<String> {
    let name = match TableName::of(&table.schema, &table.name) {
        Ok(name) => name,
        Err(error) => return Some(format!("{}; rename it to publish it", error.reason)),
    };
    let source = SourceName::new("db").ok()?;
    let record = pg_types::record_name(&source, &name);
    let same = |other: &&&FoundTable| {
        TableName::of(&other.schema, &other.name).is_ok_and(|other| pg_types::record_name(&source, &other) == record)
    };
    if let Some(other) = beside.iter().find(same) {
        let other = comment(&format!("{}.{}", other.schema, other.name));
        return Some(format!(
            "it would have the Avro record name of {other}; rename one of them"
        ));
    }
    if table.columns.is_empty() {
        return Some(String::from("it has no columns"));
    }
    let mut fields: Vec<String> = Vec::new();
    for column in &table.columns {
        let field = pg_types::Column::new(&column.name, &column.pg_type, column.nullable).field_name();
        let unreadable = column.name.trim().is_empty() || column.name.chars().any(char::is_control);
        if unreadable || field == pg_types::UNCHANGED || fields.contains(&field) {
            return Some(format!(
                "column {} cannot be an Avro field; rename it",
                quoted(&comment(&column.name))
            ));
        }
        fields.push(field);
    }
    None
}

fn table_text(source: &str, table: &FoundTable) -> String {
    let name = TableName::of(&table.schema, &table.name)
        .map(|name| name.to_string())
        .unwrap_or_default();
    let mut out = format!("\n[[table]]\nsource = {}\nname   = {}\n", quoted(source), quoted(&name));
    if table.key.is_empty() {
        let first = table.columns.first().map_or("id", |column| column.name.as_str());
        out.push_str(
            "# DECIDE: the table has no primary key. Give it one; or name columns that tell its rows apart, here:\n",
        );
        let _ = writeln!(out, "key    = [{}]", basic(first));
    } else {
        let columns: Vec<String> = table.key.iter().map(|column| quoted(column)).collect();
        let _ = writeln!(out, "key    = [{}]", columns.join(", "));
    }
    out.push_str("\n[table.columns]\n");
    let width = table
        .columns
        .iter()
        .map(|column| key(&column.name).chars().count())
        .max()
        .unwrap_or_default();
    for column in &table.columns {
        let nullable = column.nullable && !table.key.contains(&column.name);
        let ty = pg_types::canonical(&column.pg_type);
        let (ty, note) = match crate::columns::parse(&ty) {
            Some(_) => (ty, String::new()),
            None => (String::from("text"), format!(" # {}", comment(&column.pg_type))),
        };
        let mark = if nullable { "?" } else { "" };
        let _ = writeln!(
            out,
            "{:width$} = {}{note}",
            key(&column.name),
            quoted(&format!("{ty}{mark}"))
        );
    }
    out
}

/// The bucket that is proposed for a table: its name, and the column that fills it.
fn bucket_of(table: &FoundTable) -> (String, Option<String>) {
    let fits = |column: &&FoundColumn| {
        let ty = pg_types::canonical(&column.pg_type);
        matches!(
            ty.as_str(),
            "int2" | "int4" | "int8" | "text" | "varchar" | "bpchar" | "uuid" | "citext"
        )
    };
    let owner = OWNERS
        .iter()
        .find_map(|owner| table.columns.iter().filter(fits).find(|column| column.name == **owner));
    match owner {
        Some(column) => {
            let kind = column.name.strip_suffix("_id").unwrap_or("branch");
            (format!("{kind}:{{id}}"), Some(column.name.clone()))
        }
        None => (String::from("everyone"), None),
    }
}

/// The claim that is proposed for a bucket; none for one without a parameter, which would open it to everybody.
fn membership_of(bucket: &str) -> Option<String> {
    match bucket.split_once(':')? {
        (kind @ ("user" | "customer" | "account" | "member" | "owner"), _) => Some(format!("{kind}:{{sub}}")),
        (kind, _) => Some(format!("{kind}:{{{kind}}}")),
    }
}

fn view_text(source: &str, table: &FoundTable, bucket: &(String, Option<String>), taken: &mut Vec<String>) -> String {
    let table_name = TableName::of(&table.schema, &table.name)
        .map(|name| name.to_string())
        .unwrap_or_default();
    let base = allowed(&table_name);
    let mut name = base.clone();
    let mut number = 2;
    while taken.contains(&name) {
        name = format!("{}_{number}", base.chars().take(56).collect::<String>());
        number += 1;
    }
    taken.push(name.clone());
    let mut out = String::from("\n[[view]]\n");
    let _ = writeln!(out, "name   = {}", quoted(&name));
    let _ = writeln!(out, "from   = {}", quoted(&format!("{source}.{table_name}")));
    match &bucket.1 {
        Some(column) => {
            let filled = bucket.0.replace("{id}", &format!("{{{column}}}"));
            let _ = writeln!(out, "bucket = {}", quoted(&filled));
        }
        None => {
            out.push_str("# DECIDE: no column was found that says whose a row is.\n");
            let _ = writeln!(out, "bucket = {}", quoted(&bucket.0));
        }
    }
    out
}

/// A name made allowed.
fn allowed(name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let plain: String = name.chars().map(|c| if legal(c) { c } else { '_' }).collect();
    let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let plain: String = if plain.is_empty() {
        String::from("db")
    } else {
        plain.chars().take(60).collect()
    };
    if names::refused(&plain).is_none() {
        plain
    } else {
        String::from("db")
    }
}

/// A text in a comment: one line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(String::from(text)).to_string()
}

/// A TOML key, in quotes if it must be.
fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { String::from(name) } else { basic(name) }
}

/// A TOML string in double quotes; a key may not be written over several lines.
fn basic(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests;
