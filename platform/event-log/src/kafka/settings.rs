//! What the library is told, for each use of it.
//!
//! Guarantees: an operator's setting wins over a default of ours, and never over what correctness needs.
//! Never: a secret in a message.

use crate::kafka::Config;
use crate::{GroupConfig, GroupProtocol, Isolation, TransactionalProducerConfig};
use std::collections::BTreeMap;
use std::time::Duration;

/// Settings by the library's names.
pub type Settings = BTreeMap<String, String>;

/// Everybody's defaults. Short back-offs: the library's own of 100 ms would be felt in every second transaction. An
/// instance without brokers is told of its bootstrap servers by us (`raw/reach.rs`): the library's own way of doing so
/// connects tens of times a second, and not at all where it is needed most.
const COMMON: &[(&str, &str)] = &[
    ("retry.backoff.ms", "2"),
    ("retry.backoff.max.ms", "500"),
    ("reconnect.backoff.ms", "20"),
    ("reconnect.backoff.max.ms", "1000"),
    ("metadata.recovery.strategy", "none"),
    ("socket.nagle.disable", "true"),
    ("log_level", "5"),
];

/// Producers' defaults. Queues are bounded by bytes, so that a slow broker is felt by whoever sends.
const PRODUCER: &[(&str, &str)] = &[
    ("linger.ms", "20"),
    ("queue.buffering.max.messages", "500000"),
    ("queue.buffering.max.kbytes", "65536"),
    // As the Java client: the hash of a key, also of an empty one; anywhere without a key.
    ("partitioner", "murmur2_random"),
    // Topics have limits of their own, which are checked before a record is queued.
    ("message.max.bytes", "100000000"),
];

/// Consumers' defaults. A fetch that waits at the broker delays partitions that are started meanwhile.
const CONSUMER: &[(&str, &str)] = &[
    ("fetch.queue.backoff.ms", "2"),
    ("fetch.wait.max.ms", "50"),
    ("fetch.error.backoff.ms", "50"),
    ("queued.min.messages", "100000"),
    ("queued.max.messages.kbytes", "4096"),
    ("fetch.max.bytes", "8388608"),
    ("fetch.message.max.bytes", "1048576"),
];

/// The producer that appends outside transactions and asks for the administration.
pub fn append(config: &Config) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER, &[("linger.ms", "0")]]);
    set(&mut settings, "enable.idempotence", "true");
    // One request at a time: the broker takes any sequence number from a producer that is new to a partition, so that
    // a second request behind a refused first one would be accepted in its place, and the first be lost. A session
    // looks for that before it commits; here nothing would.
    set(&mut settings, "max.in.flight", 1);
    set(&mut settings, "message.timeout.ms", config.request_timeout.as_millis());
    settings
}

/// An producer's producer. Several requests at a time, as what is not provably written is looked for at each flush.
pub fn producer(config: &Config) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER]);
    set(&mut settings, "enable.idempotence", "true");
    // Were a record given up and a later one of its partition written, an end would be taken for a whole.
    set(&mut settings, "enable.gapless.guarantee", "true");
    set(&mut settings, "message.timeout.ms", config.request_timeout.as_millis());
    settings
}

/// The client that asks coordinators; the group is one that it never joins.
pub fn coordinators(config: &Config, group: &str) -> Settings {
    let mut settings = layered(config, &[COMMON, CONSUMER]);
    consumer(&mut settings, Isolation::ReadCommitted);
    set(&mut settings, "group.id", group);
    settings
}

/// A session's producer.
pub fn transactional_producer(config: &Config, producer: &TransactionalProducerConfig) -> Settings {
    let mut settings = layered(config, &[COMMON, PRODUCER]);
    let timeout = producer.transaction_timeout.as_millis();
    set(&mut settings, "transactional.id", &producer.transactional_id);
    set(&mut settings, "transaction.timeout.ms", timeout);
    // A request that outlives its connection could end the *next* transaction of the same epoch. So a connection is
    // given as long as the transaction itself; the library allows no more than this.
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
    let patience = Duration::from_secs(300).max(group.session_timeout);
    settings
        .entry("max.poll.interval.ms".to_owned())
        .or_insert_with(|| patience.as_millis().to_string());
    if let Some(instance) = &group.instance {
        set(&mut settings, "group.instance.id", instance);
    }
    settings
}

/// The members agree among themselves, and each says for how long it may be silent.
fn classic(settings: &mut Settings, session: Duration) {
    settings.remove("group.remote.assignor");
    set(settings, "group.protocol", "classic");
    set(settings, "partition.assignment.strategy", "range");
    set(settings, "session.timeout.ms", session.as_millis());
    set(settings, "heartbeat.interval.ms", heartbeat(session).as_millis());
}

/// The broker assigns, and says how often it wants to hear of a member; the library refuses to be told. The range
/// assignor alone keeps equal partitions of several topics together.
fn incremental(settings: &mut Settings) {
    const BROKERS: [&str; 4] = [
        "partition.assignment.strategy",
        "session.timeout.ms",
        "heartbeat.interval.ms",
        "group.protocol.type",
    ];
    BROKERS.iter().for_each(|name| drop(settings.remove(*name)));
    set(settings, "group.protocol", "consumer");
    set(settings, "group.remote.assignor", "range");
}

/// A reader of explicit partitions.
pub fn reader(config: &Config, isolation: Isolation) -> Settings {
    // The end is told only by the next, empty answer; so a reader's fetches wait less.
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

/// Several heartbeats fit into the time after which a member counts as dead.
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
    fn an_operator_changes_a_default_and_never_the_isolation() {
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
    fn the_new_protocol_is_told_nothing_of_the_old_one() {
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
        let told = |settings: &Settings, name: &str| settings.get(name).cloned();
        assert_eq!(told(&settings, "group.remote.assignor").as_deref(), Some("range"));
        for name in [
            "session.timeout.ms",
            "heartbeat.interval.ms",
            "partition.assignment.strategy",
        ] {
            assert_eq!(told(&settings, name), None, "{name}");
        }
        wanted.protocol = GroupProtocol::Classic;
        let settings = group(&config, &wanted);
        assert_eq!(told(&settings, "session.timeout.ms").as_deref(), Some("8000"));
        assert_eq!(told(&settings, "group.remote.assignor"), None);
    }

    #[test]
    fn a_connection_lives_as_long_as_a_transaction() {
        let wanted = TransactionalProducerConfig {
            transactional_id: "t".to_owned(),
            transaction_timeout: Duration::from_secs(10),
        };
        let settings = transactional_producer(&Config::new("h:1"), &wanted);
        assert_eq!(settings.get("socket.timeout.ms").map(String::as_str), Some("10100"));
    }
}
