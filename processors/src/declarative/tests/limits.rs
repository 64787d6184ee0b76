//! Values that a group cannot include, and results that its record cannot contain.

use super::harness::{Harness, NOW};
use super::{SHOP, viewed};
use schemas::codec::Datum;

#[test]
fn long_text_is_one_dead_letter_and_not_one_per_change() {
    let mut harness = Harness::new(
        SHOP,
        r#"
        [[processor]]
        name = "totals"
        kind = "aggregate"
        from = "shop.orders"
        group = { customer = "customer" }
        fields = { spent = "sum(cents)", low = "min(status)" }
        "#,
        "totals",
    );
    let long = "x".repeat(2_000);
    let order = |status, cents| {
        [
            Datum::Long(1),
            Datum::Int(7),
            Datum::Str(status),
            Datum::Long(cents),
            Datum::Null,
            Datum::Null,
        ]
    };
    for (status, cents, dead_letters) in [
        ("short", 1, 0),
        (long.as_str(), 2, 1),
        // The other fields of later changes count.
        (long.as_str(), 3, 1),
        ("short", 4, 1),
        ("other", 5, 1),
        (long.as_str(), 6, 2),
    ] {
        harness.put("orders", 1, &order(status, cents));
        harness.commit();
        assert_eq!(
            harness.dead_letters().len(),
            dead_letters,
            "{cents}: {:?}",
            harness.dead_letters()
        );
    }
    harness.delete("orders", 1);
    harness.commit();
    assert_eq!(harness.dead_letters().len(), 2);
    assert_eq!(harness.shown(), []);
}

#[test]
fn final_window_whose_sum_is_out_of_range_is_reported() {
    let mut harness = Harness::new(
        SHOP,
        r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        group = { id = "id" }
        fields = { ms = "sum(ms)" }
        window = { size = "10s" }
        emit = "final"
        "#,
        "views",
    );
    viewed(&mut harness, 1, None, i64::MAX, 1_000);
    viewed(&mut harness, 1, None, 1, 2_000);
    viewed(&mut harness, 2, None, 5, 3_000);
    harness.commit();
    // The record that leaves the range is a dead letter, but it may return to the range.
    assert_eq!(harness.dead_letters().len(), 1, "{:?}", harness.dead_letters());
    viewed(&mut harness, 2, None, 1, 20_000);
    harness.commit();
    assert_eq!(harness.sent(), ["[\"2\",\"1970-01-01T00:00:00Z\"] 5"]);
    assert_eq!(
        harness.dead_letters()[1..],
        ["the final record of window 0 of group [\"1\"] cannot be written: a sum is out of the range of int8"]
    );
}

/// The list of deleted rows is only read if a row in it may be old enough.
#[test]
fn deleted_rows_are_forgotten_after_the_horizon() {
    let mut harness = Harness::new(
        SHOP,
        r#"
        [[processor]]
        name = "both"
        kind = "join"
        left = "shop.orders"
        right = "shop.details"
        on = { id = "id" }
        fields = { note = "right.note" }
        "#,
        "both",
    );
    let deleted = |harness: &Harness| {
        let mut keys = 0;
        harness.state(|_, key, _| keys += usize::from(key.starts_with(b"[\"gone\"")));
        keys
    };
    let horizon = 1_000_000;
    for number in 0..3 {
        harness.put("details", number, &[Datum::Long(number), Datum::Null]);
    }
    harness.commit();
    for (at, number) in [(0, 0), (500_000, 1), (500_001, 2)] {
        harness.now(NOW + at);
        harness.delete("details", number);
        harness.commit();
    }
    for (at, left) in [
        (horizon, 3),
        (horizon + 1, 2),
        (horizon + 500_001, 1),
        (horizon + 500_002, 0),
    ] {
        harness.now(NOW + at);
        harness.commit();
        assert_eq!(deleted(&harness), left, "{at}");
        harness.restart();
    }
}
