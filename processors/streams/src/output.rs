//! What a step wants to say: records to topics, and dead letters.
//!
//! Guarantees: all output of a transaction become visible with its state and offsets, or not at all, and in the order in
//! which they were written; what was caused by a traced record carries its `traceparent`.
//! Never: sending anything itself.

use crate::app::dead_letter_topic;
use crate::{Stage, Timer};
use event_log::{Header, Millis, OutBatch, OutRecord, RecordRef, TopicPartition};
use service::trace;
use std::error::Error;
use std::sync::Arc;

/// Output of the steps since the last commit: records and dead letters.
///
/// Everything written here is committed in one transaction with the state that was changed and the offsets that it was
/// made from. A record that is larger than its topic takes (`max.message.bytes`) aborts the transaction; the runtime then
/// looks for the input or timer that it is made of, which becomes a dead letter of stage `KAFKA_PRODUCE`. A topic that
/// does not exist stops the task, with the topic in readiness, and the task looks again every 10 seconds: create the
/// topics of output before the application starts.
#[derive(Debug, Default)]
pub struct Output {
    pub(crate) out: OutBatch,
    pub(crate) dead_letters: u64,
    pub(crate) name: Arc<str>,
    pub(crate) task: i32,
    topics: Vec<(Arc<str>, Arc<str>)>,
    /// The `traceparent` of the record that what comes next is made of; empty when it has none.
    trace: Vec<u8>,
}

/// Characters of a timer's name that stand in its dead letter.
const NAME_CHARS_MAX: usize = 200;

/// Why a timer was given up although its processor had nothing against it.
#[derive(Debug, thiserror::Error)]
#[error("what the timer `{key}` (by the {clock} clock, due at {at} ms) made cannot be written: {reason}")]
struct RefusedTimer {
    clock: &'static str,
    at: Millis,
    key: String,
    reason: String,
}

/// Whether a dead letter carries the record or only says where it stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Whole,
    /// Key, value and headers are left out, because the log takes no record of that size.
    LeftOut,
}

impl Output {
    /// Output of the processor of this name (it stands in the dead letters' headers).
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Output {
            name: name.into(),
            ..Output::default()
        }
    }

    /// The same for the task of a partition (it stands in the dead letters' headers too).
    pub(crate) fn of_task(name: Arc<str>, partition: i32) -> Self {
        Output {
            name,
            task: partition,
            ..Output::default()
        }
    }

    /// Writes a record. Without a partition it goes where Kafka's default partitioner puts its key; without a timestamp it
    /// has the time of the send. The bytes are copied.
    pub fn send<'h>(&mut self, record: OutRecord<'_>, headers: impl IntoIterator<Item = Header<'h>>) {
        if self.trace.is_empty() {
            self.out.push(record, headers);
        } else {
            let trace = [(trace::PARENT, Some(self.trace.as_slice()))];
            #[expect(
                clippy::map_identity,
                reason = "in it a header's lifetime is shortened to that of the trace"
            )]
            let own = headers.into_iter().map(|(name, value)| (name, value));
            self.out.push(record, own.chain(trace));
        }
    }

    /// Says that what is emitted from here on is made of this record: it carries the record's `traceparent`, if the record
    /// has a valid one. It holds until the next call, and at most to the end of the step, timer or `before_commit`.
    pub fn caused_by(&mut self, record: RecordRef<'_>) {
        self.trace.clear();
        if let Some(parent) = record.header(trace::PARENT).and_then(trace::Parent::parse) {
            self.trace.extend_from_slice(parent.text.as_bytes());
        }
    }

    /// Says that what comes next is made of no record.
    pub(crate) fn uncaused(&mut self) {
        self.trace.clear();
    }

    /// Puts a record that cannot be processed into `<its topic>.dlq`, key, value and headers untouched, with Kafka
    /// Connect's `__connect.errors.*` headers added: topic, partition, offset, connector.name (the processor),
    /// task.id, stage, class.name, exception.class.name, exception.message. Partition numbers are the original's.
    pub fn dead_letter(&mut self, record: RecordRef<'_>, stage: Stage, error: &dyn Error) {
        self.bury(record, stage, error, Body::Whole);
    }

    pub(crate) fn bury(&mut self, record: RecordRef<'_>, stage: Stage, error: &dyn Error, body: Body) {
        self.write_letter(record.partition(), Some((record, body)), stage, error);
    }

    /// Puts a dead letter that names a timer where those of the task's records of this input are: without key, value and
    /// offset, as it is of no record.
    pub(crate) fn bury_timer(&mut self, input: &TopicPartition, timer: &Timer, reason: &str) {
        let mut key = timer.key.clone();
        if let Some((end, _)) = key.char_indices().nth(NAME_CHARS_MAX) {
            key.truncate(end);
            key.push('…');
        }
        let error = RefusedTimer {
            clock: timer.clock.name(),
            at: timer.at,
            key,
            reason: reason.to_owned(),
        };
        self.write_letter(input, None, Stage::Produce, &error);
    }

    fn write_letter(
        &mut self,
        at: &TopicPartition,
        of: Option<(RecordRef<'_>, Body)>,
        stage: Stage,
        error: &dyn Error,
    ) {
        let (partition, task) = (at.partition.to_string(), self.task.to_string());
        let offset = of.map(|(record, _)| record.offset().to_string());
        let topic = self.topic_of_dead_letters(&at.topic);
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
        let whole = of.filter(|(_, body)| *body == Body::Whole).map(|(record, _)| record);
        let letter = OutRecord {
            topic: &topic,
            partition: Some(at.partition),
            timestamp: None,
            key: whole.and_then(|record| record.key()),
            value: whole.and_then(|record| record.value()),
        };
        let own = whole.into_iter().flat_map(|record| record.headers().iter());
        self.out.push(letter, own.chain(added));
        self.dead_letters += 1;
    }

    /// What has been written so far.
    pub fn records(&self) -> &OutBatch {
        &self.out
    }

    /// Number of dead letters so far.
    pub fn dead_letters(&self) -> u64 {
        self.dead_letters
    }

    /// Forgets everything that was not sent.
    pub(crate) fn clear(&mut self) {
        self.out.clear();
        self.dead_letters = 0;
        self.trace.clear();
    }

    fn topic_of_dead_letters(&mut self, topic: &Arc<str>) -> Arc<str> {
        if let Some((_, letters)) = self.topics.iter().find(|(of, _)| of == topic) {
            return letters.clone();
        }
        let letters: Arc<str> = dead_letter_topic(topic).into();
        self.topics.push((topic.clone(), letters.clone()));
        letters
    }
}

