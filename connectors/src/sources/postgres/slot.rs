//! The replication slot: verifies that it belongs to the stored position, and starts, creates or drops it.
//!
//! If it cannot be proved that a slot contains every change after the stored position, the slot is rejected with the
//! reason (`NEEDS_RESYNC`), because streaming from it would leave a gap (C14). Only the connector's own slot is ever
//! dropped: one that the stored position names, on the cluster and database of that position. A snapshot replaces it only
//! after a stored position has announced the snapshot.

use super::position::{Position, Snapshot};
use super::replication::{Identity, Replication};
use super::server::{Sql, literal};
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
    /// Where the timeline of the stored position ended, if the server's timeline is a later one that descends from it.
    pub(super) timeline_end: Option<Lsn>,
    /// Whether there is proof other than a stored position that the slot is this connector's.
    pub(super) is_proved: bool,
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
    /// Why the server has invalidated the slot.
    lost: Option<String>,
}

async fn read_slot(sql: &Sql, name: &str) -> Result<Option<Slot>> {
    let statement = format!(
        "SELECT plugin, database, confirmed_flush_lsn, to_json(s)->>'wal_status', \
         to_json(s)->>'invalidation_reason' FROM pg_replication_slots s WHERE slot_name = {}",
        literal(name)
    );
    let rows = sql.rows("read the replication slot", &statement).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text = |at: usize| row.try_get(at).ok().flatten().map(str::to_owned);
    Ok(Some(Slot {
        plugin: text(0).unwrap_or_default(),
        database: text(1).unwrap_or_default(),
        confirmed: text(2).and_then(|lsn| lsn.parse().ok()),
        lost: (text(3).as_deref() == Some("lost")).then(|| lost_because(text(4).as_deref())),
    }))
}

/// Why the server has invalidated a slot. Versions before 17 do not say, and know only one reason for a logical slot of a
/// primary.
fn lost_because(reason: Option<&str>) -> String {
    match reason {
        None | Some("wal_removed") => String::from("it retained more than max_slot_wal_keep_size"),
        Some("idle_timeout") => String::from("it was unused for longer than idle_replication_slot_timeout"),
        Some("rows_removed") => String::from("rows of the catalog that it needed were removed"),
        Some("wal_level_insufficient") => String::from("wal_level was lowered"),
        Some(other) => other.to_owned(),
    }
}

/// Reads the LSN at which a timeline ended from the history of a later timeline; `None` if the later timeline does not
/// descend from it.
pub(super) fn timeline_end(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut parts = line.split_whitespace();
        let is_it = parts.next()?.parse() == Ok(timeline);
        parts.next().filter(|_| is_it)?.parse().ok()
    })
}

/// Why a source cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Refusal {
    /// Continuing could lose changes.
    NeedsResync(String),
    /// A slot of this name exists, but no stored position proves that it belongs to this connector.
    Foreign(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::NeedsResync(reason)
    }
}

/// Decides how the source starts.
///
/// # Errors
/// [`Error::NeedsResync`] if streaming from the slot could lose changes. [`Error::Rejected`] if the slot belongs to
/// another application.
pub(super) async fn start_mode(sql: &Sql, stored: Option<&Position>, expected: &Expected<'_>) -> Result<StartMode> {
    let slot = read_slot(sql, expected.slot).await?;
    decide_start(stored, slot.as_ref(), expected).map_err(|refusal| match refusal {
        Refusal::NeedsResync(reason) => Error::NeedsResync { reason },
        Refusal::Foreign(reason) => Error::Rejected {
            reason,
            fix: format!(
                "set another slot for the connector; or, if nothing uses that slot, SELECT pg_drop_replication_slot({})",
                literal(expected.slot)
            ),
        },
    })
}

fn decide_start(stored: Option<&Position>, slot: Option<&Slot>, expected: &Expected<'_>) -> Result<StartMode, Refusal> {
    let name = expected.slot;
    let Some(stored) = stored else {
        return match slot {
            None => Ok(StartMode::Snapshot),
            Some(slot) if expected.is_proved && slot.is_of(expected.database) => Ok(StartMode::Snapshot),
            Some(_) => Err(Refusal::Foreign(format!(
                "slot {name} exists but no position of this connector is stored: it belongs to another installation, or the \
                 log was replaced"
            ))),
        };
    };
    let (identity, source) = (expected.identity, stored.source.content());
    let differs =
        |what: &str, is: &str, was: &str| format!("{what} is {is}, but the stored position is from {was}").into();
    if !stored.is_streaming() {
        return decide_snapshot(stored, slot, expected);
    }
    if source.system != identity.system {
        return Err(differs("the system identifier", &identity.system, &source.system));
    }
    if source.database != expected.database {
        return Err(differs("the database", expected.database, &source.database));
    }
    if source.timeline != identity.timeline {
        check_timeline(stored, expected)?;
    }
    if source.slot != name {
        return Err(differs("the slot", name, &source.slot));
    }
    let Some(slot) = slot else {
        let hint = if source.timeline == identity.timeline {
            ""
        } else {
            ": it was not synchronized to this server before the failover"
        };
        return Err(format!("slot {name} no longer exists{hint}").into());
    };
    if slot.plugin != "pgoutput" || slot.database != expected.database {
        return Err(format!("slot {name} uses plugin {} and database {}", slot.plugin, slot.database).into());
    }
    if let Some(reason) = &slot.lost {
        return Err(format!("slot {name} has lost WAL that was not read yet: {reason}").into());
    }
    match slot.confirmed {
        Some(confirmed) if confirmed <= stored.complete_lsn => {}
        Some(confirmed) => {
            return Err(format!(
                "slot {name} is confirmed up to {confirmed}, beyond the stored position {}: either something else has read \
                 from the slot, or the log has lost records since then, for example because it was restored from a backup",
                stored.complete_lsn
            )
            .into());
        }
        None => return Err(format!("slot {name} has no confirmed_flush_lsn").into()),
    }
    Ok(StartMode::Stream)
}

