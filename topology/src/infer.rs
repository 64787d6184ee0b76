//! Generates a commented `topology.toml` from the tables of a database, for `trunkline init`.
//!
//! The generated text always passes the check. Tables that cannot be published become comments with the reason, and
//! decisions that the user must make are marked with `DECIDE`. A membership that would give every user access is not
//! generated.

use crate::names;
use schemas::ids::{SourceName, TableName};
use schemas::pg_types;
use std::fmt::Write;

/// A column of a database table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundColumn {
    /// Column name.
    pub name: String,
    /// Type name as returned by PostgreSQL's `format_type`.
    pub pg_type: String,
    /// Whether the column is nullable.
    pub nullable: bool,
}

/// A table of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTable {
    /// Schema, such as `public`.
    pub schema: String,
    /// Table name.
    pub name: String,
    /// Columns, in table order.
    pub columns: Vec<FoundColumn>,
    /// Primary key columns; empty without a primary key.
    pub key: Vec<String>,
}

/// Something of the database that is not in the generated topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// What it is, with its name: `table sales.prices`, `column total of table sales.orders`.
    pub what: String,
    /// Why it is left out.
    pub reason: String,
}

/// A generated topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// The text of the file.
    pub text: String,
    /// Number of declared tables.
    pub tables: usize,
    /// What it does not contain. Listed in the text, too.
    pub left_out: Vec<LeftOut>,
}

/// Column names that usually identify the owner of a row, in order of preference.
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

/// Generates a topology for the tables of a database. `name` becomes the name of the topology and of the connector.
/// `left_out` is what the caller has left out.
pub fn topology(name: &str, tables: &[FoundTable], left_out: &[LeftOut]) -> Inferred {
    let name = allowed(name);
    let mut usable: Vec<&FoundTable> = Vec::new();
    let mut left_out = left_out.to_vec();
    for table in tables {
        match skip_reason(table, &usable) {
            None => usable.push(table),
            Some(reason) => left_out.push(LeftOut {
                what: format!("table {}.{}", table.schema, table.name),
                reason,
            }),
        }
    }
    Inferred {
        text: text(&name, &usable, &left_out),
        tables: usable.len(),
        left_out,
    }
}

