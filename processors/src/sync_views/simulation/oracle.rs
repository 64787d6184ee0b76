//! The log oracle: a partition of `view.log`, recomputed from every record that was ever committed, including those
//! that compaction removed, and compared with the sources at each transaction end marker (I3).
//!
//! It reads the log and the sources only, never a replica.

use super::events::{self, TransactionPlace};
use super::row::{Value, note_of};
use super::{SNAPSHOT_VIEWS, bucket_of, partition_of, source};
use event_log::{Offset, TopicPartition};
use schemas::events::{Event, TransactionEnd};
use schemas::version::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use streams_test::simulation::{Broker, batch_of};
use views::record::{self, ViewRecord};

/// A visible row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibleRow {
    pub offset: Offset,
    pub version: [u8; 17],
    pub json: Vec<u8>,
}

/// The visible state at a transaction end marker: rows by (bucket, view, key), stale views with the partition of their
/// source stream, and loaded views.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub rows: BTreeMap<(String, String, String), VisibleRow>,
    pub stale: BTreeSet<(String, i64)>,
    pub loaded: BTreeSet<String>,
}

impl State {
    /// The views of databases whose first snapshot has not ended.
    pub fn unloaded(&self) -> BTreeSet<String> {
        let views = SNAPSHOT_VIEWS.iter().filter(|view| !self.loaded.contains(**view));
        views.map(ToString::to_string).collect()
    }
}

/// A pending record.
enum Pending {
    Row {
        at: (String, String, String),
        visible: Option<VisibleRow>,
    },
    Stale {
        stream: (String, i64),
        stale: bool,
    },
    Loaded {
        view: String,
        loaded: bool,
    },
}

/// The oracle of one partition.
pub struct Oracle {
    at: TopicPartition,
    next: Offset,
    now: State,
    pending: BTreeMap<String, Vec<Pending>>,
    states: BTreeMap<Offset, Rc<State>>,
}

impl Oracle {
    pub fn new(partition: i32) -> Self {
        Oracle {
            at: TopicPartition::new("shop.view.log", partition),
            next: 0,
            now: State::default(),
            pending: BTreeMap::new(),
            states: BTreeMap::from([(-1, Rc::default())]),
        }
    }

    /// The state at T, which must be the offset of a transaction end marker.
    pub fn state(&self, end_marker: Offset) -> Result<Rc<State>, String> {
        let found = self.states.get(&end_marker).cloned();
        found.ok_or_else(|| format!("{}: no transaction end marker has offset T {end_marker}", self.at))
    }

    /// Whether no record is pending.
    pub fn is_closed(&self) -> bool {
        self.pending.values().all(Vec::is_empty)
    }

    /// The state at the last transaction end marker.
    pub fn now(&self) -> &State {
        &self.now
    }

    /// Reads what was committed since the last call.
    pub fn follow(&mut self, broker: &mut Broker, sources: &[source::Source]) -> Result<(), String> {
        let records = broker.part(&self.at).history(self.next);
        if records.is_empty() {
            return Ok(());
        }
        let batch = batch_of(&self.at, &records);
        for record in batch.iter() {
            self.next = record.offset() + 1;
            let parsed = record::parse(&record).map_err(|e| format!("{}@{}: {e}", self.at, record.offset()))?;
            match parsed {
                ViewRecord::TransactionEnd { writer, at_ms } => {
                    let value = record.value().unwrap_or_default();
                    let version = TransactionEnd::read(value).map_err(|e| e.to_string())?.version;
                    let version = Version::from_bytes(version);
                    let version = version.map_err(|e| e.to_string())?;
                    self.close(&writer);
                    let end = TransactionPlace {
                        at_ms,
                        position: version.position,
                    };
                    self.check_source(broker, sources, &stream_of(&writer), &end)?;
                    self.states.insert(record.offset(), Rc::new(self.now.clone()));
                }
                ViewRecord::Row(row) => {
                    let visible = row.json.map(|json| VisibleRow {
                        offset: record.offset(),
                        version: row.version,
                        json: json.to_vec(),
                    });
                    let at = (row.bucket.to_string(), row.view.to_string(), row.key.to_owned());
                    self.add_pending(&row.writer, Pending::Row { at, visible });
                }
                ViewRecord::Stale { writer, view, stale } => {
                    let stream = (view.into_owned(), stream_of(&writer).partition);
                    self.add_pending(&writer, Pending::Stale { stream, stale });
                }
                ViewRecord::Loaded { writer, view, loaded } => {
                    let view = view.into_owned();
                    self.add_pending(&writer, Pending::Loaded { view, loaded });
                }
                ViewRecord::TransactionBegin { .. } | ViewRecord::Grant { .. } => {}
            }
        }
        Ok(())
    }

    fn add_pending(&mut self, writer: &str, pending: Pending) {
        self.pending.entry(writer.to_owned()).or_default().push(pending);
    }

