//! [`Output`]: where a step sends records and dead letters.
//!
//! `Output` only collects; the stream thread sends. All output of a transaction becomes visible together with its state
//! and offsets, or not at all (invariant C2, atomic commit), in the order in which it was written. Output that is
//! caused by a record with a `traceparent` header gets the same header.

use crate::api::timer::Timer;
use event_log::{Header, Millis, OutBatch, OutRecord, RecordRef, TopicPartition, dead_letter_topic};
use service::trace;
use std::error::Error;
use std::sync::Arc;

/// Stage at which a record failed, with Kafka Connect's names (`__connect.errors.stage`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The key cannot be decoded.
    KeyConverter,
    /// The value cannot be decoded.
    ValueConverter,
    /// A required header is missing or malformed.
    HeaderConverter,
    /// The record was decoded, but the processor rejected it.
    Transformation,
    /// The log or the store rejected what the processor wrote, for example because it is too large.
    Produce,
}

impl Stage {
    /// Name in `__connect.errors.stage`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::KeyConverter => "KEY_CONVERTER",
            Stage::ValueConverter => "VALUE_CONVERTER",
            Stage::HeaderConverter => "HEADER_CONVERTER",
            Stage::Transformation => "TRANSFORMATION",
            Stage::Produce => "KAFKA_PRODUCE",
        }
    }
}

/// Records and dead letters that steps wrote since the last commit.
///
/// They are committed in one transaction with the changed state and the consumed offsets. A record larger than its topic
/// accepts (`max.message.bytes`) aborts the transaction; the runtime then isolates the input record or timer that caused it
/// and writes that as a dead letter of stage `KAFKA_PRODUCE`. If an output topic does not exist, the task stops, readiness
/// names the topic, and the task retries: create output topics before the application starts.
#[derive(Debug, Default)]
pub struct Output {
    pub(crate) records: OutBatch,
    pub(crate) dead_letters: u64,
    name: Arc<str>,
    task: i32,
    /// Dead-letter topics by input topic, cached so that each name is built only once.
    topics: Vec<DeadLetterTopic>,
    /// `traceparent` of the record that causes the following output; empty if there is none.
    trace: Vec<u8>,
}

#[derive(Debug)]
struct DeadLetterTopic {
    input: Arc<str>,
    topic: Arc<str>,
}

/// Maximum characters of a timer's key in its dead letter.
const KEY_CHARS_MAX: usize = 200;

/// Why a timer became a dead letter.
#[derive(Debug, thiserror::Error)]
#[error("output of timer `{key}` ({clock} clock, due at {at} ms) was rejected: {reason}")]
struct RejectedTimer {
    clock: &'static str,
    at: Millis,
    key: String,
    reason: String,
}

/// Whether a dead letter contains the record or only identifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// Key, value and headers of the record.
    Whole,
    /// No key, value or headers, because the log rejected a dead letter that contained them.
    LeftOut,
}

