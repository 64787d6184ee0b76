//! Test fixtures: a database, a log, a registry, a connector on a thread, and a reader of its topic.
//!
//! Names are unique. Everything, including the slot, is removed when the value is dropped.
#![allow(dead_code, reason = "shared by tests and load commands, which use different parts")]

use crate::support::{self, wait_for};
use connectors::commands::Command;
use connectors::source::{Context, OnMismatch, run};
use connectors::sources::postgres::{Config, Declared, Source};
use connectors::status::{Handle, Report, State};
use event_log::{
    Isolation, OutBatch, OutRecord, Reader, RecordBatch, SharedEventLog, StartFrom, TopicPartition, TopicSpec,
};
use registry::SharedRegistry;
use schemas::device_json::ObjectWriter;
use schemas::events::{ChunkEnd, ConnectorPosition, Event as _};
use schemas::headers::{self, Tx};
use schemas::ids::{SchemaId, SourceName, TableName};
use schemas::pg_types::Column;
use schemas::schema::Schema;
use schemas::version::Lsn;
use schemas::wire;
use service::{Drain, Readiness};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};
use topology::Names;

/// Maximum time to wait for an expected state.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A database for one test.
pub struct Database {
    pub name: String,
    pub url: String,
    server: String,
    runtime: Runtime,
}

impl Database {
    /// Creates a database in the shared cluster.
    pub fn new() -> Self {
        Self::at(&support::postgres())
    }

    /// Creates a database in the cluster with this URL.
    pub fn at(server: &str) -> Self {
        let runtime = runtime();
        let name = support::unique("db").replace('-', "_");
        let (base, _) = server.rsplit_once('/').unwrap();
        let database = Database {
            url: format!("{base}/{name}"),
            name,
            server: server.to_owned(),
            runtime,
        };
        database.admin(&format!("CREATE DATABASE {}", database.name));
        database
    }

    /// An existing database, which is not dropped.
    pub fn named(name: &str, url: &str) -> Self {
        Database {
            name: name.to_owned(),
            url: url.to_owned(),
            server: String::new(),
            runtime: runtime(),
        }
    }

    fn admin(&self, sql: &str) {
        self.run_on(&self.server, sql);
    }

    /// Runs statements; returns their rows, with values as text.
    pub fn sql(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.run_on(&self.url, sql)
    }

    /// Runs statements, which the server may reject.
    pub fn try_sql(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        self.try_run(&self.url, sql)
    }

    /// Runs statements one by one, each in its own transaction.
    pub fn each(&self, statements: &[&str]) {
        for statement in statements {
            self.sql(statement);
        }
    }

