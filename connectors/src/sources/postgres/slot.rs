//! The replication slot: whether it is the one that the stored position belongs to, and taking hold of it.
//!
//! Guarantees: a slot that cannot be proved to hold everything after the stored position is refused with the reason.
//! Never: a slot of somebody else's dropped; only the slot of our own name, after its position announced a snapshot.

use super::position::{Position, Snapshot, Tables};
use super::replication::{Identity, Replication};
use super::server::{Server, Sql, literal};
use crate::error::{Error, Result};
use schemas::version::Lsn;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long another reader may hold the slot before it is trouble: the server notices a killed reader late.
const HELD_MAX: Duration = Duration::from_secs(10);

/// What is there, beside the slot.
pub(super) struct Expected<'e> {
    pub(super) slot: &'e str,
    pub(super) database: &'e str,
    pub(super) identity: &'e Identity,
    pub(super) tables: &'e Tables,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Stream after the stored position.
    GoOn,
    /// Begin an incarnation with a snapshot.
    Snapshot,
}

/// A slot as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    plugin: String,
    database: String,
    confirmed: Option<Lsn>,
    lost: bool,
}

async fn look(sql: &Sql, name: &str) -> Result<Option<Slot>> {
    let statement = format!(
        "SELECT plugin, database, confirmed_flush_lsn, to_json(s)->>'wal_status' AS status \
         FROM pg_replication_slots s WHERE slot_name = {}",
        literal(name)
    );
    let rows = sql.rows("look for the replication slot", &statement).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |at: usize| row.try_get(at).ok().flatten().map(str::to_owned);
    Ok(Some(Slot {
        plugin: text(0).unwrap_or_default(),
        database: text(1).unwrap_or_default(),
        confirmed: text(2).and_then(|lsn| lsn.parse().ok()),
        lost: text(3).as_deref() == Some("lost"),
    }))
}

/// Decides how to begin.
///
/// # Errors
/// [`Error::NeedsResync`] when going on could lose changes.
pub(super) async fn judge(sql: &Sql, stored: Option<&Position>, expected: &Expected<'_>) -> Result<Verdict> {
    let slot = look(sql, expected.slot).await?;
    decide(stored, slot.as_ref(), expected).map_err(|reason| Error::NeedsResync { reason })
}

fn decide(stored: Option<&Position>, slot: Option<&Slot>, expected: &Expected<'_>) -> Result<Verdict, String> {
    let name = expected.slot;
    let Some(stored) = stored else {
        return match slot {
            None => Ok(Verdict::Snapshot),
            Some(_) => Err(format!(
                "slot {name} exists and no position of this connector is stored: it belongs to another installation, or \
                 the log was replaced"
            )),
        };
    };
    if !matches!(stored.snapshot, Snapshot::Done { .. }) {
        // The slot, if there is one, was made for the snapshot that did not end.
        return Ok(Verdict::Snapshot);
    }
    let identity = expected.identity;
    let differs = |what: &str, is: &str, was: &str| Err(format!("{what} is {is}, the stored position is of {was}"));
    if stored.system != identity.system {
        return differs("the cluster (system identifier)", &identity.system, &stored.system);
    }
    if stored.database != expected.database {
        return differs("the database", expected.database, &stored.database);
    }
    if stored.timeline != identity.timeline {
        return differs(
            "the cluster's timeline",
            &identity.timeline.to_string(),
            &stored.timeline.to_string(),
        );
    }
    if stored.slot != name {
        return differs("the slot", name, &stored.slot);
    }
    let Some(slot) = slot else {
        return Err(format!("slot {name} does not exist any more"));
    };
    if slot.plugin != "pgoutput" || slot.database != expected.database {
        return Err(format!(
            "slot {name} is of plugin {} and database {}",
            slot.plugin, slot.database
        ));
    }
    if slot.lost {
        return Err(format!(
            "slot {name} has lost write-ahead log that was not read (max_slot_wal_keep_size)"
        ));
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= stored.whole => {}
        Some(confirmed) => {
            return Err(format!(
                "slot {name} was acknowledged up to {confirmed} by somebody else, stored is {}",
                stored.whole
            ));
        }
        None => return Err(format!("slot {name} has no confirmed place")),
    }
    match unread(&stored.tables, expected.tables) {
        Some(unread) => Err(format!("{unread} is declared and was not part of the snapshot")),
        None => Ok(Verdict::GoOn),
    }
}

