//! librdkafka settings of each kind of client.
//!
//! An operator's setting overrides a default of this file, but not a setting that correctness depends on.

use super::config::Config;
use crate::{GroupConfig, GroupProtocol, Isolation, TransactionalProducerConfig};
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings by librdkafka name.
pub type Settings = BTreeMap<String, String>;

/// Defaults of all clients.
///
/// Back-offs are short: librdkafka's 100 ms would delay every other transaction. `metadata.recovery.strategy=rebootstrap`
/// would reconnect tens of times per second and does not help after librdkafka issue 5301, so `client/reach.rs` adds the
/// bootstrap servers again instead.
const COMMON: &[(&str, &str)] = &[
    ("retry.backoff.ms", "2"),
    ("retry.backoff.max.ms", "500"),
    ("reconnect.backoff.ms", "20"),
    ("reconnect.backoff.max.ms", "1000"),
    ("metadata.recovery.strategy", "none"),
    ("socket.nagle.disable", "true"),
    ("log_level", "5"),
];

/// Defaults of producers. Queues are limited by bytes, so that a slow broker blocks the sender.
const PRODUCER: &[(&str, &str)] = &[
    ("linger.ms", "20"),
    ("queue.buffering.max.messages", "500000"),
    ("queue.buffering.max.kbytes", "65536"),
    // As the Java client: by the hash of the key, even if it is empty; at random without a key.
    ("partitioner", "murmur2_random"),
    // The limits of topics are lower and are checked before a record is queued.
    ("message.max.bytes", "100000000"),
];

/// Defaults of consumers. A fetch that waits at the broker delays partitions that are started in the meantime.
///
/// librdkafka verifies the checksums of batches only if `check.crcs` is set; the Java client does by default.
const CONSUMER: &[(&str, &str)] = &[
    ("check.crcs", "true"),
    ("fetch.queue.backoff.ms", "2"),
    ("fetch.wait.max.ms", "50"),
    ("fetch.error.backoff.ms", "50"),
    ("queued.min.messages", "100000"),
    ("queued.max.messages.kbytes", "4096"),
    ("fetch.max.bytes", "8388608"),
    ("fetch.message.max.bytes", "1048576"),
];

/// The producer for appends and admin requests.
pub fn append(config: &Config) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER, &[("linger.ms", "0")]]);
    set(&mut settings, "enable.idempotence", "true");
    // One request in flight: a broker accepts any first sequence number from a producer that is new to a partition. If
    // it rejected the first request, it would accept the second request in its place, and the records of the first
    // would be lost. Transactional producers check for that before they commit; an append has no such step.
    set(&mut settings, "max.in.flight", 1);
    set(&mut settings, "message.timeout.ms", config.request_timeout.as_millis());
    settings
}

/// An idempotent producer. Several requests in flight are safe because each flush checks for unproven records.
pub fn producer(config: &Config) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER]);
    set(&mut settings, "enable.idempotence", "true");
    // Otherwise a record could time out while a later record of its partition is written, which leaves a gap.
    set(&mut settings, "enable.gapless.guarantee", "true");
    set(&mut settings, "message.timeout.ms", config.request_timeout.as_millis());
    settings
}

/// The client for requests to coordinators. It never joins this group.
pub fn coordinators(config: &Config, group: &str) -> Settings {
    let mut settings = layered(config, &[COMMON, CONSUMER]);
    consumer(&mut settings, Isolation::ReadCommitted);
    set(&mut settings, "group.id", group);
    settings
}

/// A transactional producer.
pub fn transactional_producer(config: &Config, producer: &TransactionalProducerConfig) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER]);
    let timeout = producer.transaction_timeout.as_millis();
    set(&mut settings, "transactional.id", &producer.transactional_id);
    set(&mut settings, "transaction.timeout.ms", timeout);
    // A request that survives its connection could end the *next* transaction of the same producer epoch. So a request
    // may wait on its connection for as long as the transaction lasts. librdkafka accepts at most 100 ms more than
    // that.
    set(&mut settings, "socket.timeout.ms", timeout + 100);
    set(&mut settings, "message.timeout.ms", timeout);
    settings
}

/// A member of a group.
pub fn group(config: &Config, group: &GroupConfig) -> Settings {
    let mut settings = layered(config, &[COMMON, CONSUMER]);
    consumer(&mut settings, Isolation::ReadCommitted);
    set(&mut settings, "group.id", &group.group);
    match group.protocol {
        GroupProtocol::Classic => classic(&mut settings, group.session_timeout),
        GroupProtocol::Consumer => incremental(&mut settings),
    }
    set(&mut settings, "enable.partition.eof", "false");
    // Bounds the time until a deleted topic is noticed, and until one that exists again or is accessible again is
    // assigned. By default it is five minutes.
    settings
        .entry("topic.metadata.refresh.interval.ms".to_owned())
        .or_insert_with(|| "30000".to_owned());
    let patience = Duration::from_secs(300).max(group.session_timeout);
    settings
        .entry("max.poll.interval.ms".to_owned())
        .or_insert_with(|| patience.as_millis().to_string());
    if let Some(instance) = &group.instance {
        set(&mut settings, "group.instance.id", instance);
    }
    settings
}

