//! Watches how much write-ahead log the server retains for the slot, in every state of the connector.
//!
//! A task with its own connection, independent of the stream: a slot retains most while its connector is not streaming.
//! Beyond a limit it reports the connector as not ready and, if the settings say so, drops the slot, so that the disk of
//! the primary does not fill. A slot is dropped only if a stored position names it, it has the plugin and the database of
//! this source, and nothing uses it.

use super::server::{Server, Sql, literal};
use super::slot;
use crate::error::Result;
use crate::status::{Alarm, Handle};
use serde::Deserialize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Interval of the measurements.
const EVERY: Duration = Duration::from_secs(5);
/// Interval while a slot is to be dropped that is still in use.
const EVERY_URGENT: Duration = Duration::from_millis(500);

/// What to do if the server retains more than `max_retained_wal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMaxRetainedWal {
    /// Report the connector as not ready.
    #[default]
    Report,
    /// In addition, stop the connector, drop the slot and report `NEEDS_RESYNC`.
    DropSlot,
}

/// The limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) bytes: u64,
    pub(super) action: OnMaxRetainedWal,
}

/// The watched slot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) slot: String,
    /// System identifier of the cluster according to the stored position, whose slot this is; `None` if no stored position
    /// names the slot.
    pub(super) system: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    owned: Owned,
    /// Why the slot was given up.
    given_up: Option<String>,
}

/// The watch of one source. Dropping it ends the task.
pub(super) struct Retention {
    server: Server,
    limit: Option<Limit>,
    shared: Arc<Mutex<Shared>>,
    task: Option<AbortOnDropHandle<()>>,
}

impl Retention {
    pub(super) fn new(server: Server, slot: &str, limit: Option<Limit>) -> Self {
        let owned = Owned {
            slot: slot.to_owned(),
            system: None,
        };
        Retention {
            server,
            limit,
            shared: Arc::new(Mutex::new(Shared { owned, given_up: None })),
            task: None,
        }
    }

    /// Starts the task on the current runtime.
    pub(super) fn start(&mut self, handle: &Handle) {
        let watch = Watch {
            server: self.server.clone(),
            limit: self.limit,
            shared: Arc::clone(&self.shared),
            handle: handle.clone(),
        };
        self.task = Some(AbortOnDropHandle::new(
            tokio::runtime::Handle::current().spawn(watch.run()),
        ));
    }

    /// Sets the slot that is watched.
    pub(super) fn set(&self, owned: Owned) {
        lock(&self.shared).owned = owned;
    }

    /// Why the slot was given up: the source must stop, and needs a resync.
    pub(super) fn given_up(&self) -> Option<String> {
        lock(&self.shared).given_up.clone()
    }

    /// Forgets that the slot was given up, because a resync replaces it.
    pub(super) fn reset(&self) {
        lock(&self.shared).given_up = None;
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watch {
    server: Server,
    limit: Option<Limit>,
    shared: Arc<Mutex<Shared>>,
    handle: Handle,
}

/// What the server retains for a slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Retained {
    /// Since the oldest change that the slot needs.
    bytes: u64,
    /// Since the last acknowledged change.
    unacknowledged: Option<u64>,
}

impl Watch {
    async fn run(self) {
        let mut connection = None;
        loop {
            let every = match self.measure(connection.take()).await {
                Ok((sql, every)) => {
                    connection = Some(sql);
                    every
                }
                Err(error) => {
                    // The connector reports an unreachable database itself.
                    tracing::debug!(error = service::chain(&error), "slot not measured");
                    EVERY
                }
            };
            tokio::time::sleep(every).await;
        }
    }

    async fn measure(&self, connection: Option<Sql>) -> Result<(Sql, Duration)> {
        let sql = match connection.filter(|sql| !sql.is_closed()) {
            Some(sql) => sql,
            None => self.server.connect_for_catalog("trunkline slot").await?,
        };
        let owned = lock(&self.shared).owned.clone();
        let retained = read(&sql, &owned.slot).await?;
        self.handle
            .set_retained(retained.map(|r| r.bytes), retained.and_then(|r| r.unacknowledged));
        let over = self
            .limit
            .filter(|limit| retained.is_some_and(|retained| retained.bytes > limit.bytes));
        let Some(limit) = over else {
            self.handle.set_alarm(None);
            return Ok((sql, EVERY));
        };
        let bytes = retained.unwrap_or_default().bytes;
        let cause = format!(
            "{} retains {} of write-ahead log for slot {}, more than max_retained_wal = {}",
            self.server,
            display(bytes),
            owned.slot,
            display(limit.bytes)
        );
        self.handle.set_alarm(Some(Alarm {
            fix: format!(
                "let the connector run until it has caught up; or, if it is no longer needed, stop it and SELECT \
                 pg_drop_replication_slot({})",
                literal(&owned.slot)
            ),
            cause: cause.clone(),
        }));
        let Some(system) = owned.system.filter(|_| limit.action == OnMaxRetainedWal::DropSlot) else {
            return Ok((sql, EVERY));
        };
        self.give_up(&sql, &owned.slot, &system, &cause).await?;
        Ok((sql, EVERY_URGENT))
    }

    /// Tells the source to stop; drops the slot once nothing uses it.
    async fn give_up(&self, sql: &Sql, name: &str, system: &str, cause: &str) -> Result<()> {
        {
            let mut shared = lock(&self.shared);
            if shared.given_up.is_none() {
                tracing::error!(slot = name, cause, "slot given up");
                shared.given_up = Some(format!("the slot was dropped because {cause}"));
            }
        }
        if slot::drop_unused(sql, name, self.server.database(), system).await? {
            tracing::error!(slot = name, cause, "slot dropped");
            self.handle.set_alarm(None);
        }
        Ok(())
    }
}

/// What the server retains for a slot; `None` if the slot does not exist.
async fn read(sql: &Sql, slot: &str) -> Result<Option<Retained>> {
    let statement = format!(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8::text, \
         pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::int8::text \
         FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    let rows = sql.rows("measure the replication slot", &statement).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let bytes = |at: usize| {
        let text = row.try_get(at).ok().flatten()?;
        let bytes: i64 = text.parse().ok()?;
        Some(u64::try_from(bytes).unwrap_or_default())
    };
    Ok(Some(Retained {
        // A slot that has lost its WAL retains nothing.
        bytes: bytes(0).unwrap_or_default(),
        unacknowledged: bytes(1),
    }))
}

/// A size in the largest unit that leaves at least one.
fn display(bytes: u64) -> String {
    let units = [(40, "TB"), (30, "GB"), (20, "MB"), (10, "kB")];
    match units.into_iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let shown = [12, 3 << 20, (5 << 30) + 1, 1 << 40].map(display);
        assert_eq!(shown, ["12 bytes", "3 MB", "5 GB", "1 TB"]);
    }
}
