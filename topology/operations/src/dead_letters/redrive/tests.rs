//! Dead letters are listed, shown and redriven on an embedded log.

use super::super::{Filter, list, show};
use super::{Job, redrive};
use crate::{Decoder, Error};
use event_log::embedded::{Config, EmbeddedLog};
use event_log::{
    Cleanup, DeadLetterTopics, Isolation, OffsetSpec, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom,
    TopicConfig, TopicPartition, TopicSpec,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

const TOPIC: &str = "shop.change.shop";
const DEAD: &str = "shop.change.shop.dlq";

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A record without headers.
#[derive(Clone, Copy)]
struct New<'a> {
    topic: &'a str,
    partition: i32,
    key: Option<&'a str>,
    value: Option<&'a str>,
}

/// A dead letter without contents.
const EMPTY: New<'static> = New {
    topic: DEAD,
    partition: 0,
    key: None,
    value: None,
};

struct Harness {
    log: SharedEventLog,
    now: Arc<AtomicI64>,
}

impl Harness {
    /// A log with a topic of two partitions, each with ten records, and its dead-letter topic.
    fn new() -> Harness {
        let now = Arc::new(AtomicI64::new(1_000));
        let clock = now.clone();
        let config = Config::new(None, Arc::new(move || clock.load(Ordering::SeqCst)));
        let log: SharedEventLog = EmbeddedLog::open(config).unwrap();
        let harness = Harness { log, now };
        harness.create_topic();
        let topics = DeadLetterTopics {
            retention: DeadLetterTopics::RETENTION,
            replication: None,
        };
        harness.log.create_topics(&[topics.spec(TOPIC, 2, None)]).unwrap();
        harness
    }

