//! Declared processors over values: what they write is what a recomputation from the whole history gives.
//!
//! Guarantees: random histories print their seed. Never: a thread, a log, a clock.

mod history;
mod readable;
mod rows;
mod stand;
mod windows;

use schemas::codec::Datum;
use stand::{Stand, row_text};

const SHOP: &str = r#"
name = "shop"
[[connector]]
name = "shop"
kind = "http"
[[table]]
source = "shop"
name = "orders"
key = ["id"]
columns = { id = "int8", customer = "int4?", status = "text", cents = "int8?", rate = "float8?", at = "timestamptz?" }
[[table]]
source = "shop"
name = "details"
key = ["id"]
columns = { id = "int8", note = "text?" }
[[event]]
name = "viewed"
fields = { id = "int8", screen = "text?", ms = "int8" }
key = ["id"]
partitions = 4
"#;

/// A key of one `int8`.
fn id(id: i64) -> String {
    format!("[\"{id}\"]")
}

fn viewed(stand: &mut Stand, id: i64, screen: Option<&str>, ms: i64, at: i64) {
    let screen = screen.map_or(Datum::Null, Datum::Str);
    stand.event("viewed", &[Datum::Long(id), screen, Datum::Long(ms)], at);
}

#[test]
fn events_are_counted_once_and_only_those_that_the_condition_takes() {
    let mut stand = Stand::new(
        SHOP,
        r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        where = "ms > 0"
        group = { id = "id" }
        fields = { n = "count()", screens = "count(screen)", longest = "max(ms)", first = "first(screen)", last = "latest(screen)" }
        "#,
        "views",
    );
    assert!(stand.is_direct());
    viewed(&mut stand, 1, Some("home"), 5, 10);
    viewed(&mut stand, 1, None, 9, 11);
    viewed(&mut stand, 2, Some("cart"), 0, 12);
    viewed(&mut stand, 1, Some("cart"), 7, 13);
    // A replayed event has counted already.
    stand.replay("event.viewed", 0);
    stand.commit();
    assert_eq!(
        stand.shown(),
        [(
            id(1),
            row_text(&[1.into(), 3.into(), 2.into(), 9.into(), "home".into(), "cart".into()])
        )]
    );
    viewed(&mut stand, 2, None, 3, 14);
    stand.abort();
    assert_eq!(stand.shown().len(), 1);
    viewed(&mut stand, 2, None, 3, 14);
    stand.commit();
    assert_eq!(
        stand.shown()[1].1,
        row_text(&[2.into(), 1.into(), 0.into(), 3.into(), stand::NULL, stand::NULL])
    );
}

