//! Declarative processors in a process that is killed repeatedly with SIGKILL. The views that a device receives of
//! their output are compared with a result that is computed from the posted rows.

use crate::support::{Broker, Dev, Phone, Polled, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const CUSTOMERS: i64 = 4;

/// Orders as last posted: customer, status, total.
type Orders = BTreeMap<i64, (i64, &'static str, i64)>;

struct Shop {
    dev: Dev,
    data: PathBuf,
    client: reqwest::blocking::Client,
    orders: Orders,
    posts: u64,
    seed: u64,
}

impl Shop {
    fn start(data: &Path, more: &[&str]) -> Shop {
        let topology = Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology/samples/streams.toml");
        let topology = topology.display().to_string();
        let dev = Dev::start(data, &[&["--topology", topology.as_str()], more].concat());
        Shop {
            dev,
            data: data.to_owned(),
            client: reqwest::blocking::Client::new(),
            orders: Orders::new(),
            posts: 0,
            seed: 0x2545_f491_4f6c_dd1d,
        }
    }

    fn below(&mut self, end: i64) -> i64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        i64::try_from(self.seed >> 1).unwrap() % end
    }

    /// Retries a request with the same idempotency key until it succeeds.
    fn post(&mut self, topic: &str, body: &Value) {
        self.posts += 1;
        let token = std::fs::read_to_string(self.data.join("ingest.token")).unwrap();
        let url = format!("{}/v1/ingest/{topic}", self.dev.url("ingest"));
        wait_for("a post to succeed", LIMIT, || {
            let sent = self
                .client
                .post(&url)
                .bearer_auth(token.trim())
                .header("idempotency-key", format!("post-{}", self.posts))
                .json(body)
                .send()
                .ok()?;
            assert!(!sent.status().is_client_error(), "{}: {}", sent.status(), body);
            sent.status().is_success().then_some(())
        });
    }

    /// Posts a transaction of random inserts and updates, changes of an order's customer, and deletes.
    fn trade(&mut self) {
        let mut changes = Vec::new();
        for _ in 0..self.below(4) + 1 {
            let id = self.below(40);
            if self.below(5) == 0 {
                self.orders.remove(&id);
                changes.push(json!({"table": "orders", "op": "delete", "key": {"id": id}}));
                continue;
            }
            let (customer, total) = (self.below(CUSTOMERS) + 1, self.below(1000));
            let status = ["draft", "placed", "sent"][usize::try_from(self.below(3)).unwrap()];
            self.orders.insert(id, (customer, status, total));
            let row = json!({"id": id, "customer_id": customer, "status": status, "total_cents": total,
                "placed_at": "2026-01-31T10:00:00Z"});
            changes.push(json!({"table": "orders", "op": "put", "row": row}));
        }
        self.post("change.shop", &json!({ "changes": changes }));
    }

    fn kill(&mut self) {
        self.dev.kill();
        self.dev.restart();
    }
}

/// Rows of a view: values of the columns `others` by the column `key`, as text.
fn rows(phone: &Phone, view: &str, key: &str, others: &[&str]) -> BTreeMap<String, Vec<String>> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |row: &Value| (text(&row[key]), others.iter().map(|other| text(&row[*other])).collect());
    phone.view(view).map(row).collect()
}

/// Expected totals by customer, and expected customers by number of orders.
fn expected(orders: &Orders) -> [BTreeMap<String, Vec<String>>; 2] {
    let mut groups: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (customer, _, total) in orders.values().filter(|order| order.1 != "draft") {
        groups.entry(*customer).or_default().push(*total);
    }
    let mut sizes: BTreeMap<usize, (usize, i64)> = BTreeMap::new();
    for totals in groups.values() {
        let size = sizes.entry(totals.len()).or_default();
        size.0 += 1;
        size.1 += totals.iter().sum::<i64>();
    }
    let total = |(customer, totals): (&i64, &Vec<i64>)| {
        let texts = [
            totals.len().to_string(),
            totals.iter().sum::<i64>().to_string(),
            totals.iter().max().unwrap().to_string(),
        ];
        (customer.to_string(), texts.to_vec())
    };
    let size = |(orders, (customers, spent)): (&usize, &(usize, i64))| {
        (orders.to_string(), vec![customers.to_string(), spent.to_string()])
    };
    [groups.iter().map(total).collect(), sizes.iter().map(size).collect()]
}

/// Polls until `done` is true.
fn until(shop: &Shop, phone: &mut Phone, what: &str, mut done: impl FnMut(&Phone) -> bool) {
    let edge = shop.dev.url("edge");
    wait_for(what, LIMIT, || {
        if phone.poll(&edge, 1) == Polled::Later {
            std::thread::park_timeout(Duration::from_millis(100));
        }
        done(phone).then_some(())
    });
}

fn settle(shop: &Shop, phone: &mut Phone) {
    let expected = expected(&shop.orders);
    let mut actual = [BTreeMap::new(), BTreeMap::new()];
    let what = format!("totals and sizes to be {expected:?}");
    until(shop, phone, &what, |phone| {
        actual = [
            rows(
                phone,
                "all_totals",
                "customer_id",
                &["orders", "spent_cents", "largest_cents"],
            ),
            rows(phone, "sizes", "orders", &["customers", "spent_cents"]),
        ];
        actual == expected
    });
}