/// The classic protocol: members compute the assignment and choose their session timeout.
fn classic(settings: &mut Settings, session: Duration) {
    settings.remove("group.remote.assignor");
    set(settings, "group.protocol", "classic");
    set(settings, "partition.assignment.strategy", "range");
    set(settings, "session.timeout.ms", session.as_millis());
    set(settings, "heartbeat.interval.ms", heartbeat(session).as_millis());
}

/// The consumer protocol (KIP-848): session timeout and heartbeat interval are broker settings, and librdkafka rejects
/// them here. Only the range assignor assigns equal partition numbers of several topics to the same member.
fn incremental(settings: &mut Settings) {
    const BROKER_SETTINGS: [&str; 4] = [
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "group.protocol.type",
    ];
    BROKER_SETTINGS.iter().for_each(|name| drop(settings.remove(*name)));
    set(settings, "group.protocol", "consumer");
    set(settings, "group.remote.assignor", "range");
}

/// A reader of explicit partitions.
pub fn reader(config: &Config, isolation: Isolation) -> Settings {
    // The end of a partition is reported by the next, empty response, so a reader's fetches wait less.
    let mut settings = layered(config, &[COMMON, CONSUMER, &[("fetch.wait.max.ms", "20")]]);
    consumer(&mut settings, isolation);
    set(&mut settings, "enable.partition.eof", "true");
    settings
}

fn consumer(settings: &mut Settings, isolation: Isolation) {
    let level = match isolation {
        Isolation::ReadCommitted => "read_committed",
        Isolation::ReadUncommitted => "read_uncommitted",
    };
    set(settings, "isolation.level", level);
    set(settings, "enable.auto.commit", "false");
    set(settings, "enable.auto.offset.store", "false");
    set(settings, "auto.offset.reset", "error");
    set(settings, "allow.auto.create.topics", "false");
}

/// Several heartbeats fit into the session timeout.
fn heartbeat(session: Duration) -> Duration {
    (session / 4).clamp(Duration::from_millis(50), Duration::from_secs(3))
}

fn layered(config: &Config, defaults: &[&[(&str, &str)]]) -> Settings {
    let mut settings = Settings::new();
    for (name, value) in defaults.iter().copied().flatten() {
        set(&mut settings, name, value);
    }
    for (name, value) in &config.settings {
        set(&mut settings, name, value);
    }
    set(&mut settings, "bootstrap.servers", &config.bootstrap);
    set(&mut settings, "client.id", &config.client_id);
    settings
}

fn set(settings: &mut Settings, name: &str, value: impl ToString) {
    settings.insert(name.to_owned(), value.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_overrides_defaults_but_not_isolation() {
        let mut config = Config::new("h:1");
        config.settings.insert("fetch.wait.max.ms".to_owned(), "7".to_owned());
        config
            .settings
            .insert("isolation.level".to_owned(), "read_uncommitted".to_owned());
        let settings = reader(&config, Isolation::ReadCommitted);
        assert_eq!(settings.get("fetch.wait.max.ms").map(String::as_str), Some("7"));
        assert_eq!(
            settings.get("isolation.level").map(String::as_str),
            Some("read_committed")
        );
    }

    #[test]
    fn consumer_protocol_omits_classic_settings() {
        let mut config = Config::new("h:1");
        for name in ["session.timeout.ms", "heartbeat.interval.ms"] {
            config.settings.insert(name.to_owned(), "3000".to_owned());
        }
        let mut wanted = GroupConfig {
            group: "g".to_owned(),
            instance: None,
            topics: Vec::new(),
            session_timeout: Duration::from_secs(8),
            protocol: GroupProtocol::Consumer,
        };
        let settings = group(&config, &wanted);
        let value = |settings: &Settings, name: &str| settings.get(name).cloned();
        assert_eq!(value(&settings, "group.remote.assignor").as_deref(), Some("range"));
        for name in [
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "partition.assignment.strategy",
        ] {
            assert_eq!(value(&settings, name), None, "{name}");
        }
        wanted.protocol = GroupProtocol::Classic;
        let settings = group(&config, &wanted);
        assert_eq!(value(&settings, "session.timeout.ms").as_deref(), Some("8000"));
        assert_eq!(value(&settings, "check.crcs").as_deref(), Some("true"));
        assert_eq!(value(&settings, "group.remote.assignor"), None);
    }

    #[test]
    fn socket_timeout_exceeds_transaction_timeout() {
        let wanted = TransactionalProducerConfig {
            transactional_id: "t".to_owned(),
            transaction_timeout: Duration::from_secs(10),
        };
        let settings = transactional_producer(&Config::new("h:1"), &wanted);
        assert_eq!(settings.get("socket.timeout.ms").map(String::as_str), Some("10100"));
    }
}
