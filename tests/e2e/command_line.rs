//! The command line on an embedded log: dead letters, and what commands write and print.

use crate::support::{Dev, binary, wait_for};
use event_log::embedded::{Config, EmbeddedLog};
use event_log::{OutBatch, OutRecord, SharedEventLog};
use registry::Registry as _;
use registry::embedded::Embedded;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const EVENTS: &str = "shop.event.delivery_moved";
const DEAD: &str = "shop.event.delivery_moved.dlq";

fn open(data: &Path) -> SharedEventLog {
    let clock = service::clock::system();
    let config = Config::new(Some(data.join("log")), Arc::new(move || clock.now_ms()));
    EmbeddedLog::open(config).unwrap()
}

/// Runs a command on the data directory, with options of the log after the subcommand.
fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--data").arg(data);
    command.stdin(Stdio::null()).output().expect("the binary starts")
}

/// The JSON values on standard output of a command with exit code `code`.
fn json_of(data: &Path, code: i32, arguments: &[&str]) -> Vec<Value> {
    let out = run(data, &[arguments, &["--output", "json"]].concat());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(
        out.status.code(),
        Some(code),
        "{arguments:?}: {text} {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let values = serde_json::Deserializer::from_str(&text).into_iter();
    values.map(|value| value.expect("JSON")).collect()
}

fn dead_letter_topic(data: &Path) -> Value {
    let all = json_of(data, 0, &["dlq", "list"]).remove(0);
    let found = all.as_array().unwrap().iter().find(|topic| topic["topic"] == DEAD);
    found.cloned().unwrap_or_default()
}

fn wait_for_topics(data: &Path) {
    wait_for("the topics", LIMIT, || {
        let topics = json_of(data, 0, &["topics", "list", EVENTS]).remove(0);
        topics
            .as_array()
            .unwrap()
            .iter()
            .any(|topic| topic["name"] == EVENTS)
            .then_some(())
    });
}

#[test]
fn redriven_dead_letter_clears_the_stale_view() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut dev = Dev::start(&data, &["--orders-per-s", "0"]);
    wait_for_topics(&data);
    dev.kill();

    // An event whose schema is not registered yet: the next id that the registry will assign.
    let log = open(&data);
    let probe = r#"{"type":"record","name":"probe","fields":[]}"#;
    let next = Embedded::open(log.clone()).unwrap().register("probe", probe).unwrap().0 + 1;
    let mut value = vec![0];
    value.extend(next.to_be_bytes());
    value.extend([0x22, 0x04, 0, 0, 0, 0]);
    let (topic, mut batch) = (EVENTS.into(), OutBatch::default());
    let record = OutRecord {
        topic: &topic,
        partition: None,
        timestamp: None,
        key: Some(b"[\"17\"]"),
        value: Some(&value),
    };
    batch.push(record, []);
    let written = log.append(&batch).unwrap().remove(0);
    drop(log);

    dev.restart();
    let stale = json!([{ "table": "delivery_moved", "rows": 1, "views": null }]);
    let topic = wait_for("the dead letter and the stale state", LIMIT, || {
        let topic = dead_letter_topic(&data);
        (topic["open"] == 1 && topic["stale"] == stale).then_some(topic)
    });
    assert_eq!(topic["groups"][0]["stage"], "VALUE_CONVERTER", "{topic}");
    let letter = json_of(&data, 0, &["dlq", "show", DEAD, "--stage", "value_converter"]).remove(0);
    assert_eq!(letter["key"], json!(["17"]));
    assert_eq!(letter["origin"]["offset"], written.first_offset);
    assert_eq!((&letter["redriven"], &letter["refusal"]), (&json!(false), &Value::Null));
    assert!(json_of(&data, 0, &["dlq", "show", DEAD, "--reason", "no such reason"]).is_empty());

    let out = run(&data, &["dlq", "redrive", DEAD]);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && error.contains("--yes"), "{error}");

    // The cause is fixed: the schema is registered.
    dev.kill();
    let log = open(&data);
    let schema = include_str!("../../topology/schemas/delivery_moved.avsc").replace("The location", "The place");
    let id = Embedded::open(log.clone()).unwrap().register("fixed", &schema).unwrap();
    assert_eq!(id.0, next, "the probe was the last schema");
    drop(log);
    dev.restart();

    let counted =
        |arguments: &[&str], code| json_of(&data, code, &[&["dlq", "redrive", DEAD], arguments].concat()).remove(0);
    wait_for("the log to be open", LIMIT, || {
        (run(&data, &["topics", "list"]).status.success()).then_some(())
    });
    assert_eq!(counted(&["--dry-run"], 0)["redriven"], 1);
    assert_eq!(counted(&["--yes"], 0)["redriven"], 1);
    wait_for("the end of the stale state", LIMIT, || {
        let topic = dead_letter_topic(&data);
        (topic["open"] == 0 && topic["stale"] == json!([])).then_some(())
    });
    assert_eq!(counted(&["--yes"], 0)["redriven_before"], 1);
    let partition = written.at.partition.to_string();
    let named = counted(&["--yes", "--partition", &partition, "--offset", "0"], 1);
    assert_eq!(
        named["redriven_before"], 1,
        "a named dead letter that is not redriven is a failure"
    );
    assert_eq!(counted(&["--yes", "--again"], 0)["redriven"], 1);
}

