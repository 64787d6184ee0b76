//! The replication slot: verifies that it belongs to the stored position, and starts, creates or drops it.
//!
//! If it cannot be proved that a slot contains every change after the stored position, the slot is rejected with the
//! reason (`NEEDS_RESYNC`), because streaming from it would leave a gap (C14). Only the connector's own slot is ever
//! dropped, and only after a stored position has announced the snapshot that replaces it.

use super::position::Position;
use super::replication::{Identity, Replication};
use super::server::{Server, Sql, literal};
use crate::error::{Error, Result};
use schemas::version::Lsn;
use std::time::{Duration, Instant};

/// How long to wait while another process uses the slot. The server may notice only after some time that a process was
/// killed.
const IN_USE_MAX: Duration = Duration::from_secs(10);

/// What the stored position and the slot must be equal to.
pub(super) struct Expected<'e> {
    pub(super) slot: &'e str,
    pub(super) database: &'e str,
    pub(super) identity: &'e Identity,
}

/// How the source starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartMode {
    /// Stream changes after the stored position.
    Stream,
    /// Start a new source epoch with a snapshot.
    Snapshot,
}

/// The slot as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    plugin: String,
    database: String,
    confirmed: Option<Lsn>,
    lost: bool,
}

async fn read_slot(sql: &Sql, name: &str) -> Result<Option<Slot>> {
    let statement = format!(
        "SELECT plugin, database, confirmed_flush_lsn, to_json(s)->>'wal_status' AS status \
         FROM pg_replication_slots s WHERE slot_name = {}",
        literal(name)
    );
    let rows = sql.rows("read the replication slot", &statement).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |at: usize| row.try_get(at).ok().flatten().map(str::to_owned);
    Ok(Some(Slot {
        plugin: text(0).unwrap_or_default(),
        database: text(1).unwrap_or_default(),
        confirmed: text(2).and_then(|lsn| lsn.parse().ok()),
        lost: text(3).as_deref() == Some("lost"),
    }))
}

/// Decides how the source starts.
///
/// # Errors
/// [`Error::NeedsResync`] if streaming from the slot could lose changes.
pub(super) async fn start_mode(sql: &Sql, stored: Option<&Position>, expected: &Expected<'_>) -> Result<StartMode> {
    let slot = read_slot(sql, expected.slot).await?;
    decide_start(stored, slot.as_ref(), expected).map_err(|reason| Error::NeedsResync { reason })
}

fn decide_start(stored: Option<&Position>, slot: Option<&Slot>, expected: &Expected<'_>) -> Result<StartMode, String> {
    let name = expected.slot;
    let Some(stored) = stored else {
        return match slot {
            None => Ok(StartMode::Snapshot),
            Some(_) => Err(format!(
                "slot {name} exists but no position of this connector is stored: it belongs to another installation, or the \
                 log was replaced"
            )),
        };
    };
    let (identity, source) = (expected.identity, stored.source.content());
    let differs =
        |what: &str, is: &str, was: &str| Err(format!("{what} is {is}, but the stored position is from {was}"));
    if !stored.is_streaming() {
        // If a slot exists, it was created for the unfinished snapshot, so it may be dropped. It must not be dropped on
        // another cluster, which a wrong DNS entry may lead to.
        return if source.system.is_empty() || source.system == identity.system {
            Ok(StartMode::Snapshot)
        } else {
            differs("the system identifier", &identity.system, &source.system)
        };
    }
    if source.system != identity.system {
        return differs("the system identifier", &identity.system, &source.system);
    }
    if source.database != expected.database {
        return differs("the database", expected.database, &source.database);
    }
    if source.timeline != identity.timeline {
        return differs(
            "the timeline",
            &identity.timeline.to_string(),
            &source.timeline.to_string(),
        );
    }
    if source.slot != name {
        return differs("the slot", name, &source.slot);
    }
    let Some(slot) = slot else {
        return Err(format!("slot {name} no longer exists"));
    };
    if slot.plugin != "pgoutput" || slot.database != expected.database {
        return Err(format!(
            "slot {name} uses plugin {} and database {}",
            slot.plugin, slot.database
        ));
    }
    if slot.lost {
        return Err(format!(
            "slot {name} has lost WAL that was not read yet (max_slot_wal_keep_size)"
        ));
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= stored.complete_lsn => {}
        Some(confirmed) => {
            return Err(format!(
                "slot {name} is confirmed up to {confirmed}, beyond the stored position {}: something else has read from it",
                stored.complete_lsn
            ));
        }
        None => return Err(format!("slot {name} has no confirmed_flush_lsn")),
    }
    Ok(StartMode::Stream)
}

/// Starts streaming. Retries for a while if the slot is in use, because the process that uses it may be a previous
/// process of this connector that was killed a moment ago.
pub(super) async fn start(
    replication: &mut Replication,
    server: &Server,
    slot: &str,
    publication: &str,
    from: Lsn,
) -> Result<()> {
    let until = Instant::now() + IN_USE_MAX;
    loop {
        match replication.start().await {
            Err(error @ Error::Unavailable { .. }) if Instant::now() < until => {
                tracing::debug!(slot, error = service::chain(&error), "waiting for the slot");
                tokio::time::sleep(Duration::from_millis(50)).await;
                *replication = Replication::connect(server, slot, publication, from).await?;
            }
            result => return result,
        }
    }
}

