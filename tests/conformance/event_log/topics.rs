//! Topics: they are created once, described with Kafka's settings, altered, and deleted.

use super::harness::{Harness, LIMIT, SHORT, batch};
use crate::support;
use event_log::{
    Cleanup, Error, GroupConfig, Isolation, OffsetSpec, RecordBatch, StartFrom, TopicConfig, TopicPartition, TopicSpec,
};
use std::time::Duration;

fn spec(name: &str, partitions: i32) -> TopicSpec {
    let config = TopicConfig::new(Cleanup::Compact);
    TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: None,
        config,
    }
}

/// Creating returns which topics are new, and does not change existing topics. The description contains id, partition
/// count and all settings, including Kafka's defaults.
pub fn topic_is_created_once_and_described(harness: &Harness) {
    let (old, new) = (support::unique("topic"), support::unique("topic"));
    let mut first = spec(&old, 3);
    first.config.delete_retention_ms = Some(1_234);
    assert_eq!(harness.log.create_topics(&[first]).unwrap(), [true]);
    assert_eq!(
        harness.log.create_topics(&[spec(&old, 5), spec(&new, 1)]).unwrap(),
        [false, true]
    );

    let info = harness.log.describe(&old).unwrap().expect("it exists");
    assert_eq!((info.name.as_str(), info.partitions), (old.as_str(), 3));
    assert_eq!(info.settings["cleanup.policy"], "compact");
    assert_eq!(info.settings["message.timestamp.type"], "CreateTime");
    assert_eq!(info.number("delete.retention.ms"), Some(1_234));
    assert_eq!(info.number("retention.ms"), Some(604_800_000));
    assert_eq!(info.number("max.message.bytes"), Some(1_048_588));
    assert_eq!(harness.log.describe(&old).unwrap().expect("still").id, info.id);
    assert_ne!(harness.log.describe(&new).unwrap().expect("new").id, info.id);
    assert!(harness.log.describe(&support::unique("none")).unwrap().is_none());

    let topics = harness.log.topics().unwrap();
    assert!(topics.is_sorted() && topics.contains(&old) && topics.contains(&new));
    assert!(!topics.iter().any(|name| name.starts_with("__")));
}

/// Names, partition counts and settings that Kafka rejects are rejected, and no topic is created.
pub fn what_kafka_rejects_is_rejected(harness: &Harness) {
    let taken = support::unique("taken.topic");
    harness.log.create_topics(&[spec(&taken, 1)]).unwrap();
    let mut setting = spec(&support::unique("topic"), 1);
    setting.config.other.insert("retention.hours".into(), "1".into());
    let mut value = spec(&support::unique("topic"), 1);
    value.config.other.insert("segment.ms".into(), "soon".into());
    let long = "x".repeat(250);
    let bad = [
        spec("", 1),
        spec("..", 1),
        spec("a/b", 1),
        spec("\u{e9}", 1),
        spec(&long, 1),
        spec(&support::unique("topic"), 0),
        spec(&taken.replace('.', "_"), 1),
        setting,
        value,
    ];
    for spec in bad {
        let name = spec.name.clone();
        let rejected = harness.log.create_topics(&[spec]);
        assert!(
            matches!(rejected, Err(Error::InvalidTopic { .. })),
            "{name}: {rejected:?}"
        );
        assert!(!harness.log.topics().unwrap().contains(&name), "{name} was created");
    }
    let change = [("retention.ms".to_owned(), "never".to_owned())];
    assert!(matches!(
        harness.log.alter_topic(&taken, &change),
        Err(Error::InvalidTopic { .. })
    ));
}