/// The first table or column that is declared now and was not when the snapshot was read.
fn unread(read: &BTreeMap<String, Vec<String>>, declared: &BTreeMap<String, Vec<String>>) -> Option<String> {
    for (table, columns) in declared {
        let Some(known) = read.get(table) else {
            return Some(format!("table {table}"));
        };
        if let Some(column) = columns.iter().find(|column| !known.contains(column)) {
            return Some(format!("column {column} of table {table}"));
        }
    }
    None
}

/// Starts the stream, and waits a while if another reader still holds the slot: it may be our own, killed before.
pub(super) async fn start(
    replication: &mut Replication,
    server: &Server,
    slot: &str,
    publication: &str,
    from: Lsn,
) -> Result<()> {
    let until = Instant::now() + HELD_MAX;
    loop {
        match replication.start().await {
            Err(error @ Error::Unavailable { .. }) if Instant::now() < until => {
                tracing::debug!(slot, error = service::chain(&error), "waiting for the slot");
                tokio::time::sleep(Duration::from_millis(50)).await;
                *replication = Replication::connect(server, slot, publication, from).await?;
            }
            ended => return ended,
        }
    }
}

/// Drops the slot if it exists; waits a while for a reader to let it go.
pub(super) async fn drop(sql: &Sql, slot: &str) -> Result<()> {
    let until = Instant::now() + HELD_MAX;
    let statement = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {}",
        literal(slot)
    );
    loop {
        match sql.run("drop the replication slot", &statement).await {
            Err(Error::Unavailable { .. }) if !sql.is_closed() && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            ended => return ended,
        }
    }
}

/// Takes an exported snapshot into a transaction, which keeps it for as long as it is open.
pub(super) async fn pin(sql: &Sql, snapshot: &str) -> Result<()> {
    let statement = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
        literal(snapshot)
    );
    sql.run("take the slot's snapshot", &statement).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn tables(columns: &[&str]) -> Tables {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect();
        Arc::new(BTreeMap::from([(String::from("orders"), columns)]))
    }

    fn stored() -> Position {
        Position {
            incarnation: 1,
            system: String::from("7"),
            timeline: 1,
            database: String::from("shop"),
            slot: String::from("s"),
            lsn: Lsn(90),
            ordinal: Some(0),
            whole: Lsn(100),
            snapshot: Snapshot::Done { id: String::from("x") },
            tables: tables(&["id", "note"]),
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

    fn verdict(stored: Option<&Position>, slot: Option<&Slot>, columns: &[&str]) -> Result<Verdict, String> {
        let identity = Identity {
            system: String::from("7"),
            timeline: 1,
        };
        let tables = tables(columns);
        let expected = Expected {
            slot: "s",
            database: "shop",
            identity: &identity,
            tables: &tables,
        };
        decide(stored, slot, &expected)
    }

    #[test]
    fn a_slot_that_holds_all_that_is_not_stored_is_gone_on_with() {
        for confirmed in [0, 99, 100] {
            assert_eq!(
                verdict(Some(&stored()), Some(&slot(confirmed)), &["id"]),
                Ok(Verdict::GoOn)
            );
        }
    }

    #[test]
    fn the_first_start_and_an_interrupted_snapshot_begin_one() {
        assert_eq!(verdict(None, None, &["id"]), Ok(Verdict::Snapshot));
        for state in [Snapshot::Wanted, Snapshot::Begun { id: String::from("x") }] {
            let stored = Position {
                snapshot: state,
                system: String::from("other"),
                ..stored()
            };
            assert_eq!(verdict(Some(&stored), Some(&slot(500)), &["id"]), Ok(Verdict::Snapshot));
            assert_eq!(verdict(Some(&stored), None, &["id"]), Ok(Verdict::Snapshot));
        }
    }

    #[test]
    fn whatever_could_hide_a_gap_is_refused_with_the_reason() {
        let fits = slot(100);
        let position = |change: fn(&mut Position)| {
            let mut position = stored();
            change(&mut position);
            position
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
                "timeline is 1, the stored position is of 2",
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
            (Some(stored()), None, "does not exist any more"),
            (
                Some(stored()),
                Some(slot(101)),
                "acknowledged up to 0/65 by somebody else, stored is 0/64",
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
            let reason = verdict(stored.as_ref(), slot.as_ref(), &["id"]).unwrap_err();
            assert!(reason.contains(why), "{reason}");
        }
        let reason = verdict(Some(&stored()), Some(&fits), &["id", "new"]).unwrap_err();
        assert_eq!(
            reason,
            "column new of table orders is declared and was not part of the snapshot"
        );
    }
}
