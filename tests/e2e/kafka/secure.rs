//! Kafka over TLS with SCRAM. The certificate authority is created for the test; the broker has no plain-text listener
//! for clients.

use super::{LIMIT, one};
use crate::support::{self, Broker, Listener};
use event_log::kafka::{Config, KafkaLog};
use event_log::{
    Cleanup, Error, OffsetSpec, Outcome, TopicConfig, TopicPartition, TopicSpec, TransactionalProducerConfig,
};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Topics, transactions and offsets work over TLS with SCRAM. A wrong password and an untrusted authority fail within
/// the request timeout, and the error contains the cause.
#[test]
fn tls_and_scram_work_and_errors_name_the_cause() {
    if !cfg!(feature = "kafka-tls") {
        panic!("this test needs `--features trunkline-tests/kafka-tls`, as tests/run builds");
    }
    let directory = tempfile::tempdir().expect("make a directory");
    certificates(directory.path());
    let broker = Broker::start_with(&listener(directory.path()), &[]);
    let log = KafkaLog::connect(config(directory.path(), &broker, "correct horse", "ca.pem")).expect("connect");

    let spec = TopicSpec {
        name: "secure".to_owned(),
        partitions: 1,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    support::wait_for("the topic", LIMIT, || {
        log.create_topics(std::slice::from_ref(&spec)).ok()
    });
    let at = TopicPartition::new("secure", 0);
    let config_of = |id: &str| TransactionalProducerConfig {
        transactional_id: id.to_owned(),
        transaction_timeout: Duration::from_secs(10),
    };
    let mut producer = support::wait_for("a producer", LIMIT, || {
        log.transactional_producer(config_of("secure")).ok()
    });
    producer.begin().expect("begin");
    producer.send(&one(&at, "0")).expect("send");
    assert!(matches!(producer.commit(None), Outcome::Committed(_)));
    // The broker writes the commit marker after its response, so the last stable offset follows later.
    let end = support::wait_for("no open transaction", LIMIT, || {
        super::end_or_open(&log, &at).ok()?.ok()
    });
    assert_eq!(super::committed(&log, &at, end).len(), 1);
    assert_eq!(log.offset(&at, OffsetSpec::Earliest).expect("an offset"), 0);

    for (password, authority, word) in [
        ("wrong", "ca.pem", "uthentication"),
        ("correct horse", "other.pem", "SSL"),
    ] {
        let log =
            KafkaLog::connect(config(directory.path(), &broker, password, authority)).expect("the settings are fine");
        let error = log.topics().expect_err("the broker rejects the client");
        assert!(
            matches!(error, Error::Unavailable { .. } | Error::Rejected { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(word), "{error}");
        assert!(!error.to_string().contains("horse"), "{error}");
    }
}

pub(super) fn config(directory: &Path, broker: &Broker, password: &str, authority: &str) -> Config {
    let mut config = Config::new(broker.bootstrap());
    config.request_timeout = Duration::from_secs(10);
    let authority = directory.join(authority).display().to_string();
    let settings = [
        ("security.protocol", "SASL_SSL"),
        ("ssl.ca.location", &authority),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "app"),
        ("sasl.password", password),
    ];
    config.settings = settings
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    config
}

pub(super) fn listener(directory: &Path) -> Listener {
    let file = |name: &str| directory.join(name).display().to_string();
    let login =
        "org.apache.kafka.common.security.scram.ScramLoginModule required username=\"app\" password=\"correct horse\";";
    let settings = [
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", file("broker.pem")),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", file("ca.pem")),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-512".to_owned()),
        ("sasl.mechanism.inter.broker.protocol", "SCRAM-SHA-512".to_owned()),
        ("listener.name.client.scram-sha-512.sasl.jaas.config", login.to_owned()),
    ];
    Listener::Secure {
        protocol: "SASL_SSL",
        settings: settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        users: vec![("app".to_owned(), "correct horse".to_owned())],
    }
}

/// `ca.pem` signs `broker.pem` (key and certificate); `other.pem` is an unrelated authority.
pub(super) fn certificates(directory: &Path) {
    let openssl = |arguments: &[&str]| {
        let done = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("run openssl");
        assert!(
            done.status.success(),
            "openssl {arguments:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    };
    for name in ["ca", "other"] {
        let (key, certificate, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN=test {name}"));
        let new = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ];
        openssl(&[&new[..], &["-subj", &subject, "-keyout", &key, "-out", &certificate]].concat());
    }
    let new = [
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=broker",
    ];
    openssl(&[&new[..], &["-keyout", "broker.key", "-out", "broker.csr"]].concat());
    fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").expect("write the names");
    let sign = [
        "x509",
        "-req",
        "-in",
        "broker.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
    ];
    openssl(&[&sign[..], &["-days", "2", "-extfile", "names", "-out", "broker.crt"]].concat());
    let read = |name: &str| fs::read_to_string(directory.join(name)).expect("openssl wrote it");
    fs::write(directory.join("broker.pem"), read("broker.key") + &read("broker.crt")).expect("write the key store");
}