#[test]
fn a_record_that_cannot_be_computed_is_a_dead_letter_and_a_redriven_one_counts_once() {
    let declared = r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        group = { id = "id" }
        fields = { per = "sum(100 / ms)", all = "sum(ms)" }
        "#;
    let mut stand = Stand::new(SHOP, declared, "views");
    viewed(&mut stand, 1, None, 0, 1);
    viewed(&mut stand, 1, None, 50, 2);
    stand.garbage("event.viewed", &id(1));
    stand.commit();
    let reasons = stand.letters();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert_eq!(reasons[0], "evaluate `100 / ms`: division by zero");
    assert!(reasons[1].contains("Avro body"), "{reasons:?}");
    assert_eq!(stand.shown(), [(id(1), row_text(&[1.into(), 2.into(), 50.into()]))]);
    // Mended and sent again it counts, once; one that has counted does not count again.
    stand.redrive("event.viewed", 0, &[Datum::Long(1), Datum::Null, Datum::Long(25)]);
    stand.redrive("event.viewed", 0, &[Datum::Long(1), Datum::Null, Datum::Long(25)]);
    stand.redrive("event.viewed", 1, &[Datum::Long(1), Datum::Null, Datum::Long(50)]);
    stand.commit();
    assert_eq!(stand.shown(), [(id(1), row_text(&[1.into(), 6.into(), 75.into()]))]);
    // One that the runtime gave up has not counted either.
    stand.give_up("viewed", &[Datum::Long(1), Datum::Null, Datum::Long(20)]);
    stand.commit();
    let on_dead_letter = stand.fed("event.viewed") - 1;
    stand.redrive(
        "event.viewed",
        on_dead_letter,
        &[Datum::Long(1), Datum::Null, Datum::Long(20)],
    );
    stand.redrive(
        "event.viewed",
        on_dead_letter,
        &[Datum::Long(1), Datum::Null, Datum::Long(20)],
    );
    stand.commit();
    assert_eq!(stand.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
    viewed(&mut stand, 1, None, i64::MAX, 3);
    stand.commit();
    assert!(
        stand.letters()[2].contains("leaves the range of int8"),
        "{:?}",
        stand.letters()
    );
    assert_eq!(stand.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
    viewed(&mut stand, 1, None, -i64::MAX, 4);
    stand.commit();
    assert_eq!(stand.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
}

#[test]
fn a_final_window_is_written_once_when_stream_time_has_passed_its_grace() {
    let mut stand = Stand::new(
        SHOP,
        r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        group = { id = "id" }
        fields = { n = "count()" }
        window = { size = "10s", every = "5s", grace = "2s" }
        emit = "final"
        "#,
        "views",
    );
    viewed(&mut stand, 1, None, 1, 7_000);
    viewed(&mut stand, 1, None, 1, 11_000);
    stand.commit();
    assert_eq!(stand.said(), Vec::<String>::new());
    // The window from 0 to 10 s takes what comes until 12 s, and no longer.
    viewed(&mut stand, 1, None, 1, 8_000);
    viewed(&mut stand, 1, None, 1, 12_000);
    viewed(&mut stand, 1, None, 1, 9_000);
    stand.commit();
    let window = |start: &str, n: i64| format!("[\"1\",\"1970-01-01T00:00:{start}Z\"] {n}");
    assert_eq!(stand.said(), [window("00", 2)]);
    stand.reopen();
    viewed(&mut stand, 1, None, 1, 40_000);
    stand.commit();
    // From 5 s: 7, 11, 8, 12 and the late 9; from 10 s: 11 and 12.
    assert_eq!(stand.said(), [window("00", 2), window("05", 5), window("10", 2)]);
    stand.abort();
    stand.commit();
    assert_eq!(stand.said().len(), 3);
}

#[test]
fn rows_are_in_the_windows_of_their_own_time_and_one_from_the_future_closes_none() {
    let mut stand = Stand::new(
        SHOP,
        r#"
        [[processor]]
        name = "per_hour"
        kind = "aggregate"
        from = "shop.orders"
        group = { customer = "customer" }
        fields = { n = "count()", spent = "sum(cents)" }
        window = { size = "1h", time = "at" }
        "#,
        "per_hour",
    );
    assert!(!stand.is_direct());
    let hour = 3_600_000;
    stand.now(99 * hour + hour / 2);
    let order = |stand: &mut Stand, id: i64, cents: i64, at_ms: Option<i64>| {
        let at = at_ms.map_or(Datum::Null, |at| Datum::Long(at * 1000));
        let row = [
            Datum::Long(id),
            Datum::Int(7),
            Datum::Str("paid"),
            Datum::Long(cents),
            Datum::Null,
            at,
        ];
        stand.put("orders", id, &row);
    };
    order(&mut stand, 1, 100, Some(99 * hour));
    order(&mut stand, 2, 50, Some(99 * hour + 1));
    order(&mut stand, 3, 9, Some(9_000 * hour));
    order(&mut stand, 4, 1, None);
    stand.commit();
    let of = |stand: &Stand| {
        stand
            .shown()
            .into_iter()
            .map(|(key, row)| format!("{key} {row}"))
            .collect::<Vec<_>>()
    };
    let shown = of(&stand);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(
        shown[0].starts_with("[7,\"1970-01-05T03:00:00Z\"]") && shown[0].ends_with(" 2 150"),
        "{shown:?}"
    );
    // The second order moves to the next hour, and what it gave goes with it.
    order(&mut stand, 2, 50, Some(100 * hour));
    stand.commit();
    let shown = of(&stand);
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(shown[0].ends_with(" 1 100") && shown[1].ends_with(" 1 50"), "{shown:?}");
}

#[test]
fn an_event_is_joined_with_the_row_as_it_is_at_that_moment() {
    let declared = |kind: &str| {
        format!(
            r#"
            [[processor]]
            name = "joined"
            kind = "join"
            left = "event:viewed"
            right = "shop.orders"
            on = {{ id = "id" }}
            type = "{kind}"
            fields = {{ screen = "left.screen", status = "right.status", double = "left.ms * 2" }}
            "#
        )
    };
    for kind in ["inner", "left"] {
        let mut stand = Stand::new(SHOP, &declared(kind), "joined");
        let order = [
            Datum::Long(1),
            Datum::Null,
            Datum::Str("paid"),
            Datum::Null,
            Datum::Null,
            Datum::Null,
        ];
        viewed(&mut stand, 1, Some("a"), 1, 1);
        stand.put("orders", 1, &order);
        // What is keyed anew arrives with a commit.
        stand.commit();
        viewed(&mut stand, 1, Some("b"), 2, 2);
        stand.delete("orders", 1);
        stand.commit();
        viewed(&mut stand, 1, Some("c"), 3, 3);
        stand.commit();
        let said = stand.said();
        let with = "[\"1\"] b paid 4".to_owned();
        match kind {
            "inner" => assert_eq!(said, [with]),
            _ => assert_eq!(
                said,
                ["[\"1\"] a null 2".to_owned(), with, "[\"1\"] c null 6".to_owned()]
            ),
        }
    }
}

#[test]
fn two_tables_of_one_source_are_joined_row_by_row() {
    let mut stand = Stand::new(
        SHOP,
        r#"
        [[processor]]
        name = "both"
        kind = "join"
        left = "shop.orders"
        right = "shop.details"
        on = { id = "id" }
        where = "left.status != 'draft'"
        fields = { status = "left.status", note = "right.note" }
        "#,
        "both",
    );
    assert!(stand.is_direct());
    let order = |status: &'static str, cents: i64| {
        [
            Datum::Long(1),
            Datum::Null,
            Datum::Str(status),
            Datum::Long(cents),
            Datum::Null,
            Datum::Null,
        ]
    };
    stand.put("orders", 1, &order("paid", 1));
    stand.put("details", 1, &[Datum::Long(1), Datum::Str("gift")]);
    stand.put("orders", 1, &order("paid", 2));
    stand.commit();
    assert_eq!(
        stand.said(),
        ["[\"1\"] paid gift"],
        "a change that is not used says nothing"
    );
    stand.put("orders", 1, &order("draft", 2));
    stand.put("orders", 1, &order("sent", 2));
    stand.truncate("details");
    stand.commit();
    let said = stand.said();
    assert_eq!(said[1..], ["[\"1\"] gone", "[\"1\"] sent gift", "[\"1\"] gone"]);
}

#[test]
fn another_declaration_over_old_state_stops_with_the_way_out() {
    let declared = |what: &str| {
        format!(
            r#"
            [[processor]]
            name = "views"
            kind = "aggregate"
            from = "event:viewed"
            group = {{ id = "id" }}
            fields = {{ n = "{what}" }}
            "#
        )
    };
    let mut stand = Stand::new(SHOP, &declared("count()"), "views");
    viewed(&mut stand, 1, None, 1, 1);
    stand.commit();
    assert_eq!(stand.declare_anew(SHOP, &declared("count()")), Ok(()));
    let error = stand.declare_anew(SHOP, &declared("sum(ms)")).unwrap_err();
    assert!(
        error.contains("give it a new name") && error.contains("sum") && error.contains("\"count\""),
        "{error}"
    );
}
