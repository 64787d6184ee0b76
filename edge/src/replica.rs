//! The replica that polls are answered from, and the thread that keeps it up to date.
//!
//! Guarantees: what is on the shelf was opened for the log and topic that are read now; a replica that is set aside
//! is taken off the shelf first. Never: a view record understood here (`views` does), HTTP.

mod follow;

pub use follow::{FollowConfig, FollowError, Follower};

use crate::notifier::Notifier;
use arc_swap::ArcSwapOption;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use views::Replica;
use views::replica::NotReady;

/// What keeps an edge from answering, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The cause, for people.
    pub cause: String,
    /// What to do, or the command to run.
    pub next: String,
}

impl Trouble {
    /// A cause and what to do about it.
    pub fn new(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Trouble {
            cause: cause.into(),
            next: next.into(),
        }
    }
}

/// Where the replica stands for whoever answers polls. Cheap to share.
#[derive(Default)]
pub struct ReplicaHandle {
    current: ArcSwapOption<Replica>,
    wakes: Arc<Notifier>,
    trouble: Mutex<Option<Trouble>>,
}

impl ReplicaHandle {
    /// The replica, if one is open. Held only while a poll is answered: a replica that is held cannot be set aside.
    pub fn replica(&self) -> Option<Arc<Replica>> {
        self.current.load_full()
    }

    /// Those who wait for changes.
    pub fn wakes(&self) -> &Arc<Notifier> {
        &self.wakes
    }

    /// Puts a replica up.
    pub fn put(&self, replica: Arc<Replica>) {
        self.current.store(Some(replica));
        self.wakes.wake_all();
    }

    /// Takes the replica down; polls are refused until another is put up.
    pub fn take(&self) -> Option<Arc<Replica>> {
        let taken = self.current.swap(None);
        self.wakes.wake_all();
        taken
    }

    /// What keeps this edge from answering at this time (ms since the epoch); `None` when it answers.
    pub fn trouble(&self, now: i64) -> Option<Trouble> {
        if let Some(trouble) = self.noted().clone() {
            return Some(trouble);
        }
        let Some(replica) = self.replica() else {
            return Some(Trouble::new(
                "the view replica is not open yet",
                "wait; see this process's log",
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
                let end = end.map_or("an end not known yet".to_owned(), |end| end.to_string());
                let cause = format!(
                    "{waiting} of {all} partitions of view.log are still being read; {partition} is at {position} of {end}"
                );
                Trouble::new(
                    cause,
                    "wait until the replica is complete; `trunkline lag` shows whether sync-views is behind",
                )
            }
            NotReady::Unproven { partition, since_ms } => {
                let cause =
                    format!("nothing has proven for {since_ms} ms that partition {partition} of view.log is current");
                Trouble::new(cause, "check that the log answers from here: `trunkline doctor`")
            }
            NotReady::NotServed { partition } => Trouble::new(
                format!("partition {partition} of view.log is not served here"),
                "restart this edge",
            ),
        })
    }

    pub(crate) fn note(&self, trouble: Option<Trouble>) {
        *self.noted() = trouble;
    }

    fn noted(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
