//! Checks that a database is set up for its declared tables.
//!
//! All problems of a table are reported together, each with the statement that fixes it. A table without a usable key is never added
//! to a publication, because PostgreSQL would then reject its updates and deletes. Tables and roles are never changed.

use super::catalog::{self, Catalog, Column, Publication, Table};
use super::declared::Declared;
use super::masks::Masking;
use super::server::{Server, Sql, identifier};
use super::static_record::ColumnRecord;
use crate::error::{Error, Result};
use schemas::ids::TableName;
use schemas::pg_types::{self, AvroType, Column as DeclaredColumn};

/// A table that passed the checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The declaration.
    pub declared: Declared,
    /// The key: indices of declared columns, in key order.
    pub key: Vec<usize>,
}

/// A problem and the statement that fixes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) fix: String,
    /// Whether the table is published nevertheless once it has been published: the values that the declaration does not
    /// allow are dead letters.
    pub(super) is_tolerable: bool,
}

impl Problem {
    pub(super) fn new(what: String, fix: String) -> Self {
        Problem {
            what,
            fix,
            is_tolerable: false,
        }
    }
}

/// Oldest supported version. Older servers do not support the options that the replication stream needs.
const VERSION_MIN: u32 = 140_000;

/// A table that cannot be published as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unsuitable {
    pub(super) name: TableName,
    pub(super) problems: Vec<Problem>,
}

impl Unsuitable {
    /// Returns the causes, as one text.
    pub(super) fn cause(&self) -> String {
        join(&self.problems, |p| &p.what)
    }

    /// Returns the statements that fix the causes.
    pub(super) fn fix(&self) -> String {
        join(&self.problems, |p| p.fix.trim_end_matches(';'))
    }
}

/// Checks version and settings of the server.
///
/// # Errors
/// [`Error::Rejected`] with the problem.
pub(super) async fn check_server(sql: &Sql, server: &Server) -> Result<()> {
    let version = catalog::server_version(sql).await?;
    if version < VERSION_MIN {
        return Err(Error::Rejected {
            reason: format!(
                "{server} has version {}, but 14 is the oldest supported",
                version / 10_000
            ),
            fix: String::from("upgrade PostgreSQL"),
        });
    }
    let level = sql
        .value("read the settings", "SELECT current_setting('wal_level')")
        .await?;
    if level.as_deref() != Some("logical") {
        return Err(Error::Rejected {
            reason: format!("{server} has wal_level = {}", level.unwrap_or_default()),
            fix: String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
        });
    }
    Ok(())
}

/// Who reads a table, and by which publication.
#[derive(Clone, Copy)]
pub(super) struct Reading<'r> {
    pub(super) user: &'r str,
    pub(super) publication: &'r str,
    /// Whether the table has never been published. It must then match its declaration completely.
    pub(super) is_first: bool,
    /// The columns with which the table was read before; `None` if they are not known.
    pub(super) known: Option<&'r [ColumnRecord]>,
    /// Whether the publication is the connector's own.
    pub(super) is_own: bool,
}

/// Checks one declared table: its columns, its key, and settings that would make the snapshot or the stream incomplete.
pub(super) fn check(
    table: &Declared,
    catalog: &Catalog,
    reading: Reading<'_>,
) -> std::result::Result<Checked, Unsuitable> {
    let unsuitable = |problems| Unsuitable {
        name: table.name.clone(),
        problems,
    };
    let Some(found) = catalog.table(&table.name) else {
        return Err(unsuitable(vec![missing(table, catalog)]));
    };
    let (key, mut problems) = check_table(table, found, reading);
    if let Some(publication) = &catalog.publication {
        problems.extend(check_published(reading, publication, table, found));
    }
    problems.retain(|problem| reading.is_first || !problem.is_tolerable);
    if problems.is_empty() {
        Ok(Checked {
            declared: table.clone(),
            key,
        })
    } else {
        Err(unsuitable(problems))
    }
}

fn missing(table: &Declared, catalog: &Catalog) -> Problem {
    let name = &table.name;
    match catalog.other_kind(name) {
        Some(kind) => Problem::new(
            format!("{name} is a {kind}, and PostgreSQL only replicates tables"),
            format!("declare the tables that it reads instead of [[table]] name = \"{name}\""),
        ),
        None => Problem::new(
            format!("table {name} does not exist"),
            format!("create it, or remove [[table]] name = \"{name}\" from the topology"),
        ),
    }
}

