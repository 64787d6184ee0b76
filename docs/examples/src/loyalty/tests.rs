//! Tests of the example: the processor alone with `StepDriver`, then the application with crashes and rebalances with
//! `TopologyDriver`. Both run without threads, sleeps and disks.

use super::*;
use event_log::{Millis, TopicPartition};
use std::time::Duration;
use streams_test::{FIRST, Moment, START, StepDriver, TopologyDriver, Written, records};

const ADA: &str = "[\"customer\",\"ada\"]";
const BOB: &str = "[\"customer\",\"bob\"]";

fn step_driver() -> StepDriver {
    let topics = Topics::of("loyalty");
    StepDriver::new("loyalty", Box::new(Loyalty { topics })).unwrap()
}

/// Feeds records of one of the two topics with ascending offsets, and commits.
fn feed(
    driver: &mut StepDriver,
    topic: &str,
    first: i64,
    rows: &[(&str, Option<&str>, Millis)],
) -> Vec<(String, String)> {
    let at = TopicPartition::new(format!("loyalty.{topic}"), 0);
    driver.feed(&records(&at, first, rows)).unwrap();
    let sent = driver.commit().unwrap();
    sent.into_iter()
        .map(|written| (written.topic.clone(), value(&written)))
        .collect()
}

fn value(written: &Written) -> String {
    String::from_utf8(written.value.clone().unwrap_or_default()).unwrap()
}

fn points(balance: &str) -> (String, String) {
    ("loyalty.points".to_owned(), balance.to_owned())
}

