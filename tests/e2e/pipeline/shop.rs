//! The sample shop in one process on the embedded log, killed repeatedly with SIGKILL.

use super::{follow, number};
use crate::support::{Dev, Phone, binary};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Checks that the total of every order is the sum of its lines.
fn orders_are_whole(phone: &Phone) {
    for order in phone.view("orders") {
        let lines = phone.view("order_lines").filter(|l| l["order_id"] == order["id"]);
        let total: i64 = lines.map(|l| number(l, "quantity") * number(l, "price_cents")).sum();
        assert_eq!(number(order, "total_cents"), total, "partial transaction: {order}");
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
            "round {round}: {orders} orders, {seen} before; the generator must continue"
        );
        seen = orders;
        dev.kill();
        dev.restart();
    }
    // A new device must receive the same rows as the device that has polled the whole time.
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

/// Position in the state, and committed offset, of the only input, as `trunkline offsets COMMAND` prints them.
fn offsets(data: &Path, command: &str) -> Value {
    let out = Command::new(binary())
        .args(["--output", "json", "offsets", "--data"])
        .arg(data)
        .args([command, "shop.sync-views.change.shop", "rows/0"])
        .output()
        .expect("the binary runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let inputs: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    inputs[0].clone()
}

#[test]
fn reset_keeps_state_and_offsets_consistent() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    let mut dev = Dev::start(&data, &["--orders-per-s", "40"]);
    let mut phone = Phone::new("phone-1", &dev.token("1", &[]));
    let edge = dev.url("edge");
    let some = &mut |p: &Phone| p.complete >= 5;
    follow(&mut phone, &edge, Duration::from_secs(60), &orders_are_whole, some);
    dev.kill();
    let before = offsets(&data, "show");
    assert!(
        number(&before, "state") > 0 && before["state"] == before["committed"],
        "{before}"
    );
    assert_eq!(offsets(&data, "restore"), before);
    assert_eq!(offsets(&data, "accept"), before);
    dev.restart();
    let (edge, more) = (dev.url("edge"), phone.complete + 5);
    let some = &mut |p: &Phone| p.complete >= more;
    follow(&mut phone, &edge, Duration::from_secs(60), &orders_are_whole, some);
    dev.kill();
}

#[test]
fn shop_survives_sigkill_on_embedded_log() {
    shop_survives_kills(&[]);
}

#[test]
fn shop_survives_sigkill_on_sled() {
    shop_survives_kills(&["--store", "sled"]);
}