/// Creates the error for tables that cannot be published.
pub(super) fn rejected(server: &Server, tables: &[Unsuitable]) -> Error {
    let problems: Vec<Problem> = tables.iter().flat_map(|t| t.problems.clone()).collect();
    Error::Rejected {
        reason: format!("{server}: {}", join(&problems, |p| &p.what)),
        fix: join(&problems, |p| p.fix.trim_end_matches(';')),
    }
}

fn join(problems: &[Problem], part: fn(&Problem) -> &str) -> String {
    problems.iter().map(part).collect::<Vec<_>>().join("; ")
}

/// The quoted name of a table.
pub(super) fn quoted(name: &TableName) -> String {
    format!("{}.{}", identifier(name.schema()), identifier(name.table()))
}

/// Checks one table; returns its key as indices of declared columns, which is complete if there is no problem.
fn check_table(declared: &Declared, actual: &Table, reading: Reading<'_>) -> (Vec<usize>, Vec<Problem>) {
    let user = reading.user;
    let mut problems = Vec::new();
    let table = quoted(&declared.name);
    problems.extend(check_permissions(declared, actual, user));
    problems.extend(check_reading(declared, actual, user));
    for column in &declared.columns {
        problems.extend(check_column(declared, column, actual, reading));
    }
    let key = declared.key.as_ref().unwrap_or(&actual.primary_key);
    if key.is_empty() {
        problems.push(Problem::new(
            format!("table {} has no primary key and no declared key", declared.name),
            format!(
                "ALTER TABLE {table} ADD PRIMARY KEY (…); or declare key = [\"…\"] in the topology, CREATE UNIQUE INDEX on \
                 these columns, and ALTER TABLE {table} REPLICA IDENTITY FULL"
            ),
        ));
        return (Vec::new(), problems);
    }
    let mut indices = Vec::with_capacity(key.len());
    for name in key {
        if declared.masks.contains_key(name) {
            problems.push(Problem::new(
                format!("key column {name} of table {} is masked", declared.name),
                format!(
                    "remove {name} from mask of [[table]] {}, or declare a key without it",
                    declared.name
                ),
            ));
        }
        match declared.columns.iter().position(|c| c.name == *name) {
            Some(index) => indices.push(index),
            None => problems.push(undeclared_key(declared, actual, name)),
        }
    }
    if declared.key.is_some() && !actual.is_unique(key) {
        let columns = key.iter().map(|name| identifier(name)).collect::<Vec<_>>().join(", ");
        problems.push(Problem::new(
            not_unique(&declared.name, key),
            format!("CREATE UNIQUE INDEX ON {table} ({columns}), or declare another key"),
        ));
    }
    problems.extend(check_identity(declared, actual, key));
    (indices, problems)
}

/// Checks that the declared columns can be read. A permission for the whole table is not required.
fn check_permissions(declared: &Declared, actual: &Table, user: &str) -> Option<Problem> {
    let (name, table) = (&declared.name, quoted(&declared.name));
    let columns = || declared.columns.iter().filter_map(|c| actual.column(&c.name));
    if !actual.readable || columns().all(|column| !column.readable) {
        return Some(Problem::new(
            format!("user {user} has no permission to read table {name}"),
            format!(
                "GRANT USAGE ON SCHEMA {} TO {user}; GRANT SELECT ON {table} TO {user}",
                identifier(&actual.schema),
                user = identifier(user)
            ),
        ));
    }
    let unreadable: Vec<&str> = columns().filter(|c| !c.readable).map(|c| c.name.as_str()).collect();
    if unreadable.is_empty() {
        return None;
    }
    let quoted: Vec<String> = unreadable.iter().map(|column| identifier(column)).collect();
    Some(Problem::new(
        format!(
            "user {user} has no permission to read column {} of table {name}",
            unreadable.join(", ")
        ),
        format!(
            "GRANT SELECT ({}) ON {table} TO {}; or remove it from the columns of [[table]] {name}",
            quoted.join(", "),
            identifier(user)
        ),
    ))
}

fn undeclared_key(declared: &Declared, actual: &Table, name: &str) -> Problem {
    let table = &declared.name;
    if actual.column(name).is_some_and(|column| column.generated) {
        return Problem::new(
            format!(
                "key column {name} of table {table} is generated, and PostgreSQL does not replicate generated columns"
            ),
            format!("declare key = [\"…\"] in [[table]] {table} with columns that are not generated"),
        );
    }
    Problem::new(
        format!("key column {name} of table {table} is missing in the declared columns"),
        format!("add {name} to the columns of [[table]] {table} in the topology"),
    )
}