fn text(name: &str, usable: &[&FoundTable], left_out: &[LeftOut]) -> String {
    let mut out = head(name);
    for table in usable {
        out.push_str(&comment_out_without_key(table, table_text(name, table)));
    }
    if !left_out.is_empty() {
        out.push_str("\n# Left out:\n");
    }
    for LeftOut { what, reason } in left_out {
        let _ = writeln!(out, "# - {}: {}", comment(what), comment(reason));
    }
    out.push_str(BUCKETS);
    let mut buckets: Vec<String> = Vec::new();
    let mut views = String::new();
    let mut view_names: Vec<String> = Vec::new();
    for table in usable {
        let bucket = bucket_of(table);
        if !buckets.contains(&bucket.0) && !table.key.is_empty() {
            buckets.push(bucket.0.clone());
        }
        views.push_str(&comment_out_without_key(
            table,
            view_text(name, table, &bucket, &mut view_names),
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
            Some(membership) => {
                let _ = writeln!(out, "\n[[membership]]\nbucket = {}", quoted(&membership));
            }
            None => {
                let bucket = quoted(bucket);
                let _ = writeln!(
                    out,
                    "\n# DECIDE: uncomment this to let every user with a valid token read the bucket.\n# [[membership]]\n# bucket = {bucket}"
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
# Buckets: each view row belongs to one bucket, and a device receives the buckets that its user may read. Rows in the
# same scope (default: the bucket itself) appear on devices one whole transaction at a time.
";

const VIEWS: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Views: which rows and columns are sent to devices, and in which bucket. Add `where = '…'` (a CEL condition over the
# columns) to select rows, and `fields = [\"…\"]` to select columns.
";

const MEMBERSHIPS: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Memberships: which claim of a device's token grants access to which bucket. DECIDE: check the names of the claims.
";

const NODES: &str = "
# ---------------------------------------------------------------------------------------------------------------------
# Nodes: the processes. Start each with `trunkline run <name>`.
";

fn head(name: &str) -> String {
    format!(
        "# Generated by `trunkline init` from the tables of the database. Review it before you use it, and decide which\n\
         # rows devices may read: search for DECIDE.\n\
         #   trunkline topology check      validate this file\n\
         #   trunkline topology graph      show the data flow and the topics\n\
         # Names of topics, consumer groups and transactional ids begin with `name`. It cannot change after the first start.\n\
         name = {0}\n\n\
         # Reads the database through logical replication and writes its changes to topic {name}.change.{name}.\n\
         [[connector]]\nname = {0}\nkind = \"postgres\"\n\n\
         # Tables: the published columns with their PostgreSQL types; `?` marks nullable columns. Remove a line to keep\n\
         # that column in the database.\n",
        quoted(name)
    )
}

/// Turns a block into comments if the table has no key.
fn comment_out_without_key(table: &FoundTable, block: String) -> String {
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

/// The reason why a table cannot be declared, if any. `declared` are the tables that were declared before it.
fn skip_reason(table: &FoundTable, declared: &[&FoundTable]) -> Option<String> {
    let name = match TableName::of(&table.schema, &table.name) {
        Ok(name) => name,
        Err(error) => return Some(format!("{}; rename the table to publish it", error.reason)),
    };
    let source = SourceName::new("db").ok()?;
    let record = pg_types::record_name(&source, &name);
    let same = |other: &&&FoundTable| {
        TableName::of(&other.schema, &other.name).is_ok_and(|other| pg_types::record_name(&source, &other) == record)
    };
    if let Some(other) = declared.iter().find(same) {
        let other = comment(&format!("{}.{}", other.schema, other.name));
        return Some(format!(
            "its Avro record name is the same as that of {other}; rename one of them"
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
                "the name of column {} is not a valid Avro field name; rename the column",
                quoted(&comment(&column.name))
            ));
        }
        fields.push(field);
    }
    let lacks = |column: &&String| table.columns.iter().all(|c| c.name != **column);
    let missing = table.key.iter().find(lacks)?;
    Some(format!(
        "its primary key contains column {}, which is left out; declare another key, whose columns are unique",
        quoted(&comment(missing))
    ))
}

fn table_text(source: &str, table: &FoundTable) -> String {
    let name = TableName::of(&table.schema, &table.name)
        .map(|name| name.to_string())
        .unwrap_or_default();
    let mut out = format!("\n[[table]]\nsource = {}\nname   = {}\n", quoted(source), quoted(&name));
    if table.key.is_empty() {
        let first = table.columns.first().map_or("id", |column| column.name.as_str());
        out.push_str("# DECIDE: the table has no primary key. Add one, or list columns that identify a row:\n");
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
            Some(_) => (sql_notation(ty), String::new()),
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

/// The catalog name of a type as the topology's reference writes it: `text[]` for `_text`.
fn sql_notation(ty: String) -> String {
    let array = pg_types::item_of(&ty).map(|item| format!("{item}[]"));
    array
        .filter(|array| crate::columns::parse(array).is_some())
        .unwrap_or(ty)
}

/// The proposed bucket of a table: its template and the column used as its parameter.
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

/// The proposed membership of a bucket. A bucket without a parameter gets no membership, because it would grant access
/// to all users.
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
            out.push_str("# DECIDE: no column identifies the owner of a row, so this puts all rows into one bucket.\n");
            let _ = writeln!(out, "bucket = {}", quoted(&bucket.0));
        }
    }
    out
}

/// Converts a name to a valid one.
fn allowed(name: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let plain: String = name.chars().map(|c| if legal(c) { c } else { '_' }).collect();
    let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    let plain: String = if plain.is_empty() {
        String::from("db")
    } else {
        plain.chars().take(60).collect()
    };
    if names::rejected(&plain).is_none() && plain != names::RESERVED_TOPOLOGY {
        plain
    } else {
        String::from("db")
    }
}

/// Converts a text to one comment line.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(String::from(text)).to_string()
}

/// A TOML key, quoted if necessary.
fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if bare { String::from(name) } else { basic(name) }
}

/// A basic TOML string. `toml::Value` may write a multi-line string, which is not allowed for keys.
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
