//! Reads tables, columns, keys and settings of a database for `trunkline init` and `trunkline doctor`.
//!
//! It only reads the catalog. What cannot be published is returned with the reason.

use crate::error::{Error, Result};
use crate::sources::postgres::catalog::{self, Table};
use crate::sources::postgres::inspect::{self, Finding, Severity};
use crate::sources::postgres::server::{Server, Settings};
use service::Secret;

/// The tables of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Tables outside the system schemas, ordered by schema and name, without generated columns, which are not
    /// replicated. Types are in SQL notation (`text[]`).
    pub tables: Vec<Table>,
    /// What else the database contains, with the reason why it is not among the tables.
    pub left_out: Vec<(String, String)>,
}

/// Reads the tables of a database. Blocks; may be called inside and outside an async runtime.
///
/// # Errors
/// [`Error::Rejected`] for an invalid URL or login, [`Error::Unavailable`] if the server does not answer.
pub fn tables(url: &str) -> Result<Database> {
    let server = parse(url)?;
    // Runs on a dedicated thread, because `block_on` panics inside another runtime.
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new()
            .name(String::from("discover"))
            .spawn_scoped(scope, || read(&server));
        let reading = reading.map_err(|e| thread_error(e.into()))?;
        reading
            .join()
            .unwrap_or_else(|_| Err(thread_error("the thread panicked".into())))
    })
}

fn parse(url: &str) -> Result<Server> {
    Server::new(Settings::new(Secret::new(url)))
}

fn thread_error(source: crate::Cause) -> Error {
    Error::Unavailable {
        system: String::from("the local host"),
        attempted: "run a thread for the database connection",
        source,
    }
}

fn read(server: &Server) -> Result<Database> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| thread_error(e.into()))?;
    let (found, others) = runtime.block_on(async {
        let sql = server.connect("trunkline init").await?;
        Ok::<_, Error>((catalog::tables(&sql, None).await?, catalog::not_replicated(&sql).await?))
    })?;
    let reason = |kind: &String| format!("PostgreSQL does not replicate {kind}s");
    let name = |(schema, name): &(String, String), kind: &String| format!("{kind} {schema}.{name}");
    let mut left_out: Vec<(String, String)> = others.iter().map(|(n, kind)| (name(n, kind), reason(kind))).collect();
    let mut tables = Vec::new();
    for mut table in found.into_values() {
        match unusable(&table, server.user()) {
            Some(reason) => left_out.push((format!("table {}.{}", table.schema, table.name), reason)),
            None => {
                left_out.extend(remove_columns(&mut table, server.user()));
                tables.push(table);
            }
        }
    }
    Ok(Database {
        name: server.database().to_owned(),
        tables,
        left_out,
    })
}

/// Why a table cannot be published, if anything can be done only in the database.
fn unusable(table: &Table, user: &str) -> Option<String> {
    if !table.readable {
        return Some(format!("user {user} lacks SELECT on it, or USAGE on its schema"));
    }
    if table.has_children {
        return Some(String::from(
            "other tables inherit from it; use declarative partitioning",
        ));
    }
    let reason = format!("its row-level security applies to user {user}; ALTER ROLE {user} BYPASSRLS");
    table.row_security.then_some(reason)
}

/// Removes the columns that cannot be published, and returns them with the reasons. Types become SQL notation.
fn remove_columns(table: &mut Table, user: &str) -> Vec<(String, String)> {
    let reason = |column: &catalog::Column| match column {
        _ if column.generated => Some(String::from("PostgreSQL does not replicate generated columns")),
        _ if !column.readable => Some(format!("user {user} lacks SELECT on it")),
        _ => None,
    };
    let (schema, name) = (&table.schema, &table.name);
    let removed = table.columns.iter().filter_map(|column| {
        let what = format!("column {} of table {schema}.{name}", column.name);
        Some((what, reason(column)?))
    });
    let removed = removed.collect();
    table.columns.retain(|column| reason(column).is_none());
    for column in &mut table.columns {
        column.type_name = catalog::sql_type_name(&column.type_name);
    }
    removed
}

/// Checks the settings that logical replication requires. Blocks; call it outside async tasks.
///
/// # Errors
/// As [`tables`].
pub fn settings(url: &str) -> Result<Vec<Finding>> {
    let server = parse(url)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| thread_error(e.into()))?;
    runtime.block_on(async {
        let sql = server.connect("trunkline doctor").await?;
        let level = sql
            .value("read the settings", "SHOW wal_level")
            .await?
            .unwrap_or_default();
        let is_logical = level == "logical";
        let level = Finding {
            severity: if is_logical { Severity::Ok } else { Severity::Problem },
            found: format!("wal_level is {level}"),
            fix: match is_logical {
                true => String::new(),
                false => String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
            },
        };
        let right = inspect::replication_right(&sql, server.user()).await?;
        Ok(vec![level, right, inspect::free_slots(&sql).await?])
    })
}