/// The problem of a declared key by which different rows would be the same row.
pub(super) fn not_unique(table: &TableName, key: &[String]) -> String {
    format!(
        "no unique index of table {table} covers its declared key ({}), so different rows could have the same key",
        key.join(", ")
    )
}

/// Checks that deletes and key changes identify their row.
fn check_identity(declared: &Declared, actual: &Table, key: &[String]) -> Option<Problem> {
    let table = quoted(&declared.name);
    let identity = actual.identity();
    let missing: Vec<&str> = key
        .iter()
        .map(String::as_str)
        .filter(|name| !identity.contains(name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let fix = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
    let what = if actual.replica_identity == 'd' && actual.deferrable_key {
        format!(
            "the primary key of table {} is deferrable, which PostgreSQL does not use as replica identity: once the table \
             is published, it rejects updates and deletes",
            declared.name
        )
    } else {
        format!(
            "the replica identity of table {} lacks key column {}, so deletes would not identify the row",
            declared.name,
            missing.join(", ")
        )
    };
    Some(Problem::new(what, fix))
}

/// Checks that the snapshot and the stream contain the same rows.
fn check_reading(declared: &Declared, actual: &Table, user: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    if actual.row_security {
        problems.push(Problem::new(
            format!(
                "row-level security of table {} applies to user {user}, so a snapshot would lack rows",
                declared.name
            ),
            format!("ALTER ROLE {} BYPASSRLS", identifier(user)),
        ));
    }
    if actual.has_children {
        problems.push(Problem::new(
            format!(
                "other tables inherit from table {}, and the publication does not publish their changes as changes of that table",
                declared.name
            ),
            format!(
                "convert it to declarative partitioning, or ALTER TABLE … NO INHERIT {}",
                quoted(&declared.name)
            ),
        ));
    }
    if actual.unlogged {
        problems.push(Problem::new(
            format!(
                "table {} is unlogged, and PostgreSQL does not replicate it",
                declared.name
            ),
            format!("ALTER TABLE {} SET LOGGED", quoted(&declared.name)),
        ));
    }
    problems
}

fn check_column(declared: &Declared, column: &DeclaredColumn, actual: &Table, reading: Reading<'_>) -> Option<Problem> {
    let (name, table) = (&column.name, &declared.name);
    let Some(found) = actual.column(name) else {
        return missing_column(declared, column, actual, reading);
    };
    let mark = if found.nullable { "?" } else { "" };
    let declaration = format!(
        "write {name} = \"{}{mark}\" in [[table]] {table}",
        catalog::sql_type_name(&found.type_name)
    );
    if found.generated {
        return Some(Problem::new(
            format!("column {name} of table {table} is generated, and PostgreSQL does not replicate generated columns"),
            format!("remove {name} from the columns of [[table]] {table}"),
        ));
    }
    if !declared.hides_type(name) && !fits(&column.pg_type, found) {
        let what = format!(
            "column {name} of table {table} is {}, but is declared as {}",
            catalog::sql_type_name(&found.type_name),
            catalog::sql_type_name(&column.pg_type)
        );
        return Some(Problem {
            is_tolerable: widens(&column.pg_type, &found.type_name),
            ..Problem::new(what, declaration)
        });
    }
    let is_hidden = declared.masking(name) == Some(Masking::Null);
    if found.nullable && !column.nullable && !is_hidden {
        let what = format!("column {name} of table {table} is nullable, but is declared as not null");
        let fix = format!(
            "{declaration}; or ALTER TABLE {} ALTER COLUMN {} SET NOT NULL",
            quoted(table),
            identifier(name)
        );
        return Some(Problem {
            is_tolerable: true,
            ..Problem::new(what, fix)
        });
    }
    None
}

/// The problem of a declared column that does not exist. If it was published before and is nullable, it was dropped, and
/// null is published instead.
fn missing_column(
    declared: &Declared,
    column: &DeclaredColumn,
    actual: &Table,
    reading: Reading<'_>,
) -> Option<Problem> {
    let (name, table) = (&column.name, &declared.name);
    let known = reading
        .known
        .map(|known| known.iter().find(|known| known.name == *name));
    let is_number_of = |c: &&Column| known.flatten().is_some_and(|known| known.number == c.number);
    if let Some(renamed) = actual.columns.iter().find(is_number_of) {
        return Some(Problem::new(
            format!("column {name} of table {table} was renamed to {}", renamed.name),
            format!("write {} instead of {name} in [[table]] {table}", renamed.name),
        ));
    }
    let was_published = match known {
        None => !reading.is_first,
        Some(known) => known.is_some(),
    };
    if was_published && column.nullable {
        return None;
    }
    Some(Problem::new(
        format!("table {table} has no column {name}"),
        format!("remove {name} from the columns of [[table]] {table}"),
    ))
}

/// Whether integer type `to` has all values of type `from`, in the same text format.
pub(super) fn widens(from: &str, to: &str) -> bool {
    matches!((from, to), ("int2", "int4" | "int8") | ("int4", "int8"))
}

/// Whether values of the actual type have the same representation as the declared type, in Avro and on devices.
pub(super) fn fits(declared: &str, actual: &Column) -> bool {
    fits_type(declared, &actual.type_name)
}

/// Types whose values are more than their text: conditions compare numbers and read JSON documents.
const DISTINCT: [&str; 3] = ["numeric", "json", "jsonb"];

fn fits_type(declared: &str, actual: &str) -> bool {
    let same_kind = match (AvroType::of(declared), AvroType::of(actual)) {
        (AvroType::Array, AvroType::Array) => {
            let items = pg_types::item_of(declared).zip(pg_types::item_of(actual));
            return items.is_some_and(|(declared, actual)| fits_type(declared, actual));
        }
        // PostgreSQL's text output, for arrays of several dimensions.
        (AvroType::Text, AvroType::Array) => declared == "text",
        (declared, actual) => declared == actual,
    };
    let json = |name| matches!(name, "json" | "jsonb");
    let is_distinct = |name: &str| DISTINCT.contains(&name);
    let same_values = if is_distinct(declared) || is_distinct(actual) {
        declared == actual || (json(declared) && json(actual)) || (declared == "text" && actual == "numeric")
    } else {
        true
    };
    same_kind && same_values
}

fn pair(name: &TableName) -> (String, String) {
    (name.schema().to_owned(), name.table().to_owned())
}

/// Checks that an existing publication publishes all declared columns and all rows of a table, or that the table can be
/// added to it.
fn check_published(reading: Reading<'_>, found: &Publication, declared: &Declared, actual: &Table) -> Option<Problem> {
    let (name, table) = (reading.publication, &declared.name);
    let quoted_name = identifier(name);
    if actual.partitioned && !found.via_root {
        return Some(Problem::new(
            format!(
                "publication {name} publishes changes of the partitions of table {table} under the partitions' names"
            ),
            format!("ALTER PUBLICATION {quoted_name} SET (publish_via_partition_root = true)"),
        ));
    }
    let Some(published) = found.tables.get(&pair(table)) else {
        return check_can_add(reading, found, table, actual);
    };
    if let Some(filter) = &published.row_filter {
        return Some(Problem::new(
            format!("publication {name} has the row filter {filter} for table {table}, which a snapshot ignores"),
            format!(
                "ALTER PUBLICATION {quoted_name} DROP TABLE {table}; ALTER PUBLICATION {quoted_name} ADD TABLE {table}; and \
                 filter rows by `where` of the views",
                table = quoted(table)
            ),
        ));
    }
    let columns = published.columns.as_ref()?;
    let lacks = |c: &&DeclaredColumn| !columns.contains(&c.name);
    let column = declared.columns.iter().find(lacks)?;
    if reading.is_own && found.owned && actual.owned && published.is_named && !found.has_schemas {
        // The column is added before the table is read.
        return None;
    }
    Some(Problem::new(
        format!(
            "publication {name} does not publish column {} of table {table}",
            column.name
        ),
        format!("ALTER PUBLICATION {quoted_name} SET TABLE … with that column, or remove it from [[table]] {table}"),
    ))
}

/// Checks that this user can add a table to the publication, which requires the ownership of both. If the user cannot, the
/// other tables must not wait for it.
fn check_can_add(reading: Reading<'_>, found: &Publication, table: &TableName, actual: &Table) -> Option<Problem> {
    let (name, user) = (reading.publication, reading.user);
    if actual.unlogged || (found.owned && actual.owned && !found.all_tables) {
        return None;
    }
    if found.all_tables {
        return Some(Problem::new(
            format!("publication {name} is FOR ALL TABLES but does not publish table {table} under its name"),
            String::from("set another publication for the connector, which lists its tables"),
        ));
    }
    Some(Problem::new(
        format!("publication {name} does not contain table {table}, and user {user} cannot add it"),
        format!(
            "run as the owner of both: ALTER PUBLICATION {} ADD TABLE {}",
            identifier(name),
            quoted(table)
        ),
    ))
}

#[cfg(test)]
mod tests;
