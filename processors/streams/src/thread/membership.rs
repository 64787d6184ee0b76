//! The membership of a thread in its consumer group: the consumer, the group metadata, and fencing that is not
//! explained yet.
//!
//! Offsets are committed with the group metadata under which their records were read, so that a thread that lost its
//! partitions cannot commit for them (C6). The metadata is fetched again after each assignment event.

use super::abort::Abort;
use crate::admin::status::Cause;
use crate::api::application::member_name;
use crate::api::error::{Error, Result};
use crate::shared::Shared;
use event_log::{
    ErrorAction, Event, GroupConfig, GroupConsumer, GroupMetadata, GroupProtocol, Offset, RecordBatch, TopicPartition,
};
use service::backoff::Backoff;
use service::chain;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// If fencing was not caused by a transaction timeout, a new assignment must arrive within this time and explain it.
/// Otherwise another process uses the name of this thread.
const FENCE_WAIT: Duration = Duration::from_secs(6);
/// Pause after the log was unavailable.
const BACKOFF: Duration = Duration::from_millis(200);
/// Interval at which topics are looked up that could not be read, and longest pause after an error that an operator must
/// resolve, such as a missing permission. The first pauses are shorter: a broker that has just started does not know
/// all topics for a moment.
const OPERATOR_BACKOFF: Duration = Duration::from_secs(10);

/// Fencing whose cause is not known yet.
struct Fence {
    since: Duration,
    reason: String,
}

/// The membership of a thread in its consumer group.
pub(super) struct Membership {
    shared: Arc<Shared>,
    /// Name of the thread.
    name: String,
    consumer: Option<Box<dyn GroupConsumer>>,
    metadata: Option<GroupMetadata>,
    fence: Option<Fence>,
    /// When the consumer was last polled, on the monotonic clock.
    polled: Duration,
    /// No request is sent before this time, because the log was unavailable.
    not_before: Duration,
    unavailable: Option<Cause>,
    /// Pauses after errors that an operator must resolve. Reset by an assignment.
    operator_backoff: Backoff,
    /// Subscribed topics that cannot be read.
    topic_issues: BTreeMap<String, TopicIssue>,
}

/// Why a subscribed topic cannot be read. If the group no longer assigns its partitions, no task reports it.
struct TopicIssue {
    reason: String,
    /// When the topic is looked up again, on the monotonic clock.
    check_at: Duration,
}

impl Membership {
    pub(super) fn new(shared: Arc<Shared>, name: String) -> Self {
        Membership {
            shared,
            name,
            consumer: None,
            metadata: None,
            fence: None,
            polled: Duration::ZERO,
            not_before: Duration::ZERO,
            unavailable: None,
            // Use a fixed seed, so that a simulation depends only on its own seed.
            operator_backoff: Backoff::seeded(BACKOFF, OPERATOR_BACKOFF, 0),
            topic_issues: BTreeMap::new(),
        }
    }

    /// The consumer, once the thread has joined.
    pub(super) fn consumer(&mut self) -> Option<&mut (dyn GroupConsumer + 'static)> {
        self.consumer.as_deref_mut()
    }

    pub(super) fn has_joined(&self) -> bool {
        self.consumer.is_some()
    }

    pub(super) fn has_metadata(&self) -> bool {
        self.metadata.is_some()
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fence.is_some()
    }

    pub(super) fn not_before(&self) -> Duration {
        self.not_before
    }

    /// Whether the thread is a member. A member without partitions receives no assignment event.
    pub(super) fn is_member(&self) -> bool {
        let is_member =
            |consumer: &dyn GroupConsumer| consumer.group_metadata().is_ok_and(|metadata| metadata.generation >= 0);
        self.metadata.is_some() || self.consumer.as_deref().is_some_and(is_member)
    }

    /// Topics that no member of the group reads.
    pub(super) fn unassigned_topics(&self) -> Vec<Arc<str>> {
        let consumer = self.consumer.as_ref();
        consumer.map_or_else(Vec::new, |consumer| consumer.unassigned())
    }

    /// The reason of fencing that is not explained yet.
    pub(super) fn fence_reason(&self) -> Option<&String> {
        self.fence.as_ref().map(|fence| &fence.reason)
    }

    /// Why the log is unavailable.
    pub(super) fn unavailable(&self) -> Option<&Cause> {
        self.unavailable.as_ref()
    }

    /// Records that a subscribed topic cannot be read.
    pub(super) fn note_topic(&mut self, topic: &str, reason: String) {
        let now = self.shared.clock.elapsed();
        let check_at = now + OPERATOR_BACKOFF;
        let issue = TopicIssue { reason, check_at };
        if self.topic_issues.insert(topic.to_owned(), issue).is_some() {
            // A member that cannot join reports it in each poll.
            self.not_before = now + BACKOFF;
        }
    }

    /// Why a subscribed topic cannot be read.
    pub(super) fn topic_issue(&self) -> Option<&str> {
        self.topic_issues.values().next().map(|issue| issue.reason.as_str())
    }

    /// Looks up topics that could not be read, if that is due.
    pub(super) fn check_topics(&mut self, now: Duration) {
        let log = &self.shared.log;
        self.topic_issues.retain(|topic, issue| {
            if now < issue.check_at {
                return true;
            }
            issue.check_at = now + OPERATOR_BACKOFF;
            !matches!(log.describe(topic), Ok(Some(_)))
        });
    }