    fn close(&mut self, writer: &str) {
        for pending in self.pending.remove(writer).unwrap_or_default() {
            match pending {
                Pending::Row {
                    at,
                    visible: Some(visible),
                } => drop(self.now.rows.insert(at, visible)),
                Pending::Row { at, visible: None } => drop(self.now.rows.remove(&at)),
                Pending::Stale { stream, stale: true } => drop(self.now.stale.insert(stream)),
                Pending::Stale { stream, stale: false } => drop(self.now.stale.remove(&stream)),
                Pending::Loaded { view, loaded: true } => drop(self.now.loaded.insert(view)),
                Pending::Loaded { view, loaded: false } => drop(self.now.loaded.remove(&view)),
            }
        }
    }

    /// Invariant I3: the rows of a source stream are those of its source at the end of a source transaction, unless its
    /// view is stale.
    fn check_source(
        &self,
        broker: &mut Broker,
        sources: &[source::Source],
        stream: &Stream<'_>,
        end: &TransactionPlace,
    ) -> Result<(), String> {
        let Stream { view, partition } = *stream;
        let place = end.at_ms;
        let source = sources.iter().find(|source| source.name == view);
        if self.now.loaded.contains(view) && source.is_none_or(|source| !source.was_snapshotted) {
            return Err(format!("view {view} is loaded before its first snapshot has ended"));
        }
        if self.now.stale.contains(&(view.to_owned(), partition)) {
            return match source {
                Some(source) if !source.had_dead_letters => Err(format!(
                    "view {view} is stale, but no record of its source became a dead letter"
                )),
                _ => Ok(()),
            };
        }
        let want = match source {
            Some(_) if place % 2 == 1 => return Ok(()),
            Some(source) => {
                let db = usize::try_from(place / 2).ok().and_then(|n| source.db.get(n));
                db.ok_or("a transaction end marker is of a transaction that its source never had")?
                    .clone()
            }
            None => events::rows_at(broker, partition, end),
        };
        // The rules may have changed before or after this marker, but all rows are of the same rules.
        let want = |pad: bool| -> BTreeMap<(String, i64), String> {
            let row = |(key, value): (&i64, &Value)| {
                let bucket = value
                    .bucket
                    .filter(|bucket| partition_of(*bucket) == self.at.partition)?;
                Some(((bucket_of(bucket), *key), json_of(*value, pad)))
            };
            want.iter().filter_map(row).collect()
        };
        let (want, other) = (want(true), want(false));
        let key = |text: &str| text.parse::<i64>().unwrap_or(-1);
        let own = |of: &str, text: &str| of == view && (source.is_some() || key(text) % 2 == partition);
        let rows = self.now.rows.iter().filter(|((_, of, text), _)| own(of, text));
        let got: BTreeMap<(String, i64), String> = rows
            .map(|((bucket, _, text), visible)| {
                let json = String::from_utf8_lossy(&visible.json).into_owned();
                ((bucket.clone(), key(text)), json)
            })
            .collect();
        if got == want || got == other {
            return Ok(());
        }
        let at = &self.at;
        Err(format!(
            "I3: view {view} of source partition {partition} in {at} differs from its source at transaction {place}: view \
             {got:?}, source {want:?}"
        ))
    }

    /// The end of a run: the rows of every source stream are those of its newest transaction.
    pub fn verify(&self, broker: &mut Broker, sources: &[source::Source]) -> Result<(), String> {
        for source in sources {
            let end = TransactionPlace {
                at_ms: i64::try_from(2 * (source.db.len() - 1)).unwrap_or(i64::MAX),
                position: u64::MAX,
            };
            let stream = Stream {
                view: source.name,
                partition: 0,
            };
            self.check_source(broker, sources, &stream, &end)?;
        }
        let end = TransactionPlace {
            at_ms: 0,
            position: u64::MAX,
        };
        (0..2).try_for_each(|partition| self.check_source(broker, sources, &Stream { view: "e", partition }, &end))
    }
}

/// A source stream, named by its view and partition.
struct Stream<'s> {
    view: &'s str,
    partition: i64,
}

/// The source stream of a writer.
fn stream_of(writer: &str) -> Stream<'_> {
    let partition = writer.rsplit('/').next().and_then(|p| p.parse().ok());
    let topic = writer.split('/').nth(1);
    let view = topic.and_then(|topic| topic.rsplit('.').next());
    Stream {
        view: view.unwrap_or_default(),
        partition: partition.unwrap_or(0),
    }
}

/// The JSON of a row, in which a `long` is a string.
fn json_of(value: Value, pad: bool) -> String {
    let (number, note) = (value.number, note_of(value.note));
    let pad = if pad { ",\"pad\":\"\"" } else { "" };
    format!("{{\"value\":\"{number}\",\"note\":\"{note}\"{pad}}}")
}
