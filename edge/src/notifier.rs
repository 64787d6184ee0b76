//! Wakes long polls when one of their buckets changes.
//!
//! A call of [`Notifier::wake`] between [`Notifier::listen`] and [`Listener::woken`] is not lost. A change of a bucket
//! wakes only the polls that wait for that bucket (invariant I12, isolation of scopes). A dropped listener is removed
//! from all of its buckets.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use views::BucketId;

/// Number of locks over which the buckets are distributed, so that polls and the follower rarely contend.
const SHARDS: u64 = 16;

/// Waiting listeners by bucket and listener id.
type Waiting = HashMap<BucketId, HashMap<u64, Arc<Notify>>>;

/// Registry of the waiting long polls.
#[derive(Debug)]
pub struct Notifier {
    shards: Vec<Mutex<Waiting>>,
    next: AtomicU64,
    /// Increases when the replica advances, for polls whose cursor is ahead of the replica.
    progress: watch::Sender<u64>,
}

impl Default for Notifier {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Notifier {
            shards,
            next: AtomicU64::new(0),
            progress: watch::Sender::new(0),
        }
    }
}

/// A registered long poll.
#[derive(Debug)]
pub struct Listener {
    notifier: Arc<Notifier>,
    id: u64,
    buckets: Vec<BucketId>,
    notify: Arc<Notify>,
}

impl Notifier {
    /// Registers a listener for changes of these buckets.
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
            notifier: self.clone(),
            id,
            buckets,
            notify,
        }
    }

    /// Wakes the listeners of these buckets.
    pub fn wake(&self, buckets: &[BucketId]) {
        for bucket in buckets {
            for notify in self.shard(*bucket).get(bucket).into_iter().flat_map(HashMap::values) {
                notify.notify_one();
            }
        }
    }

    /// Wakes all listeners.
    pub fn wake_all(&self) {
        for shard in &self.shards {
            for notify in lock(shard).values().flat_map(HashMap::values) {
                notify.notify_one();
            }
        }
        self.advanced();
    }

    /// Reports that the replica advanced.
    pub fn advanced(&self) {
        self.progress.send_modify(|count| *count += 1);
    }

    /// Receiver that changes whenever the replica advances.
    pub fn watch_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Number of buckets with listeners.
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
    /// Waits until one of the buckets has changed since the registration or since the last call.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for bucket in &self.buckets {
            let mut shard = self.notifier.shard(*bucket);
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
    fn change_wakes_only_listeners_of_its_bucket() {
        let notifier = Arc::new(Notifier::default());
        let one = notifier.listen([BucketId(1), BucketId(17)]);
        let two = notifier.listen([BucketId(2), BucketId(17)]);
        assert!(!is_woken(&one) && !is_woken(&two));
        notifier.wake(&[BucketId(1), BucketId(1), BucketId(99)]);
        assert!(is_woken(&one) && !is_woken(&two));
        assert!(!is_woken(&one), "repeated wakes are merged");
        notifier.wake(&[BucketId(17)]);
        assert!(is_woken(&one) && is_woken(&two));
        notifier.wake_all();
        assert!(is_woken(&one) && is_woken(&two));
    }

    #[test]
    fn dropped_listener_is_removed_from_its_buckets() {
        let notifier = Arc::new(Notifier::default());
        let listeners: Vec<Listener> = (0..100)
            .map(|n| notifier.listen([BucketId(n % 7), BucketId(n)]))
            .collect();
        assert_eq!(notifier.waiting(), 100);
        drop(listeners);
        assert_eq!(notifier.waiting(), 0);
    }
}