    /// Records fencing that no transaction timeout explains.
    pub(super) fn note_fence(&mut self, reason: String) {
        let since = self.shared.clock.elapsed();
        self.fence = Some(Fence { since, reason });
    }

    /// # Errors
    /// The thread was fenced, and no assignment event explained it in time: another process uses the same
    /// name.
    pub(super) fn check_fence(&self, now: Duration) -> Result<()> {
        match &self.fence {
            Some(fence) if now.saturating_sub(fence.since) > FENCE_WAIT => Err(Error::Fenced {
                who: self.name.clone(),
                reason: fence.reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Creates the consumer; returns whether that succeeded.
    pub(super) fn join(&mut self) -> Result<bool> {
        let config = GroupConfig {
            group: self.shared.plan.application.to_string(),
            instance: Some(member_name(&self.name)),
            topics: self.shared.plan.topics(),
            session_timeout: self.shared.config.group.session_timeout,
            protocol: self.shared.config.group.protocol,
        };
        let joined = self.shared.log.group(config);
        self.consumer = self.available(joined)?;
        Ok(self.consumer.is_some())
    }

    /// Waits at most `wait` for records or an assignment event. `None` if the thread has not joined.
    pub(super) fn poll(&mut self, records: &mut RecordBatch, wait: Duration) -> Option<event_log::Result<Event>> {
        let consumer = self.consumer.as_mut()?;
        let event = consumer.poll(records, self.shared.config.poll_bytes_max, wait);
        self.polled = self.shared.clock.elapsed();
        Some(event)
    }

    /// Fetches the group metadata after an assignment event, which also explains earlier fencing.
    pub(super) fn refresh(&mut self) -> Result<()> {
        self.fence = None;
        if let Some(metadata) = self.consumer.as_ref().map(|consumer| consumer.group_metadata()) {
            self.metadata = self.available(metadata)?;
            self.operator_backoff.reset();
        }
        Ok(())
    }

    /// Drops the consumer, so that the thread joins with another one.
    pub(super) fn abandon(&mut self) {
        self.consumer = None;
        self.metadata = None;
    }

    /// Discards the group metadata, because the partitions belong to another member.
    pub(super) fn lose(&mut self) {
        self.fence = None;
        self.metadata = None;
    }

    /// Group metadata for a commit. With KIP-848 it is fetched again, because the member epoch increases without an
    /// event. The partitions still belong to this member, because it is notified of a loss before it can rejoin.
    pub(super) fn current_metadata(&mut self) -> Result<Option<&GroupMetadata>> {
        if self.shared.config.group.protocol != GroupProtocol::Classic
            && self.metadata.is_some()
            && let Some(metadata) = self.consumer.as_ref().map(|consumer| consumer.group_metadata())
        {
            self.metadata = self.available(metadata)?;
        }
        Ok(self.metadata.as_ref())
    }

    /// Whether the thread did not poll for so long that the group may have replaced it.
    pub(super) fn may_be_expired(&self) -> bool {
        let silent = self.shared.clock.elapsed().saturating_sub(self.polled);
        silent >= self.shared.config.group.session_timeout / 2
    }

    /// Commits offsets as a member, outside a transaction.
    pub(super) fn commit_offsets(&mut self, offsets: &[(TopicPartition, Offset)]) -> Result<(), Abort> {
        let consumer = self.consumer.as_mut();
        let consumer = consumer.expect("tasks exist only while the thread is in the group");
        consumer.commit(offsets).map_err(|error| {
            let reason = chain(&error);
            // With KIP-848, an event will announce the loss of the partitions, and fencing does not mean that another
            // process uses the same name.
            let classic = self.shared.config.group.protocol != GroupProtocol::Consumer;
            match error {
                event_log::Error::Fenced { .. } if classic => Abort::Fenced(reason),
                _ => Abort::Failed(reason),
            }
        })
    }

    /// Leaves the group; the static membership remains for a restart.
    pub(super) fn close(&mut self) -> Result<()> {
        let closed = self.consumer.take().map_or(Ok(()), GroupConsumer::close);
        closed.map_err(|source| Error::EventLog {
            who: self.name.clone(),
            source,
        })
    }

    /// Handles the result of a request: `None` if it must be repeated, so that the thread pauses before its next request.
    ///
    /// # Errors
    /// Fencing, and a failure of the embedded log's storage, after which only a restart helps.
    pub(super) fn available<T>(&mut self, result: event_log::Result<T>) -> Result<Option<T>> {
        match result {
            Ok(value) => {
                self.unavailable = None;
                Ok(Some(value))
            }
            Err(error) if error.action() == ErrorAction::Retry => {
                self.pause(Cause::unavailable(chain(&error)), BACKOFF);
                Ok(None)
            }
            Err(error @ event_log::Error::Fenced { .. }) => Err(Error::Fenced {
                who: self.name.clone(),
                reason: chain(&error),
            }),
            Err(source @ event_log::Error::Storage { .. }) => Err(Error::EventLog {
                who: self.name.clone(),
                source,
            }),
            Err(error) => {
                let backoff = self.operator_backoff.next_delay();
                self.pause(Cause::operator(chain(&error)), backoff);
                Ok(None)
            }
        }
    }

    fn pause(&mut self, cause: Cause, backoff: Duration) {
        if self.unavailable.as_ref() != Some(&cause) {
            tracing::warn!(
                thread = self.name,
                reason = cause.text,
                "request to the log failed, retrying"
            );
        }
        self.unavailable = Some(cause);
        self.not_before = self.shared.clock.elapsed() + backoff;
    }
}
