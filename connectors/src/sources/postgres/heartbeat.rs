//! The heartbeat: a periodic logical message that lets the slot of an idle database advance, and the lag of the slot.
//!
//! A failed heartbeat does not stop the connector, because the replication stream itself reports an unreachable
//! database. The heartbeat does not require a table in the database.

use super::server::{Server, Sql, literal};
use std::time::{Duration, Instant};

/// Writes the heartbeats of one connector.
pub(super) struct Heartbeat {
    sql: Option<Sql>,
    server: Server,
    statement: String,
    every: Duration,
    last: Instant,
    lag_bytes: Option<u64>,
}

impl Heartbeat {
    pub(super) fn new(sql: Sql, server: &Server, slot: &str, every: Duration) -> Self {
        // One statement writes the message and reads how much WAL the slot retains.
        let statement = format!(
            "SELECT pg_logical_emit_message(false, 'trunkline.heartbeat', {slot})::text, \
             pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8::text \
             FROM pg_replication_slots WHERE slot_name = {slot}",
            slot = literal(slot)
        );
        Heartbeat {
            sql: Some(sql),
            server: server.clone(),
            statement,
            every,
            last: Instant::now(),
            lag_bytes: None,
        }
    }

    /// Writes a message if one is due.
    pub(super) async fn beat(&mut self, streaming: bool) {
        if !streaming || self.last.elapsed() < self.every {
            return;
        }
        self.last = Instant::now();
        let sql = match self.sql.take().filter(|sql| !sql.is_closed()) {
            Some(sql) => sql,
            None => match self.server.connect("trunkline heartbeat").await {
                Ok(sql) => sql,
                Err(error) => {
                    tracing::warn!(error = service::chain(&error), "heartbeat failed");
                    return;
                }
            },
        };
        match sql.rows("write a heartbeat", &self.statement).await {
            Ok(rows) => {
                let lag = rows
                    .first()
                    .and_then(|row| row.try_get(1).ok().flatten())
                    .and_then(|text| text.parse::<i64>().ok());
                self.lag_bytes = lag.map(|lag| u64::try_from(lag).unwrap_or_default());
                self.sql = Some(sql);
            }
            Err(error) => tracing::warn!(error = service::chain(&error), "heartbeat failed"),
        }
    }

    /// Bytes of WAL that the slot retains, according to the last heartbeat.
    pub(super) fn lag_bytes(&self) -> Option<u64> {
        self.lag_bytes
    }
}