/// Drops the slot if it exists. Retries for a while if it is in use.
///
/// # Errors
/// [`Error::Rejected`] if the slot of this name has another plugin or database. Slot names are unique in a cluster, so
/// that slot belongs to another application.
pub(super) async fn drop(sql: &Sql, slot: &str, database: &str) -> Result<()> {
    if let Some(found) = read_slot(sql, slot).await?
        && (found.plugin != "pgoutput" || found.database != database)
    {
        return Err(Error::Rejected {
            reason: format!(
                "slot {slot} uses plugin {} and database {}, so it is not this connector's",
                found.plugin, found.database
            ),
            fix: String::from("set another slot in the settings of the connector, or drop that slot"),
        });
    }
    let until = Instant::now() + IN_USE_MAX;
    let statement = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    loop {
        match sql.run("drop the replication slot", &statement).await {
            Err(Error::Unavailable { .. }) if !sql.is_closed() && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

/// Opens a transaction that reads the exported snapshot and keeps it alive until the transaction ends.
pub(super) async fn import_snapshot(sql: &Sql, snapshot: &str) -> Result<()> {
    let statement = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(snapshot)
    );
    sql.run("import the slot's snapshot", &statement).await
}

#[cfg(test)]
mod tests {
    use super::super::position::Snapshot;
    use super::super::static_record::{Content, StaticRecord};
    use super::*;

    fn stored() -> Position {
        Position {
            source_epoch: 1,
            lsn: Lsn(90),
            ordinal: Some(0),
            complete_lsn: Lsn(100),
            snapshot: Snapshot::Done { id: String::from("x") },
            source: StaticRecord::new(Content {
                system: String::from("7"),
                timeline: 1,
                database: String::from("shop"),
                slot: String::from("s"),
                ..Content::default()
            }),
        }
    }

    fn slot(confirmed: u64) -> Slot {
        Slot {
            plugin: "pgoutput".into(),
            database: "shop".into(),
            confirmed: Some(Lsn(confirmed)),
            lost: false,
        }
    }

    fn mode(stored: Option<&Position>, slot: Option<&Slot>) -> Result<StartMode, String> {
        let identity = Identity {
            system: String::from("7"),
            timeline: 1,
        };
        let expected = Expected {
            slot: "s",
            database: "shop",
            identity: &identity,
        };
        decide_start(stored, slot, &expected)
    }

    #[test]
    fn slot_behind_the_position_streams() {
        for confirmed in [0, 99, 100] {
            assert_eq!(mode(Some(&stored()), Some(&slot(confirmed))), Ok(StartMode::Stream));
        }
    }

    #[test]
    fn first_start_or_unfinished_snapshot_takes_a_snapshot() {
        assert_eq!(mode(None, None), Ok(StartMode::Snapshot));
        for state in [Snapshot::Wanted, Snapshot::Begun { id: String::from("x") }] {
            let stored = Position {
                snapshot: state,
                source: StaticRecord::default(),
                ..stored()
            };
            assert_eq!(mode(Some(&stored), Some(&slot(500))), Ok(StartMode::Snapshot));
            assert_eq!(mode(Some(&stored), None), Ok(StartMode::Snapshot));
        }
        let elsewhere = Position {
            snapshot: Snapshot::Begun { id: String::from("x") },
            source: stored().source.with(|content| content.system = String::from("8")),
            ..stored()
        };
        let reason = mode(Some(&elsewhere), Some(&slot(500))).unwrap_err();
        assert!(reason.contains("system identifier"), "{reason}");
    }

    #[test]
    fn possible_gap_needs_resync_with_the_reason() {
        let fits = slot(100);
        let position = |change: fn(&mut Content)| Position {
            source: stored().source.with(change),
            ..stored()
        };
        let cases: [(Option<Position>, Option<Slot>, &str); 9] = [
            (None, Some(fits.clone()), "no position of this connector"),
            (
                Some(position(|p| p.system = String::from("8"))),
                Some(fits.clone()),
                "system identifier",
            ),
            (
                Some(position(|p| p.timeline = 2)),
                Some(fits.clone()),
                "the timeline is 1, but the stored position is from 2",
            ),
            (
                Some(position(|p| p.database = String::from("x"))),
                Some(fits.clone()),
                "the database is shop",
            ),
            (
                Some(position(|p| p.slot = String::from("t"))),
                Some(fits.clone()),
                "the slot is s",
            ),
            (Some(stored()), None, "no longer exists"),
            (
                Some(stored()),
                Some(slot(101)),
                "is confirmed up to 0/65, beyond the stored position 0/64",
            ),
            (
                Some(stored()),
                Some(Slot {
                    lost: true,
                    ..fits.clone()
                }),
                "has lost",
            ),
            (
                Some(stored()),
                Some(Slot {
                    plugin: "wal2json".into(),
                    ..fits.clone()
                }),
                "plugin wal2json",
            ),
        ];
        for (stored, slot, why) in cases {
            let reason = mode(stored.as_ref(), slot.as_ref()).unwrap_err();
            assert!(reason.contains(why), "{reason}");
        }
    }
}