/// An error's name as its `Debug` form begins: the variant's or type's.
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

/// An error with its causes, on one line.
fn message(error: &dyn Error) -> String {
    error.source().map_or_else(
        || error.to_string(),
        |source| format!("{error}: {}", service::chain(source)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_log::{RecordBatch, TimestampType, TopicPartition};

    #[derive(Debug, thiserror::Error)]
    #[error("decode order")]
    struct Undecodable(#[source] std::num::ParseIntError);

    fn batch() -> RecordBatch {
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("change.shop", 3));
        let headers = [("tx", Some(&b"{}"[..])), ("none", None)];
        batch.push(
            at,
            42,
            1,
            TimestampType::Create,
            Some(b"[1]"),
            Some(b"\xff\x00"),
            headers,
        );
        batch
    }

    #[test]
    fn what_a_traced_record_causes_carries_its_traceparent_until_something_else_is_the_cause() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let mut batch = RecordBatch::default();
        let at = batch.intern(&TopicPartition::new("in", 0));
        for header in [parent, "nonsense"] {
            let headers = [("traceparent", Some(header.as_bytes()))];
            batch.push(at, 0, 1, TimestampType::Create, None, None, headers);
        }
        let mut output = Output::new("x");
        let say = |output: &mut Output| {
            let record = OutRecord {
                topic: &Arc::from("out"),
                partition: None,
                timestamp: None,
                key: None,
                value: None,
            };
            output.send(record, [("own", None)]);
        };
        say(&mut output);
        output.caused_by(batch.get(0).unwrap());
        say(&mut output);
        say(&mut output);
        output.caused_by(batch.get(1).unwrap());
        say(&mut output);
        output.caused_by(batch.get(0).unwrap());
        output.uncaused();
        say(&mut output);
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
    fn a_dead_letter_is_the_record_untouched_with_the_headers_of_connect() {
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
    fn a_dead_letter_without_body_still_says_where_the_record_stood() {
        let batch = batch();
        let mut output = Output::new("sync");
        let error = Undecodable("x".parse::<i32>().unwrap_err());
        output.bury(batch.get(0).unwrap(), Stage::Produce, &error, Body::LeftOut);
        let (record, headers) = output.records().iter().next().unwrap();
        assert_eq!((record.key, record.value), (None, None));
        assert_eq!(headers.filter(|(n, _)| !n.starts_with("__connect.errors.")).count(), 0);
    }
}
