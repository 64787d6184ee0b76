//! The harness of the tests: all sub-topologies of a declarative processor, one partition each, and its output topic.
//!
//! At each commit, records of repartition topics are delivered to the sub-topology that reads them.

mod rejections;

use super::super::{Config, StepLimits, application};
use event_log::{NewRecord, RecordBatch, TimestampType, TopicPartition};
use schemas::codec::Datum;
use schemas::events::{ChunkEnd, Event};
use schemas::headers::{self, Tx};
use schemas::ids::SchemaId;
use schemas::schema::Schema;
use schemas::version::Lsn;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use streams::{InputTopic, SubTopology, TaskId, TaskInfo};
use streams_test::StepDriver;
use topology::Topology;

/// Null, as an expected value.
pub const NULL: Expected = Expected::Null;

/// An expected value.
pub enum Expected {
    Null,
    Int(i64),
    Text(&'static str),
}

impl From<i64> for Expected {
    fn from(value: i64) -> Self {
        Expected::Int(value)
    }
}

impl From<&'static str> for Expected {
    fn from(text: &'static str) -> Self {
        Expected::Text(text)
    }
}

/// A row, formatted as in [`Harness::shown`].
pub fn row_text(values: &[Expected]) -> String {
    let texts = values.iter().map(|value| match value {
        Expected::Null => "null".to_owned(),
        Expected::Int(value) => value.to_string(),
        Expected::Text(text) => (*text).to_owned(),
    });
    texts.collect::<Vec<_>>().join(" ")
}

pub fn text_of(datum: &Datum<'_>) -> String {
    match datum {
        Datum::Null => "null".to_owned(),
        Datum::Bool(value) => value.to_string(),
        Datum::Int(value) => value.to_string(),
        Datum::Long(value) => value.to_string(),
        Datum::Double(value) => value.to_string(),
        Datum::Str(text) => (*text).to_owned(),
        other => format!("{other:?}"),
    }
}

/// The initial wall-clock time, in ms; later than all timestamps in tests that do not set the time.
pub const NOW: i64 = 1_700_000_000_000;

/// An input record.
#[derive(Clone)]
struct InputRecord {
    topic: String,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    at: i64,
}

pub struct Harness {
    topology: Arc<Topology>,
    name: String,
    subs: Vec<(SubTopology, StepDriver)>,
    schemas: Arc<Vec<String>>,
    sweep_step: StepLimits,
    now: i64,
    offsets: HashMap<String, i64>,
    position: u64,
    /// Every record that was passed to the processor, for replays.
    fed: HashMap<String, Vec<InputRecord>>,
    output: BTreeMap<Vec<u8>, Vec<u8>>,
    sent: Vec<String>,
    dead_letters: Vec<String>,
}

/// A sweep that needs many steps even for the few rows of a test.
pub const SLOW_SWEEP: StepLimits = StepLimits {
    visited: 3,
    found: 2,
    bytes: 1 << 20,
};

impl Harness {
    pub fn new(base: &str, declaration: &str, name: &str) -> Harness {
        Self::with(base, declaration, name, StepLimits::default(), &[])
    }

    /// `sweep_step` are the limits of a step of a sweep; `foreign` are schemas that the topology does not declare.
    pub fn with(base: &str, declaration: &str, name: &str, sweep_step: StepLimits, foreign: &[&str]) -> Harness {
        let outcome = topology::check(
            "topology.toml",
            &format!("{base}{declaration}"),
            &topology::Embedded(&[]),
        );
        let topology = Arc::new(
            outcome
                .into_result()
                .unwrap_or_else(|report| panic!("{}", report.render(false))),
        );
        let tables = topology
            .sources
            .iter()
            .flat_map(|source| &source.tables)
            .map(|table| &table.schema);
        let events = topology.events.iter().map(|event| &event.schema);
        let processors = topology.processors.iter().map(|processor| &processor.schema);
        let schemas = tables
            .chain(events)
            .chain(processors)
            .map(|schema| schema.text().to_owned())
            .chain(foreign.iter().map(|text| (*text).to_owned()));
        let schemas = Arc::new(schemas.collect::<Vec<_>>());
        let mut harness = Harness {
            name: name.to_owned(),
            subs: Vec::new(),
            offsets: HashMap::new(),
            position: 0,
            fed: HashMap::new(),
            output: BTreeMap::new(),
            sent: Vec::new(),
            dead_letters: Vec::new(),
            schemas,
            sweep_step,
            now: NOW,
            topology,
        };
        let subs = harness.subtopologies();
        harness.subs = subs
            .into_iter()
            .map(|sub| {
                let mut driver = StepDriver::new(name, (sub.factory)(&info(&sub))).unwrap();
                driver.now = NOW;
                (sub, driver)
            })
            .collect();
        harness
    }

