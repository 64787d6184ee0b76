//! A connection whose transaction remains open while other connections change the database.

use crate::postgres::harness::Database;
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

/// A connection that remains open.
pub struct Session {
    client: Client,
    runtime: Handle,
}

impl Session {
    /// Connects to a database.
    pub fn open(database: &Database) -> Result<Session, String> {
        let runtime = database.runtime();
        let connected = runtime.block_on(tokio_postgres::connect(&database.url, NoTls));
        let (client, connection) = connected.map_err(|error| error.to_string())?;
        runtime.spawn(connection);
        Ok(Session { client, runtime })
    }

    /// Executes a statement; returns why it failed.
    pub fn run(&self, sql: &str) -> Result<(), String> {
        let executed = self.runtime.block_on(self.client.simple_query(sql));
        let reason = |error: tokio_postgres::Error| {
            let rejected = error.as_db_error().map(ToString::to_string);
            rejected.unwrap_or_else(|| error.to_string())
        };
        executed.map(drop).map_err(reason)
    }
}
