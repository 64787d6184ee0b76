//! Generator of the sample shop: posts customers and products once, then orders and their changes of state.
//!
//! An order and its lines are one transaction, so on a device the total of an order always equals the sum of its lines.
//! A request without a response is repeated with the same idempotency key. The generator keeps no state on disk; after
//! a restart it continues with new orders.

use anyhow::{Context, Result};
use reqwest::StatusCode;
use serde_json::{Value, json};
use service::{AttemptError, Drain, RetryPolicy, clock, retry};
use std::collections::VecDeque;
use std::time::Duration;

/// The customer whose token `dev` prints.
pub const CUSTOMER: &str = "1";

const CUSTOMERS: i64 = 5;
const PRODUCTS: i64 = 8;
const STORES: i64 = 2;
/// Maximum number of undelivered orders; at the maximum, the oldest order changes its state next.
const OPEN_ORDERS_MAX: usize = 40;
/// Delays between attempts to post.
const RETRY: RetryPolicy = RetryPolicy {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};
const STATES: [&str; 5] = ["placed", "packed", "shipped", "delivered", "cancelled"];

struct Order {
    id: i64,
    customer: i64,
    store: i64,
    total_cents: i64,
    state: usize,
}

/// Posts transactions until the process stops.
pub async fn generate(url: &str, token: &str, orders_per_s: f64, drain: &Drain) -> Result<()> {
    let poster = Poster {
        client: reqwest::Client::new(),
        url,
        token,
        drain,
    };
    poster.post("seed", &seed()).await?;
    let pause = Duration::from_secs_f64(1.0 / orders_per_s.clamp(0.01, 1000.0));
    let mut open_orders: VecDeque<Order> = VecDeque::new();
    let mut id = clock::system().now_ms();
    while drain.sleep(pause).await {
        id += 1;
        let (order, placed) = place(id);
        poster.post(&format!("place-{id}"), &placed).await?;
        open_orders.push_back(order);
        if open_orders.len() > 3
            && let Some(mut order) = open_orders.pop_front()
        {
            order.state = next_state(&order);
            let body = json!({ "changes": [order_row(&order)] });
            poster
                .post(&format!("move-{}-{}", order.id, order.state), &body)
                .await?;
            if order.state < 3 && open_orders.len() < OPEN_ORDERS_MAX {
                open_orders.push_back(order);
            }
        }
    }
    Ok(())
}

/// The next state of an order. One in seven packed orders is cancelled.
fn next_state(order: &Order) -> usize {
    if order.state == 1 && order.id % 7 == 0 {
        4
    } else {
        order.state + 1
    }
}

fn seed() -> Value {
    let customer = |id: i64| {
        let row = json!({"id": id, "name": format!("Customer {id}"), "email": format!("c{id}@shop.example"), "home_store": 1});
        json!({"table": "customers", "op": "put", "row": row})
    };
    let product = |id: i64| {
        let row = json!({"id": id, "name": format!("Product {id}"), "price_cents": 250 * id, "discontinued": false, "details": {"grams": 100 * id}});
        json!({"table": "products", "op": "put", "row": row})
    };
    let changes: Vec<Value> = (1..=CUSTOMERS)
        .map(customer)
        .chain((1..=PRODUCTS).map(product))
        .collect();
    json!({ "changes": changes })
}

/// A new order, and the transaction that creates it with its lines.
fn place(id: i64) -> (Order, Value) {
    let (customer, store) = (id % CUSTOMERS + 1, id % STORES + 1);
    let mut total_cents = 0;
    let line = |line: i64| {
        let product = (id / 3 + line) % PRODUCTS + 1;
        let quantity = (id / 7 + line) % 3 + 1;
        total_cents += quantity * 250 * product;
        let row = json!({"order_id": id, "line": line, "customer_id": customer, "store_id": store,
                         "product_id": product, "quantity": quantity, "price_cents": 250 * product});
        json!({"table": "order_lines", "op": "put", "row": row})
    };
    let lines: Vec<Value> = (1..=id % 3 + 1).map(line).collect();
    let order = Order {
        id,
        customer,
        store,
        total_cents,
        state: 0,
    };
    let mut changes = vec![order_row(&order)];
    changes.extend(lines);
    (order, json!({ "changes": changes }))
}

fn order_row(order: &Order) -> Value {
    let now = crate::time::show(clock::system().now_ms());
    let row = json!({"id": order.id, "customer_id": order.customer, "store_id": order.store,
                     "status": STATES.get(order.state), "total_cents": order.total_cents, "updated_at": now});
    json!({"table": "orders", "op": "put", "row": row})
}

struct Poster<'a> {
    client: reqwest::Client,
    url: &'a str,
    token: &'a str,
    drain: &'a Drain,
}

impl Poster<'_> {
    /// Repeats a request until it is stored or the process stops. If the request is rejected, which can only be a bug
    /// in this file, returns an error.
    async fn post(&self, key: &str, body: &Value) -> Result<()> {
        let stored = retry(RETRY, self.drain, || {
            let sent = self
                .client
                .post(self.url)
                .bearer_auth(self.token)
                .header("idempotency-key", key)
                .json(body)
                .send();
            async move {
                match sent.await {
                    Ok(response) if response.status().is_success() => Ok(()),
                    Ok(response) if response.status() != StatusCode::SERVICE_UNAVAILABLE => {
                        Err(AttemptError::Permanent(response.text().await.unwrap_or_default()))
                    }
                    Ok(_) | Err(_) => Err(AttemptError::Temporary),
                }
            }
        });
        let stored = stored.await.map_err(anyhow::Error::msg);
        stored
            .map(|_| ())
            .context("ingest rejected a transaction of the sample generator")
    }
}