    fn create_topic(&self) {
        let spec = TopicSpec {
            name: TOPIC.to_owned(),
            partitions: 2,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        self.log.create_topics(&[spec]).unwrap();
        for partition in 0..2 {
            for _ in 0..10 {
                let record = New {
                    topic: TOPIC,
                    partition,
                    key: Some("[\"orders\",\"0\"]"),
                    value: Some("first"),
                };
                self.write(record, &[]);
            }
        }
    }

    fn write(&self, new: New<'_>, headers: Headers<'_>) {
        let topic: Arc<str> = new.topic.into();
        let mut batch = OutBatch::default();
        let record = OutRecord {
            topic: &topic,
            partition: Some(new.partition),
            timestamp: None,
            key: new.key.map(str::as_bytes),
            value: new.value.map(str::as_bytes),
        };
        batch.push(
            record,
            headers.iter().map(|(name, value)| (*name, Some(value.as_bytes()))),
        );
        self.log.append(&batch).unwrap();
    }

    /// Writes a dead letter of the record at an offset of the topic.
    fn dead(&self, partition: i32, offset: i64, stage: &str) {
        let (key, offset) = (format!("[\"orders\",\"{offset}\"]"), offset.to_string());
        let headers = [("tx", "{}"), ("replayed", "replay")];
        self.dead_with(partition, &key, &headers, &[("offset", &offset), ("stage", stage)]);
    }

    fn dead_with(&self, partition: i32, key: &str, own: Headers<'_>, errors: Headers<'_>) {
        let names: Vec<String> = errors
            .iter()
            .map(|(name, _)| format!("__connect.errors.{name}"))
            .collect();
        let errors = names
            .iter()
            .zip(errors)
            .map(|(name, (_, value))| (name.as_str(), *value));
        let fixed = [
            ("__connect.errors.topic", TOPIC),
            ("__connect.errors.connector.name", "shop.sync-views"),
            ("__connect.errors.exception.class.name", "Unavailable"),
            ("__connect.errors.exception.message", "schema 9 is not known"),
        ];
        let headers: Vec<_> = own.iter().copied().chain(fixed).chain(errors).collect();
        let (key, value) = (Some(key), Some("value"));
        self.write(
            New {
                partition,
                key,
                value,
                ..EMPTY
            },
            &headers,
        );
    }

    /// Key and headers of the records that were written after the first ten.
    fn redriven(&self, partition: i32) -> Vec<(String, String)> {
        let at = TopicPartition::new(TOPIC, partition);
        let end = self.log.offset(&at, OffsetSpec::LastStable).unwrap();
        let mut reader = self.log.reader(Isolation::ReadCommitted).unwrap();
        reader.assign(&[(at.clone(), StartFrom::Offset(10))]).unwrap();
        let (mut batch, mut found) = (RecordBatch::default(), Vec::new());
        while reader.position(&at).unwrap() < end {
            reader.poll(&mut batch, 1 << 20, Duration::from_millis(10)).unwrap();
            for record in batch.iter() {
                let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                let headers = record.headers();
                let headers: Vec<String> = headers
                    .iter()
                    .map(|(name, value)| format!("{name}={}", text(value)))
                    .collect();
                found.push((text(record.key()), headers.join(" ")));
            }
        }
        found
    }

    fn redrive(&self, job: &Job) -> super::Outcome {
        redrive(&*self.log, job, &mut |_| true).unwrap()
    }

    fn open(&self) -> u64 {
        list(&*self.log, "shop.").unwrap()[0].open
    }
}

fn all() -> Job {
    Job {
        topic: DEAD.to_owned(),
        filter: Filter::default(),
        limit: None,
        again: false,
        dry_run: false,
    }
}

#[test]
fn record_is_written_to_its_original_partition_exactly_once() {
    let harness = Harness::new();
    harness.dead(0, 3, "VALUE_CONVERTER");
    harness.dead(1, 4, "VALUE_CONVERTER");
    let dry = harness.redrive(&Job { dry_run: true, ..all() });
    assert_eq!((dry.matched, dry.redriven), (2, 2));
    assert_eq!((harness.redriven(0).len(), harness.open()), (0, 2));

    let outcome = harness.redrive(&all());
    assert_eq!((outcome.redriven, outcome.refused), (2, 0));
    assert_eq!(outcome.offsets_done, outcome.offsets_total);
    let expected = "tx={} __connect.errors.topic=shop.change.shop __connect.errors.partition=1 \
                    __connect.errors.offset=4 replayed=redrive __connect.errors.connector.name=shop.sync-views";
    assert_eq!(
        harness.redriven(1),
        [("[\"orders\",\"4\"]".to_owned(), expected.to_owned())]
    );
    assert_eq!((harness.redriven(0).len(), harness.open()), (1, 0));

    // A second redrive writes nothing, except with `again`.
    harness.dead(1, 5, "VALUE_CONVERTER");
    let outcome = harness.redrive(&all());
    assert_eq!((outcome.redriven, outcome.redriven_before), (1, 2));
    assert_eq!(harness.redriven(1).len(), 2);
    assert_eq!(harness.redrive(&Job { again: true, ..all() }).redriven, 3);
    assert_eq!((harness.redriven(1).len(), harness.redriven(0).len()), (4, 2));
    let summary = &list(&*harness.log, "shop.").unwrap()[0];
    assert_eq!(
        (summary.dead_letters, summary.open),
        (3, 0),
        "marks are no dead letters"
    );
}

#[test]
fn record_that_fails_again_keeps_its_original_offset() {
    let harness = Harness::new();
    let first = [("topic", TOPIC), ("offset", "3")];
    harness.dead_with(0, "[\"orders\",\"3\"]", &[], &first);
    harness.redrive(&all());
    // The runtime copies the headers of the redriven record and appends those of the second failure.
    let own = [
        ("tx", "{}"),
        ("__connect.errors.topic", TOPIC),
        ("__connect.errors.offset", "3"),
        ("replayed", "redrive"),
    ];
    harness.dead_with(
        0,
        "[\"orders\",\"3\"]",
        &own,
        &[("offset", "10"), ("stage", "TRANSFORMATION")],
    );
    assert_eq!(harness.redrive(&all()).redriven, 1);
    let (_, headers) = &harness.redriven(0)[1];
    assert!(
        headers.starts_with("tx={} ") && headers.contains("errors.offset=3 replayed=redrive"),
        "{headers}"
    );
    assert_eq!(headers.matches("__connect.errors.topic").count(), 1);
    let application = "__connect.errors.connector.name=shop.sync-views";
    assert_eq!(headers.matches(application).count(), 1, "only it processes the record");
}

#[test]
fn filters_and_limit_select_dead_letters() {
    let harness = Harness::new();
    for offset in 0..6 {
        let stage = ["KAFKA_PRODUCE", "VALUE_CONVERTER"][usize::from(offset % 2 != 0)];
        harness.now.store(2_000 + offset, Ordering::SeqCst);
        harness.dead(0, offset, stage);
    }
    let offsets = |filter: Filter, limit| {
        let decoder = Decoder::new(Arc::new(|_| Err("no registry".to_owned())));
        let found = show(&*harness.log, DEAD, &filter, limit, decoder).unwrap();
        found.iter().map(|letter| letter.record.offset).collect::<Vec<_>>()
    };
    let none = Filter::default;
    assert_eq!(offsets(none(), 2), [4, 5], "the newest");
    let stage = |stage: &str| Filter {
        stage: Some(stage.into()),
        ..Filter::default()
    };
    assert_eq!(offsets(stage("kafka_produce"), 9), [0, 2, 4]);
    let reason = |reason: &str| Filter {
        reason: Some(reason.into()),
        ..Filter::default()
    };
    assert_eq!(offsets(reason("schema 9"), 9).len(), 6);
    assert_eq!(offsets(reason("schema 8"), 9).len(), 0);
    let key = Filter {
        key: Some("[\"orders\",\"3\"]".into()),
        ..none()
    };
    assert_eq!(offsets(key, 9), [3]);
    let since = Filter {
        since: Some(2_004),
        ..none()
    };
    assert_eq!(offsets(since, 9), [4, 5]);
    let one = Filter {
        partition: Some(0),
        offset: Some(2),
        ..none()
    };
    assert_eq!(offsets(one, 9), [2]);

    let outcome = harness.redrive(&Job {
        filter: stage("KAFKA_PRODUCE"),
        limit: Some(2),
        ..all()
    });
    assert_eq!((outcome.redriven, harness.open()), (2, 4));
    let groups = &list(&*harness.log, "shop.").unwrap()[0].groups;
    let of_stage = groups.iter().find(|group| group.stage == "KAFKA_PRODUCE").unwrap();
    assert_eq!(
        (of_stage.dead_letters, of_stage.open, of_stage.newest_ms),
        (3, 1, 2_004)
    );
    assert_eq!(of_stage.reason, "schema 9 is not known");
    assert!(list(&*harness.log, "other.").unwrap().is_empty());
}

#[test]
fn dead_letters_without_a_usable_record_are_refused_with_the_fix() {
    let harness = Harness::new();
    let unpublished = [("tx", "{}"), ("missing", "too large")];
    harness.dead_with(0, "[\"~missing\",\"orders\",\"17\"]", &unpublished, &[]);
    harness.dead(0, 999, "VALUE_CONVERTER");
    let topic = ("__connect.errors.topic", TOPIC);
    harness.write(EMPTY, &[topic, ("__connect.errors.offset", "1")]);
    harness.write(EMPTY, &[topic]);
    let foreign = New {
        key: Some("[1]"),
        ..EMPTY
    };
    harness.write(foreign, &[("__connect.errors.topic", "shop.view.log")]);
    let outcome = harness.redrive(&all());
    assert_eq!((outcome.redriven, outcome.refused), (0, 5));
    let parts = [
        "`trunkline connect snapshot shop orders`",
        "was created again",
        "only the position",
        "a timer",
        "do not name topic shop.change.shop",
    ];
    for (refusal, part) in outcome.refusals.iter().zip(parts) {
        assert!(refusal.reason.contains(part), "{refusal:?}");
        assert_eq!(refusal.count, 1);
    }
    assert!(harness.redriven(0).is_empty());
}

#[test]
fn record_that_the_topic_does_not_accept_is_refused() {
    let harness = Harness::new();
    harness.dead(0, 3, "KAFKA_PRODUCE");
    let limit = [("max.message.bytes".to_owned(), "150".to_owned())];
    harness.log.alter_topic(TOPIC, &limit).unwrap();
    let outcome = harness.redrive(&all());
    assert_eq!(outcome.refused, 1);
    assert!(outcome.refusals[0].reason.contains("raise max.message.bytes"));
    assert_eq!(outcome.refusals[0].first, "0/0");
}

#[test]
fn other_topics_and_repeated_repartition_records_are_rejected() {
    let harness = Harness::new();
    let error = |topic: &str, again| {
        let job = Job {
            topic: topic.to_owned(),
            again,
            ..all()
        };
        redrive(&*harness.log, &job, &mut |_| true).unwrap_err()
    };
    assert!(matches!(error(TOPIC, false), Error::Rejected(text) if text.contains("trunkline dlq list")));
    assert!(matches!(error("shop.dlq", false), Error::UnknownTopic { .. }));
    let topic = |name: &str| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    let topics = ["shop.sums.repartition", "shop.sums.repartition.dlq"].map(topic);
    harness.log.create_topics(&topics).unwrap();
    assert!(matches!(error("shop.sums.repartition.dlq", true), Error::Rejected(text) if text.contains("count again")));
}

#[test]
fn cancelled_redrive_marks_what_it_wrote() {
    let harness = Harness::new();
    for offset in 0..10 {
        harness.dead(0, offset, "VALUE_CONVERTER");
    }
    let error = redrive(&*harness.log, &all(), &mut |_| false).unwrap_err();
    assert!(matches!(error, Error::Rejected(text) if text.contains("cancelled")));
    let before = harness.redriven(0).len();
    let outcome = harness.redrive(&all());
    assert_eq!(usize::try_from(outcome.redriven_before).unwrap(), before);
    assert_eq!(harness.redriven(0).len(), 10);
}