/// Decides about a position whose snapshot has not ended. Its slot, if one exists, is replaced, so it must be proved that
/// the slot is this connector's: a wrong DNS entry may lead to another cluster, and names of slots are unique only in a
/// cluster.
fn decide_snapshot(stored: &Position, slot: Option<&Slot>, expected: &Expected<'_>) -> Result<StartMode, Refusal> {
    let (identity, source, name) = (expected.identity, stored.source.content(), expected.slot);
    let is_same_database = source.system == identity.system && source.database == expected.database;
    let is_requested = matches!(stored.snapshot, Snapshot::Wanted);
    if !is_same_database && !is_requested && !source.system.is_empty() {
        return Err(format!(
            "the system identifier is {} and the database is {}, but the unfinished snapshot is of {} and {}",
            identity.system, expected.database, source.system, source.database
        )
        .into());
    }
    match slot {
        None => Ok(StartMode::Snapshot),
        Some(slot) if is_same_database && source.slot == name && slot.is_of(expected.database) => {
            Ok(StartMode::Snapshot)
        }
        Some(slot) => Err(Refusal::Foreign(format!(
            "slot {name} with plugin {} and database {} exists, and the stored position of this connector does not name it",
            slot.plugin, slot.database
        ))),
    }
}

/// Checks a position of an earlier timeline, after a failover. The new timeline must contain everything that was
/// published.
fn check_timeline(stored: &Position, expected: &Expected<'_>) -> Result<(), Refusal> {
    let (was, is) = (stored.source.content().timeline, expected.identity.timeline);
    match expected.timeline_end {
        None => Err(format!(
            "the timeline is {is}, but the stored position is from {was}, which is not an earlier timeline of this server"
        )
        .into()),
        Some(end) if stored.complete_lsn > end => Err(format!(
            "the timeline is {is}, which branched from {was} at {end}, but changes up to {} were published: the failover \
             lost them",
            stored.complete_lsn
        )
        .into()),
        Some(_) => Ok(()),
    }
}

impl Slot {
    fn is_of(&self, database: &str) -> bool {
        self.plugin == "pgoutput" && self.database == database
    }
}

/// Starts streaming. Retries for a while if the slot is in use, because the process that uses it may be a previous
/// process of this connector that was killed a moment ago.
pub(super) async fn start(replication: &mut Replication, slot: &str) -> Result<()> {
    let until = Instant::now() + IN_USE_MAX;
    loop {
        match replication.start().await {
            Err(error @ Error::Unavailable { .. }) if Instant::now() < until => {
                tracing::debug!(slot, error = service::chain(&error), "waiting for the slot");
                tokio::time::sleep(Duration::from_millis(50)).await;
                replication.reconnect().await?;
            }
            result => return result,
        }
    }
}

