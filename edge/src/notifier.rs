//! Waking long polls: who waits for which buckets.
//!
//! Guarantees: a wake that comes between [`Notifier::listen`] and [`Listener::woken`] is not lost; a change of one bucket
//! wakes those who wait for that bucket and nobody else; a dropped listener leaves nothing behind.
//! Never: a look at the store or the log; a wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use views::BucketId;

/// Locks among which the buckets are spread.
const SHARDS: u64 = 16;

type Waiting = HashMap<BucketId, HashMap<u64, Arc<Notify>>>;

/// Everyone who waits.
#[derive(Debug)]
pub struct Notifier {
    shards: Vec<Mutex<Waiting>>,
    next: AtomicU64,
    /// Counts the batches that moved the replica on, for those who wait until it has caught up.
    moved: watch::Sender<u64>,
}

impl Default for Notifier {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Notifier {
            shards,
            next: AtomicU64::new(0),
            moved: watch::Sender::new(0),
        }
    }
}

/// One who waits for buckets.
#[derive(Debug)]
pub struct Listener {
    wakes: Arc<Notifier>,
    id: u64,
    buckets: Vec<BucketId>,
    notify: Arc<Notify>,
}

impl Notifier {
    /// Begins to listen for changes of these buckets.
    pub fn listen(self: &Arc<Self>, buckets: impl IntoIterator<Item = BucketId>) -> Listener {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let notify = Arc::new(Notify::new());
        let buckets: Vec<BucketId> = buckets.into_iter().collect();
        for bucket in &buckets {
            self.shard(*bucket)
                .entry(*bucket)
                .or_default()
                .insert(id, notify.clone());
        }
        Listener {
            wakes: self.clone(),
            id,
            buckets,
            notify,
        }
    }

    /// Notifier those who wait for these buckets.
    pub fn wake(&self, buckets: &[BucketId]) {
        for bucket in buckets {
            for notify in self.shard(*bucket).get(bucket).into_iter().flat_map(HashMap::values) {
                notify.notify_one();
            }
        }
    }

    /// Notifier everyone.
    pub fn wake_all(&self) {
        for shard in &self.shards {
            for notify in lock(shard).values().flat_map(HashMap::values) {
                notify.notify_one();
            }
        }
        self.moved();
    }

    /// Notes that the replica has moved on.
    pub fn moved(&self) {
        self.moved.send_modify(|count| *count += 1);
    }

    /// Waits for the replica to move on from now.
    pub fn watch_moves(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Buckets that somebody waits for.
    pub fn waiting(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, bucket: BucketId) -> MutexGuard<'_, Waiting> {
        let index = usize::try_from(bucket.0 % SHARDS).unwrap_or_default();
        lock(self.shards.get(index).expect("there are SHARDS shards"))
    }
}

fn lock(shard: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Listener {
    /// Returns once one of the buckets has changed since the listening began, or since the last return.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for bucket in &self.buckets {
            let mut shard = self.wakes.shard(*bucket);
            if let Some(waiting) = shard.get_mut(bucket) {
                waiting.remove(&self.id);
                if waiting.is_empty() {
                    shard.remove(bucket);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    fn is_woken(listener: &Listener) -> bool {
        let woken = std::pin::pin!(listener.woken());
        woken.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn a_change_wakes_its_own_listeners_only_and_is_not_lost() {
        let wakes = Arc::new(Notifier::default());
        let one = wakes.listen([BucketId(1), BucketId(17)]);
        let two = wakes.listen([BucketId(2), BucketId(17)]);
        assert!(!is_woken(&one) && !is_woken(&two));
        wakes.wake(&[BucketId(1), BucketId(1), BucketId(99)]);
        assert!(is_woken(&one) && !is_woken(&two));
        assert!(!is_woken(&one), "several wakes are one");
        wakes.wake(&[BucketId(17)]);
        assert!(is_woken(&one) && is_woken(&two));
        wakes.wake_all();
        assert!(is_woken(&one) && is_woken(&two));
    }

    #[test]
    fn a_dropped_listener_leaves_nothing_behind() {
        let wakes = Arc::new(Notifier::default());
        let listeners: Vec<Listener> = (0..100).map(|n| wakes.listen([BucketId(n % 7), BucketId(n)])).collect();
        assert_eq!(wakes.waiting(), 100);
        drop(listeners);
        assert_eq!(wakes.waiting(), 0);
    }
}