#[test]
fn commands_that_read_create_no_topic() {
    let parent = tempfile::tempdir().unwrap();
    let data = parent.path();
    let log = open(data);
    let topic = |name: &str| event_log::TopicSpec {
        name: name.to_owned(),
        partitions: 2,
        replication: None,
        config: event_log::TopicConfig::new(event_log::Cleanup::Delete),
    };
    log.create_topics(&["shop.change.db", "shop.change.db.dlq", "copy"].map(topic))
        .unwrap();
    let (name, mut batch) = ("shop.change.db".into(), OutBatch::default());
    let record = OutRecord {
        topic: &name,
        partition: Some(0),
        timestamp: None,
        key: Some(b"[1]"),
        value: Some(&[0, 0, 0, 0, 9, 2]),
    };
    batch.push(record, []);
    log.append(&batch).unwrap();
    let before = log.topics().unwrap();
    drop(log);
    for (arguments, code) in [
        (&["topics", "list"][..], 0),
        (&["topics", "show", "shop.change.db"], 0),
        (&["topics", "tail", "shop.change.db"], 0),
        (&["lag"], 0),
        (&["lag", "--group", "nope"], 1),
        (&["dlq", "list"], 0),
        (&["dlq", "show", "shop.change.db.dlq"], 0),
        (&["dlq", "redrive", "shop.change.db.dlq", "--dry-run"], 0),
        (&["replay", "shop.change.db", "--to", "copy", "--dry-run"], 0),
        (&["offsets", "show", "shop.sync-views.change.db", "rows/0"], 1),
        (&["state", "list"], 1),
        (&["doctor"], 1),
    ] {
        let out = run(data, arguments);
        let error = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(open(data).topics().unwrap(), before, "{arguments:?}");
    }
    let record = json_of(data, 0, &["topics", "tail", "shop.change.db"]).remove(0);
    let error = record["error"].as_str().unwrap();
    assert!(error.contains("no schema registry"), "{error}");
}

#[test]
fn errors_are_json_on_stderr_and_a_closed_pipe_is_no_error() {
    let parent = tempfile::tempdir().unwrap();
    drop(open(parent.path()));
    let out = run(parent.path(), &["lag", "--group", "nope", "--output", "json"]);
    let error: Value = serde_json::from_slice(&out.stderr).unwrap();
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("consumer group `nope` does not exist"), "{text}");
    assert!(out.stdout.is_empty());

    let mut command = Command::new(binary());
    let piped = command
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // The script is larger than the buffer of a pipe, so the command writes to a closed pipe.
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0));
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
}
