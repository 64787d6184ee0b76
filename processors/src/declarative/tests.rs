//! Tests of declarative processors with `StepDriver`: their output must be equal to a recomputation from the whole
//! history.
//!
//! Tests with random histories print their seed.

mod harness;
mod history;
mod inspect;
mod limits;
mod loading;
mod schemas_of_records;
mod snapshots;
mod sweeps;
mod windows;

use super::{Config, StepLimits, application};
use harness::{Harness, row_text};
use schemas::codec::Datum;
use std::sync::Arc;
use topology::wiring::Wiring;

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

/// A key with one `int8` element.
fn id(id: i64) -> String {
    format!("[\"{id}\"]")
}

fn viewed(harness: &mut Harness, id: i64, screen: Option<&str>, ms: i64, at: i64) {
    let screen = screen.map_or(Datum::Null, Datum::Str);
    harness.event("viewed", &[Datum::Long(id), screen, Datum::Long(ms)], at);
}

#[test]
fn applications_have_the_names_of_the_wiring() {
    let topology = Arc::new(topology::samples::STREAMS.check().into_result().unwrap());
    let wiring = Wiring::of(&topology);
    for processor in &topology.processors {
        let application = application(&Config {
            topology: topology.clone(),
            processor: Arc::new(processor.clone()),
            schema_id: 1,
            loaded_schema_id: 2,
            horizon_ms: 1_000,
            sweep_step: StepLimits::default(),
            fetch: Arc::new(|_| Ok(String::new())),
        });
        let wired = wiring
            .processors
            .iter()
            .find(|wired| wired.name == processor.name)
            .unwrap();
        for input in &wired.inputs {
            assert_eq!(application.name, input.group);
            let sub = application.subtopologies.iter().find(|sub| sub.store == input.store);
            assert!(sub.unwrap().inputs.contains(&input.topic), "{}", input.topic);
            let changelog = streams::changelog_topic(&application.name, &input.store);
            assert_eq!(changelog, input.changelog);
            assert!(wiring.topic(&event_log::dead_letter_topic(&input.topic)).is_some());
        }
    }
}

