//! The command line on a Kafka that requires TLS and SCRAM: configuration files, profiles, settings, and redrives.

use super::LIMIT;
use super::secure::{certificates, config, listener};
use crate::support::{self, Broker, binary};
use event_log::kafka::KafkaLog;
use event_log::{Cleanup, OutBatch, OutRecord, SharedEventLog, TopicConfig, TopicSpec};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PASSWORD: &str = "correct horse";

fn trunkline(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).env("XDG_CONFIG_HOME", directory);
    command.stdin(Stdio::null()).output().expect("the binary starts")
}

fn success(directory: &Path, arguments: &[&str]) -> Value {
    let out = trunkline(directory, &[arguments, &["--output", "json"]].concat());
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{arguments:?}: {error}");
    assert!(!error.contains("horse"), "{error}");
    serde_json::from_slice(&out.stdout).unwrap_or_default()
}

/// A topic with one record, and its dead-letter topic with a dead letter of that record.
fn prepare(log: &SharedEventLog) {
    let topic = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    let topics = ["shop.change.shop", "shop.change.shop.dlq", "copy"].map(topic);
    support::wait_for("the topics", LIMIT, || log.create_topics(&topics).ok());
    let errors = [
        ("__connect.errors.topic", "shop.change.shop"),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", "0"),
        ("__connect.errors.stage", "VALUE_CONVERTER"),
    ];
    for (name, headers) in [("shop.change.shop", &[][..]), ("shop.change.shop.dlq", &errors[..])] {
        let (topic, mut batch) = (name.into(), OutBatch::default());
        let record = OutRecord {
            topic: &topic,
            partition: Some(0),
            timestamp: None,
            key: Some(b"[\"orders\",\"17\"]"),
            value: Some(b"value"),
        };
        batch.push(
            record,
            headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))),
        );
        support::wait_for("the record", LIMIT, || log.append(&batch).ok());
    }
}

/// Configuration file and profile reach the broker, reading creates no topic, and a redrive is exactly once.
#[test]
fn command_line_reaches_secured_kafka() {
    let directory = tempfile::tempdir().expect("make a directory");
    certificates(directory.path());
    let broker = Broker::start_with(&listener(directory.path()), &[]);
    let log = KafkaLog::connect(config(directory.path(), &broker, PASSWORD, "ca.pem")).expect("connect");
    prepare(&log);
    let before = log.topics().expect("list topics");

    fs::write(directory.path().join("password"), format!("{PASSWORD}\n")).expect("write the password");
    let kafka = format!(
        "[kafka]\nbrokers = \"{}\"\n[kafka.settings]\n\"security.protocol\" = \"SASL_SSL\"\n\"ssl.ca.location\" = \"{}\"\n\
         \"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"app\"\n\"sasl.password\" = \"${{file:{}}}\"\n",
        broker.bootstrap(),
        directory.path().join("ca.pem").display(),
        directory.path().join("password").display(),
    );
    let file = directory.path().join("trunkline.toml");
    fs::write(&file, format!("data_dir = \"/nowhere\"\n{kafka}")).expect("write the configuration");
    let profiles = directory.path().join("trunkline").join("profiles");
    fs::create_dir_all(&profiles).expect("make a directory");
    fs::write(profiles.join("test.toml"), &kafka).expect("write the profile");

    let file = file.display().to_string();
    for source in [["--config", &file], ["--profile", "test"]] {
        for arguments in [
            &["topics", "list"][..],
            &["topics", "show", "shop.change.shop"],
            &["topics", "tail", "shop.change.shop"],
            &["lag"],
            &["dlq", "list"],
            &["dlq", "show", "shop.change.shop.dlq"],
            &["dlq", "redrive", "shop.change.shop.dlq", "--dry-run"],
            &["replay", "shop.change.shop", "--to", "copy", "--dry-run"],
        ] {
            success(directory.path(), &[arguments, &source].concat());
        }
    }
    assert_eq!(log.topics().expect("list topics"), before, "reading creates no topic");

    let redrive = ["dlq", "redrive", "shop.change.shop.dlq", "--yes", "--profile", "test"];
    assert_eq!(success(directory.path(), &redrive)["redriven"], 1);
    let again = success(directory.path(), &redrive);
    assert_eq!((&again["redriven"], &again["redriven_before"]), (&0.into(), &1.into()));

    let wrong = [
        "topics",
        "list",
        "--profile",
        "test",
        "-X",
        "sasl.password=wrong donkey",
    ];
    let out = trunkline(directory.path(), &wrong);
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{error}");
    assert!(error.contains("uthentication") && !error.contains("donkey"), "{error}");
}