impl Output {
    /// Output of the processor with this name, which is part of the headers of dead letters.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Output {
            name: name.into(),
            ..Output::default()
        }
    }

    /// Output of the task of a partition, which is also part of the headers of dead letters.
    pub(crate) fn of_task(name: Arc<str>, partition: i32) -> Self {
        Output {
            name,
            task: partition,
            ..Output::default()
        }
    }

    /// Writes a record. Without a partition, Kafka's default partitioner chooses one by the key. Without a timestamp, the
    /// record gets the time at which it is sent. The bytes are copied.
    pub fn send<'h>(&mut self, record: OutRecord<'_>, headers: impl IntoIterator<Item = Header<'h>>) {
        if self.trace.is_empty() {
            self.records.push(record, headers);
        } else {
            let trace = [(trace::PARENT, Some(self.trace.as_slice()))];
            #[expect(
                clippy::map_identity,
                reason = "in it a header's lifetime is shortened to that of the trace"
            )]
            let own = headers.into_iter().map(|(name, value)| (name, value));
            self.records.push(record, own.chain(trace));
        }
    }

    /// Marks this record as the cause of the following output, which then gets the record's `traceparent` header if
    /// that is valid. Applies until the next call, or until `process`, `on_timer` or `before_commit` returns.
    pub fn caused_by(&mut self, record: RecordRef<'_>) {
        self.trace.clear();
        if let Some(parent) = record.header(trace::PARENT).and_then(trace::Parent::parse) {
            self.trace.extend_from_slice(parent.text.as_bytes());
        }
    }

    /// Marks the following output as not caused by a record.
    pub(crate) fn clear_cause(&mut self) {
        self.trace.clear();
    }

    /// Writes a record that cannot be processed to `<topic>.dlq`, to the partition with the same number as the record's
    /// partition. Key, value and headers are unchanged, and Kafka Connect's `__connect.errors.*` headers are added:
    /// topic, partition, offset, connector.name (the processor), task.id, stage, class.name, exception.class.name,
    /// exception.message.
    pub fn dead_letter(&mut self, record: RecordRef<'_>, stage: Stage, error: &dyn Error) {
        self.dead_letter_with(record, stage, error, Body::Whole);
    }

    /// Writes a dead letter with or without the record's key, value and headers.
    pub(crate) fn dead_letter_with(&mut self, record: RecordRef<'_>, stage: Stage, error: &dyn Error, body: Body) {
        let rejected = RejectedRecord { record, body };
        self.write_dead_letter(record.partition(), Some(rejected), stage, error);
    }

    /// Writes a dead letter for a timer to the dead-letter topic of this input. It has no key, value or offset.
    pub(crate) fn dead_letter_of_timer(&mut self, input: &TopicPartition, timer: &Timer, reason: &str) {
        let mut key = timer.key.clone();
        if let Some((end, _)) = key.char_indices().nth(KEY_CHARS_MAX) {
            key.truncate(end);
            key.push('…');
        }
        let error = RejectedTimer {
            clock: timer.clock.name(),
            at: timer.at,
            key,
            reason: reason.to_owned(),
        };
        self.write_dead_letter(input, None, Stage::Produce, &error);
    }

    /// Writes a dead letter that belongs to no single record, for example for a window that cannot be written when it
    /// closes, to the dead-letter topic of an input. It has no key, value or offset.
    pub fn dead_letter_of_input(&mut self, input: &TopicPartition, stage: Stage, error: &dyn Error) {
        self.write_dead_letter(input, None, stage, error);
    }

    fn write_dead_letter(
        &mut self,
        at: &TopicPartition,
        rejected: Option<RejectedRecord<'_>>,
        stage: Stage,
        error: &dyn Error,
    ) {
        let (partition, task) = (at.partition.to_string(), self.task.to_string());
        let offset = rejected.map(|rejected| rejected.record.offset().to_string());
        let topic = self.dead_letter_topic_of(&at.topic);
        let (class, message) = (class_name(error), message(error));
        let added = [
            ("__connect.errors.topic", Some(at.topic.as_bytes())),
            ("__connect.errors.partition", Some(partition.as_bytes())),
            ("__connect.errors.offset", offset.as_deref().map(str::as_bytes)),
            ("__connect.errors.connector.name", Some(self.name.as_bytes())),
            ("__connect.errors.task.id", Some(task.as_bytes())),
            ("__connect.errors.stage", Some(stage.name().as_bytes())),
            ("__connect.errors.class.name", Some(self.name.as_bytes())),
            ("__connect.errors.exception.class.name", Some(class.as_bytes())),
            ("__connect.errors.exception.message", Some(message.as_bytes())),
        ];
        let added = added.into_iter().filter(|(_, value)| value.is_some());
        let whole = rejected.filter(|rejected| rejected.body == Body::Whole);
        let whole = whole.map(|rejected| rejected.record);
        let dead_letter = OutRecord {
            topic: &topic,
            partition: Some(at.partition),
            timestamp: None,
            key: whole.and_then(|record| record.key()),
            value: whole.and_then(|record| record.value()),
        };
        let own = whole.into_iter().flat_map(|record| record.headers().iter());
        self.records.push(dead_letter, own.chain(added));
        self.dead_letters += 1;
    }

    /// Records written so far.
    pub fn records(&self) -> &OutBatch {
        &self.records
    }

    /// Number of dead letters written so far.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// Discards everything that was not sent.
    pub(crate) fn clear(&mut self) {
        self.records.clear();
        self.dead_letters = 0;
        self.trace.clear();
    }

    fn dead_letter_topic_of(&mut self, input: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.topics.iter().find(|known| known.input == *input) {
            return known.topic.clone();
        }
        let topic: Arc<str> = dead_letter_topic(input).into();
        self.topics.push(DeadLetterTopic {
            input: input.clone(),
            topic: topic.clone(),
        });
        topic
    }
}

/// A rejected record and how much of it the dead letter contains.
#[derive(Clone, Copy)]
struct RejectedRecord<'r> {
    record: RecordRef<'r>,
    body: Body,
}