#[test]
fn matching_events_count_once() {
    let mut harness = Harness::new(
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
    assert!(harness.is_direct());
    viewed(&mut harness, 1, Some("home"), 5, 10);
    viewed(&mut harness, 1, None, 9, 11);
    viewed(&mut harness, 2, Some("cart"), 0, 12);
    viewed(&mut harness, 1, Some("cart"), 7, 13);
    // A replayed event was already counted.
    harness.replay("shop.event.viewed", 0);
    harness.commit();
    assert_eq!(
        harness.shown(),
        [(
            id(1),
            row_text(&[1.into(), 3.into(), 2.into(), 9.into(), "home".into(), "cart".into()])
        )]
    );
    viewed(&mut harness, 2, None, 3, 14);
    harness.abort();
    assert_eq!(harness.shown().len(), 1);
    viewed(&mut harness, 2, None, 3, 14);
    harness.commit();
    assert_eq!(
        harness.shown()[1].1,
        row_text(&[2.into(), 1.into(), 0.into(), 3.into(), harness::NULL, harness::NULL])
    );
}

#[test]
fn entry_of_failed_event_expires_after_its_dead_letter() {
    let declaration = r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        group = { id = "id" }
        fields = { all = "sum(100 / ms)" }
        "#;
    let entries = |harness: &Harness| {
        let mut found = 0;
        harness.state(|_, key, _| found += usize::from(key.starts_with(b"[\"failed\"")));
        found
    };
    let mut harness = Harness::new(SHOP, declaration, "views");
    let row = [Datum::Long(1), Datum::Null, Datum::Long(0)];
    harness.now(0);
    viewed(&mut harness, 1, None, 0, 1);
    harness.commit();
    assert_eq!(entries(&harness), 1);
    let day = 24 * 60 * 60 * 1000;
    // A redrive fails again, so that the entry is kept for as long as the new dead letter.
    harness.now(10 * day);
    harness.redrive("shop.event.viewed", 0, &row);
    harness.commit();
    harness.now(35 * day);
    viewed(&mut harness, 2, None, 1, 2);
    harness.commit();
    assert_eq!(entries(&harness), 1);
    harness.now(42 * day);
    viewed(&mut harness, 2, None, 1, 3);
    harness.commit();
    assert_eq!(entries(&harness), 0);
}

#[test]
fn failed_event_is_dead_letter_and_redrive_counts_once() {
    let declaration = r#"
        [[processor]]
        name = "views"
        kind = "aggregate"
        from = "event:viewed"
        group = { id = "id" }
        fields = { per = "sum(100 / ms)", all = "sum(ms)" }
        "#;
    let mut harness = Harness::new(SHOP, declaration, "views");
    viewed(&mut harness, 1, None, 0, 1);
    viewed(&mut harness, 1, None, 50, 2);
    harness.garbage("shop.event.viewed", &id(1));
    harness.commit();
    let reasons = harness.dead_letters();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert_eq!(reasons[0], "cannot evaluate `100 / ms`: division by zero");
    assert!(reasons[1].contains("Avro body"), "{reasons:?}");
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 2.into(), 50.into()]))]);
    // A redriven event is counted once; an event that was already counted is not counted again.
    harness.redrive("shop.event.viewed", 0, &[Datum::Long(1), Datum::Null, Datum::Long(25)]);
    harness.redrive("shop.event.viewed", 0, &[Datum::Long(1), Datum::Null, Datum::Long(25)]);
    harness.redrive("shop.event.viewed", 1, &[Datum::Long(1), Datum::Null, Datum::Long(50)]);
    harness.commit();
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 6.into(), 75.into()]))]);
    // An event whose effects were rejected was not counted either.
    harness.reject("viewed", &[Datum::Long(1), Datum::Null, Datum::Long(20)]);
    harness.commit();
    let rejected = harness.fed("shop.event.viewed") - 1;
    harness.redrive(
        "shop.event.viewed",
        rejected,
        &[Datum::Long(1), Datum::Null, Datum::Long(20)],
    );
    harness.redrive(
        "shop.event.viewed",
        rejected,
        &[Datum::Long(1), Datum::Null, Datum::Long(20)],
    );
    harness.commit();
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
    viewed(&mut harness, 1, None, i64::MAX, 3);
    harness.commit();
    assert!(
        harness.dead_letters()[2].contains("out of the range of int8"),
        "{:?}",
        harness.dead_letters()
    );
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
    viewed(&mut harness, 1, None, -i64::MAX, 4);
    harness.commit();
    assert_eq!(harness.shown(), [(id(1), row_text(&[1.into(), 11.into(), 95.into()]))]);
}

