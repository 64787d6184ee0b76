//! What only sources with snapshots and large values send: the ends of chunks, and columns left out as unchanged.
//!
//! Guarantees: random histories lose changes, which a snapshot brings back. Never: a source's own code.

use super::history::Random;
use super::stand::{NOW, Stand};
use super::{SHOP, id};
use schemas::codec::Datum;
use std::collections::BTreeMap;

/// Long enough for a source to leave it out when it does not change.
const LONG: [&str; 3] = [
    "paid, with a card that was lost",
    "sent, by a very slow carrier",
    "back, and nobody knows why it is",
];
const SHORT: [&str; 2] = ["paid", "draft"];

type Orders = BTreeMap<i64, (i32, &'static str, i64)>;

fn row(number: i64, (customer, status, cents): (i32, &'static str, i64)) -> Vec<Datum<'static>> {
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

fn truth(orders: &Orders) -> Vec<(String, String)> {
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
fn the_end_of_a_chunk_takes_back_what_the_snapshot_did_not_find_in_its_range() {
    let mut stand = Stand::new(SHOP, TOTALS, "totals");
    for number in 1..=5 {
        stand.put("orders", number, &row(number, (7, "paid", 1)));
    }
    stand.commit();
    let shown = |stand: &Stand| stand.shown().pop().map(|(_, row)| row);
    assert_eq!(shown(&stand).as_deref(), Some("7 5 5 paid paid"));
    // Rows 1 to 3 are read again: 2 is gone, 3 is another; 4 and 5 are in no chunk.
    let found = [(1, row(1, (7, "paid", 1))), (3, row(3, (7, "sent", 10)))];
    stand.chunk("orders", &found, None, Some(3));
    stand.commit();
    assert_eq!(shown(&stand).as_deref(), Some("7 4 13 paid sent"));
    // A chunk that comes once more changes nothing, nor does what the deleted row was before.
    for number in 0..stand.fed("change.shop") {
        stand.again("change.shop", number);
    }
    stand.commit();
    assert_eq!(shown(&stand).as_deref(), Some("7 4 13 paid sent"));
    // A table without rows has a chunk without any.
    stand.chunk("orders", &[], None, None);
    stand.commit();
    assert_eq!(stand.shown(), []);
    stand.put("orders", 2, &row(2, (7, "paid", 3)));
    stand.commit();
    assert_eq!(shown(&stand).as_deref(), Some("7 1 3 paid paid"));
}

#[test]
fn a_join_takes_back_the_rows_of_either_side_that_a_chunk_did_not_find() {
    let mut stand = Stand::new(
        SHOP,
        "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
         on = { id = \"id\" }\nfields = { cents = \"left.cents\", note = \"right.note\" }\n",
        "both",
    );
    for number in 1..=2 {
        stand.put("orders", number, &row(number, (7, "paid", number)));
        stand.put("details", number, &[Datum::Long(number), Datum::Str("gift")]);
    }
    stand.commit();
    assert_eq!(stand.shown().len(), 2);
    stand.chunk("details", &[(2, vec![Datum::Long(2), Datum::Str("gift")])], None, None);
    stand.commit();
    assert_eq!(stand.shown(), [(id(2), "2 2 gift".to_owned())]);
}

#[test]
fn a_column_that_was_left_out_as_unchanged_keeps_its_value() {
    let mut stand = Stand::new(SHOP, TOTALS, "totals");
    stand.put("orders", 1, &row(1, (7, LONG[0], 1)));
    stand.put_unchanged("orders", 1, &row(1, (7, "", 5)), &["status"]);
    stand.commit();
    let want = |customer: i32, cents: i64| {
        let (key, status) = (format!("[{customer}]"), LONG[0]);
        (key, format!("{customer} 1 {cents} {status} {status}"))
    };
    assert_eq!(stand.shown(), [want(7, 5)]);
    stand.reopen();
    stand.put_unchanged("orders", 1, &row(1, (8, "", 6)), &["status"]);
    stand.commit();
    assert_eq!(stand.shown(), [want(8, 6)]);
    // A row that was never seen whole cannot be computed, and keeps what it gave: nothing.
    stand.put_unchanged("orders", 2, &row(2, (8, "", 6)), &["status"]);
    stand.commit();
    assert_eq!(stand.shown(), [want(8, 6)]);
    let letters = stand.letters();
    assert!(letters[0].contains("`status` was left out as unchanged"), "{letters:?}");
    // As the letter says: a snapshot brings it.
    stand.chunk(
        "orders",
        &[(1, row(1, (8, LONG[0], 6))), (2, row(2, (9, LONG[0], 2)))],
        None,
        None,
    );
    stand.put_unchanged("orders", 2, &row(2, (9, "", 3)), &["status"]);
    stand.commit();
    assert_eq!(stand.shown(), [want(8, 6), want(9, 3)]);
    assert_eq!(stand.letters().len(), 1);
}

#[test]
fn whatever_is_left_out_lost_and_read_again_the_aggregate_is_that_of_the_rows() {
    for seed in 1..=60_u64 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut stand = Stand::new(SHOP, TOTALS, "totals");
        let mut orders = Orders::new();
        for turn in 0..150 {
            let number = random.signed(8);
            let customer = i32::try_from(random.below(3)).unwrap();
            let cents = random.signed(20) - 10;
            match (random.below(10), orders.get(&number).copied()) {
                (0..=2, Some((_, status, _))) if status.len() > 18 => {
                    stand.put_unchanged("orders", number, &row(number, (customer, "", cents)), &["status"]);
                    orders.insert(number, (customer, status, cents));
                }
                (0..=5, _) => {
                    let all: Vec<&'static str> = LONG.into_iter().chain(SHORT).collect();
                    let status = all[usize::try_from(random.below(5)).unwrap()];
                    stand.put("orders", number, &row(number, (customer, status, cents)));
                    orders.insert(number, (customer, status, cents));
                }
                (6..=7, _) => {
                    stand.delete("orders", number);
                    orders.remove(&number);
                }
                _ => {
                    // Changes of a range are lost, and a chunk is read of it.
                    let to = number + random.signed(4);
                    if orders.remove(&number).is_none() {
                        orders.insert(number, (customer, LONG[1], cents));
                    }
                    let found = orders.range(number..=to);
                    let found: Vec<_> = found.map(|(number, order)| (*number, row(*number, *order))).collect();
                    stand.chunk("orders", &found, Some(number), Some(to));
                }
            }
            if random.below(5) == 0 {
                stand.commit();
                assert_eq!(stand.shown(), truth(&orders), "seed {seed}, turn {turn}");
                if random.below(3) == 0 {
                    stand.reopen();
                }
            }
        }
        assert_eq!(stand.letters(), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn an_unchanged_column_moves_to_the_new_key_of_its_row() {
    let mut stand = Stand::new(SHOP, TOTALS, "totals");
    let mut orders = Orders::new();
    for (number, customer) in [(1, 7), (2, 8)] {
        let order = (customer, LONG[usize::try_from(number).unwrap()], number);
        stand.put("orders", number, &row(number, order));
        orders.insert(number, order);
    }
    stand.commit();
    // The two rows exchange their keys through a third, and change besides; a commit may come between any two records.
    let unchanged = ["status"].as_slice();
    for (at, (from, to)) in (0..).zip([(1, 3), (2, 1), (3, 2)]) {
        let (customer, status, cents) = orders.remove(&from).unwrap();
        orders.insert(to, (customer, status, cents + at));
        stand.leave("orders", from, to);
        stand.commit();
        if at == 0 {
            // The old key is not forgotten while its transaction is open, however long that takes.
            stand.now(NOW + 2_000_000);
            stand.commit();
        }
        stand.reopen();
        stand.arrive("orders", from, &row(to, (customer, "", cents + at)), unchanged);
        stand.commit();
        assert_eq!(stand.shown(), truth(&orders), "from {from} to {to}");
    }
    for number in 0..stand.fed("change.shop") {
        stand.again("change.shop", number);
    }
    stand.commit();
    assert_eq!(stand.shown(), truth(&orders));
    assert_eq!(stand.letters(), Vec::<String>::new());
    // Nothing is left at a key whose row has moved away: a row of which nothing else is known stays a dead letter.
    stand.put_unchanged("orders", 3, &row(3, (9, "", 1)), unchanged);
    stand.leave("orders", 3, 4);
    stand.arrive("orders", 3, &row(4, (9, "", 1)), unchanged);
    stand.commit();
    assert_eq!(stand.shown(), truth(&orders));
    assert_eq!(stand.letters().len(), 2, "{:?}", stand.letters());
}
