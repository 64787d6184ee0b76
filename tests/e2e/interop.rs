//! Interoperability of Avro encoding and registry with clients in other languages, in both directions over Kafka:
//! Confluent's Python client, Apicurio's Java serializers with Confluent framing, and Apache Avro's Java library.
//! Each runs with Apicurio Registry and with Trunkline's own registry. Values of every Avro type are compared.

use crate::support;
use crate::support::registry::{memory_log, remote, serve};
use event_log::{
    Isolation, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use registry::{Catalog, Registry, SharedRegistry, embedded::Embedded};
use schemas::codec::{Datum, Row};
use schemas::events::{Event, TransactionEnd, ViewRow};
use schemas::headers::{self, Tx};
use schemas::ids::{SourceName, TableName};
use schemas::key::Key;
use schemas::pg_types::{self, Column};
use schemas::schema::Schema;
use schemas::version::{Lsn, Version};
use schemas::{device_json, wire};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// A topic for each direction, and the registry.
struct Harness {
    log: SharedEventLog,
    registry: Arc<Catalog>,
    ours: Arc<str>,
    theirs: Arc<str>,
}

impl Harness {
    fn new(registry: SharedRegistry) -> Self {
        let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(support::kafka())).expect("a log");
        let (ours, theirs) = (support::unique("interop.ours"), support::unique("interop.theirs"));
        let spec = |name: &String| TopicSpec {
            name: name.clone(),
            partitions: 1,
            replication: None,
            config: TopicConfig::new(event_log::Cleanup::Delete),
        };
        log.create_topics(&[spec(&ours), spec(&theirs)]).expect("topics");
        Harness {
            log,
            registry: Arc::new(Catalog::new(registry)),
            ours: ours.into(),
            theirs: theirs.into(),
        }
    }

    /// Writes change records and control records. Returns the output that a client must print for each.
    fn write_ours(&self) -> Vec<Value> {
        let mut batch = OutBatch::default();
        let mut expected = Vec::new();
        self.put_changes(&mut batch, &mut expected);
        self.put_control(&mut batch, &mut expected);
        self.log.append(&batch).expect("an append");
        expected
    }

    fn put(&self, batch: &mut OutBatch, key: &Key, value: Option<&[u8]>, headers: &[(&str, &[u8])]) {
        let record = OutRecord {
            topic: &self.ours,
            partition: Some(0),
            timestamp: None,
            key: Some(key.as_bytes()),
            value,
        };
        batch.push(record, headers.iter().map(|(name, value)| (*name, Some(*value))));
    }

    fn put_changes(&self, batch: &mut OutBatch, expected: &mut Vec<Value>) {
        let schema = Arc::new(Schema::parse(&table()).expect("a table's schema"));
        let subject = wire::subject(&self.ours, schema.name());
        let id = self.registry.register_schema(&subject, &schema).expect("a schema id");
        for (ordinal, (row, plain)) in (0u32..).zip(rows()) {
            let key = Key::build(|key| key.str("orders").long(row[0].as_i64().expect("an id")));
            let tx = Tx {
                source_epoch: 1,
                position: Lsn(0x16b_3748),
                ordinal,
                last: ordinal == 2,
                at_ms: 9,
            };
            let mut header = Vec::new();
            tx.write(&mut header);
            let headers: [(&str, &[u8]); 2] = [(headers::TABLE, b"orders"), (headers::TX, &header)];
            let shown = json!({"table": "orders", "tx": String::from_utf8_lossy(&header)});
            let mut value = Vec::new();
            wire::frame(id, &mut value);
            schema.encode(&row, &mut value).expect("a row");
            self.put(batch, &key, Some(&value), &headers);
            expected.push(json!({"key": key.as_str(), "headers": shown, "record": schema.name(), "value": plain}));
            self.put(batch, &key, None, &headers);
            expected.push(json!({"key": key.as_str(), "headers": shown, "record": null, "value": null}));
        }
    }

    fn put_control(&self, batch: &mut OutBatch, expected: &mut Vec<Value>) {
        let version = Version {
            source_epoch: 1,
            position: 2,
            ordinal: 3,
        }
        .to_bytes();
        let version_text: String = version.iter().map(|b| char::from(*b)).collect();
        let end = TransactionEnd {
            version: &version,
            at: 1_732_390_000_123,
        };
        let row = ViewRow {
            row: "{\"name\":\"é\"}".as_bytes(),
        };
        let row_text: String = row.row.iter().map(|b| char::from(*b)).collect();
        let key = Key::of(&["~end", "w"]);
        let mut value = Vec::new();
        end.write(self.register(&end), &mut value);
        self.put(batch, &key, Some(&value), &[]);
        let plain = json!({"format": 1, "version": version_text, "at": 1_732_390_000_123_i64});
        expected
            .push(json!({"key": key.as_str(), "headers": {}, "record": "trunkline.TransactionEnd", "value": plain}));
        let key = Key::of(&["user:1", "orders", "17"]);
        value.clear();
        row.write(self.register(&row), &mut value);
        self.put(batch, &key, Some(&value), &[]);
        let plain = json!({"format": 1, "row": row_text});
        expected.push(json!({"key": key.as_str(), "headers": {}, "record": "trunkline.ViewRow", "value": plain}));
    }

    fn register<'a, E: Event<'a>>(&self, _: &E) -> schemas::ids::SchemaId {
        self.registry
            .register(&E::subject(&self.ours), E::AVSC)
            .expect("a schema id")
    }

    /// Records that the client wrote, as the JSON that a device receives.
    fn read_theirs(&self, count: usize) -> Vec<(String, Option<Value>, Option<String>)> {
        let mut reader = self.log.reader(Isolation::ReadCommitted).expect("a reader");
        reader
            .assign(&[(TopicPartition::new(self.theirs.clone(), 0), StartFrom::Earliest)])
            .expect("an assignment");
        let mut batch = RecordBatch::default();
        let mut found = Vec::new();
        support::wait_for("the records of the other side", Duration::from_secs(30), || {
            reader
                .poll(&mut batch, 1 << 20, Duration::from_millis(100))
                .expect("a poll");
            for record in batch.iter() {
                let key = String::from_utf8(record.key().expect("a key").to_vec()).expect("a text");
                let from = record
                    .header("from")
                    .map(|header| String::from_utf8_lossy(header).into_owned());
                found.push((key, record.value().map(|value| self.shown(value)), from));
            }
            (found.len() >= count).then_some(())
        });
        found
    }

    fn shown(&self, value: &[u8]) -> Value {
        let (id, body) = wire::unframe(value).expect("a frame");
        let schema = self.registry.schema(id).expect("a schema");
        let mut row = Row::new();
        schema.decode(body, &mut row).expect("a body");
        // Encoding the row a second time must yield the same bytes. Maps have one entry, so their order is unambiguous.
        let mut again = Vec::new();
        schema.encode(&row, &mut again).expect("the same row");
        assert_eq!(again, body);
        let mut json = Vec::new();
        device_json::write(&schema, schema.root(), &Datum::Record(row), &mut json);
        serde_json::from_slice(&json).expect("JSON")
    }

    /// Runs a client with both topics and compares what each side read.
    fn exchange(&self, client: Client, url: &str) {
        let expected = self.write_ours();
        let printed = client.run(url, &self.ours, expected.len(), &self.theirs);
        let printed: Vec<Value> = printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect();
        assert_eq!(printed.len(), expected.len());
        for (printed, expected) in printed.iter().zip(&expected) {
            assert_eq!(printed, expected);
        }
        let found = self.read_theirs(4);
        let from = Some(client.name().to_owned());
        for (number, found) in (0..3).zip(&found) {
            assert_eq!(*found, (format!("[{number}]"), Some(order(number)), from.clone()));
        }
        assert_eq!(found[3], ("[0]".to_owned(), None, None));
    }
}

