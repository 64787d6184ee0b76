//! Tests of the state as JSON: every row of every store can be shown, and agrees with the output topic.

use super::super::readable;
use super::harness::Harness;
use super::{SHOP, viewed};
use schemas::codec::Datum;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// All rows of the state: keys, and values as JSON.
fn rows(harness: &Harness) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    harness.state(|processor, key, value| {
        let text = String::from_utf8(key.to_vec()).unwrap();
        let shown = readable(processor, key, value);
        let shown = shown.or_else(|| serde_json::from_slice(value).ok());
        rows.insert(text.clone(), shown.unwrap_or_else(|| panic!("{text}: {value:?}")));
    });
    rows
}

#[test]
fn groups_and_rows_are_readable() {
    let mut harness = Harness::new(
        SHOP,
        r#"
        [[processor]]
        name = "totals"
        kind = "aggregate"
        from = "shop.orders"
        group = { customer = "customer" }
        fields = { n = "count()", spent = "sum(cents)", high = "max(rate)", last = "latest(status)" }
        "#,
        "totals",
    );
    let order = |cents: i64, rate: f64| {
        [
            Datum::Null,
            Datum::Int(7),
            Datum::Str("paid, with a card that was lost"),
            Datum::Long(cents),
            Datum::Double(rate),
            Datum::Null,
        ]
    };
    for (number, cents, rate) in [(1, 5, 0.5), (2, 6, f64::INFINITY)] {
        let mut row = order(cents, rate);
        row[0] = Datum::Long(number);
        harness.put("orders", number, &row);
    }
    harness.delete("orders", 3);
    harness.commit();
    let rows = rows(&harness);
    let status = "paid, with a card that was lost";
    let fields = json!({ "n": 2, "spent": 11, "high": "inf", "last": status });
    assert_eq!(rows["[\"g\",7]"], json!({ "rows": 2, "shown": true, "fields": fields }));
    let row = &rows["[\"row\",\"left\",\"1\"]"];
    let version = json!({ "source_epoch": 1, "position": 1, "ordinal": 0 });
    let values = json!({ "customer": 7, "spent": 5, "high": 0.5, "last": status });
    assert_eq!(
        *row,
        json!({
            "version": version,
            "deleted_ms": null,
            "contribution": { "key": [7], "time_ms": 0, "values": values },
            "kept": { "status": status },
        })
    );
    let deleted = &rows["[\"row\",\"left\",\"3\"]"];
    assert!(
        deleted["contribution"].is_null() && deleted["deleted_ms"].is_i64(),
        "{deleted}"
    );
    let progress = &rows["[\"source\",\"left\"]"];
    assert_eq!(
        (&progress["source_epoch"], progress["topic_id"].is_string()),
        (&json!(1), true)
    );
    let latest = rows.iter().filter(|(key, _)| key.starts_with("[\"x\",3,"));
    assert_eq!(latest.map(|(_, value)| value).collect::<Vec<_>>(), [status, status]);
}

#[test]
fn pairs_and_clocks_are_readable() {
    let mut harness = Harness::new(
        SHOP,
        "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\nfields = { status = \"left.status\", note = \"right.note\" }\n",
        "both",
    );
    harness.put("details", 1, &[Datum::Long(1), Datum::Str("gift")]);
    harness.commit();
    let right = json!({ "id": 1, "note": "gift" });
    let pair = &rows(&harness)["[\"p\",\"1\"]"];
    assert_eq!(*pair, json!({ "left": null, "right": right, "shown": false }));
    let mut harness = Harness::new(
        SHOP,
        "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = { id = \"id\" }\n\
         fields = { n = \"count()\" }\nwindow = { size = \"10s\" }\n",
        "w",
    );
    harness.now(19_000);
    viewed(&mut harness, 1, None, 1, 12_000);
    viewed(&mut harness, 1, None, 1, 99_000);
    harness.commit();
    let rows = rows(&harness);
    assert_eq!(rows["[\"clock\"]"], json!({ "stream_time_ms": 19_000 }));
    assert_eq!(
        rows["[\"closing\",\"00000000000000020000\",\"10000\",\"1\"]"],
        json!(true)
    );
    let group = json!({ "rows": 1, "shown": true, "fields": { "n": 1 } });
    assert_eq!(rows["[\"w\",\"90000\",\"1\"]"], group);
}

#[test]
fn unknown_formats_are_not_readable() {
    let mut harness = Harness::new(
        SHOP,
        "[[processor]]\nname = \"v\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = { id = \"id\" }\n\
         fields = { n = \"count()\" }\n",
        "v",
    );
    viewed(&mut harness, 1, None, 1, 1);
    harness.commit();
    let mut tried = 0;
    harness.state(|processor, key, value| {
        for cut in (0..value.len()).filter(|_| key.starts_with(b"[\"g\"")) {
            assert_eq!(readable(processor, key, &value[..cut]), None);
            tried += 1;
        }
        for other in [
            &b"[\"other\",1]"[..],
            b"no json",
            b"[]",
            b"[1]",
            b"[\"row\"]",
            b"[\"row\",\"middle\",1]",
        ] {
            assert_eq!(readable(processor, other, value), None);
        }
    });
    assert!(tried > 3);
}
