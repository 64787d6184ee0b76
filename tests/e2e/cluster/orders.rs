//! Input of the cluster harness, posted to the ingest listener: orders at a fixed rate, and prices that change.
//!
//! Each request is retried with the same idempotency key until it succeeds. Prices change only after all earlier input
//! has been processed, so that the epoch of an order determines its price.

use super::progress::{Kills, Progress, RunPlan, pass};
use crate::support::{BROKERS, wait_for};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Items that are ordered.
const ITEMS: usize = 3000;
/// Orders per post.
const CHUNK: usize = 500;
/// Prices per post.
const PRICES: usize = 1000;
const LIMIT: Duration = Duration::from_secs(180);

/// Writer of the input.
pub struct Orders {
    client: reqwest::blocking::Client,
    url: String,
    progress: Progress,
    posts: usize,
    pub written: usize,
    epoch: usize,
}

impl Orders {
    pub fn new(url: String, progress: Progress) -> Orders {
        Orders {
            client: reqwest::blocking::Client::new(),
            url,
            progress,
            posts: 0,
            written: 0,
            epoch: 0,
        }
    }

    fn post(&mut self, topic: &str, body: &Value) {
        self.posts += 1;
        let url = format!("{}/v1/ingest/{topic}", self.url);
        wait_for("a post to succeed", LIMIT, || {
            let sent = self
                .client
                .post(&url)
                .bearer_auth("a token")
                .header("idempotency-key", format!("post-{}", self.posts))
                .json(body)
                .send()
                .ok()?;
            let status = sent.status();
            assert!(
                !status.is_client_error(),
                "{status}: {}",
                sent.text().unwrap_or_default()
            );
            status.is_success().then_some(())
        });
    }

    /// Writes orders at the given rate, and new prices after each epoch, until the run ends.
    pub fn write(&mut self, plan: RunPlan, over: &AtomicBool, kills: &Kills) {
        self.set_prices();
        self.progress.barrier();
        let start = Instant::now();
        let mut next_epoch = plan.epoch;
        let enough = |written: usize| {
            let rounds = kills.brokers.load(Ordering::SeqCst) / BROKERS;
            let processes = kills.processes.load(Ordering::SeqCst);
            start.elapsed() >= plan.time && rounds >= plan.rounds && processes >= plan.kills && written >= plan.orders
        };
        while !over.load(Ordering::SeqCst) && !enough(self.written) {
            let due = Duration::from_millis(u64::try_from(self.written * 1000 / plan.rate).expect("a time"));
            pass(due.saturating_sub(start.elapsed()), over);
            self.order();
            if self.written >= next_epoch {
                next_epoch += plan.epoch;
                self.progress.barrier();
                self.epoch += 1;
                self.set_prices();
                self.progress.barrier();
            }
        }
    }

    fn order(&mut self) {
        let order = |number: usize| json!({"item": number * 7919 % ITEMS, "number": number, "amount": number % 97 + 1, "epoch": self.epoch});
        let orders: Vec<Value> = (self.written..self.written + CHUNK).map(order).collect();
        self.post("event.ordered", &Value::from(orders));
        self.written += CHUNK;
    }

    /// Changes the price of a third of the items; in the first epoch, of all items. A seventh of the items has no
    /// price: even items have a null price, and odd items have no row.
    fn set_prices(&mut self) {
        let epoch = self.epoch;
        let change = |item: usize| {
            let has_price = !(item + epoch).is_multiple_of(7);
            let row = json!({"item": item, "price": has_price.then_some(epoch + 1)});
            match has_price || item.is_multiple_of(2) {
                true => json!({"table": "prices", "op": "put", "row": row}),
                false => json!({"table": "prices", "op": "delete", "key": {"item": item}}),
            }
        };
        let items = (0..ITEMS).filter(|item| epoch == 0 || (item + epoch).is_multiple_of(3));
        let changes: Vec<Value> = items.map(change).collect();
        for changes in changes.chunks(PRICES) {
            self.post("change.shop", &json!({ "changes": changes }));
        }
    }

    /// Waits until all input has been processed and committed.
    pub fn barrier(&self) {
        self.progress.barrier();
    }
}
