//! The state as people are shown it.
//!
//! Guarantees: every row of every store is readable, and says what the topic says. Never: a fixed format of the bytes.

use super::super::readable;
use super::stand::Stand;
use super::{SHOP, viewed};
use schemas::codec::Datum;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// All rows of a stand's state: key and value as they are shown.
fn rows(stand: &Stand) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    stand.state(|processor, key, value| {
        let text = String::from_utf8(key.to_vec()).unwrap();
        let shown = readable(processor, key, value);
        let shown = shown.or_else(|| serde_json::from_slice(value).ok());
        rows.insert(text.clone(), shown.unwrap_or_else(|| panic!("{text}: {value:?}")));
    });
    rows
}

#[test]
fn groups_their_values_and_the_rows_that_gave_them_are_shown_by_name() {
    let mut stand = Stand::new(
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
        stand.put("orders", number, &row);
    }
    stand.delete("orders", 3);
    stand.commit();
    let rows = rows(&stand);
    let status = "paid, with a card that was lost";
    let fields = json!({ "n": 2, "spent": 11, "high": "inf", "last": status });
    assert_eq!(rows["[\"g\",7]"], json!({ "rows": 2, "shown": true, "fields": fields }));
    let given = &rows["[\"row\",\"left\",\"1\"]"];
    let version = json!({ "incarnation": 1, "position": 1, "ordinal": 0 });
    let values = json!({ "customer": 7, "spent": 5, "high": 0.5, "last": status });
    assert_eq!(
        *given,
        json!({
            "version": version,
            "deleted_ms": null,
            "gives": { "key": [7], "time_ms": 0, "values": values },
            "kept": { "status": status },
        })
    );
    let gone = &rows["[\"row\",\"left\",\"3\"]"];
    assert!(gone["gives"].is_null() && gone["deleted_ms"].is_i64(), "{gone}");
    let line = &rows["[\"line\",\"left\"]"];
    assert_eq!((&line["incarnation"], line["topic_id"].is_string()), (&json!(1), true));
    let latest = rows.iter().filter(|(key, _)| key.starts_with("[\"x\",3,"));
    assert_eq!(latest.map(|(_, value)| value).collect::<Vec<_>>(), [status, status]);
}

#[test]
fn pairs_and_clocks_are_shown() {
    let mut stand = Stand::new(
        SHOP,
        "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\nfields = { status = \"left.status\", note = \"right.note\" }\n",
        "both",
    );
    stand.put("details", 1, &[Datum::Long(1), Datum::Str("gift")]);
    stand.commit();
    let right = json!({ "id": 1, "note": "gift" });
    let pair = &rows(&stand)["[\"p\",\"1\"]"];
    assert_eq!(*pair, json!({ "left": null, "right": right, "shown": false }));
    let mut stand = Stand::new(
        SHOP,
        "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = { id = \"id\" }\n\
         fields = { n = \"count()\" }\nwindow = { size = \"10s\" }\n",
        "w",
    );
    stand.now(19_000);
    viewed(&mut stand, 1, None, 1, 12_000);
    viewed(&mut stand, 1, None, 1, 99_000);
    stand.commit();
    let rows = rows(&stand);
    assert_eq!(rows["[\"clock\"]"], json!({ "stream_time_ms": 19_000 }));
    assert_eq!(
        rows["[\"closing\",\"00000000000000020000\",\"10000\",\"1\"]"],
        json!(true)
    );
    let group = json!({ "rows": 1, "shown": true, "fields": { "n": 1 } });
    assert_eq!(rows["[\"w\",\"90000\",\"1\"]"], group);
}

#[test]
fn what_is_not_as_this_release_writes_it_is_left_as_it_is() {
    let mut stand = Stand::new(
        SHOP,
        "[[processor]]\nname = \"v\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = { id = \"id\" }\n\
         fields = { n = \"count()\" }\n",
        "v",
    );
    viewed(&mut stand, 1, None, 1, 1);
    stand.commit();
    let mut tried = 0;
    stand.state(|processor, key, value| {
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
