//! What a database holds, for `trunkline init`: tables, columns, keys.
//!
//! Guarantees: reads the catalog only; tables that this user may not read are left out and named in the log.
//! Never: a row; a change of the database.

use crate::error::{Error, Result};
use crate::sources::postgres::catalog::{self, Table};
use crate::sources::postgres::server::Server;

/// A database as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub database: String,
    /// Its tables outside the system's schemas, by schema and name. Columns that the database computes are left out,
    /// as they are not replicated; types are spelled as people write them (`text[]`).
    pub tables: Vec<Table>,
}

/// Reads a database's tables. Blocks; may be called inside an async runtime or outside of one.
///
/// # Errors
/// [`Error::Refused`] for a URL or login that cannot be used, [`Error::Unavailable`] when nobody answers.
pub fn tables(url: &str) -> Result<Found> {
    let server = Server::parse(url).map_err(|e| Error::Refused {
        reason: e.to_string(),
        next: String::from("write postgres://user:password@host:5432/database"),
    })?;
    // A thread of its own: a runtime cannot be entered from inside another one.
    std::thread::scope(|scope| {
        let reading = std::thread::Builder::new()
            .name(String::from("discover"))
            .spawn_scoped(scope, || read(&server));
        let reading = reading.map_err(|e| broken(e.into()))?;
        reading
            .join()
            .unwrap_or_else(|_| Err(broken("the reading thread panicked".into())))
    })
}

fn broken(source: crate::Cause) -> Error {
    Error::Unavailable {
        system: String::from("this machine"),
        attempted: "start a thread",
        source,
    }
}

fn read(server: &Server) -> Result<Found> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| broken(e.into()))?;
    let found = runtime.block_on(async {
        let sql = server.connect("trunkline init").await?;
        catalog::tables(&sql, None).await
    })?;
    let (readable, hidden): (Vec<Table>, Vec<Table>) = found.into_values().partition(|table| table.readable);
    for table in hidden {
        tracing::warn!(
            schema = table.schema,
            table = table.name,
            "left out: user {} may not read it",
            server.user()
        );
    }
    let tables = readable.into_iter().map(|mut table| {
        table.columns.retain(|column| !column.generated);
        for column in &mut table.columns {
            column.type_name = catalog::shown(&column.type_name);
        }
        table
    });
    Ok(Found {
        database: server.database().to_owned(),
        tables: tables.collect(),
    })
}

/// A setting that a postgres connector needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Whether it is right.
    pub ok: bool,
    /// What it is.
    pub found: String,
    /// The statement that mends it; empty when it is right.
    pub mend: String,
}

/// Looks at what logical replication needs. Blocks; call it outside async tasks.
///
/// # Errors
/// As [`tables`].
pub fn settings(url: &str) -> Result<Vec<Setting>> {
    const ATTEMPTED: &str = "read the settings";
    let server = Server::parse(url).map_err(|e| Error::Refused {
        reason: e.to_string(),
        next: String::from("write postgres://user:password@host:5432/database"),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| broken(e.into()))?;
    runtime.block_on(async {
        let sql = server.connect("trunkline doctor").await?;
        let setting = |ok: bool, found: String, mend: String| Setting {
            ok,
            found,
            mend: if ok { String::new() } else { mend },
        };
        let level = sql.value(ATTEMPTED, "SHOW wal_level").await?.unwrap_or_default();
        let role = "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user";
        let may = sql.value(ATTEMPTED, role).await?.is_some_and(|v| v == "t");
        let slots = "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots";
        let free = sql.value(ATTEMPTED, slots).await?.unwrap_or_default();
        Ok(vec![
            setting(
                level == "logical",
                format!("wal_level is {level}"),
                String::from("ALTER SYSTEM SET wal_level = 'logical'; then restart PostgreSQL"),
            ),
            setting(
                may,
                format!("{} {} replicate", server.user(), if may { "may" } else { "may not" }),
                format!("ALTER ROLE \"{}\" REPLICATION;", server.user()),
            ),
            setting(
                free.parse::<i64>().is_ok_and(|n| n > 0),
                format!("{free} replication slots are free"),
                String::from("raise max_replication_slots, or drop a slot that nobody uses"),
            ),
        ])
    })
}