    /// The first value that a statement returns.
    pub fn value(&self, sql: &str) -> Option<String> {
        self.sql(sql)
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next())
            .flatten()
    }

    fn run_on(&self, url: &str, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_run(url, sql)
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    fn try_run(&self, url: &str, sql: &str) -> Result<Vec<Vec<Option<String>>>, tokio_postgres::Error> {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
            let query = async {
                let answer = client.simple_query(sql).await;
                drop(client);
                answer
            };
            let (answer, ended) = tokio::join!(query, connection);
            ended?;
            let rows = answer?.into_iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
                _ => None,
            });
            Ok(rows.collect())
        })
    }

    /// Opens one connection and passes `work` a function that executes a statement on it.
    pub fn on_one_connection(&self, work: impl FnOnce(&mut dyn FnMut(&str))) {
        let (client, connection) = self
            .runtime
            .block_on(tokio_postgres::connect(&self.url, NoTls))
            .unwrap();
        let driver = self.runtime.spawn(connection);
        work(&mut |sql| drop(self.runtime.block_on(client.simple_query(sql)).unwrap()));
        drop(client);
        self.runtime.block_on(driver).unwrap().unwrap();
    }

    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    /// The slot's column, as text.
    pub fn slot(&self, column: &str) -> Option<String> {
        self.value(&format!(
            "SELECT ({column})::text FROM pg_replication_slots WHERE database = '{}'",
            self.name
        ))
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl Drop for Database {
    fn drop(&mut self) {
        if self.server.is_empty() {
            return;
        }
        let drop_slots = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{}' AND NOT active",
            self.name
        );
        for _ in 0..100 {
            // The slot remains active for a moment after its reader has ended, and the cluster may have been stopped.
            let dropped = self.try_run(&self.server, &drop_slots).and_then(|_| {
                self.try_run(
                    &self.server,
                    &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
                )
            });
            if dropped.is_ok_and(|_| true) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Parses the declaration of a table: `orders(id int8, note text?)`, with an optional ` key id`.
pub fn table(declaration: &str) -> Declared {
    let (head, key) = match declaration.split_once(" key ") {
        Some((head, key)) => (head, Some(key.split(',').map(|k| k.trim().to_owned()).collect())),
        None => (declaration, None),
    };
    let (name, columns) = head.trim_end_matches(')').split_once('(').unwrap();
    let column = |text: &str| {
        let (name, ty) = text.trim().split_once(' ').unwrap();
        Column::declared(name, ty)
    };
    let columns = columns.split(',').map(column).collect();
    Declared::new(TableName::new(name).unwrap(), columns, key)
}

/// A log in memory, with its registry.
pub fn embedded() -> (SharedEventLog, SharedRegistry) {
    let config = event_log::embedded::Config::new(None, clock());
    let log = event_log::embedded::EmbeddedLog::open(config).unwrap();
    let registry = Arc::new(registry::embedded::Embedded::open(log.clone()).unwrap());
    (log, registry)
}

/// Names of the topics and transactional ids of all connectors.
pub fn names() -> Names {
    Names::of("tests")
}

/// The system time, in the type that the embedded log expects.
pub fn clock() -> event_log::embedded::Clock {
    let clock = service::clock::system();
    Arc::new(move || clock.now_ms())
}

/// Configuration of a connector.
#[derive(Clone)]
pub struct Setting {
    pub name: String,
    pub url: String,
    pub tables: Vec<Declared>,
    pub log: SharedEventLog,
    pub registry: SharedRegistry,
    pub on_mismatch: OnMismatch,
    pub heartbeat_seconds: u64,
    /// Changes the other settings.
    pub adjust: Option<Adjust>,
}

/// Changes the settings of a connector.
pub type Adjust = Arc<dyn Fn(&mut Config) + Send + Sync>;

impl Setting {
    /// On a log in memory.
    pub fn new(database: &Database, tables: &[&str]) -> Self {
        let (log, registry) = embedded();
        Self::on(database, tables, log, registry)
    }

    /// Creates a connector on this log.
    pub fn on(database: &Database, tables: &[&str], log: SharedEventLog, registry: SharedRegistry) -> Self {
        // Slots belong to the cluster, so the name of the connector must be unique too.
        let name = format!("c{}", database.name.trim_start_matches("db_"));
        let topic = TopicSpec {
            name: names().change(&name),
            partitions: 1,
            replication: None,
            config: event_log::TopicConfig::new(event_log::Cleanup::Delete),
        };
        log.create_topics(&[topic]).unwrap();
        Self::named(name, database.url.clone(), tables, log, registry)
    }

    /// Uses a connector name that exists, with its topic.
    pub fn named(name: String, url: String, tables: &[&str], log: SharedEventLog, registry: SharedRegistry) -> Self {
        Setting {
            name,
            url,
            tables: tables.iter().map(|t| table(t)).collect(),
            log,
            registry,
            on_mismatch: OnMismatch::Stop,
            heartbeat_seconds: 10,
            adjust: None,
        }
    }

    pub fn source(&self) -> connectors::Result<Source> {
        let mut config = Config {
            heartbeat_seconds: self.heartbeat_seconds,
            on_mismatch: self.on_mismatch,
            ..Config::new(service::Secret::new(&*self.url))
        };
        if let Some(adjust) = &self.adjust {
            adjust(&mut config);
        }
        Source::new(
            &names(),
            &SourceName::new(&self.name).unwrap(),
            &config,
            self.tables.clone(),
            self.registry.clone(),
        )
    }

    /// The context of a run with this handle.
    pub fn context(&self, handle: Handle, runtime: tokio::runtime::Handle) -> Context {
        Context {
            name: self.name.clone(),
            transactional_id: names().connector(&self.name),
            transaction_timeout: connectors::source::TRANSACTION_TIMEOUT,
            positions_topic: names().positions(),
            log: self.log.clone(),
            registry: self.registry.clone(),
            clock: service::clock::system(),
            runtime,
            handle,
            on_mismatch: self.on_mismatch,
            replication: None,
        }
    }

    /// Runs the connector on a thread.
    pub fn start(&self, database: &Database) -> Connector {
        let handle = Handle::new(&self.name, Readiness::new().register(self.name.as_str()));
        let (context, drain) = (self.context(handle.clone(), database.runtime()), Drain::new());
        let (source, inside) = (self.source().unwrap(), drain.clone());
        let thread = std::thread::Builder::new()
            .spawn(move || run(source, &context, &inside))
            .unwrap();
        Connector {
            handle,
            drain,
            thread: Some(thread),
        }
    }

    /// A reader of its dead letters from their start.
    pub fn dead_letters(&self) -> Topic {
        Topic::new(
            self.log.clone(),
            self.registry.clone(),
            &Names::dead_letters(&names().change(&self.name)),
        )
    }

    /// Replaces the stored position.
    pub fn store_position(&self, json: &str) {
        let record = ConnectorPosition {
            position: json,
            complete: "",
            updated_at: 0,
        };
        let mut value = Vec::new();
        record.write(SchemaId(1), &mut value);
        let mut batch = OutBatch::default();
        let key = schemas::key::Key::of(&[&self.name]);
        batch.push(
            OutRecord {
                topic: &names().positions().as_str().into(),
                partition: Some(0),
                timestamp: None,
                key: Some(key.as_bytes()),
                value: Some(&value),
            },
            std::iter::empty(),
        );
        self.log.append(&batch).unwrap();
    }

    /// A reader of the topic from its start.
    pub fn topic(&self) -> Topic {
        Topic::new(self.log.clone(), self.registry.clone(), &names().change(&self.name))
    }
}

/// A running connector.
pub struct Connector {
    pub handle: Handle,
    drain: Drain,
    thread: Option<JoinHandle<()>>,
}

impl Connector {
    /// A connector that a test started itself.
    pub fn of(handle: Handle, drain: Drain, thread: JoinHandle<()>) -> Self {
        Connector {
            handle,
            drain,
            thread: Some(thread),
        }
    }

    /// Waits for a state and returns the report.
    pub fn wait_for(&self, state: State) -> Report {
        let end = Instant::now() + LIMIT;
        loop {
            let report = self.handle.report();
            if report.state == state {
                return report;
            }
            assert!(
                Instant::now() < end,
                "state {} not reached within {LIMIT:?}: {report:?}",
                state.name()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a command, without waiting for its effect.
    pub fn send(&self, command: Command) {
        drop(self.handle.send(command).unwrap());
    }

    /// Stops the connector.
    pub fn stop(mut self) {
        self.drain.start();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        self.drain.start();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A decoded record.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub key: String,
    /// The row as devices receive it, `-` for none, or the content of a `ChunkEnd` record.
    pub row: String,
    pub tx: Tx,
    pub table: String,
    pub snapshot: Option<String>,
    /// Header of a key change, whose value is the other key.
    pub moved: Option<(&'static str, String)>,
    pub unchanged: Vec<String>,
    pub value: Option<Vec<u8>>,
    /// Why changes are missing, if it is a missing record.
    pub missing: Option<String>,
}

impl Record {
    /// Key and row, followed by `.` if it is the last record of a transaction.
    pub fn line(&self) -> String {
        let unchanged = if self.unchanged.is_empty() {
            String::new()
        } else {
            format!(" unchanged {:?}", self.unchanged)
        };
        format!(
            "{} {}{unchanged}{}",
            self.key,
            self.row,
            if self.tx.last { " ." } else { "" }
        )
    }
}

/// A reader of a change topic.
pub struct Topic {
    registry: SharedRegistry,
    reader: Box<dyn Reader>,
    schemas: HashMap<SchemaId, Arc<Schema>>,
    pub records: Vec<Record>,
    /// Missing records of tables whose first snapshot has not ended. They are not in `records`.
    pub announced: Vec<Record>,
}

impl Topic {
    fn new(log: SharedEventLog, registry: SharedRegistry, topic: &str) -> Self {
        let mut reader = log.reader(Isolation::ReadCommitted).unwrap();
        reader
            .assign(&[(TopicPartition::new(topic, 0), StartFrom::Earliest)])
            .unwrap();
        Topic {
            registry,
            reader,
            schemas: HashMap::new(),
            records: Vec::new(),
            announced: Vec::new(),
        }
    }

    /// Reads all available records.
    pub fn read(&mut self) {
        let mut batch = RecordBatch::default();
        while self
            .reader
            .poll(&mut batch, 4 << 20, Duration::from_millis(50))
            .unwrap()
            > 0
        {
            for record in batch.iter() {
                let text = |bytes: Option<&[u8]>| bytes.map(|b| String::from_utf8(b.to_vec()).unwrap());
                let key = text(record.key()).unwrap();
                let moved = [headers::MOVED_TO, headers::MOVED_FROM];
                let moved = moved.map(|name| text(record.header(name)).map(|key| (name, key)));
                let mut read = Record {
                    row: String::from("-"),
                    tx: Tx::parse(record.header(headers::TX).unwrap()).unwrap(),
                    table: text(record.header(headers::TABLE)).unwrap(),
                    snapshot: text(record.header(headers::SNAPSHOT)),
                    moved: moved.into_iter().flatten().next(),
                    unchanged: Vec::new(),
                    value: record.value().map(<[u8]>::to_vec),
                    missing: text(record.header(headers::MISSING)),
                    key,
                };
                if let Some(value) = record.value() {
                    self.value(&mut read, value);
                }
                let is_first = |reason: &String| reason.starts_with("the first snapshot of table");
                if read.missing.as_ref().is_some_and(is_first) {
                    self.announced.push(read);
                } else {
                    self.records.push(read);
                }
            }
        }
    }

    fn value(&mut self, read: &mut Record, value: &[u8]) {
        if read.key.starts_with("[\"~chunk\"") {
            let end = ChunkEnd::read(value).unwrap();
            read.row = format!("chunk {} low {} final {}", end.table, end.low, end.is_final);
            return;
        }
        let (id, body) = wire::unframe(value).unwrap();
        let registry = &self.registry;
        let parse = || Arc::new(Schema::parse(&registry.by_id(id).unwrap()).unwrap());
        let schema = self.schemas.entry(id).or_insert_with(parse).clone();
        let mut row = Vec::new();
        schema.decode(body, &mut row).unwrap();
        let unchanged = row.pop().unwrap();
        let unchanged = unchanged
            .as_array()
            .unwrap_or_default()
            .iter()
            .filter_map(|d| d.as_str().map(str::to_owned));
        read.unchanged = unchanged.collect();
        let names: Vec<&str> = schema
            .fields()
            .iter()
            .map(|f| &*f.name)
            .filter(|n| *n != "_unchanged")
            .collect();
        let mut json = Vec::new();
        ObjectWriter::new(schema.clone(), &names)
            .unwrap()
            .write(&row, &mut json);
        read.row = String::from_utf8(json).unwrap();
    }

    /// Reads until this number of records was read, and returns their lines.
    pub fn lines(&mut self, count: usize) -> Vec<String> {
        self.wait(&format!("{count} records"), |records| records.len() >= count);
        self.records.iter().map(Record::line).collect()
    }

    /// Reads until the records satisfy the condition.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&[Record]) -> bool) {
        wait_for(what, LIMIT, || {
            self.read();
            done(&self.records).then_some(())
        });
    }

    /// The current rows by key, after source epochs, chunk ends and truncates were applied. Checks that versions
    /// increase strictly.
    pub fn rows(&self) -> BTreeMap<String, String> {
        let mut rows: BTreeMap<String, (String, Tx, String)> = BTreeMap::new();
        let mut last = None;
        for record in &self.records {
            let version = record.tx.version();
            assert!(
                last.is_none_or(|last| last < version),
                "{last:?} before {version:?} ({})",
                record.line()
            );
            last = Some(version);
            if record.key.starts_with("[\"~chunk\"") {
                let low: Lsn = record.row.split(' ').nth(3).unwrap().parse().unwrap();
                let low = (record.tx.source_epoch, low);
                rows.retain(|_, (_, tx, of)| record.table != *of || (tx.source_epoch, tx.position) >= low);
            } else if record.key == format!("[\"{}\"]", record.table) {
                rows.retain(|_, (_, _, of)| *of != record.table);
            } else if record.value.is_none() {
                rows.remove(&record.key);
            } else {
                let row = (record.row.clone(), record.tx, record.table.clone());
                rows.insert(record.key.clone(), row);
            }
        }
        rows.into_iter().map(|(key, (row, ..))| (key, row)).collect()
    }
}
