//! Shared handle to the open replica, or to the reason why no replica is open.
//!
//! The follower makes a replica available only after it has been opened for the current log and topic id, and makes it
//! unavailable before it quarantines the store.

use crate::notifier::Notifier;
use arc_swap::ArcSwapOption;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use views::Replica;
use views::replica::NotReady;

/// Why an edge cannot answer polls, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadinessIssue {
    /// Human-readable cause.
    pub cause: String,
    /// Fix, or the command that shows more.
    pub fix: String,
}

impl ReadinessIssue {
    /// Creates an issue from its cause and fix.
    pub fn new(cause: impl Into<String>, fix: impl Into<String>) -> Self {
        ReadinessIssue {
            cause: cause.into(),
            fix: fix.into(),
        }
    }
}

/// Shared handle to the replica from which polls are answered.
#[derive(Default)]
pub struct ReplicaHandle {
    current: ArcSwapOption<Replica>,
    notifier: Arc<Notifier>,
    issue: Mutex<Option<ReadinessIssue>>,
}

impl ReplicaHandle {
    /// The open replica, if any. Drop it as soon as the poll is answered: the follower cannot close or quarantine the
    /// store while a reference exists.
    pub fn replica(&self) -> Option<Arc<Replica>> {
        self.current.load_full()
    }

    /// Wakes long polls.
    pub fn notifier(&self) -> &Arc<Notifier> {
        &self.notifier
    }

    /// Makes a replica available to polls.
    pub fn publish(&self, replica: Arc<Replica>) {
        self.current.store(Some(replica));
        self.notifier.wake_all();
    }

    /// Makes the replica unavailable to polls, which answer 503 until the next [`ReplicaHandle::publish`]. Returns the
    /// replica.
    pub fn withdraw(&self) -> Option<Arc<Replica>> {
        let withdrawn = self.current.swap(None);
        self.notifier.wake_all();
        withdrawn
    }

    /// Why this edge cannot answer polls at `now` (ms since the epoch); `None` if it can.
    pub fn issue(&self, now: i64) -> Option<ReadinessIssue> {
        if let Some(issue) = self.follower_issue().clone() {
            return Some(issue);
        }
        let Some(replica) = self.replica() else {
            return Some(ReadinessIssue::new(
                "the view replica is not open yet",
                "wait; if it does not open, see the log of this process",
            ));
        };
        let health = replica.health(now);
        let not_ready: Vec<NotReady> = health.iter().filter_map(|h| h.not_ready).collect();
        let first = not_ready.first()?;
        let (waiting, all) = (not_ready.len(), health.len());
        Some(match first {
            NotReady::Incomplete {
                partition,
                position,
                end,
            } => {
                let end = end.map_or("unknown".to_owned(), |end| end.to_string());
                let cause = format!(
                    "{waiting} of {all} partitions of view.log are incomplete; partition {partition}: position \
                     {position}, end {end}"
                );
                ReadinessIssue::new(
                    cause,
                    "wait until the replica has read view.log; check with `trunkline lag` whether sync-views is behind",
                )
            }
            NotReady::Unproven { partition, since_ms } => {
                let cause = format!("partition {partition} of view.log has not been proven current for {since_ms} ms");
                ReadinessIssue::new(
                    cause,
                    "check with `trunkline doctor` that the log is reachable from here",
                )
            }
            NotReady::NotServed { partition } => ReadinessIssue::new(
                format!("partition {partition} of view.log is not served by this replica"),
                "restart this edge",
            ),
        })
    }

    /// Sets or clears the follower's issue. It takes precedence over the health of the replica.
    pub(crate) fn set_issue(&self, issue: Option<ReadinessIssue>) {
        *self.follower_issue() = issue;
    }

    fn follower_issue(&self) -> MutexGuard<'_, Option<ReadinessIssue>> {
        self.issue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
