//! Tests of configuration parsing and of its error messages.

use super::*;
use expect_test::{Expect, expect};
use serde::Deserialize;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Config {
    data_dir: PathBuf,
    #[serde(default)]
    edge: Edge,
    #[serde(default)]
    kafka: Option<Kafka>,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
struct Edge {
    port: u16,
    host: String,
    verbose: bool,
    share: f64,
    format: Format,
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Kafka {
    brokers: Vec<String>,
    password: Option<Secret>,
    #[serde(default)]
    settings: BTreeMap<String, String>,
}

const FILE: &str = r#"
data_dir = "/var/lib/trunkline"

[edge]
port = 8080
host = "0.0.0.0"

[kafka]
brokers = ["a:9092"]
settings = { "linger.ms" = "5" }
"#;

fn sources() -> Sources {
    Sources::default().text(FILE)
}

fn rejected(sources: &Sources, expected: Expect) {
    expected.assert_eq(&sources.read::<Config>().unwrap_err().to_string());
}

#[test]
fn environment_overrides_the_file() {
    let read: Config = sources()
        .variable("TRUNKLINE_DATA_DIR", "/tmp/data")
        .variable("TRUNKLINE_EDGE__PORT", "9000")
        .variable("TRUNKLINE_EDGE__HOST", "10")
        .variable("TRUNKLINE_EDGE__VERBOSE", "true")
        .variable("TRUNKLINE_EDGE__SHARE", "1")
        .variable("TRUNKLINE_EDGE__FORMAT", "json")
        .variable("TRUNKLINE_KAFKA__BROKERS", "a:1, b:2")
        .variable("TRUNKLINE_KAFKA__PASSWORD", "12345")
        .read()
        .unwrap();
    let edge = Edge {
        port: 9000,
        host: "10".into(),
        verbose: true,
        share: 1.0,
        format: Format::Json,
    };
    let kafka = Kafka {
        brokers: vec!["a:1".into(), "b:2".into()],
        password: Some(Secret::new("12345")),
        settings: BTreeMap::from([("linger.ms".into(), "5".into())]),
    };
    assert_eq!(
        read,
        Config {
            data_dir: "/tmp/data".into(),
            edge,
            kafka: Some(kafka)
        }
    );
}

#[test]
fn environment_alone_is_sufficient() {
    let alone = Sources::default()
        .variable("TRUNKLINE_DATA_DIR", "d")
        .variable("TRUNKLINE_KAFKA__BROKERS", r#"["a:1"]"#)
        .variable("TRUNKLINE_EDGE", "{ port = 1 }");
    let read: Config = alone.read().unwrap();
    assert_eq!(
        (read.edge.port, read.kafka.unwrap().brokers),
        (1, vec!["a:1".to_owned()])
    );
}

#[test]
fn unknown_key_is_shown_with_the_allowed_ones() {
    rejected(
        &sources().text("data_dir = 'd'\n[edge]\n  prot = 1\n"),
        expect![[r#"
            configuration, line 3, `edge.prot`: unknown field `prot`, expected one of `port`, `host`, `verbose`, `share`, `format`
              3 |   prot = …"#]],
    );
    rejected(
        &sources().variable("TRUNKLINE_EDGE__PROT", "1"),
        expect![
            "configuration, `edge.prot` (from TRUNKLINE_EDGE__PROT): unknown field `prot`, expected one of `port`, `host`, `verbose`, `share`, `format`"
        ],
    );
}

#[test]
fn invalid_value_is_shown_with_its_location() {
    rejected(
        &sources().text("data_dir = 'd'\nedge.port = 70000"),
        expect![[r#"
            configuration, line 2, `edge.port`: invalid value: integer `70000`, expected u16
              2 | edge.port = …"#]],
    );
    rejected(
        &sources().variable("TRUNKLINE_EDGE__PORT", "many"),
        expect![[
            r#"configuration, `edge.port` (from TRUNKLINE_EDGE__PORT): invalid type: string "many", expected u16"#
        ]],
    );
    rejected(
        &sources().text("data_dir = 'd'\n[kafka]\nbrokers = ['a', 1]"),
        expect![[r#"
            configuration, line 3, `kafka.brokers[1]`: invalid type: integer `1`, expected a string
              3 | brokers = …"#]],
    );
    rejected(
        &sources().text("data_dir = 'd'\nedge.format = 'xml'"),
        expect![[r#"
            configuration, line 2, `edge.format`: unknown variant `xml`, expected `text` or `json`
              2 | edge.format = …"#]],
    );
    rejected(
        &sources().variable("TRUNKLINE_DATA_DIR__X", "1"),
        expect![
            "configuration, `data_dir` (from TRUNKLINE_DATA_DIR__X): is a value, not a table, so a variable cannot set a key in it"
        ],
    );
}

#[test]
fn missing_key_is_named() {
    rejected(&sources().text(""), expect!["configuration: missing field `data_dir`"]);
    rejected(
        &sources().text("data_dir = 'd'\n[kafka]\n"),
        expect![[r"
            configuration, line 2, `kafka`: missing field `brokers`
              2 | [kafka]"]],
    );
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    let absent = Sources::default().file(&path).err().expect("the file does not exist");
    assert_eq!(
        absent.to_string(),
        format!("cannot read the configuration file {}", path.display())
    );
    std::fs::write(&path, "a = = 1").unwrap();
    let error = Sources::default()
        .file(&path)
        .unwrap()
        .read::<Config>()
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!("configuration {}, line 1", path.display())),
        "{error}"
    );
    assert!(error.ends_with("1 | a = …"), "{error}");
}

#[test]
fn secret_is_resolved_and_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("password");
    std::fs::write(&path, "pass word\n").unwrap();
    let secret = Secret::resolve(&format!("postgres://u:${{file:{}}}@h/${{env:PATH}}", path.display())).unwrap();
    assert_eq!(
        secret.expose(),
        format!("postgres://u:pass word@h/{}", env("PATH").unwrap())
    );
    assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "*** *** Some(***)");
    assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
}

#[test]
fn unresolved_secret_names_the_reference_not_the_text() {
    let password = |text: &str| {
        let text = format!("data_dir = 'd'\n[kafka]\nbrokers = []\n# the next line\npassword = {text}");
        Sources::default().text(text).read::<Config>().unwrap_err()
    };
    let message = |error: Error| match error {
        Error::Key { key, message, .. } => format!("{key}: {message}"),
        other => panic!("{other}"),
    };
    expect!["`kafka.password`: ${env:TRUNKLINE_NOT_SET}: environment variable TRUNKLINE_NOT_SET is not set"]
        .assert_eq(&message(password("'${env:TRUNKLINE_NOT_SET}'")));
    expect!["`kafka.password`: ${file:/no/such}: cannot read the file: No such file or directory (os error 2)"]
        .assert_eq(&message(password("'${file:/no/such}'")));
    expect!["`kafka.password`: invalid reference after `${`; use ${env:NAME} or ${file:PATH}"]
        .assert_eq(&message(password("'${secret}'")));
    expect!["`kafka.password`: a secret must be a string"].assert_eq(&message(password("1234567")));
    for text in ["1234567", "'1234567${'", "[1234567]"] {
        let error = password(text);
        assert!(!format!("{error} {error:?}").contains("1234567"), "{error:?}");
    }
}

#[test]
fn variables_of_kubernetes_services_are_ignored() {
    // As in a pod of a namespace with these Services: one port, named ports, and a name with two hyphens.
    let injected = [
        ("TRUNKLINE_SERVICE_HOST", "10.0.0.1"),
        ("TRUNKLINE_SERVICE_PORT", "80"),
        ("TRUNKLINE_PORT", "tcp://10.0.0.1:80"),
        ("TRUNKLINE_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("TRUNKLINE_PORT_80_TCP_PROTO", "tcp"),
        ("TRUNKLINE_PORT_80_TCP_PORT", "80"),
        ("TRUNKLINE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("TRUNKLINE_EDGE_SERVICE_HOST", "10.0.0.2"),
        ("TRUNKLINE_EDGE_SERVICE_PORT", "443"),
        ("TRUNKLINE_EDGE_SERVICE_PORT_HTTPS", "443"),
        ("TRUNKLINE_EDGE_SERVICE_PORT_HTTP3_QUIC", "443"),
        ("TRUNKLINE_EDGE_PORT", "tcp://10.0.0.2:443"),
        ("TRUNKLINE_EDGE_PORT_443_TCP", "tcp://10.0.0.2:443"),
        ("TRUNKLINE_EDGE_PORT_443_UDP_ADDR", "10.0.0.2"),
        ("TRUNKLINE_EDGE_PORT_9_SCTP_PROTO", "sctp"),
        ("TRUNKLINE__EDGE_SERVICE_HOST", "10.0.0.3"),
        ("TRUNKLINE__EDGE_PORT_443_TCP_PORT", "443"),
    ];
    let keys = [("TRUNKLINE_DATA_DIR", "d"), ("TRUNKLINE_EDGE__PORT", "9000")];
    let all = injected.iter().chain(&keys);
    let all = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let read: Config = Sources::variables(all, &[]).read().unwrap();
    assert_eq!((read.data_dir, read.edge.port), ("d".into(), 9000));

    let mistyped = [("TRUNKLINE_DATADIR", "d")].into_iter();
    let mistyped = mistyped.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let error = Sources::variables(mistyped, &[]).read::<Config>().unwrap_err();
    assert!(error.to_string().contains("TRUNKLINE_DATADIR"), "{error}");
}
