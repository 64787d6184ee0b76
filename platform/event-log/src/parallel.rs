//! Sends independent requests to a log at the same time. An administrator's view of hundreds of topics or groups needs a
//! request for each of them, and most of the time of a request is waiting.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Greatest number of requests at the same time.
const REQUESTS_MAX: usize = 16;

/// Calls `request` with each item, on several threads, and returns the results in the order of the items.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], request: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut results = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return results };
            results.push((index, request(item)));
        }
    };
    let mut results = std::thread::scope(|scope| {
        // This thread works too, so the others are optional.
        let others = 1..items.len().min(REQUESTS_MAX);
        let others: Vec<_> = others
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mut results = work();
        for other in others {
            match other.join() {
                Ok(found) => results.extend(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn results_have_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let doubled: Vec<usize> = items.iter().map(|item| item * 2).collect();
        assert_eq!(in_parallel(&items, |item| item * 2), doubled);
        assert!(in_parallel(&[], |item: &usize| *item).is_empty());
    }

    #[test]
    fn requests_wait_at_the_same_time() {
        // One after the other, the first would wait for the second forever.
        let both = Barrier::new(2);
        in_parallel(&[(), ()], |()| {
            both.wait();
        });
    }
}
