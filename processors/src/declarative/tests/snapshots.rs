//! Records that only some sources write: the ends of snapshot chunks, and rows without their unchanged large columns.
//!
//! In random histories, changes are lost and a snapshot restores them.

use super::harness::{Harness, NOW};
use super::history::{Random, harness};
use super::{SHOP, id};
use schemas::codec::Datum;
use std::collections::BTreeMap;

/// Long enough that the source omits the value when it does not change.
const LONG: [&str; 3] = [
    "paid, with a card that was lost",
    "sent, by a very slow carrier",
    "back, with an unknown reason code",
];
const SHORT: [&str; 2] = ["paid", "draft"];

/// Customer, status and amount in cents of each order, by order number.
type Orders = BTreeMap<i64, Order>;
type Order = (i32, &'static str, i64);

fn row(number: i64, order: Order) -> Vec<Datum<'static>> {
    let (customer, status, cents) = order;
    vec![
        Datum::Long(number),
        Datum::Int(customer),
        Datum::Str(status),
        Datum::Long(cents),
        Datum::Null,
        Datum::Null,
    ]
}

const TOTALS: &str = r#"
[[processor]]
name = "totals"
kind = "aggregate"
from = "shop.orders"
where = "status != 'draft'"
group = { customer = "customer" }
fields = { n = "count()", spent = "sum(cents)", low = "min(status)", high = "max(status)" }
"#;

fn expected(orders: &Orders) -> Vec<(String, String)> {
    let mut groups: BTreeMap<i32, Vec<(&str, i64)>> = BTreeMap::new();
    for (customer, status, cents) in orders.values().filter(|order| order.1 != "draft") {
        groups.entry(*customer).or_default().push((status, *cents));
    }
    let text = |(customer, orders): (i32, Vec<(&str, i64)>)| {
        let statuses = || orders.iter().map(|(status, _)| *status);
        let (low, high) = (statuses().min().unwrap(), statuses().max().unwrap());
        let spent: i64 = orders.iter().map(|(_, cents)| cents).sum();
        (
            format!("[{customer}]"),
            format!("{customer} {} {spent} {low} {high}", orders.len()),
        )
    };
    groups.into_iter().map(text).collect()
}

#[test]
fn chunk_end_removes_rows_that_were_not_found() {
    let mut harness = Harness::new(SHOP, TOTALS, "totals");
    for number in 1..=5 {
        harness.put("orders", number, &row(number, (7, "paid", 1)));
    }
    harness.commit();
    let shown = |harness: &Harness| harness.shown().pop().map(|(_, row)| row);
    assert_eq!(shown(&harness).as_deref(), Some("7 5 5 paid paid"));
    // The chunk has the range 1 to 3: row 2 is deleted and row 3 differs. Rows 4 and 5 are outside the range.
    let found = [(1, row(1, (7, "paid", 1))), (3, row(3, (7, "sent", 10)))];
    harness.chunk("orders", &found, None, Some(3));
    harness.commit();
    assert_eq!(shown(&harness).as_deref(), Some("7 4 13 paid sent"));
    // Neither a repeated chunk nor an old change of the deleted row changes anything.
    for number in 0..harness.fed("shop.change.shop") {
        harness.redeliver("shop.change.shop", number);
    }
    harness.commit();
    assert_eq!(shown(&harness).as_deref(), Some("7 4 13 paid sent"));
    // The only chunk of an empty table has no rows.
    harness.chunk("orders", &[], None, None);
    harness.commit();
    assert_eq!(harness.shown(), []);
    harness.put("orders", 2, &row(2, (7, "paid", 3)));
    harness.commit();
    assert_eq!(shown(&harness).as_deref(), Some("7 1 3 paid paid"));
}

#[test]
fn chunk_end_removes_pairs_of_a_join() {
    let mut harness = Harness::new(
        SHOP,
        "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\nfields = { cents = \"left.cents\", note = \"right.note\" }\n",
        "both",
    );
    for number in 1..=2 {
        harness.put("orders", number, &row(number, (7, "paid", number)));
        harness.put("details", number, &[Datum::Long(number), Datum::Str("gift")]);
    }
    harness.commit();
    assert_eq!(harness.shown().len(), 2);
    harness.chunk("details", &[(2, vec![Datum::Long(2), Datum::Str("gift")])], None, None);
    harness.commit();
    assert_eq!(harness.shown(), [(id(2), "2 2 gift".to_owned())]);
}

#[test]
fn unchanged_column_keeps_its_value() {
    let mut harness = Harness::new(SHOP, TOTALS, "totals");
    harness.put("orders", 1, &row(1, (7, LONG[0], 1)));
    harness.put_unchanged("orders", 1, &row(1, (7, "", 5)), &["status"]);
    harness.commit();
    let want = |customer: i32, cents: i64| {
        let (key, status) = (format!("[{customer}]"), LONG[0]);
        (key, format!("{customer} 1 {cents} {status} {status}"))
    };
    assert_eq!(harness.shown(), [want(7, 5)]);
    harness.restart();
    harness.put_unchanged("orders", 1, &row(1, (8, "", 6)), &["status"]);
    harness.commit();
    assert_eq!(harness.shown(), [want(8, 6)]);
    // A row cannot be evaluated if no complete value of it is known.
    harness.put_unchanged("orders", 2, &row(2, (8, "", 6)), &["status"]);
    harness.commit();
    assert_eq!(harness.shown(), [want(8, 6)]);
    let dead_letters = harness.dead_letters();
    assert!(
        dead_letters[0].contains("omitted column `status` as unchanged"),
        "{dead_letters:?}"
    );
    // As the dead letter advises, a snapshot is taken, which contains the value.
    harness.chunk(
        "orders",
        &[(1, row(1, (8, LONG[0], 6))), (2, row(2, (9, LONG[0], 2)))],
        None,
        None,
    );
    harness.put_unchanged("orders", 2, &row(2, (9, "", 3)), &["status"]);
    harness.commit();
    assert_eq!(harness.shown(), [want(8, 6), want(9, 3)]);
    assert_eq!(harness.dead_letters().len(), 1);
}