/// Name of an error's variant or type: the first identifier of its `Debug` form.
fn class_name(error: &dyn Error) -> String {
    let text = format!("{error:?}");
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    text.get(..end)
        .filter(|name| !name.is_empty())
        .unwrap_or("Error")
        .to_owned()
}

/// An error and its causes in one line.
fn message(error: &dyn Error) -> String {
    error.source().map_or_else(
        || error.to_string(),
        |source| format!("{error}: {}", service::chain(source)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::{NewRecord, RecordBatch, TimestampType, TopicPartition};

    #[derive(Debug, thiserror::Error)]
    #[error("decode order")]
    struct Undecodable(#[source] std::num::ParseIntError);

    fn batch() -> RecordBatch {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("change.shop", 3));
        let headers = [("tx", Some(&b"{}"[..])), ("none", None)];
        batch.push(
            at,
            NewRecord {
                offset: 42,
                timestamp: 1,
                timestamp_type: TimestampType::Create,
                key: Some(b"[1]"),
                value: Some(b"\xff\x00"),
            },
            headers,
        );
        batch
    }

    #[test]
    fn output_carries_the_traceparent_of_its_cause() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("in", 0));
        for header in [parent, "nonsense"] {
            let headers = [("traceparent", Some(header.as_bytes()))];
            batch.push(
                at,
                NewRecord {
                    offset: 0,
                    timestamp: 1,
                    timestamp_type: TimestampType::Create,
                    key: None,
                    value: None,
                },
                headers,
            );
        }
        let mut output = Output::new("x");
        let send = |output: &mut Output| {
            let record = OutRecord {
                topic: &Arc::from("out"),
                partition: None,
                timestamp: None,
                key: None,
                value: None,
            };
            output.send(record, [("own", None)]);
        };
        send(&mut output);
        output.caused_by(batch.get(0).unwrap());
        send(&mut output);
        send(&mut output);
        output.caused_by(batch.get(1).unwrap());
        send(&mut output);
        output.caused_by(batch.get(0).unwrap());
        output.clear_cause();
        send(&mut output);
        let traces: Vec<Option<String>> = output
            .records()
            .iter()
            .map(|(_, mut headers)| {
                assert_eq!(headers.next(), Some(("own", None)));
                headers.next().map(|(name, value)| {
                    assert_eq!(name, "traceparent");
                    String::from_utf8(value.unwrap().to_vec()).unwrap()
                })
            })
            .collect();
        let parent = Some(parent.to_owned());
        assert_eq!(traces, [None, parent.clone(), parent, None, None]);
    }

    #[test]
    fn dead_letter_keeps_record_and_adds_connect_headers() {
        let batch = batch();
        let mut output = Output::of_task("sync".into(), 3);
        let error = Undecodable("x".parse::<i32>().unwrap_err());
        output.dead_letter(batch.get(0).unwrap(), Stage::ValueConverter, &error);
        assert_eq!(output.dead_letters(), 1);
        let (record, headers) = output.records().iter().next().unwrap();
        assert_eq!((&**record.topic, record.partition), ("change.shop.dlq", Some(3)));
        assert_eq!((record.key, record.value), (Some(&b"[1]"[..]), Some(&b"\xff\x00"[..])));
        let headers: Vec<_> = headers
            .map(|(n, v)| (n, v.map(|v| String::from_utf8_lossy(v).into_owned())))
            .collect();
        let text: Vec<_> = headers
            .iter()
            .map(|(n, v)| format!("{n}={}", v.as_deref().unwrap_or("null")))
            .collect();
        assert_eq!(
            text,
            [
                "tx={}",
                "none=null",
                "__connect.errors.topic=change.shop",
                "__connect.errors.partition=3",
                "__connect.errors.offset=42",
                "__connect.errors.connector.name=sync",
                "__connect.errors.task.id=3",
                "__connect.errors.stage=VALUE_CONVERTER",
                "__connect.errors.class.name=sync",
                "__connect.errors.exception.class.name=Undecodable",
                "__connect.errors.exception.message=decode order: invalid digit found in string",
            ]
        );
    }

    #[test]
    fn dead_letter_without_body_identifies_the_record() {
        let batch = batch();
        let mut output = Output::new("sync");
        let error = Undecodable("x".parse::<i32>().unwrap_err());
        output.dead_letter_with(batch.get(0).unwrap(), Stage::Produce, &error, Body::LeftOut);
        let (record, headers) = output.records().iter().next().unwrap();
        assert_eq!((record.key, record.value), (None, None));
        assert_eq!(headers.filter(|(n, _)| !n.starts_with("__connect.errors.")).count(), 0);
    }
}