/// Client in another language.
#[derive(Clone, Copy)]
enum Client {
    Python,
    JavaSerde,
    JavaPlain,
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Client::Python => "python",
            Client::JavaSerde | Client::JavaPlain => "java",
        }
    }

    fn run(self, registry: &str, ours: &str, count: usize, theirs: &str) -> String {
        let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/interop");
        let mut command = match self {
            Client::Python => {
                let mut command = Command::new(support::python());
                command.arg(fixtures.join("clients.py"));
                command
            }
            Client::JavaSerde | Client::JavaPlain => {
                let mut command = Command::new("java");
                let libs = format!("{}/*", support::avro_libs().display());
                command.args(["-Xmx256m", "-XX:TieredStopAtLevel=1", "-cp", &libs]);
                command.arg(fixtures.join("Clients.java"));
                command.arg(if matches!(self, Client::JavaSerde) {
                    "serde"
                } else {
                    "plain"
                });
                command
            }
        };
        command.args([support::kafka().as_str(), registry, ours, &count.to_string(), theirs]);
        let output = command.output().expect("the client starts");
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "{} failed:\n{err}\n{out}", self.name());
        out.into_owned()
    }
}

/// A table with every kind of column.
fn table() -> String {
    let columns = [
        Column::declared("id", "int8"),
        Column::declared("flag", "bool"),
        Column::declared("small", "int2?"),
        Column::declared("ratio", "float8"),
        Column::declared("share", "float4?"),
        Column::declared("price", "numeric(12,2)?"),
        Column::declared("blob", "bytea"),
        Column::declared("day", "date"),
        Column::declared("at", "timestamptz"),
        Column::declared("local", "timestamp?"),
        Column::declared("uid", "uuid"),
        Column::declared("doc", "jsonb"),
        Column::declared("full name", "text?"),
    ];
    let (source, table) = (
        SourceName::new("shop").expect("a name"),
        TableName::new("orders").expect("a name"),
    );
    pg_types::table_schema(&source, &table, &columns).expect("a schema")
}

