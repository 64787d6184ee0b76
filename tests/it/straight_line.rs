//! The whole line, real processes: rows go in, devices poll, and at every complete page what belongs together is there.
//!
//! pgbench's transaction changes a branch's balance and writes its history: half a transaction would show as a balance
//! that is not the sum of the deltas. The sample shop's order and its lines are held to the same.

use crate::world::{self, Broker, Dev, Phone, Polled, Postgres};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn number(row: &Value, column: &str) -> i64 {
    match &row[column] {
        Value::String(text) => text.parse().expect("a whole number"),
        other => other.as_i64().expect("a whole number"),
    }
}

fn sum<'a>(rows: impl Iterator<Item = &'a Value>, column: &str) -> i64 {
    rows.map(|row| number(row, column)).sum()
}

/// Polls until `done` says so, within a limit; every complete page is held to `check`.
fn follow(
    phone: &mut Phone,
    edge: &str,
    limit: Duration,
    check: &dyn Fn(&Phone),
    done: &mut dyn FnMut(&Phone) -> bool,
) {
    let until = Instant::now() + limit;
    loop {
        match phone.poll(edge, 1) {
            Polled::Complete => check(phone),
            Polled::Later => std::thread::park_timeout(Duration::from_millis(100)),
            Polled::Part | Polled::Same => {}
        }
        if done(phone) {
            return;
        }
        assert!(
            Instant::now() < until,
            "not done within {limit:?}; the device holds {} rows",
            phone.rows.len()
        );
    }
}

/// An order's total is the sum of its lines, in every state that a device is given.
fn orders_are_whole(phone: &Phone) {
    for order in phone.view("orders") {
        let lines = phone.view("order_lines").filter(|l| l["order_id"] == order["id"]);
        let total: i64 = lines.map(|l| number(l, "quantity") * number(l, "price_cents")).sum();
        assert_eq!(number(order, "total_cents"), total, "half a transaction: {order}");
    }
}

fn shop_survives_kills(store: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut dev = Dev::start(&data, &[&["--orders-per-s", "40"], store].concat());
    let mut phone = Phone::new("phone-1", &dev.token("1", &[]));
    let mut seen = 0;
    for round in 1..=4 {
        let edge = dev.url("edge");
        let want = phone.complete + 12;
        follow(
            &mut phone,
            &edge,
            Duration::from_secs(60),
            &orders_are_whole,
            &mut |p| p.complete >= want,
        );
        let orders = phone.view("orders").count();
        assert!(
            orders > seen,
            "round {round}: {orders} orders, {seen} before; the generator's orders must keep coming"
        );
        seen = orders;
        dev.kill();
        dev.restart();
    }
    // A device that begins anew is given the very same as the one that lived through all of it.
    let edge = dev.url("edge");
    dev.kill();
    drop(dev);
    let mut quiet = Dev::start(&data, &[&["--orders-per-s", "0"], store].concat());
    let edge_now = quiet.url("edge");
    assert_ne!(edge, edge_now);
    let whole = &mut |p: &Phone| p.complete > 0;
    let mut fresh = Phone::new("phone-2", &quiet.token("1", &[]));
    follow(&mut fresh, &edge_now, Duration::from_secs(60), &orders_are_whole, whole);
    let same = &mut |p: &Phone| p.rows == fresh.rows;
    follow(&mut phone, &edge_now, Duration::from_secs(60), &orders_are_whole, same);
    quiet.kill();
}

#[test]
fn the_shop_on_the_embedded_log_survives_kill_9_of_everything() {
    shop_survives_kills(&[]);
}

#[test]
fn the_shop_on_sled_survives_kill_9_of_everything() {
    shop_survives_kills(&["--store", "sled"]);
}

/// Runs SQL through psql and returns what it prints, unaligned.
fn sql(url: &str, text: &str) -> String {
    let psql = world::postgres_bin().join("psql");
    let out = Command::new(psql)
        .args(["-qAt", "-v", "ON_ERROR_STOP=1", url, "-c", text])
        .output()
        .unwrap();
    assert!(out.status.success(), "{text}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn branch_is_whole(phone: &Phone) {
    let balance = sum(phone.view("branches"), "bbalance");
    let history = sum(phone.view("history"), "delta");
    assert_eq!(
        balance, history,
        "half a transaction shows: the branch's balance is not the sum of its history"
    );
}

/// pgbench's four tables, with a serial key for the history.
fn bank(bench: &Path, url: &str) {
    let made = Command::new(bench)
        .args(["-q", "-i", "-s", "5", url])
        .stderr(Stdio::null())
        .status();
    assert!(made.unwrap().success(), "pgbench -i");
    sql(url, "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY");
}

#[test]
fn pgbench_over_kafka_never_shows_half_a_transaction_and_ends_as_the_database() {
    let (postgres, broker) = (Postgres::start(), Broker::start());
    let bench = world::postgres_bin().join("pgbench");
    bank(&bench, &postgres.url());
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let topology = dir.path().join("pgbench.toml");
    std::fs::write(&topology, topology::samples::PGBENCH.text).unwrap();
    let (topology, kafka, url) = (topology.display().to_string(), broker.bootstrap(), postgres.url());
    let mut dev = Dev::start(&data, &["--topology", &topology, "--kafka", &kafka, "--postgres", &url]);
    let mut phones: Vec<Phone> = (1..=5)
        .map(|branch| Phone::new("phone", &dev.token("x", &[&format!("branch={branch}")])))
        .collect();
    let edge = dev.url("edge");
    for phone in &mut phones {
        let first = &mut |p: &Phone| p.complete > 0 && p.view("accounts").count() == 100_000;
        follow(phone, &edge, Duration::from_secs(180), &branch_is_whole, first);
    }
    let mut load = Command::new(&bench)
        .args(["-n", "-c", "4", "-T", "20", &url])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("pgbench starts");
    for _ in 0..3 {
        let edge = dev.url("edge");
        for phone in &mut phones {
            let want = phone.complete + 3;
            follow(phone, &edge, Duration::from_secs(60), &branch_is_whole, &mut |p| {
                p.complete >= want
            });
        }
        dev.kill();
        dev.restart();
    }
    assert!(load.wait().unwrap().success(), "pgbench's run");
    let edge = dev.url("edge");
    for (n, phone) in phones.iter_mut().enumerate() {
        let branch = n + 1;
        let count = |what: &str| {
            sql(&url, &format!("SELECT {what} WHERE bid = {branch}"))
                .parse::<i64>()
                .unwrap()
        };
        let history = count("count(*) FROM pgbench_history");
        let (accounts, tellers) = (
            count("sum(abalance) FROM pgbench_accounts"),
            count("sum(tbalance) FROM pgbench_tellers"),
        );
        let caught_up = &mut |p: &Phone| p.view("history").count() as i64 == history;
        follow(phone, &edge, Duration::from_secs(120), &branch_is_whole, caught_up);
        assert_eq!(
            sum(phone.view("accounts"), "abalance"),
            accounts,
            "accounts of branch {branch}"
        );
        assert_eq!(
            sum(phone.view("tellers"), "tbalance"),
            tellers,
            "tellers of branch {branch}"
        );
        assert_eq!(phone.view("accounts").count(), 100_000);
    }
}
