//! What must be shown: a partition of `view.log` recomputed from every record ever committed, also those that were
//! cleaned away, and held against the sources at each closing.
//!
//! Guarantees: pure; it looks at the log, at the sources, and at nothing that the product has computed.
//! Never: a hint from a replica.

use super::source::{Value, note_of};
use super::{EVENTS, bucket_of, partition_of, source};
use event_log::{Offset, RecordBatch, RecordRef, TopicPartition};
use schemas::events::{Event, TransactionEnd};
use schemas::headers::{self, Tx};
use schemas::version::Version;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use streams::driver::simulation::{Broker, batch_of};
use views::record::{self, ViewRecord};

/// A visible row: where it stands, its version and JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub offset: Offset,
    pub version: [u8; 17],
    pub json: Vec<u8>,
}

/// What is visible at a closing, by (bucket, view, key), and which views are stale by the account of which line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pub rows: BTreeMap<(String, String, String), Shown>,
    pub stale: BTreeSet<(String, i64)>,
}

/// A record that is held back.
enum Held {
    Row {
        at: (String, String, String),
        shown: Option<Shown>,
    },
    Stale {
        line: (String, i64),
        stale: bool,
    },
}

/// One partition.
pub struct Oracle {
    at: TopicPartition,
    next: Offset,
    now: State,
    held: BTreeMap<String, Vec<Held>>,
    states: BTreeMap<Offset, Rc<State>>,
}

impl Oracle {
    pub fn new(partition: i32) -> Self {
        Oracle {
            at: TopicPartition::new("view.log", partition),
            next: 0,
            now: State::default(),
            held: BTreeMap::new(),
            states: BTreeMap::from([(-1, Rc::default())]),
        }
    }

    /// The state at T, which must be a closing.
    pub fn state(&self, closed: Offset) -> Result<Rc<State>, String> {
        let found = self.states.get(&closed).cloned();
        found.ok_or_else(|| format!("{}: T {closed} is no closing", self.at))
    }

    /// Whether nothing is held back.
    pub fn is_closed(&self) -> bool {
        self.held.values().all(Vec::is_empty)
    }

    /// What is visible at the last closing.
    pub fn now(&self) -> &State {
        &self.now
    }

