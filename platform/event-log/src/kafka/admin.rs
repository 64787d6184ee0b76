//! Topics and offsets on Kafka.
//!
//! Creating, altering and deleting a topic waits until the brokers' metadata shows the change. Requests are retried within
//! the request timeout while a broker reports a transient error.

use super::client::admin::{Admin as Raw, END, NewTopic, START};
use super::client::admin_results::TopicResult;
use super::client::list::{Entry, List};
use super::client::{ClientError, Code, Handle};
use super::errors;
use crate::{
    Cleanup, Error, Isolation, Offset, OffsetSpec, Result, TimestampPolicy, TopicConfig, TopicId, TopicInfo,
    TopicPartition, TopicSpec,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a broker's metadata may lag behind the controller.
const PROPAGATION: Duration = Duration::from_secs(10);

/// Sends admin requests through one client.
#[derive(Debug)]
pub struct Admin<'h> {
    raw: Raw<'h>,
}

impl<'h> Admin<'h> {
    /// Sends requests with this timeout.
    pub fn new(handle: &'h Arc<Handle>, timeout: Duration) -> Admin<'h> {
        Admin {
            raw: Raw::new(handle, timeout),
        }
    }

    fn with_retry<T>(&self, request: impl Fn(&Raw<'_>) -> Result<T, ClientError>) -> Result<T, ClientError> {
        retry(&self.raw, self.raw.timeout, request)
    }

    /// Waits until the brokers' metadata shows a change.
    fn await_view(&self, what: &str, seen: impl Fn(&Raw<'_>) -> Result<bool, ClientError>) -> Result<()> {
        let end = Instant::now() + PROPAGATION;
        while Instant::now() < end {
            if seen(&self.raw).unwrap_or(false) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(Error::Unavailable {
            attempted: what.to_owned(),
            reason: "the request succeeded, but the brokers' metadata does not show it yet".to_owned(),
        })
    }

    /// See [`crate::EventLog::create_topics`].
    pub fn create_topics(&self, topics: &[TopicSpec]) -> Result<Vec<bool>> {
        let request = |topic: &TopicSpec| -> Result<bool> {
            let wanted = [NewTopic {
                name: &topic.name,
                partitions: topic.partitions,
                replication: topic.replication.unwrap_or(-1),
                settings: settings(&topic.config),
            }];
            let attempted = || format!("create topic {}", topic.name);
            let results = self.with_retry(|raw| raw.create(&wanted).and_then(flatten));
            match results {
                Ok(()) => {
                    self.await_view(&attempted(), |raw| served(raw, topic))?;
                    Ok(true)
                }
                Err(found) if found.code == Code::RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS => Ok(false),
                Err(found) => Err(errors::topic_error(&topic.name, attempted(), &found)),
            }
        };
        topics.iter().map(request).collect()
    }

    /// See [`crate::EventLog::describe`].
    pub fn describe(&self, topic: &str) -> Result<Option<TopicInfo>> {
        let attempted = || format!("describe topic {topic}");
        let found = self.with_retry(|raw| Ok((raw.describe(topic)?, raw.settings(topic)?)));
        match found {
            Ok((seen, settings)) => {
                let (high, low) = seen.id;
                let id = uuid::Uuid::from_u64_pair(
                    u64::from_ne_bytes(high.to_ne_bytes()),
                    u64::from_ne_bytes(low.to_ne_bytes()),
                );
                let partitions = i32::try_from(seen.partitions).unwrap_or(i32::MAX);
                Ok(Some(TopicInfo {
                    name: topic.to_owned(),
                    id: TopicId(id),
                    partitions,
                    settings,
                }))
            }
            Err(found) if unknown(found.code) => Ok(None),
            Err(found) => Err(errors::topic_error(topic, attempted(), &found)),
        }
    }

    /// Returns the topic's partition count. Fails if the topic does not exist.
    pub fn partitions(&self, topic: &str) -> Result<usize> {
        let found = self.with_retry(|raw| raw.describe(topic));
        found
            .map(|topic| topic.partitions)
            .map_err(|found| errors::topic_error(topic, format!("look up topic {topic}"), &found))
    }

    /// See [`crate::EventLog::topics`].
    pub fn topics(&self) -> Result<Vec<String>> {
        let mut names = self
            .with_retry(|raw| raw.topics())
            .map_err(|found| errors::request_error("list topics", &found))?;
        names.retain(|name| !name.starts_with("__"));
        names.sort();
        Ok(names)
    }

    /// See [`crate::EventLog::alter_topic`].
    pub fn alter_topic(&self, topic: &str, settings: &[(String, String)]) -> Result<()> {
        let attempted = format!("alter topic {topic}");
        let failed = |found: ClientError| errors::topic_error(topic, attempted.clone(), &found);
        self.with_retry(|raw| raw.alter(topic, settings)).map_err(failed)?;
        let seen = self.await_view(&attempted, |raw| {
            let seen = raw.settings(topic)?;
            Ok(settings.iter().all(|(name, value)| seen.get(name) == Some(value)))
        });
        // A broker may normalize the value. The change itself was accepted.
        seen.or(Ok(()))
    }

    /// See [`crate::EventLog::delete_topic`].
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        let attempted = format!("delete topic {topic}");
        self.with_retry(|raw| raw.delete(topic))
            .map_err(|found| errors::topic_error(topic, attempted.clone(), &found))?;
        self.await_view(&attempted, |raw| match raw.describe(topic) {
            Err(found) if unknown(found.code) => Ok(true),
            other => other.map(|_| false),
        })
    }

    /// See [`crate::EventLog::offset`].
    pub fn offset(&self, at: &TopicPartition, which: OffsetSpec) -> Result<Offset> {
        let (special, isolation) = list_offsets_arguments(which);
        let wanted = List::of(std::iter::once((at, special)));
        let found = self.with_retry(|raw| {
            raw.offsets(&wanted, isolation)
                .and_then(first)
                .map_err(|found| leaderless(raw, at, found))
        });
        let failed = |found: ClientError| errors::topic_error(&at.topic, format!("look up an offset of {at}"), &found);
        match found.map_err(failed)?.offset {
            // No record at or after the timestamp: the trait specifies the log end.
            offset if offset < 0 && matches!(which, OffsetSpec::Timestamp(_)) => self.offset(at, OffsetSpec::LogEnd),
            offset => Ok(offset),
        }
    }

    /// See [`crate::EventLog::offsets`].
    pub fn offsets(&self, partitions: &[TopicPartition], which: OffsetSpec) -> Result<Vec<Offset>> {
        let (special, isolation) = list_offsets_arguments(which);
        let wanted = List::of(partitions.iter().map(|at| (at, special)));
        let found = self.with_retry(|raw| raw.offsets(&wanted, isolation));
        let found = found.map_err(|found| errors::request_error("look up offsets", &found))?;
        let good = found
            .into_iter()
            .filter(|entry| ClientError::check(entry.code).is_ok() && entry.offset >= 0);
        let good: BTreeMap<_, _> = good.map(|entry| (entry.at, entry.offset)).collect();
        // Failed partitions are looked up one by one, because `offset` retries transient errors, and its error names
        // the partition.
        let each = |at| good.get(at).copied().map_or_else(|| self.offset(at, which), Ok);
        partitions.iter().map(each).collect()
    }

    /// See [`crate::EventLog::log_epoch`].
    pub fn log_epoch(&self) -> Result<String> {
        self.raw
            .handle
            .cluster(self.raw.timeout)
            .ok_or_else(|| Error::Unavailable {
                attempted: "look up the cluster id".to_owned(),
                reason: self.raw.handle.connectivity().explain("no broker answered"),
            })
    }
}

/// Retries a request within a time limit while the brokers report a transient error.
pub fn retry<T>(
    raw: &Raw<'_>,
    limit: Duration,
    request: impl Fn(&Raw<'_>) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        match request(raw) {
            Err(found) if errors::is_unavailable(&found) && !errors::is_timeout(found.code) && Instant::now() < end => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            Err(mut found) => {
                found.text = raw.handle.connectivity().explain(&found.text);
                return Err(found);
            }
            found => return found,
        }
    }
}

/// Returns librdkafka's special offset and the isolation level for a lookup.
fn list_offsets_arguments(which: OffsetSpec) -> (Offset, Isolation) {
    match which {
        OffsetSpec::Earliest => (START, Isolation::ReadUncommitted),
        OffsetSpec::LogEnd => (END, Isolation::ReadUncommitted),
        OffsetSpec::LastStable => (END, Isolation::ReadCommitted),
        OffsetSpec::Timestamp(time) => (time.max(0), Isolation::ReadUncommitted),
    }
}

fn unknown(code: Code) -> bool {
    use Code as C;
    matches!(code, C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | C::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC)
        || code == C::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID
        // An invalid topic name.
        || code == C::RD_KAFKA_RESP_ERR_TOPIC_EXCEPTION
}

fn flatten(results: Vec<TopicResult>) -> Result<(), ClientError> {
    results.into_iter().try_for_each(|(_, result)| result)
}

fn first(entries: Vec<Entry>) -> Result<Entry, ClientError> {
    let entry = entries.into_iter().next();
    let entry = entry.ok_or_else(|| ClientError::new(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART))?;
    ClientError::check(entry.code).map(|()| entry)
}

/// Returns whether every partition of a new topic has a leader that answers. The metadata may name a leader before the
/// leader answers.
fn served(raw: &Raw<'_>, topic: &TopicSpec) -> Result<bool, ClientError> {
    if !raw.describe(&topic.name)?.led {
        return Ok(false);
    }
    let partitions: Vec<_> = (0..topic.partitions)
        .map(|p| TopicPartition::new(topic.name.as_str(), p))
        .collect();
    let ends = raw.offsets(
        &List::of(partitions.iter().map(|at| (at, END))),
        Isolation::ReadUncommitted,
    )?;
    Ok(ends.iter().all(|end| end.code == Code::RD_KAFKA_RESP_ERR_NO_ERROR))
}

/// Determines whether a partition without a leader does not exist or has no leader now.
fn leaderless(raw: &Raw<'_>, at: &TopicPartition, found: ClientError) -> ClientError {
    use Code as C;
    // After a broker restart librdkafka keeps the old leader epochs and does not refresh them itself. A metadata
    // request for all topics refreshes them.
    if matches!(
        found.code,
        C::RD_KAFKA_RESP_ERR_FENCED_LEADER_EPOCH | C::RD_KAFKA_RESP_ERR_UNKNOWN_LEADER_EPOCH
    ) {
        drop(raw.topics());
        return found;
    }
    if found.code != Code::RD_KAFKA_RESP_ERR__NOENT {
        return found;
    }
    match raw
        .describe(&at.topic)
        .map(|seen| i32::try_from(seen.partitions).unwrap_or(i32::MAX))
    {
        Ok(count) if (0..count).contains(&at.partition) => {
            ClientError::new(Code::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)
        }
        Ok(_) => ClientError::new(Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART),
        Err(found) => found,
    }
}

fn settings(config: &TopicConfig) -> BTreeMap<String, String> {
    let mut settings = config.other.clone();
    let cleanup = match config.cleanup {
        Cleanup::Delete => "delete",
        Cleanup::Compact => "compact",
        Cleanup::CompactDelete => "compact,delete",
    };
    let timestamps = match config.timestamps {
        TimestampPolicy::CreateTime => "CreateTime",
        TimestampPolicy::LogAppendTime => "LogAppendTime",
    };
    settings.insert("cleanup.policy".to_owned(), cleanup.to_owned());
    settings.insert("message.timestamp.type".to_owned(), timestamps.to_owned());
    let numbers = [
        ("retention.ms", config.retention_ms),
        ("retention.bytes", config.retention_bytes),
        ("min.compaction.lag.ms", config.min_compaction_lag_ms),
        ("delete.retention.ms", config.delete_retention_ms),
        ("max.message.bytes", config.max_message_bytes),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            settings.insert(name.to_owned(), value.to_string());
        }
    }
    settings
}
