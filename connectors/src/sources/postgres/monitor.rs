//! The monitor of a streaming source: a task with its own connection that writes heartbeats and reads the catalog.
//!
//! A heartbeat is a logical message that allows the slot of an idle database to advance; it needs no table. The catalog
//! contains information that the stream lacks, about replaced tables, partitions and publications. The task never
//! blocks the stream, and its failure never fails the connector: the stream itself reports an unreachable database.

use super::catalog::Catalog;
use super::declaration::Declaration;
use super::publication;
use super::rewrites::{KnownFiles, Rewrites};
use super::server::{Sql, literal};
use super::static_record::StaticRecord;
use crate::error::Result;
use schemas::version::Lsn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Parameters of the monitor.
pub(super) struct Watched {
    pub(super) declaration: Arc<Declaration>,
    pub(super) slot: String,
    /// Static record at which the stream begins.
    pub(super) source: StaticRecord,
    /// Interval between heartbeats.
    pub(super) every: Duration,
}

/// The result of reading the catalog once.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) catalog: Catalog,
    /// Partitions whose files were replaced without a loss of rows, since the stream began.
    pub(super) rewrites: Rewrites,
    /// Everything in `catalog` was committed before this LSN.
    pub(super) at: Lsn,
    /// Bytes of WAL that the slot has not acknowledged.
    pub(super) lag_bytes: Option<u64>,
}

/// A running monitor. Dropping it stops the task.
pub(super) struct Monitor {
    observations: mpsc::Receiver<Observation>,
    _task: AbortOnDropHandle<()>,
}

impl Monitor {
    /// Starts the monitor on the current runtime. It reads the catalog for the first time immediately.
    pub(super) fn start(watched: Watched) -> Self {
        let (send, observations) = mpsc::channel(1);
        let task = tokio::runtime::Handle::current().spawn(watch(watched, send));
        Monitor {
            observations,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Returns the next observation, if any. Never waits.
    pub(super) fn poll(&mut self) -> Option<Observation> {
        self.observations.try_recv().ok()
    }
}

async fn watch(watched: Watched, observations: mpsc::Sender<Observation>) {
    let mut connection = None;
    let mut files = KnownFiles::new(&watched.source);
    loop {
        match observe(&watched, &mut files, connection.take()).await {
            Ok((sql, observation)) => {
                connection = Some(sql);
                // If the previous observation has not been processed yet, drop this one.
                let _ = observations.try_send(observation);
            }
            Err(error) => tracing::warn!(error = service::chain(&error), "heartbeat failed"),
        }
        tokio::time::sleep(watched.every).await;
    }
}

async fn observe(watched: &Watched, files: &mut KnownFiles, connection: Option<Sql>) -> Result<(Sql, Observation)> {
    let sql = match connection.filter(|sql| !sql.is_closed()) {
        Some(sql) => sql,
        // The catalog queries lock each partition, and a client that gave up would leave its query in the queue of the lock.
        None => {
            watched
                .declaration
                .server
                .connect_for_catalog("trunkline heartbeat")
                .await?
        }
    };
    let catalog = read_catalog(&sql, &watched.declaration).await;
    let at = sql
        .value("read the WAL position", "SELECT pg_current_wal_insert_lsn()::text")
        .await?;
    // The message is written after the position was read, so that the stream advances beyond that position. The same
    // statement reads how much WAL the slot retains.
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
    // A failed catalog query is returned after the heartbeat was written: without heartbeats, the slot of an idle database
    // would not advance while a table is locked.
    let catalog = catalog?;
    let observation = Observation {
        rewrites: files.observe(&sql, &catalog).await?,
        catalog,
        at: at.and_then(|text| text.parse().ok()).unwrap_or(Lsn(u64::MAX)),
        lag_bytes: lag.map(|lag| u64::try_from(lag).unwrap_or_default()),
    };
    Ok((sql, observation))
}

/// Reads the catalog, and changes the publication first if its tables or column lists are not those that are declared.
async fn read_catalog(sql: &Sql, declaration: &Declaration) -> Result<Catalog> {
    let (names, publication) = (declaration.names(), declaration.publication.as_str());
    let catalog = Catalog::read(sql, &names, publication).await?;
    match publication::maintain(sql, declaration, &catalog).await {
        Ok(false) => Ok(catalog),
        Ok(true) => Catalog::read(sql, &names, publication).await,
        Err(error) => {
            let connector = &declaration.connector;
            tracing::warn!(%connector, publication, error = service::chain(&error), "cannot change the publication");
            Ok(catalog)
        }
    }
}