    fn subtopologies(&self) -> Vec<SubTopology> {
        let schemas = self.schemas.clone();
        let processor = Arc::new(self.topology.processor(&self.name).unwrap().clone());
        let config = Config {
            topology: self.topology.clone(),
            schema_id: self.schema_id(processor.schema.text()),
            loaded_schema_id: u32::MAX,
            processor,
            horizon_ms: 1_000_000,
            sweep_step: self.sweep_step,
            fetch: Arc::new(move |id| {
                let text = schemas.get(usize::try_from(id).unwrap());
                Ok(text.cloned().unwrap_or_else(|| ChunkEnd::schema().text().to_owned()))
            }),
        };
        application(&config).subtopologies
    }

    pub fn declaration_of(&self, name: &str) -> String {
        self.topology.processor(name).unwrap().declaration.clone()
    }

    /// Whether there is no repartition topic.
    pub fn is_direct(&self) -> bool {
        self.subs.len() == 1
    }

    fn schema_id(&self, text: &str) -> u32 {
        u32::try_from(self.schemas.iter().position(|known| known == text).unwrap()).unwrap()
    }

    pub fn now(&mut self, now: i64) {
        self.now = now;
        self.subs.iter_mut().for_each(|(_, driver)| driver.now = now);
    }

    /// Lets a millisecond pass, in which timers fire.
    pub fn tick(&mut self) {
        self.now += 1;
        let now = self.now;
        self.subs
            .iter_mut()
            .for_each(|(_, driver)| driver.advance(now).unwrap());
    }

    /// Commits, and continues until no sweep is left. Returns the number of its commits.
    pub fn settle(&mut self) -> usize {
        self.commit();
        let mut commits = 1;
        while self.sweeps() > 0 {
            assert!(commits < 100_000, "a sweep does not end");
            self.tick();
            self.commit();
            commits += 1;
        }
        commits
    }

    /// Number of sweeps in the state.
    pub fn sweeps(&self) -> usize {
        let mut sweeps = 0;
        self.state(|_, key, _| sweeps += usize::from(key.starts_with(b"[\"sweep\",")));
        sweeps
    }