    /// Takes in what was committed since.
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
                    self.truth(broker, sources, line_of(&writer), (at_ms, version))?;
                    self.states.insert(record.offset(), Rc::new(self.now.clone()));
                }
                ViewRecord::Row(row) => {
                    let shown = row.json.map(|json| Shown {
                        offset: record.offset(),
                        version: row.version,
                        json: json.to_vec(),
                    });
                    let at = (row.bucket.to_string(), row.view.to_string(), row.key.to_owned());
                    self.hold(&row.writer, Held::Row { at, shown });
                }
                ViewRecord::Stale { writer, view, stale } => {
                    let line = (view.into_owned(), line_of(&writer).1);
                    self.hold(&writer, Held::Stale { line, stale });
                }
                ViewRecord::Open { .. } | ViewRecord::Grant { .. } => {}
            }
        }
        Ok(())
    }

    fn hold(&mut self, writer: &str, held: Held) {
        self.held.entry(writer.to_owned()).or_default().push(held);
    }

    fn close(&mut self, writer: &str) {
        for held in self.held.remove(writer).unwrap_or_default() {
            match held {
                Held::Row { at, shown: Some(shown) } => drop(self.now.rows.insert(at, shown)),
                Held::Row { at, shown: None } => drop(self.now.rows.remove(&at)),
                Held::Stale { line, stale: true } => drop(self.now.stale.insert(line)),
                Held::Stale { line, stale: false } => drop(self.now.stale.remove(&line)),
            }
        }
    }

    /// I3: a line's rows are those of its source at the transaction that its closing names, whole, unless its view is
    /// stale.
    fn truth(
        &self,
        broker: &mut Broker,
        sources: &[source::Source],
        (view, partition): (&str, i64),
        (place, version): (i64, Version),
    ) -> Result<(), String> {
        let source = sources.iter().find(|source| source.name == view);
        if self.now.stale.contains(&(view.to_owned(), partition)) {
            return match source {
                Some(source) if !source.had_deaths => {
                    Err(format!("{view} is stale without a dead letter of its source"))
                }
                _ => Ok(()),
            };
        }
        let want = match source {
            Some(_) if place % 2 == 1 => return Ok(()),
            Some(source) => {
                let db = usize::try_from(place / 2).ok().and_then(|n| source.db.get(n));
                db.ok_or("a closing names a transaction that was never made")?.clone()
            }
            None => events(broker, partition, (version.position, place)),
        };
        let want: BTreeMap<(String, i64), String> = want
            .iter()
            .filter_map(|(key, value)| {
                let bucket = value
                    .bucket
                    .filter(|bucket| partition_of(*bucket) == self.at.partition)?;
                Some(((bucket_of(bucket), *key), json_of(*value)))
            })
            .collect();
        let key = |text: &str| text.parse::<i64>().unwrap_or(-1);
        let own = |of: &str, text: &str| of == view && (source.is_some() || key(text) % 2 == partition);
        let rows = self.now.rows.iter().filter(|((_, of, text), _)| own(of, text));
        let got: BTreeMap<(String, i64), String> = rows
            .map(|((bucket, _, text), shown)| {
                let json = String::from_utf8_lossy(&shown.json).into_owned();
                ((bucket.clone(), key(text)), json)
            })
            .collect();
        if got == want {
            return Ok(());
        }
        let at = &self.at;
        Err(format!(
            "I3: {view} {partition} in {at} at place {place}: view {got:?}, source {want:?}"
        ))
    }

    /// The end: every line's rows are those of its source's newest transaction.
    pub fn verify(&self, broker: &mut Broker, sources: &[source::Source]) -> Result<(), String> {
        let last = Version {
            position: u64::MAX,
            ..Version::default()
        };
        for source in sources {
            let place = i64::try_from(2 * (source.db.len() - 1)).unwrap_or(i64::MAX);
            self.truth(broker, sources, (source.name, 0), (place, last))?;
        }
        (0..2).try_for_each(|partition| self.truth(broker, sources, ("e", partition), (0, last)))
    }
}

/// View and partition of a writer's line.
fn line_of(writer: &str) -> (&str, i64) {
    let partition = writer.rsplit('/').next().and_then(|p| p.parse().ok());
    let view = writer.split(['/', '.']).nth(2);
    (view.unwrap_or_default(), partition.unwrap_or(0))
}

/// The JSON of a row on the device, where a `long` is a text.
fn json_of(value: Value) -> String {
    let (number, note) = (value.number, note_of(value.note));
    format!("{{\"value\":\"{number}\",\"note\":\"{note}\",\"pad\":\"\"}}")
}

/// The newest event of each key of a partition, up to that of a version; what comes again counts where it was first, but
/// closes (at its own time) what came before it.
fn events(broker: &mut Broker, partition: i64, (position, at_ms): (u64, i64)) -> source::Rows {
    let at = TopicPartition::new(EVENTS, i32::try_from(partition).unwrap_or_default());
    let records = broker.part(&at).history(0);
    let batch: RecordBatch = batch_of(&at, &records);
    let mut rows = source::Rows::new();
    let of = |record: &RecordRef<'_>| Some(Tx::parse(record.header(headers::TX)?).ok()?.position.0);
    let is_again = |record: &RecordRef<'_>| of(record) == Some(position) && record.timestamp() == at_ms;
    let through = batch.iter().find(is_again).map(|record| record.offset());
    let through = through.unwrap_or(Offset::try_from(position).unwrap_or(Offset::MAX));
    for record in batch
        .iter()
        .filter(|r| r.offset() <= through && r.header(headers::REPLAYED).is_none())
    {
        let key = std::str::from_utf8(record.key().unwrap_or_default()).unwrap_or_default();
        let key: i64 = key.trim_matches(['[', ']']).parse().unwrap_or_default();
        match record.value().map(source::unframed) {
            Some(value) => drop::<Option<Value>>(rows.insert(key, value)),
            None => drop(rows.remove(&key)),
        }
    }
    rows
}