/// Drops the slot if it exists. Retries for a while if it is in use. [`start_mode`] has proved that it is this connector's.
///
/// # Errors
/// [`Error::Rejected`] if the slot of this name has another plugin or database.
pub(super) async fn drop(sql: &Sql, slot: &str, database: &str) -> Result<()> {
    let Some(found) = read_slot(sql, slot).await? else {
        return Ok(());
    };
    if !found.is_of(database) {
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
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} AND plugin = \
         'pgoutput' AND database = {}",
        literal(slot),
        literal(database)
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

/// Drops a slot of this cluster and database if nothing uses it. Returns whether it was dropped.
pub(super) async fn drop_unused(sql: &Sql, slot: &str, database: &str, system: &str) -> Result<bool> {
    let statement = format!(
        "SELECT slot_name, pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {} AND plugin = \
         'pgoutput' AND database = {} AND NOT active AND \
         (SELECT system_identifier FROM pg_control_system())::text = {}",
        literal(slot),
        literal(database),
        literal(system)
    );
    let dropped = sql.rows("drop the replication slot", &statement).await?;
    Ok(!dropped.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::static_record::{Content, StaticRecord};
    use super::*;

    fn stored() -> Position {
        Position {
            source_epoch: 1,
            lsn: Lsn(90),
            ordinal: Some(0),
            complete_lsn: Lsn(100),
            snapshot: Snapshot::Done { id: String::from("x") },
            chunks: None,
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
            lost: None,
        }
    }

    fn mode(stored: Option<&Position>, slot: Option<&Slot>) -> Result<StartMode, Refusal> {
        let identity = Identity {
            system: String::from("7"),
            timeline: 1,
        };
        let expected = Expected {
            slot: "s",
            database: "shop",
            identity: &identity,
            timeline_end: None,
            is_proved: false,
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
                ..stored()
            };
            assert_eq!(mode(Some(&stored), Some(&slot(500))), Ok(StartMode::Snapshot));
            assert_eq!(mode(Some(&stored), None), Ok(StartMode::Snapshot));
        }
    }

    #[test]
    fn slot_that_is_not_provably_ours_is_not_replaced() {
        let position = |state: &Snapshot, change: fn(&mut Content)| Position {
            snapshot: state.clone(),
            source: stored().source.with(change),
            ..stored()
        };
        let (wanted, begun) = (Snapshot::Wanted, Snapshot::Begun { id: String::from("x") });
        let foreign = |stored: Option<&Position>, slot: &Slot| match mode(stored, Some(slot)) {
            Err(Refusal::Foreign(_)) => {}
            other => panic!("{other:?} for {stored:?}"),
        };
        foreign(None, &slot(0));
        for state in [&wanted, &begun] {
            foreign(Some(&position(state, |p| *p = Content::default())), &slot(0));
            foreign(Some(&position(state, |p| p.slot = String::from("t"))), &slot(0));
            let (mut database, mut plugin) = (slot(0), slot(0));
            database.database = String::from("other");
            plugin.plugin = String::from("wal2json");
            foreign(Some(&position(state, |_| ())), &database);
            foreign(Some(&position(state, |_| ())), &plugin);
        }
        // A resync may lead to another cluster or database, but not to a slot there.
        let changes: [fn(&mut Content); 2] = [|p| p.system = String::from("8"), |p| p.database = String::from("x")];
        for change in changes {
            foreign(Some(&position(&wanted, change)), &slot(0));
            assert_eq!(mode(Some(&position(&wanted, change)), None), Ok(StartMode::Snapshot));
            // An unfinished snapshot of another cluster or database is not started here.
            for slot in [None, Some(&slot(0))] {
                match mode(Some(&position(&begun, change)), slot) {
                    Err(Refusal::NeedsResync(reason)) => assert!(reason.contains("unfinished snapshot"), "{reason}"),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn slot_of_a_deleted_log_is_replaced_if_something_else_proves_it() {
        let identity = Identity {
            system: String::from("7"),
            timeline: 1,
        };
        let expected = Expected {
            slot: "s",
            database: "shop",
            identity: &identity,
            timeline_end: None,
            is_proved: true,
        };
        let mode = |slot: &Slot| decide_start(None, Some(slot), &expected);
        assert_eq!(mode(&slot(0)), Ok(StartMode::Snapshot));
        let mut other = slot(0);
        other.plugin = String::from("wal2json");
        assert!(matches!(mode(&other), Err(Refusal::Foreign(_))));
    }

    #[test]
    fn later_timeline_continues_if_it_contains_everything_published() {
        let identity = Identity {
            system: String::from("7"),
            timeline: 3,
        };
        let at = |timeline_end| {
            let expected = Expected {
                slot: "s",
                database: "shop",
                identity: &identity,
                timeline_end,
                is_proved: false,
            };
            decide_start(Some(&stored()), Some(&slot(100)), &expected)
        };
        assert_eq!(at(Some(Lsn(100))), Ok(StartMode::Stream));
        let reason = |timeline_end| match at(timeline_end) {
            Err(Refusal::NeedsResync(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(reason(Some(Lsn(99))).contains("branched from 1 at 0/63, but changes up to 0/64 were published"));
        assert!(reason(None).contains("not an earlier timeline"));
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n";
        assert_eq!(timeline_end(history, 1), Some(Lsn(0x300_0148)));
        assert_eq!(
            (timeline_end(history, 2), timeline_end(history, 3)),
            (Some(Lsn(0x500_0000)), None)
        );
    }

    #[test]
    fn possible_gap_needs_resync_with_the_reason() {
        let fits = slot(100);
        let position = |change: fn(&mut Content)| Position {
            source: stored().source.with(change),
            ..stored()
        };
        let cases: [(Option<Position>, Option<Slot>, &str); 8] = [
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
                "is confirmed up to 0/65, beyond the stored position 0/64: either something else has read from the slot, or the \
                 log has lost records",
            ),
            (
                Some(stored()),
                Some(Slot {
                    lost: Some(lost_because(None)),
                    ..fits.clone()
                }),
                "has lost WAL that was not read yet: it retained more than max_slot_wal_keep_size",
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
            match mode(stored.as_ref(), slot.as_ref()) {
                Err(Refusal::NeedsResync(reason)) => assert!(reason.contains(why), "{reason}"),
                other => panic!("{other:?}, expected {why}"),
            }
        }
    }
}
