//! Which log, registry and token a command uses.

use super::*;
use crate::args::{Cli, Command};
use clap::Parser;
use service::Secret;
use std::fs;
use std::path::PathBuf;

/// The options of `trunkline topics` with these arguments, and without the environment of the test.
fn target(arguments: &[&str]) -> Target {
    let all = ["trunkline", "topics"].iter().chain(arguments).chain(&["list"]);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Topics(topics) => topics.target,
        other => panic!("{other:?}"),
    }
}

fn setting<'c>(connection: &'c Connection, name: &str) -> Option<&'c str> {
    let settings = &connection.kafka.as_ref()?.settings;
    settings.get(name).map(Secret::expose)
}

const NODE: &str = r#"
data_dir = "/var/lib/trunkline"
[kafka]
brokers = "kafka:9093"
settings = { "security.protocol" = "SASL_SSL", "sasl.username" = "app", "sasl.password" = "from the file" }
[registry]
url = "https://registry"
user = "reader"
password = "secret of the registry"
[edge]
anything = "${env:TRUNKLINE_TEST_NOT_SET}"
"#;

#[test]
fn configuration_of_a_node_selects_kafka_and_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (file, password) = (dir.path().join("trunkline.toml"), dir.path().join("password"));
    fs::write(&file, NODE).unwrap();
    fs::write(&password, "from another file\n").unwrap();
    let config = file.display().to_string();
    let connection = Connection::of(&target(&["--config", &config])).unwrap();
    assert_eq!(connection.kafka.as_ref().unwrap().brokers, "kafka:9093");
    assert_eq!(setting(&connection, "sasl.password"), Some("from the file"));
    assert_eq!(connection.registry.url.as_deref(), Some("https://registry"));

    let password = format!("sasl.password=${{file:{}}}", password.display());
    let connection = Connection::of(&target(&[
        "--config",
        &config,
        "-X",
        &password,
        "-X",
        "ssl.ca.location=ca.pem",
    ]));
    let connection = connection.unwrap();
    assert_eq!(setting(&connection, "sasl.password"), Some("from another file"));
    assert_eq!(setting(&connection, "ssl.ca.location"), Some("ca.pem"));
    assert_eq!(setting(&connection, "sasl.username"), Some("app"));

    // A registry that is named does not get the credentials of another one.
    let other = Connection::of(&target(&["--config", &config, "--registry", "http://other"])).unwrap();
    assert_eq!((other.registry.user, other.registry.password), (None, None));
}

#[test]
fn profile_selects_kafka_registry_and_token() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[kafka]\nbrokers = \"kafka:9093\"\n[client]\nadmin_token = \"t\"\nadmin_ca = \"ca.pem\"\n";
    let files = dir.path().join("profiles");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("prod.toml"), text).unwrap();
    fs::write(files.join("typo.toml"), "[kafca]\nbrokers = \"kafka:9093\"\n").unwrap();
    let profile = profiles::read(dir.path(), "prod").unwrap();
    assert_eq!(profile.kafka.unwrap().brokers, "kafka:9093");
    let access = profile.client.with(&target(&["--admin-ca", "mine.pem"]));
    assert_eq!(access.token.as_ref().map(Secret::expose), Some("t"));
    assert_eq!(access.ca, Some(PathBuf::from("mine.pem")));
    let error = |name: &str| format!("{:#}", profiles::read(dir.path(), name).err().unwrap());
    assert!(
        error("stage").contains("there is no profile stage"),
        "{}",
        error("stage")
    );
    assert!(error("typo").contains("kafca"), "{}", error("typo"));
}

#[test]
fn contradictions_are_rejected_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trunkline.toml");
    fs::write(&file, NODE).unwrap();
    let config = file.display().to_string();
    let error = |arguments: &[&str]| format!("{:#}", Connection::of(&target(arguments)).err().unwrap());
    let both = error(&["--config", &config, "--kafka", "other:9092"]);
    assert!(both.contains("use one of them") && !both.contains("secret"), "{both}");
    let lost = error(&["-X", "sasl.password=hunter2"]);
    assert!(lost.contains("-X sasl.password") && !lost.contains("hunter2"), "{lost}");
    assert!(error(&["--registry-user", "me"]).contains("no registry"));
    assert!(error(&["--profile", "../x"]).contains("not the name of a profile"));
    let text = format!(
        "{:?}",
        target(&[
            "--kafka",
            "k",
            "-X",
            "sasl.password=hunter2",
            "--admin-token",
            "hunter2"
        ])
    );
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn options_of_the_log_are_accepted_before_and_after_a_subcommand() {
    for arguments in [
        ["trunkline", "topics", "--data", "d", "list"],
        ["trunkline", "topics", "list", "--data", "d"],
    ] {
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Topics(topics) => assert_eq!(topics.target.data, PathBuf::from("d"), "{arguments:?}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn invalid_setting_is_rejected_without_its_value() {
    let error = Cli::try_parse_from(["trunkline", "lag", "-X", "hunter2", "--kafka", "k"]).unwrap_err();
    // clap repeats the argument, which is not known to be a setting.
    assert!(error.to_string().contains("write NAME=VALUE"), "{error}");
    let error = Cli::try_parse_from(["trunkline", "dev", "--orders-per-s", "nan"]).unwrap_err();
    assert!(error.to_string().contains("from 0 to 1000"), "{error}");
}
