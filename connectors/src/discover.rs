//! Reads tables, columns, keys and settings of a database for `trunkline init` and `trunkline doctor`.
//!
//! It only reads the catalog. Tables that the user may not read are skipped with a warning.

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
    let found = runtime.block_on(async {
        let sql = server.connect("trunkline init").await?;
        catalog::tables(&sql, None).await
    })?;
    let (readable, hidden): (Vec<Table>, Vec<Table>) = found.into_values().partition(|table| table.readable);
    for table in hidden {
        tracing::warn!(
            schema = table.schema,
            table = table.name,
            user = server.user(),
            "table skipped, user lacks SELECT or USAGE"
        );
    }
    let tables = readable.into_iter().map(|mut table| {
        table.columns.retain(|column| !column.generated);
        for column in &mut table.columns {
            column.type_name = catalog::sql_type_name(&column.type_name);
        }
        table
    });
    Ok(Database {
        name: server.database().to_owned(),
        tables: tables.collect(),
    })
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