#[test]
fn final_window_is_written_once_after_grace() {
    let mut harness = Harness::new(
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
    viewed(&mut harness, 1, None, 1, 7_000);
    viewed(&mut harness, 1, None, 1, 11_000);
    harness.commit();
    assert_eq!(harness.sent(), Vec::<String>::new());
    // The window from 0 to 10 s accepts records until stream time 12 s.
    viewed(&mut harness, 1, None, 1, 8_000);
    viewed(&mut harness, 1, None, 1, 12_000);
    viewed(&mut harness, 1, None, 1, 9_000);
    harness.commit();
    let window = |start: &str, n: i64| format!("[\"1\",\"1970-01-01T00:00:{start}Z\"] {n}");
    assert_eq!(harness.sent(), [window("00", 2)]);
    harness.restart();
    viewed(&mut harness, 1, None, 1, 40_000);
    harness.commit();
    // Expected: the window from 5 s contains 7, 11, 8, 12 and the late 9; the window from 10 s contains 11 and 12.
    assert_eq!(harness.sent(), [window("00", 2), window("05", 5), window("10", 2)]);
    harness.abort();
    harness.commit();
    assert_eq!(harness.sent().len(), 3);
}

#[test]
fn future_row_does_not_close_windows() {
    let mut harness = Harness::new(
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
    assert!(!harness.is_direct());
    let hour = 3_600_000;
    harness.now(99 * hour + hour / 2);
    let order = |harness: &mut Harness, id: i64, cents: i64, at_ms: Option<i64>| {
        let at = at_ms.map_or(Datum::Null, |at| Datum::Long(at * 1000));
        let row = [
            Datum::Long(id),
            Datum::Int(7),
            Datum::Str("paid"),
            Datum::Long(cents),
            Datum::Null,
            at,
        ];
        harness.put("orders", id, &row);
    };
    order(&mut harness, 1, 100, Some(99 * hour));
    order(&mut harness, 2, 50, Some(99 * hour + 1));
    order(&mut harness, 3, 9, Some(9_000 * hour));
    order(&mut harness, 4, 1, None);
    harness.commit();
    let of = |harness: &Harness| {
        harness
            .shown()
            .into_iter()
            .map(|(key, row)| format!("{key} {row}"))
            .collect::<Vec<_>>()
    };
    let shown = of(&harness);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(
        shown[0].starts_with("[7,\"1970-01-05T03:00:00Z\"]") && shown[0].ends_with(" 2 150"),
        "{shown:?}"
    );
    // The second order moves to the next hour, together with its contribution.
    order(&mut harness, 2, 50, Some(100 * hour));
    harness.commit();
    let shown = of(&harness);
    assert_eq!(shown.len(), 3, "{shown:?}");
    assert!(shown[0].ends_with(" 1 100") && shown[1].ends_with(" 1 50"), "{shown:?}");
}

#[test]
fn event_joins_the_present_row() {
    let declaration = |kind: &str| {
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
        let mut harness = Harness::new(SHOP, &declaration(kind), "joined");
        let order = [
            Datum::Long(1),
            Datum::Null,
            Datum::Str("paid"),
            Datum::Null,
            Datum::Null,
            Datum::Null,
        ];
        viewed(&mut harness, 1, Some("a"), 1, 1);
        harness.put("orders", 1, &order);
        // Repartitioned deltas are delivered at the commit.
        harness.commit();
        viewed(&mut harness, 1, Some("b"), 2, 2);
        harness.delete("orders", 1);
        harness.commit();
        viewed(&mut harness, 1, Some("c"), 3, 3);
        harness.commit();
        let sent = harness.sent();
        let with = "[\"1\"] b paid 4".to_owned();
        match kind {
            "inner" => assert_eq!(sent, [with]),
            _ => assert_eq!(
                sent,
                ["[\"1\"] a null 2".to_owned(), with, "[\"1\"] c null 6".to_owned()]
            ),
        }
    }
}

#[test]
fn tables_of_one_source_join_row_by_row() {
    let mut harness = Harness::new(
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
    assert!(harness.is_direct());
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
    harness.put("orders", 1, &order("paid", 1));
    harness.put("details", 1, &[Datum::Long(1), Datum::Str("gift")]);
    harness.put("orders", 1, &order("paid", 2));
    harness.commit();
    assert_eq!(
        harness.sent(),
        ["[\"1\"] paid gift"],
        "a change of an unused column writes nothing"
    );
    harness.put("orders", 1, &order("draft", 2));
    harness.put("orders", 1, &order("sent", 2));
    harness.truncate("details");
    harness.commit();
    let sent = harness.sent();
    assert_eq!(sent[1..], ["[\"1\"] gone", "[\"1\"] sent gift", "[\"1\"] gone"]);
}

#[test]
fn changed_declaration_stops_with_a_fix() {
    let declaration = |what: &str| {
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
    let mut harness = Harness::new(SHOP, &declaration("count()"), "views");
    viewed(&mut harness, 1, None, 1, 1);
    harness.commit();
    assert_eq!(harness.restore_under(SHOP, &declaration("count()")), Ok(()));
    let error = harness.restore_under(SHOP, &declaration("sum(ms)")).unwrap_err();
    assert!(
        error.contains("give the processor a new name") && error.contains("sum") && error.contains("\"count\""),
        "{error}"
    );
}
