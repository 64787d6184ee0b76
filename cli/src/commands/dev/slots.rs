//! Replication slots that `trunkline dev` has used with a data directory.
//!
//! A slot outlives the process and retains WAL, and `dev --fresh` forgets the position that belongs to it. The file
//! `slots.json` proves that a slot belongs to a data directory, so `--fresh` replaces it; a slot of another Trunkline with
//! the same name is never replaced without an operator.

use crate::connect_api::{RunningConnector, RunningConnectors};
use anyhow::{Context, Result};
use connectors::sources::postgres::ServerObjects;
use connectors::sources::postgres::server::{identifier, literal};
use connectors::status::State;
use serde::{Deserialize, Serialize};
use service::Tasks;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the states of the connectors are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// A slot that a connector has read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedSlot {
    connector: String,
    server: String,
    slot: String,
    publication: String,
}

impl UsedSlot {
    /// The slot of a connector; `None` for a source of another kind.
    fn of(connector: &RunningConnector) -> Option<Self> {
        let objects = connector.objects.as_ref()?;
        Some(UsedSlot {
            connector: connector.name.clone(),
            server: objects.server.clone(),
            slot: objects.slot.clone(),
            publication: objects.publication.clone(),
        })
    }
}

fn file(data: &Path) -> PathBuf {
    data.join("slots.json")
}

/// The slots that were used with a data directory. A missing or unreadable file proves nothing.
pub fn read(data: &Path) -> Vec<UsedSlot> {
    let text = std::fs::read(file(data)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn write(data: &Path, slots: &[UsedSlot]) -> Result<()> {
    let file = file(data);
    std::fs::write(&file, serde_json::to_vec_pretty(slots)?).with_context(|| format!("cannot write {}", file.display()))
}

/// Writes the slot of each connector to the data directory once the connector reads from it.
pub fn record(tasks: &Tasks, data: PathBuf, running: RunningConnectors) {
    let drain = tasks.drain();
    tasks.spawn("dev-slots", async move {
        let mut known = read(&data);
        while drain.sleep(EVERY).await {
            let all = running.all();
            let reads = |connector: &&RunningConnector| {
                let report = connector.handle.report();
                matches!(report.state, State::Running | State::Snapshotting) && !report.position.is_empty()
            };
            let mut used = all.iter().filter(reads).filter_map(UsedSlot::of);
            if let Some(new) = used.find(|slot| !known.contains(slot)) {
                known.push(new);
                if let Err(error) = write(&data, &known) {
                    tracing::warn!(
                        cause = format!("{error:#}"),
                        "slot not recorded, --fresh will not replace it"
                    );
                }
            }
        }
    });
}

/// What a connector used with the previous data directory. Its position is lost, so the connector replaces the slot.
pub fn of_connector(previous: &[UsedSlot], connector: &str) -> Vec<ServerObjects> {
    let used = previous.iter().filter(|used| used.connector == connector);
    let objects = |used: &UsedSlot| ServerObjects {
        server: used.server.clone(),
        slot: used.slot.clone(),
        publication: used.publication.clone(),
    };
    used.map(objects).collect()
}

/// Prints the slots of the previous data directory that are replaced.
pub fn print_replaced(running: &RunningConnectors, previous: &[UsedSlot]) {
    for connector in running.all() {
        let Some(slot) = UsedSlot::of(&connector).filter(|slot| previous.contains(slot)) else {
            continue;
        };
        println!("Replacing slot {} of the previous data in {}.", slot.slot, slot.server);
    }
}

/// Prints the slots that remain when the process ends, and the statements that drop them.
pub fn print_remaining(data: &Path) {
    for UsedSlot {
        server,
        slot,
        publication,
        ..
    } in read(data)
    {
        println!("\nSlot {slot} remains in {server} and retains WAL until the next start. If you no longer need it:\n");
        println!("  SELECT pg_drop_replication_slot({});", literal(&slot));
        println!("  DROP PUBLICATION IF EXISTS {};", identifier(&publication));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_read_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()), []);
        let slot = UsedSlot {
            connector: "shop".to_owned(),
            server: "PostgreSQL at 127.0.0.1:5432/shop".to_owned(),
            slot: "trunkline_shop".to_owned(),
            publication: "trunkline_shop".to_owned(),
        };
        write(directory.path(), std::slice::from_ref(&slot)).unwrap();
        assert_eq!(read(directory.path()), [slot]);
        std::fs::write(file(directory.path()), "{").unwrap();
        assert_eq!(read(directory.path()), []);
    }
}