    /// A row of a table that was written with a schema that the topology does not declare.
    pub fn put_foreign(&mut self, table: &str, id: i64, schema: &str, row: &[Datum<'_>]) {
        let value = self.value(&Schema::parse(schema).unwrap(), row);
        self.change(format!("[\"{table}\",\"{id}\"]"), Some(value));
    }

    /// Like [`Harness::put_foreign`], for an event.
    pub fn event_foreign(&mut self, name: &str, key: &str, schema: &str, row: &[Datum<'_>]) {
        let value = self.value(&Schema::parse(schema).unwrap(), row);
        self.raw(&self.topology.names().event(name), key.as_bytes(), &value);
    }

    /// A record that another program wrote to a topic.
    pub fn raw(&mut self, topic: &str, key: &[u8], value: &[u8]) {
        self.feed(InputRecord {
            topic: topic.to_owned(),
            key: key.to_vec(),
            value: Some(value.to_vec()),
            headers: Vec::new(),
            at: 1,
        });
    }

    fn value(&self, schema: &Schema, row: &[Datum<'_>]) -> Vec<u8> {
        let mut value = Vec::new();
        schemas::wire::frame(SchemaId(self.schema_id(schema.text())), &mut value);
        let mut row = row.to_vec();
        row.resize(schema.fields().len(), Datum::Null);
        schema.encode(&row, &mut value).unwrap();
        value
    }

    /// An event; its key is its first field.
    pub fn event(&mut self, name: &str, row: &[Datum<'_>], at: i64) {
        let record = self.event_of(name, row, at);
        self.feed(record);
    }

    fn event_of(&self, name: &str, row: &[Datum<'_>], at: i64) -> InputRecord {
        let event = self.topology.event(name).unwrap();
        let value = self.value(&event.schema, row);
        let key = format!("[\"{}\"]", text_of(&row[0]));
        InputRecord {
            topic: self.topology.names().event(name),
            key: key.into_bytes(),
            value: Some(value),
            headers: Vec::new(),
            at,
        }
    }

    /// A record whose value is not valid Avro of its schema.
    pub fn garbage(&mut self, topic: &str, key: &str) {
        let event = self.topology.events[0].schema.clone();
        let mut value = Vec::new();
        schemas::wire::frame(SchemaId(self.schema_id(event.text())), &mut value);
        value.push(0xff);
        self.raw(topic, key.as_bytes(), &value);
    }

    /// Replays an event.
    pub fn replay(&mut self, topic: &str, number: usize) {
        let mut record = self.fed[topic][number].clone();
        record
            .headers
            .push((headers::REPLAYED.to_owned(), headers::REPLAY.as_bytes().to_vec()));
        self.feed(record);
    }

    /// Redrives the event of an offset with another value.
    pub fn redrive(&mut self, topic: &str, number: usize, row: &[Datum<'_>]) {
        let schema = self.topology.events[0].schema.clone();
        let mut record = self.fed[topic][number].clone();
        record.value = Some(self.value(&schema, row));
        record
            .headers
            .push((headers::REPLAYED.to_owned(), headers::REDRIVE.as_bytes().to_vec()));
        let headers = [
            (headers::errors::TOPIC, topic.to_owned()),
            (headers::errors::OFFSET, number.to_string()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.into_bytes()));
        record.headers.extend(headers);
        self.feed(record);
    }

    pub fn put(&mut self, table: &str, id: i64, row: &[Datum<'_>]) {
        let schema = self.topology.sources[0].table(table).unwrap().schema.clone();
        let value = self.value(&schema, row);
        self.change(format!("[\"{table}\",\"{id}\"]"), Some(value));
    }

    pub fn delete(&mut self, table: &str, id: i64) {
        self.change(format!("[\"{table}\",\"{id}\"]"), None);
    }

    pub fn truncate(&mut self, table: &str) {
        self.change(format!("[\"{table}\"]"), None);
    }

    /// Like `put`, but the source omits the unchanged columns, for which `row` has `""`.
    pub fn put_unchanged(&mut self, table: &str, id: i64, row: &[Datum<'_>], unchanged: &[&'static str]) {
        let value = self.value_unchanged(table, row, unchanged);
        self.change(format!("[\"{table}\",\"{id}\"]"), Some(value));
    }

    fn value_unchanged(&self, table: &str, row: &[Datum<'_>], unchanged: &[&'static str]) -> Vec<u8> {
        let schema = &self.topology.sources[0].table(table).unwrap().schema;
        let mut row = row.to_vec();
        row.resize(schema.fields().len() - 1, Datum::Null);
        row.push(Datum::Array(unchanged.iter().map(|name| Datum::Str(name)).collect()));
        self.value(schema, &row)
    }

    /// The tombstone of the old key when a row's key changes; begins a transaction.
    pub fn leave(&mut self, table: &str, from: i64, to: i64) {
        self.position += 1;
        let moved = (headers::MOVED_TO.to_owned(), row_key(table, to).into_bytes());
        let headers = vec![tx_header(self.position, 0, false), moved];
        self.change_with(headers, row_key(table, from), None);
    }

    /// The row under its new key, with omitted columns; ends the transaction that `leave` began.
    pub fn arrive(&mut self, table: &str, from: i64, row: &[Datum<'_>], unchanged: &[&'static str]) {
        let moved = (headers::MOVED_FROM.to_owned(), row_key(table, from).into_bytes());
        let headers = vec![tx_header(self.position, 1, true), moved];
        let value = self.value_unchanged(table, row, unchanged);
        let key = format!("[\"{table}\",\"{}\"]", text_of(&row[0]));
        self.change_with(headers, key, Some(value));
    }

    /// A snapshot chunk at the current position: its rows and the chunk end. `from` and `to` are the bounds of its
    /// range.
    pub fn chunk(&mut self, table: &str, rows: &[(i64, Vec<Datum<'_>>)], from: Option<i64>, to: Option<i64>) {
        let schema = self.topology.sources[0].table(table).unwrap().schema.clone();
        self.position += 1;
        let position = self.position;
        for ((id, row), ordinal) in rows.iter().zip(0..) {
            let value = self.value(&schema, row);
            self.change_at(position, ordinal, format!("[\"{table}\",\"{id}\"]"), Some(value));
        }
        let mut low = Vec::new();
        Lsn(position).write(&mut low);
        let [from, to] = [from, to].map(|id| id.map(|id| format!("[\"{id}\"]")));
        let end = ChunkEnd {
            table,
            from: from.as_deref(),
            to: to.as_deref(),
            snapshot: "s",
            low: std::str::from_utf8(&low).unwrap(),
            is_final: to.is_none(),
        };
        let mut value = Vec::new();
        end.write(SchemaId(u32::MAX), &mut value);
        let ordinal = u32::try_from(rows.len()).unwrap();
        self.change_at(position, ordinal, format!("[\"~chunk\",\"{table}\"]"), Some(value));
    }

    fn change(&mut self, key: String, value: Option<Vec<u8>>) {
        self.position += 1;
        self.change_at(self.position, 0, key, value);
    }

    fn change_at(&mut self, position: u64, ordinal: u32, key: String, value: Option<Vec<u8>>) {
        self.change_with(vec![tx_header(position, ordinal, true)], key, value);
    }

    /// A record at the newest position.
    fn change_with(&mut self, headers: Vec<(String, Vec<u8>)>, key: String, value: Option<Vec<u8>>) {
        let at = i64::try_from(self.position).unwrap();
        self.feed(InputRecord {
            topic: self.topology.names().change("shop"),
            key: key.into_bytes(),
            value,
            headers,
            at,
        });
    }

    /// A record of a processor's topic.
    pub fn of_processor(&mut self, name: &str, key: &str, row: Option<&[Datum<'_>]>) {
        let schema = self.topology.processor(name).unwrap().schema.clone();
        let value = row.map(|row| self.value(&schema, row));
        self.feed(InputRecord {
            topic: self.topology.names().processor(name),
            key: key.as_bytes().to_vec(),
            value,
            headers: Vec::new(),
            at: 1,
        });
    }

    /// Repeats an earlier record.
    pub fn redeliver(&mut self, topic: &str, number: usize) {
        let record = self.fed[topic][number].clone();
        self.feed(record);
    }

    pub fn fed(&self, topic: &str) -> usize {
        self.fed.get(topic).map_or(0, Vec::len)
    }

    fn feed(&mut self, record: InputRecord) {
        self.fed.entry(record.topic.clone()).or_default().push(record.clone());
        self.deliver(&record);
    }

    fn deliver(&mut self, record: &InputRecord) {
        let batch = self.next(record);
        self.driver_of(&record.topic).feed(&batch).unwrap();
    }

    fn driver_of(&mut self, topic: &str) -> &mut StepDriver {
        let found = self
            .subs
            .iter_mut()
            .find(|(sub, _)| sub.inputs.iter().any(|of| of == topic));
        &mut found.unwrap().1
    }

    fn next(&mut self, record: &InputRecord) -> RecordBatch {
        let topic = &record.topic;
        let offset = self.offsets.entry(topic.clone()).or_default();
        let headers = record
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), Some(value.as_slice())));
        let new = NewRecord {
            offset: *offset,
            timestamp: record.at,
            timestamp_type: TimestampType::Create,
            key: Some(&record.key),
            value: record.value.as_deref(),
        };
        *offset += 1;
        streams_test::record(&TopicPartition::new(topic.as_str(), 0), new, headers)
    }

    /// Commits every sub-topology, and delivers the repartitioned records.
    pub fn commit(&mut self) {
        for at in 0..self.subs.len() {
            let wrote = self.subs[at].1.commit().unwrap();
            for record in wrote {
                let headers: HashMap<_, _> = record.headers.iter().cloned().collect();
                if record.topic.ends_with(".dlq") {
                    let reason = headers[headers::errors::EXCEPTION_MESSAGE].clone().unwrap();
                    self.dead_letters.push(String::from_utf8(reason).unwrap());
                } else if record.key.as_ref().is_some_and(|key| key.starts_with(b"[[")) && record.partition != Some(0) {
                    // A mark is written to all partitions, and the harness has only the first.
                } else if record.topic.contains(".repartition") {
                    self.deliver(&InputRecord {
                        topic: record.topic,
                        key: record.key.unwrap(),
                        value: record.value,
                        headers: Vec::new(),
                        at: record.timestamp.unwrap_or(1),
                    });
                } else {
                    self.receive(record.key.unwrap(), record.value);
                }
            }
        }
    }

    fn receive(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let shown = String::from_utf8(key.clone()).unwrap();
        if shown.starts_with("[[") {
            self.sent.push(shown);
            return;
        }
        let row = value.as_deref().map(|value| self.row(value));
        let keys = self.topology.processor(&self.name).unwrap().key.len();
        let sent = row.map_or("gone".to_owned(), |row| {
            let skipped = if row.len() > keys && shown.contains("T") && shown.contains("Z\"") {
                keys + 1
            } else {
                keys
            };
            row[skipped..].join(" ")
        });
        self.sent.push(format!("{shown} {sent}"));
        match value {
            Some(value) => drop(self.output.insert(key, value)),
            None => drop(self.output.remove(&key)),
        }
    }

    fn row(&self, value: &[u8]) -> Vec<String> {
        let schema = &self.topology.processor(&self.name).unwrap().schema;
        let mut row = Vec::new();
        schema.decode(&value[5..], &mut row).unwrap();
        row.iter().map(text_of).collect()
    }

    /// Aborts: everything since the last commit is discarded.
    pub fn abort(&mut self) {
        self.subs.iter_mut().for_each(|(_, driver)| driver.abort().unwrap());
    }

    /// Restores from the committed state, as a restarted process does.
    pub fn restart(&mut self) {
        self.abort();
    }

    /// The newest record of each key in the output topic, as text.
    pub fn shown(&self) -> Vec<(String, String)> {
        let text =
            |(key, value): (&Vec<u8>, &Vec<u8>)| (String::from_utf8(key.clone()).unwrap(), self.row(value).join(" "));
        self.output.iter().map(text).collect()
    }

    /// All records of the output topic: the key, and the columns after it.
    pub fn sent(&self) -> Vec<String> {
        self.sent.clone()
    }

    pub fn dead_letters(&self) -> Vec<String> {
        self.dead_letters.clone()
    }

    /// Visits all rows of the state.
    pub fn state(&self, mut visit: impl FnMut(&topology::Processor, &[u8], &[u8])) {
        let processor = self.topology.processor(&self.name).unwrap();
        for (_, driver) in &self.subs {
            let each = &mut |key: &[u8], value: &[u8]| {
                visit(processor, key, value);
                ControlFlow::Continue(())
            };
            driver.state().scan(b"", each).unwrap();
        }
    }

    /// Restores the main state under another declaration of the same processor.
    pub fn restore_under(&mut self, base: &str, declaration: &str) -> Result<(), String> {
        let other = Harness::new(base, declaration, &self.name);
        let sub = other.subtopologies().pop().unwrap();
        let mut processor = (sub.factory)(&info(&sub));
        let (_, driver) = self.subs.last().unwrap();
        processor.restore(driver.state()).map_err(|error| error.to_string())
    }
}

fn row_key(table: &str, id: i64) -> String {
    format!("[\"{table}\",\"{id}\"]")
}

fn tx_header(position: u64, ordinal: u32, last: bool) -> (String, Vec<u8>) {
    let tx = Tx {
        source_epoch: 1,
        position: Lsn(position),
        ordinal,
        last,
        at_ms: 1,
    };
    let mut header = Vec::new();
    tx.write(&mut header);
    (headers::TX.to_owned(), header)
}

fn info(sub: &SubTopology) -> TaskInfo {
    let inputs = sub.inputs.iter().map(|name| InputTopic {
        name: name.as_str().into(),
        id: event_log::TopicId(Default::default()),
    });
    TaskInfo {
        application: "test".into(),
        id: TaskId {
            subtopology: sub.name.as_str().into(),
            partition: 0,
        },
        inputs: inputs.collect(),
    }
}
