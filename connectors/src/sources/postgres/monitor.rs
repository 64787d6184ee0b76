//! The monitor of a streaming source: a task with its own connection that writes heartbeats and reads the catalog.
//!
//! The heartbeat is a logical message that lets the slot of an idle database advance; no table is needed for it. The
//! catalog shows what the stream does not: replaced tables, partitions, publications. The stream is never blocked by the
//! task. A failure of the task never fails the connector: the stream itself reports an unreachable database.

use super::catalog::Catalog;
use super::server::{Server, Sql, literal};
use crate::error::Result;
use schemas::ids::TableName;
use schemas::version::Lsn;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// What the monitor reads.
pub(super) struct Watched {
    pub(super) server: Server,
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) tables: Vec<TableName>,
    /// Interval.
    pub(super) every: Duration,
}

/// One reading.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) catalog: Catalog,
    /// Everything that the catalog shows was committed before this LSN.
    pub(super) at: Lsn,
    /// Bytes of WAL that the slot has not acknowledged.
    pub(super) lag_bytes: Option<u64>,
}

/// A running monitor; it ends when the value is dropped.
pub(super) struct Monitor {
    observations: mpsc::Receiver<Observation>,
    _task: AbortOnDropHandle<()>,
}

impl Monitor {
    /// Starts it on the current runtime. The first reading is immediate.
    pub(super) fn start(watched: Watched) -> Self {
        let (send, observations) = mpsc::channel(1);
        let task = tokio::runtime::Handle::current().spawn(watch(watched, send));
        Monitor {
            observations,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The next reading, if there is one.
    pub(super) fn poll(&mut self) -> Option<Observation> {
        self.observations.try_recv().ok()
    }
}

async fn watch(watched: Watched, observations: mpsc::Sender<Observation>) {
    let mut connection = None;
    loop {
        match observe(&watched, connection.take()).await {
            Ok((sql, observation)) => {
                connection = Some(sql);
                // If the last reading was not processed yet, this one would not be either.
                let _ = observations.try_send(observation);
            }
            Err(error) => tracing::warn!(error = service::chain(&error), "heartbeat failed"),
        }
        tokio::time::sleep(watched.every).await;
    }
}

async fn observe(watched: &Watched, connection: Option<Sql>) -> Result<(Sql, Observation)> {
    let sql = match connection.filter(|sql| !sql.is_closed()) {
        Some(sql) => sql,
        None => watched.server.connect("trunkline heartbeat").await?,
    };
    let catalog = Catalog::read(&sql, &watched.tables, &watched.publication).await?;
    let at = sql
        .value("read the WAL position", "SELECT pg_current_wal_insert_lsn()::text")
        .await?;
    // After the position, so that the stream passes it. One statement writes the message and reads how much WAL the slot
    // retains.
    let heartbeat = format!(
        "SELECT pg_logical_emit_message(false, 'trunkline.heartbeat', {slot})::text, \
         pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8::text \
         FROM pg_replication_slots WHERE slot_name = {slot}",
        slot = literal(&watched.slot)
    );
    let rows = sql.rows("write a heartbeat", &heartbeat).await?;
    let lag = rows
        .first()
        .and_then(|row| row.try_get(1).ok().flatten())
        .and_then(|text| text.parse::<i64>().ok());
    let observation = Observation {
        catalog,
        at: at.and_then(|text| text.parse().ok()).unwrap_or(Lsn(u64::MAX)),
        lag_bytes: lag.map(|lag| u64::try_from(lag).unwrap_or_default()),
    };
    Ok((sql, observation))
}