/// Rows of the table, with the JSON that a client prints for each.
fn rows() -> Vec<(Row<'static>, Value)> {
    let uid = "00000000-0000-0000-0000-00000000002a";
    let base = vec![
        Datum::Long(1),
        Datum::Bool(true),
        Datum::Null,
        Datum::Double(0.1),
        Datum::Null,
        Datum::Null,
        Datum::Bytes(&[]),
        Datum::Int(0),
        Datum::Long(0),
        Datum::Null,
        Datum::Str(uid),
        Datum::Str("{}"),
        Datum::Null,
        Datum::Null,
    ];
    let plain = json!({
        "id": 1, "flag": true, "small": null, "ratio": 0.1, "share": null, "price": null, "blob": "", "day": 0,
        "at": 0, "local": null, "uid": uid, "doc": "{}", "full_name": null, "_unchanged": null,
    });
    let mut full = base.clone();
    full[0] = Datum::Long(i64::MIN);
    full[1] = Datum::Bool(false);
    full[2] = Datum::Int(-32_768);
    full[3] = Datum::Double(-1.5e300);
    full[4] = Datum::Float(0.25);
    full[5] = Datum::Str("-1234567890.50");
    full[6] = Datum::Bytes(&[0, 10, 127, 255]);
    full[7] = Datum::Int(-719_162);
    full[8] = Datum::Long(1_732_390_000_123_456);
    full[9] = Datum::Long(-62_135_596_800_000_000);
    full[11] = Datum::Str("{\"a\": [1, \"é\"]}");
    full[12] = Datum::Str("日本\n\"x\"\u{1f600}");
    full[13] = Datum::Array(vec![Datum::Str("doc"), Datum::Str("blob")]);
    let full_plain = json!({
        "id": i64::MIN, "flag": false, "small": -32_768, "ratio": -1.5e300, "share": 0.25, "price": "-1234567890.50",
        "blob": "\u{0}\n\u{7f}\u{ff}", "day": -719_162, "at": 1_732_390_000_123_456_i64,
        "local": -62_135_596_800_000_000_i64, "uid": uid, "doc": "{\"a\": [1, \"é\"]}",
        "full_name": "日本\n\"x\"\u{1f600}", "_unchanged": ["doc", "blob"],
    });
    let mut last = base.clone();
    last[0] = Datum::Long(i64::MAX);
    let mut last_plain = plain.clone();
    last_plain["id"] = json!(i64::MAX);
    vec![(base, plain), (full, full_plain), (last, last_plain)]
}

/// The order that every client writes, as a device receives it.
fn order(number: i64) -> Value {
    let lines: Vec<Value> = (0..number)
        .map(|at| json!({"sku": format!("s{at}"), "count": -at, "note": if at % 2 == 1 { Value::Null } else { json!("n") }}))
        .collect();
    let extras = [Value::Null, json!("é\n\""), json!("-4611686018427387904")];
    let price = ["-12.50", "-25.00", "-37.50"];
    let at = usize::try_from(number).expect("a small number");
    json!({
        "id": format!("00000000-0000-0000-0000-{:012}", number + 1),
        "total": ((1_i64 << 53) + number).to_string(),
        "price": price[at],
        "at": "2024-02-29T23:59:59.123456Z",
        "day": "1969-12-31",
        "status": if at % 2 == 0 { "OPEN" } else { "PAID" },
        "lines": lines,
        "tags": if number == 0 { json!({}) } else { json!({"ratio": 0.1}) },
        "hash": "AAH+/w==",
        "extra": extras[at],
        "ok": number % 2 == 0,
    })
}

#[test]
fn python_client_interoperates_over_apicurio() {
    let url = support::registry_url();
    Harness::new(remote(&url)).exchange(Client::Python, &url);
}

#[test]
fn python_client_interoperates_over_own_registry() {
    let registry: SharedRegistry = Arc::new(Embedded::open(memory_log()).expect("a registry"));
    let served = serve(registry.clone());
    Harness::new(registry).exchange(Client::Python, &served.url);
}

#[test]
fn python_client_manages_own_registry() {
    let registry: SharedRegistry = Arc::new(Embedded::open(memory_log()).expect("a registry"));
    let served = serve(registry);
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/interop/registry.py");
    let mut command = Command::new(support::python());
    let output = command.arg(script).arg(&served.url).output().expect("Python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn java_serializers_interoperate_over_apicurio() {
    let url = support::registry_url();
    let native = url.replace("/apis/ccompat/v7", "/apis/registry/v2");
    Harness::new(remote(&url)).exchange(Client::JavaSerde, &native);
}

#[test]
fn java_avro_interoperates_over_apicurio() {
    let url = support::registry_url();
    Harness::new(remote(&url)).exchange(Client::JavaPlain, &url);
}

#[test]
fn java_avro_interoperates_over_own_registry() {
    let registry: SharedRegistry = Arc::new(Embedded::open(memory_log()).expect("a registry"));
    let served = serve(registry.clone());
    Harness::new(registry).exchange(Client::JavaPlain, &served.url);
}