#[test]
fn random_snapshots_aggregate_equals_its_rows() {
    for seed in 1..=60_u64 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut harness = harness(TOTALS, "totals", seed);
        let mut orders = Orders::new();
        for turn in 0..150 {
            let number = random.signed(8);
            let customer = i32::try_from(random.below(3)).unwrap();
            let cents = random.signed(20) - 10;
            match (random.below(10), orders.get(&number).copied()) {
                (0..=2, Some((_, status, _))) if status.len() > 18 => {
                    harness.put_unchanged("orders", number, &row(number, (customer, "", cents)), &["status"]);
                    orders.insert(number, (customer, status, cents));
                }
                (0..=5, _) => {
                    let all: Vec<&'static str> = LONG.into_iter().chain(SHORT).collect();
                    let status = all[usize::try_from(random.below(5)).unwrap()];
                    harness.put("orders", number, &row(number, (customer, status, cents)));
                    orders.insert(number, (customer, status, cents));
                }
                (6..=7, _) => {
                    harness.delete("orders", number);
                    orders.remove(&number);
                }
                _ => {
                    // Changes of a range are lost; a chunk of the range restores them.
                    let to = number + random.signed(4);
                    if orders.remove(&number).is_none() {
                        orders.insert(number, (customer, LONG[1], cents));
                    }
                    let found = orders.range(number..=to);
                    let found: Vec<_> = found.map(|(number, order)| (*number, row(*number, *order))).collect();
                    harness.chunk("orders", &found, Some(number), Some(to));
                }
            }
            if random.below(4) == 0 {
                harness.tick();
            }
            if random.below(5) == 0 {
                harness.commit();
                if random.below(3) == 0 {
                    harness.restart();
                }
            }
            if random.below(8) == 0 {
                harness.settle();
                assert_eq!(harness.shown(), expected(&orders), "seed {seed}, turn {turn}");
                if random.below(3) == 0 {
                    harness.restart();
                }
            }
        }
        assert_eq!(harness.dead_letters(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn unchanged_column_moves_to_the_new_key() {
    let mut harness = Harness::new(SHOP, TOTALS, "totals");
    let mut orders = Orders::new();
    for (number, customer) in [(1, 7), (2, 8)] {
        let order = (customer, LONG[usize::try_from(number).unwrap()], number);
        harness.put("orders", number, &row(number, order));
        orders.insert(number, order);
    }
    harness.commit();
    // The two rows exchange their keys through a third key, and their values change. There is a commit after each
    // record.
    let unchanged = ["status"].as_slice();
    for (at, (from, to)) in (0..).zip([(1, 3), (2, 1), (3, 2)]) {
        let (customer, status, cents) = orders.remove(&from).unwrap();
        orders.insert(to, (customer, status, cents + at));
        harness.leave("orders", from, to);
        harness.commit();
        if at == 0 {
            // The old key stays in the state while its transaction is open, even beyond the horizon.
            harness.now(NOW + 2_000_000);
            harness.commit();
        }
        harness.restart();
        harness.arrive("orders", from, &row(to, (customer, "", cents + at)), unchanged);
        harness.commit();
        assert_eq!(harness.shown(), expected(&orders), "from {from} to {to}");
    }
    for number in 0..harness.fed("shop.change.shop") {
        harness.redeliver("shop.change.shop", number);
    }
    harness.commit();
    assert_eq!(harness.shown(), expected(&orders));
    assert_eq!(harness.dead_letters(), Vec::<String>::new());
    // The old key of a row whose key changed has no kept values, so another row under that key remains a dead letter.
    harness.put_unchanged("orders", 3, &row(3, (9, "", 1)), unchanged);
    harness.leave("orders", 3, 4);
    harness.arrive("orders", 3, &row(4, (9, "", 1)), unchanged);
    harness.commit();
    assert_eq!(harness.shown(), expected(&orders));
    assert_eq!(harness.dead_letters().len(), 2, "{:?}", harness.dead_letters());
}

#[test]
fn unchanged_array_keeps_its_value() {
    let declaration = "[[table]]\nsource = \"shop\"\nname = \"parcels\"\nkey = [\"id\"]\n\
                       columns = { id = \"int8\", tags = \"text[]\", cents = \"int8\" }\n\
                       [[processor]]\nname = \"gifts\"\nkind = \"aggregate\"\nfrom = \"shop.parcels\"\n\
                       where = \"'gift' in tags\"\ngroup = { id = \"id\" }\nfields = { spent = \"sum(cents)\" }\n";
    let mut harness = Harness::new(SHOP, declaration, "gifts");
    let parcel = |tags: &[&'static str], cents: i64| {
        let tags = tags.iter().map(|tag| Datum::Str(tag)).collect();
        vec![Datum::Long(1), Datum::Array(tags), Datum::Long(cents)]
    };
    harness.put("parcels", 1, &parcel(&["gift", "fragile"], 5));
    harness.commit();
    harness.restart();
    harness.put_unchanged("parcels", 1, &parcel(&[], 6), &["tags"]);
    harness.commit();
    assert_eq!(harness.shown(), [(id(1), "1 6".to_owned())]);
    harness.put("parcels", 1, &parcel(&["fragile"], 7));
    harness.put_unchanged("parcels", 1, &parcel(&[], 8), &["tags"]);
    harness.commit();
    assert_eq!((harness.shown(), harness.dead_letters().len()), (Vec::new(), 0));
}