#[test]
fn order_gives_one_point_per_euro() {
    let mut driver = step_driver();
    let sent = feed(
        &mut driver,
        "orders",
        0,
        &[
            (ADA, Some(r#"{"order":"o-1","cents":1250}"#), 1),
            (ADA, Some(r#"{"order":"o-2","cents":99}"#), 2),
            (ADA, Some(r#"{"order":"o-3","cents":300}"#), 3),
        ],
    );
    let want = [
        points(r#"{"points":12,"change":12,"why":"order o-1"}"#),
        points(r#"{"points":15,"change":3,"why":"order o-3"}"#),
    ];
    assert_eq!(sent, want);
}

#[test]
fn gold_customers_get_double_points() {
    let mut driver = step_driver();
    let order = |at| (ADA, Some(r#"{"order":"o","cents":1000}"#), at);
    let changes = |sent: Vec<(String, String)>| -> Vec<i64> {
        let change = |(_, text): (String, String)| {
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["change"]
                .as_i64()
                .unwrap()
        };
        sent.into_iter().map(change).collect()
    };
    assert_eq!(changes(feed(&mut driver, "orders", 0, &[order(1)])), [10]);
    let gold = [(ADA, Some(r#"{"tier":"gold"}"#), 2)];
    assert_eq!(feed(&mut driver, "customers", 0, &gold), []);
    assert_eq!(changes(feed(&mut driver, "orders", 1, &[order(3)])), [20]);
    assert_eq!(feed(&mut driver, "customers", 1, &[(ADA, None, 4)]), []);
    assert_eq!(changes(feed(&mut driver, "orders", 2, &[order(5)])), [10]);
}

#[test]
fn points_expire_by_stream_time() {
    let mut driver = step_driver();
    let order = Some(r#"{"order":"o-1","cents":1000}"#);
    feed(&mut driver, "orders", 0, &[(ADA, order, 5)]);
    let almost = feed(&mut driver, "customers", 0, &[(BOB, None, EXPIRES_AFTER_MS + 4)]);
    assert_eq!(almost, []);
    let sent = feed(&mut driver, "customers", 1, &[(BOB, None, EXPIRES_AFTER_MS + 5)]);
    assert_eq!(
        sent,
        [points(r#"{"points":0,"change":-10,"why":"order o-1 has expired"}"#)]
    );
    assert!(
        driver.state().get(b"[\"points\",\"ada\"]").unwrap().is_none(),
        "an expired balance is deleted from the state"
    );
}

#[test]
fn invalid_record_becomes_dead_letter() {
    let mut driver = step_driver();
    let at = TopicPartition::new("loyalty.orders", 0);
    let rows = [
        ("ada", Some("{}"), 1),
        (ADA, Some("no JSON"), 2),
        (ADA, None, 3),
        (ADA, Some(r#"{"order":"o-1","cents":-5}"#), 4),
        (ADA, Some(r#"{"order":"o-2","cents":500}"#), 5),
    ];
    driver.feed(&records(&at, 0, &rows)).unwrap();
    let sent = driver.commit().unwrap();
    let reason = |written: &Written| {
        let found = written
            .headers
            .iter()
            .find(|(name, _)| name == "__connect.errors.exception.message");
        let bytes = found.and_then(|(_, value)| value.clone()).unwrap_or_default();
        format!("{}: {}", written.topic, String::from_utf8(bytes).unwrap())
    };
    let reasons: Vec<String> = sent.iter().map(reason).collect();
    let wanted = "the value is not {\"order\":TEXT,\"cents\":NUMBER}";
    assert_eq!(reasons[0], "loyalty.orders.dlq: the key is not [\"customer\", ID]");
    assert!(
        reasons[1].starts_with(&format!("loyalty.orders.dlq: {wanted}: expected")),
        "{}",
        reasons[1]
    );
    assert!(
        reasons[2].starts_with(&format!("loyalty.orders.dlq: {wanted}: EOF")),
        "{}",
        reasons[2]
    );
    let negative = "loyalty.orders.dlq: order o-1 has -5 cents; the amount must not be negative";
    assert_eq!(reasons[3], negative);
    assert_eq!(value(&sent[4]), r#"{"points":5,"change":5,"why":"order o-2"}"#);
}

const TOPICS: [(&str, i32); 3] = [("loyalty.orders", 3), ("loyalty.customers", 3), ("loyalty.points", 2)];

/// Sends an order of 10 euros for each of eight customers.
fn orders(driver: &TopologyDriver, n: usize, at: Millis) {
    for customer in 0..8 {
        let key = format!("[\"customer\",\"{customer}\"]");
        let value = format!("{{\"order\":\"{n}\",\"cents\":1000}}");
        driver.send("loyalty.orders", key, value, at).unwrap();
    }
}

/// The balances that were sent for a customer, in order.
fn balances(driver: &TopologyDriver, customer: usize) -> Vec<i64> {
    let key = format!("[\"customer\",\"{customer}\"]").into_bytes();
    let sent = driver.output("loyalty.points").unwrap();
    let of_customer = sent.iter().filter(|record| record.key.as_ref() == Some(&key));
    let points = of_customer.map(|record| {
        let value: serde_json::Value = serde_json::from_slice(record.value.as_deref().unwrap()).unwrap();
        value["points"].as_i64().unwrap()
    });
    points.collect()
}

#[test]
fn order_counts_once_under_every_fault() {
    type Inject = fn(&mut TopologyDriver);
    let faults: [(&str, Inject); 7] = [
        ("none", |_| {}),
        ("a crash before the commit", |driver| {
            driver.crash_at(Moment::BeforeCommit)
        }),
        ("a crash between commit and store", |driver| {
            driver.crash_at(Moment::AfterCommit)
        }),
        ("an aborted commit", TopologyDriver::abort_next_commit),
        ("a commit whose answer is lost", TopologyDriver::lose_next_answer),
        ("a lost disk", |driver| driver.lose_store().unwrap()),
        ("a second instance", |driver| driver.add_instance("two").unwrap()),
    ];
    for (name, inject) in faults {
        let mut driver = TopologyDriver::start(&application("loyalty"), &TOPICS).unwrap();
        orders(&driver, 1, START);
        driver.run().unwrap();
        orders(&driver, 2, START + 1);
        inject(&mut driver);
        driver.run().unwrap();
        assert_eq!(driver.faults_left(), 0, "{name}");
        for customer in 0..8 {
            assert_eq!(balances(&driver, customer), [10, 20], "{name}, customer {customer}");
        }
    }
}

#[test]
fn points_expire_once_across_crash_and_rebalance() {
    let mut driver = TopologyDriver::start(&application("loyalty"), &TOPICS).unwrap();
    orders(&driver, 1, START);
    driver.run().unwrap();
    driver.add_instance("two").unwrap();
    driver.run().unwrap();
    driver.remove_instance(FIRST).unwrap();
    driver.advance(Duration::from_secs(400 * 24 * 60 * 60));
    // Each task has its own stream time; a later order of each customer advances it in every partition.
    orders(&driver, 2, START + EXPIRES_AFTER_MS);
    driver.crash_at(Moment::BeforeCommit);
    driver.crash_at(Moment::AfterCommit);
    driver.run().unwrap();
    assert_eq!(driver.faults_left(), 0);
    for customer in 0..8 {
        let sent = balances(&driver, customer);
        assert_eq!(
            (sent.len(), sent.last()),
            (3, Some(&10)),
            "customer {customer}: {sent:?}"
        );
    }
    let left: usize = (0..3)
        .map(|partition| driver.state("points", partition).unwrap().len())
        .sum();
    assert_eq!(left, 16, "a balance and a lot for each of eight customers");
}