/// An event joins the current row of the customer: as soon as one event has the new name, later events have it too.
fn join(shop: &mut Shop, phone: &mut Phone, round: i64) {
    let name = format!("Ada {round}");
    let customer = json!({"table": "customers", "op": "put", "row": {"id": 1, "name": name}});
    shop.post("change.shop", &json!({ "changes": [customer] }));
    let seen = |phone: &Phone| rows(phone, "last_seen", "customer_id", &["name", "screen"]).remove("1");
    // Events of one order have the same key and therefore stay in order.
    let view = |turn: i64| json!({"order_id": 1, "customer_id": 1, "screen": format!("{round}-{turn}")});
    let mut turn = 0;
    wait_for("an event to be joined with the new name", LIMIT, || {
        turn += 1;
        shop.post("event.order_viewed", &view(turn));
        let edge = shop.dev.url("edge");
        phone.poll(&edge, 1);
        seen(phone).filter(|row| row[0] == name)
    });
    shop.post("event.order_viewed", &view(turn + 1));
    shop.kill();
    let last = vec![name, format!("{round}-{}", turn + 1)];
    until(shop, phone, &format!("the last event to be {last:?}"), |phone| {
        seen(phone).as_ref() == Some(&last)
    });
}

/// Closes the window in which all orders were placed, by placing later orders. Its final record must be written once.
fn close_the_minute(shop: &mut Shop, phone: &mut Phone) {
    let row =
        json!({"id": 1000, "customer_id": 1, "status": "draft", "total_cents": 0, "placed_at": "2026-01-31T11:00:00Z"});
    // Each partition has its own stream time, so orders of every status are needed to advance it in each partition.
    let statuses = ["draft", "placed", "sent"];
    let changes = statuses.iter().enumerate().map(|(at, status)| {
        let mut row = row.clone();
        row["id"] = json!(1000 + at);
        row["status"] = json!(status);
        shop_row(&row)
    });
    let changes: Vec<Value> = changes.collect();
    for (at, status) in statuses.iter().enumerate() {
        shop.orders.insert(1000 + i64::try_from(at).unwrap(), (1, *status, 0));
    }
    let count = |status: &str, orders: &Orders| {
        orders
            .iter()
            .filter(|(id, order)| **id < 1000 && order.1 == status)
            .count()
    };
    let want: BTreeMap<String, Vec<String>> = statuses
        .iter()
        .map(|status| ((*status).to_owned(), vec![count(status, &shop.orders).to_string()]))
        .filter(|(_, count)| count[0] != "0")
        .collect();
    shop.post("change.shop", &json!({ "changes": changes }));
    shop.kill();
    until(shop, phone, &format!("the final minute to be {want:?}"), |phone| {
        rows(phone, "minutes", "status", &["orders"]) == want
    });
}

/// `trunkline state scan` shows the groups of the totals with decoded columns.
fn assert_state_scan(shop: &Shop) {
    let data = shop.data.display().to_string();
    let scan = |store| {
        let of = ["state", "--data", &data, "scan", "streams.orders_by_customer", store];
        let args = [&of[..], &["--limit", "1000", "--output", "json"]].concat();
        serde_json::from_str::<Vec<Value>>(&Dev::output(&args)).unwrap()
    };
    let group = |row: &Value| {
        let field = |name: &str| row["value"]["fields"][name].to_string();
        let fields = ["orders", "spent_cents", "largest_cents"].map(field);
        (row["key"][0] == "g").then(|| (row["key"][1].as_str().unwrap().to_owned(), fields.to_vec()))
    };
    let expected = &expected(&shop.orders)[0];
    let counted = shop.orders.values().filter(|order| order.1 != "draft").count();
    // Queries read the committed state, which may be half a second behind the last commit.
    wait_for("the state to match the orders", LIMIT, || {
        let rows = scan("groups");
        let groups: BTreeMap<_, _> = rows.iter().filter_map(group).collect();
        let giving = rows.iter().filter(|row| row["value"]["contribution"].is_object());
        (groups == *expected && giving.count() == counted).then_some(())
    });
}

fn shop_row(row: &Value) -> Value {
    json!({"table": "orders", "op": "put", "row": row})
}

fn streams_survive_kills(more: &[&str], rounds: i64) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut shop = Shop::start(&data, more);
    let mut phone = Phone::new("phone-1", &shop.dev.token("1", &[]));
    for round in 1..=rounds {
        for _ in 0..25 {
            shop.trade();
        }
        shop.kill();
        for _ in 0..10 {
            shop.trade();
        }
        settle(&shop, &mut phone);
        join(&mut shop, &mut phone, round);
    }
    close_the_minute(&mut shop, &mut phone);
    settle(&shop, &mut phone);
    assert_state_scan(&shop);
    // A new device receives the same rows.
    let mut fresh = Phone::new("phone-2", &shop.dev.token("1", &[]));
    until(&shop, &mut fresh, "a new device to have the same rows", |fresh| {
        fresh.rows == phone.rows
    });
    shop.dev.kill();
}

#[test]
fn aggregates_and_joins_survive_sigkill_on_embedded() {
    streams_survive_kills(&[], 3);
}

#[cfg(feature = "external")]
#[test]
fn aggregates_and_joins_survive_sigkill_on_kafka() {
    let broker = Broker::start();
    streams_survive_kills(&["--kafka", &broker.bootstrap()], 2);
}
