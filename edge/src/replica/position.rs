//! Commits the position of the replica in a consumer group, so that operators and connectors see how far the edge is behind.
//!
//! It has a separate thread, because a request waits for a coordinator that is not available, and the replica must not.
//! The replica itself continues at the position in its store.

use event_log::{Offset, SharedEventLog, TopicPartition};
use service::backoff::Backoff;
use service::{Drain, chain};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Interval of commits.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// Longest pause after an error.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Offsets of the next records of all partitions.
type Offsets = Vec<(TopicPartition, Offset)>;

/// The newest position.
#[derive(Clone, Default)]
pub struct ReplicaPosition(Arc<Mutex<Offsets>>);

impl ReplicaPosition {
    /// Replaces the position.
    pub fn set(&self, offsets: Offsets) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = offsets;
    }

    /// Commits the position whenever it has changed, until the drain starts. Blocks.
    pub fn commit(&self, log: &SharedEventLog, group: &str, drain: &Drain) {
        let commit = |offsets: &Offsets| log.set_committed(group, offsets);
        self.commit_with(group, drain, &mut Backoff::new(COMMIT_INTERVAL, BACKOFF_MAX), commit);
    }

    fn commit_with(
        &self,
        group: &str,
        drain: &Drain,
        backoff: &mut Backoff,
        commit: impl Fn(&Offsets) -> event_log::Result<()>,
    ) {
        let (mut committed, mut has_failed) = (Offsets::new(), false);
        while drain.sleep_blocking(COMMIT_INTERVAL) {
            // The lock is not held during the request, because the replica sets its next position meanwhile.
            let offsets = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if offsets == committed {
                continue;
            }
            match commit(&offsets) {
                Ok(()) => {
                    (committed, has_failed) = (offsets, false);
                    backoff.reset();
                }
                Err(error) => {
                    if !std::mem::replace(&mut has_failed, true) {
                        let error = chain(&error);
                        tracing::warn!(group, error, "position of the replica not committed, the edge retries");
                    }
                    backoff.pause_blocking(drain);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LIMIT: Duration = Duration::from_secs(30);

    fn at(offset: Offset) -> Offsets {
        vec![(TopicPartition::new("shop.view.log", 0), offset)]
    }

    fn unavailable() -> event_log::Error {
        event_log::Error::Unavailable {
            attempted: "set offsets of group shop.edge.a".to_owned(),
            reason: "no coordinator".to_owned(),
        }
    }

    #[test]
    fn replica_continues_while_the_coordinator_is_unavailable_and_commits_resume() {
        let (position, drain) = (ReplicaPosition::default(), Drain::new());
        let (requested, requests) = mpsc::channel();
        let (answer, answers) = mpsc::channel::<event_log::Result<()>>();
        let commit = move |offsets: &Offsets| {
            requested.send(offsets.clone()).unwrap();
            answers.recv().unwrap()
        };
        let (committer, stop) = (position.clone(), drain.clone());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let committer = thread("committer").spawn(move || {
            let mut backoff = Backoff::seeded(Duration::from_millis(1), Duration::from_millis(2), 1);
            committer.commit_with("shop.edge.a", &stop, &mut backoff, commit);
        });
        position.set(at(1));
        assert_eq!(requests.recv_timeout(LIMIT), Ok(at(1)));
        // The coordinator does not answer, and the replica applies records.
        let (replica, applied) = mpsc::channel();
        let moving = position.clone();
        let replica_thread = thread("replica").spawn(move || {
            (2..=1_000).for_each(|offset| moving.set(at(offset)));
            replica.send(()).unwrap();
        });
        assert_eq!(applied.recv_timeout(LIMIT), Ok(()), "the replica waits for a commit");
        replica_thread.unwrap().join().unwrap();
        // Each attempt commits the newest position.
        answer.send(Err(unavailable())).unwrap();
        assert_eq!(requests.recv_timeout(LIMIT), Ok(at(1_000)));
        position.set(at(1_001));
        answer.send(Err(unavailable())).unwrap();
        assert_eq!(requests.recv_timeout(LIMIT), Ok(at(1_001)));
        answer.send(Ok(())).unwrap();
        // A committed position is not committed again.
        assert!(requests.recv_timeout(3 * COMMIT_INTERVAL).is_err());
        position.set(at(1_002));
        assert_eq!(requests.recv_timeout(LIMIT), Ok(at(1_002)));
        drain.start();
        answer.send(Ok(())).unwrap();
        committer.unwrap().join().unwrap();
    }
}