/// A changed setting appears in the description; other settings keep their values or defaults.
pub fn altering_a_setting_keeps_the_others(harness: &Harness) {
    let topic = harness.topic_with(2, |config| config.retention_ms = Some(50_000));
    harness
        .log
        .alter_topic(&topic, &[("max.message.bytes".into(), "4000".into())])
        .unwrap();
    let info = support::wait_for("the altered setting", LIMIT, || {
        let info = harness.log.describe(&topic).unwrap().expect("it exists");
        (info.number("max.message.bytes") == Some(4_000)).then_some(info)
    });
    assert_eq!(
        (info.number("retention.ms"), info.number("retention.bytes")),
        (Some(50_000), Some(-1))
    );
}

/// Deleting a topic removes its records and committed offsets. A new topic with the same name has another id.
pub fn deleted_topic_id_is_not_reused(harness: &Harness) {
    let (topic, group) = (harness.topic(1), support::unique("group"));
    let at = TopicPartition::new(topic.clone(), 0);
    harness.append(&at, &["a", "b"]);
    harness.log.set_committed(&group, &[(at.clone(), 1)]).unwrap();
    let before = harness.log.describe(&topic).unwrap().expect("it exists").id;
    harness.log.delete_topic(&topic).unwrap();
    support::wait_for("the topic to be gone", LIMIT, || {
        harness.log.describe(&topic).unwrap().is_none().then_some(())
    });
    assert!(matches!(
        harness.log.delete_topic(&topic),
        Err(Error::UnknownTopic { .. })
    ));
    assert!(!harness.log.topics().unwrap().contains(&topic.to_string()));

    assert_eq!(harness.log.create_topics(&[spec(&topic, 1)]).unwrap(), [true]);
    assert_ne!(harness.log.describe(&topic).unwrap().expect("it is back").id, before);
    assert_eq!(
        (
            harness.offset(&at, OffsetSpec::Earliest),
            harness.offset(&at, OffsetSpec::LogEnd)
        ),
        (0, 0)
    );
    support::wait_for("the group's offset to be gone", LIMIT, || {
        harness.committed_offset(&group, &at).is_none().then_some(())
    });
}

/// Every use of a topic or partition that does not exist fails, and does not create it.
pub fn missing_topic_is_unknown_topic(harness: &Harness) {
    let none = TopicPartition::new(support::unique("none"), 0);
    let beyond = TopicPartition::new(harness.topic(2), 2);
    for at in [&none, &beyond] {
        let unknown = |error: Error| assert!(matches!(error, Error::UnknownTopic { .. }), "{at}: {error:?}");
        unknown(harness.log.offset(at, OffsetSpec::LogEnd).unwrap_err());
        unknown(harness.log.append(&batch(at, &["a"])).unwrap_err());
        let mut reader = harness.log.reader(Isolation::ReadCommitted).unwrap();
        let read = support::wait_for("the reader to fail", LIMIT, || {
            let assigned = reader.assign(&[(at.clone(), StartFrom::Earliest)]);
            assigned
                .and_then(|()| reader.poll(&mut RecordBatch::default(), 1_000, SHORT))
                .err()
        });
        unknown(read);
    }
    assert!(matches!(
        harness.log.alter_topic(&none.topic, &[]),
        Err(Error::UnknownTopic { .. })
    ));
    let config = GroupConfig {
        group: support::unique("group"),
        instance: None,
        topics: vec![none.topic.clone()],
        session_timeout: Duration::from_secs(10),
        protocol: event_log::GroupProtocol::Classic,
    };
    let joined = harness
        .log
        .group(config)
        .map(|_| "a member of a topic that does not exist");
    assert!(matches!(joined, Err(Error::UnknownTopic { .. })), "{joined:?}");
    assert!(harness.log.describe(&none.topic).unwrap().is_none());
}

/// The log epoch does not change while the log exists.
pub fn log_epoch_is_stable(harness: &Harness) {
    let epoch = harness.log.log_epoch().unwrap();
    assert!(!epoch.is_empty());
    harness.partition();
    assert_eq!(harness.log.log_epoch().unwrap(), epoch);
    assert!(!harness.log.description().is_empty());
}
