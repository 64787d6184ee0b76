//! Random histories of a table, with writes, deletes, key changes, replays, truncations and restarts, compared with a
//! recomputation.
//!
//! The expected output is computed only from the live rows, without deltas.

use super::harness::{Harness, SLOW_SWEEP, text_of};
use super::{SHOP, StepLimits, id};
use schemas::codec::Datum;
use std::collections::BTreeMap;

/// A pseudorandom generator (xorshift) without a dependency; a seed reproduces a run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    pub fn signed(&mut self, end: u64) -> i64 {
        i64::try_from(self.below(end)).unwrap()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Order {
    customer: Option<i32>,
    status: &'static str,
    cents: Option<i64>,
    rate: Option<f64>,
    /// Number of the step that last wrote the row.
    turn: u64,
}

const STATUSES: [&str; 4] = ["draft", "paid", "sent", "back"];

fn order(random: &mut Random, turn: u64) -> Order {
    let some = |random: &mut Random| random.below(4) > 0;
    Order {
        customer: some(random).then(|| i32::try_from(random.below(3)).unwrap()),
        status: STATUSES[usize::try_from(random.below(4)).unwrap()],
        cents: some(random).then(|| random.signed(20) - 10),
        rate: some(random).then(|| [0.25, -3.5, 7.75][usize::try_from(random.below(3)).unwrap()]),
        turn,
    }
}

fn put(harness: &mut Harness, number: i64, order: &Order) {
    let row = [
        Datum::Long(number),
        order.customer.map_or(Datum::Null, Datum::Int),
        Datum::Str(order.status),
        order.cents.map_or(Datum::Null, Datum::Long),
        order.rate.map_or(Datum::Null, Datum::Double),
        Datum::Null,
    ];
    harness.put("orders", number, &row);
}

const TOTALS: &str = r#"
[[processor]]
name = "totals"
kind = "aggregate"
from = "shop.orders"
where = "status != 'draft'"
group = { customer = "customer" }
fields = { n = "count()", priced = "count(cents)", spent = "sum(cents)", least = "min(cents)", most = "max(cents)", rates = "sum(rate)", mean = "avg(cents)", low = "min(status)", high = "max(rate)", first = "first(cents)", latest = "latest(status)" }
"#;

fn by<T: Copy, K: PartialOrd>(values: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Option<T> {
    values.fold(None, |best, value| match best {
        Some(best) if key(&best) <= key(&value) => Some(best),
        _ => Some(value),
    })
}

/// A harness whose sweeps need many steps for odd seeds.
pub fn harness(declaration: &str, name: &str, seed: u64) -> Harness {
    let step = if seed % 2 == 1 {
        SLOW_SWEEP
    } else {
        StepLimits::default()
    };
    Harness::with(SHOP, declaration, name, step, &[])
}

/// What the output topic must contain.
fn expected(rows: &BTreeMap<i64, Order>) -> Vec<(String, String)> {
    let mut groups: BTreeMap<String, Vec<&Order>> = BTreeMap::new();
    for order in rows.values().filter(|order| order.status != "draft") {
        let key = order
            .customer
            .map_or("[null]".to_owned(), |customer| format!("[{customer}]"));
        groups.entry(key).or_default().push(order);
    }
    let text = |orders: &[&Order]| {
        let cents = || orders.iter().filter_map(|order| order.cents);
        let rates = || orders.iter().filter_map(|order| order.rate);
        let long = |value: Option<i64>| value.map_or(Datum::Null, Datum::Long);
        let double = |value: Option<f64>| value.map_or(Datum::Null, Datum::Double);
        let some = cents().next().is_some();
        let count = |n: usize| i64::try_from(n).unwrap();
        let sum: i64 = cents().sum();
        let mean = |n: usize| f64::from(i32::try_from(sum).unwrap()) / f64::from(u32::try_from(n).unwrap());
        let priced = || orders.iter().filter(|order| order.cents.is_some());
        let row = [
            orders[0].customer.map_or(Datum::Null, Datum::Int),
            Datum::Long(count(orders.len())),
            Datum::Long(count(cents().count())),
            long(some.then_some(sum)),
            long(cents().min()),
            long(cents().max()),
            double(rates().next().is_some().then(|| rates().sum())),
            double(some.then(|| mean(cents().count()))),
            Datum::Str(orders.iter().map(|order| order.status).min().unwrap()),
            double(by(rates(), |rate| -rate)),
            long(by(priced().copied(), |order| order.turn).and_then(|order| order.cents)),
            Datum::Str(
                by(orders.iter().copied(), |order| u64::MAX - order.turn)
                    .unwrap()
                    .status,
            ),
        ];
        row.iter().map(text_of).collect::<Vec<_>>().join(" ")
    };
    groups.into_iter().map(|(key, orders)| (key, text(&orders))).collect()
}

/// One random change of the table and of the model.
fn step(random: &mut Random, harness: &mut Harness, rows: &mut BTreeMap<i64, Order>, turn: u64) {
    let number = random.signed(8);
    match random.below(20) {
        0..=11 => {
            let order = order(random, turn);
            put(harness, number, &order);
            rows.insert(number, order);
        }
        12..=15 => {
            harness.delete("orders", number);
            rows.remove(&number);
        }
        16..=18 if harness.fed("shop.change.shop") > 0 => {
            // An old record is repeated at its original position.
            let end = u64::try_from(harness.fed("shop.change.shop")).unwrap();
            harness.redeliver("shop.change.shop", usize::try_from(random.below(end)).unwrap());
        }
        19 if random.below(4) == 0 => {
            harness.truncate("orders");
            rows.clear();
        }
        // Sweeps do one step.
        _ => harness.tick(),
    }
}

#[test]
fn random_history_aggregate_equals_its_rows() {
    for seed in 1..=60_u64 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut harness = harness(TOTALS, "totals", seed);
        let mut rows = BTreeMap::new();
        for turn in 0..120 {
            step(&mut random, &mut harness, &mut rows, turn);
            if random.below(5) == 0 {
                harness.commit();
                if random.below(2) == 0 {
                    harness.restart();
                }
            }
            if random.below(8) == 0 {
                harness.settle();
                assert_eq!(harness.shown(), expected(&rows), "seed {seed}, turn {turn}");
                if random.below(3) == 0 {
                    harness.restart();
                }
            }
        }
        assert_eq!(harness.dead_letters(), Vec::<String>::new(), "seed {seed}");
    }
}

/// The second aggregate reads from a repartition topic, and its rows move between groups.
#[test]
fn aggregate_of_an_aggregate_follows_moved_rows() {
    const LEVELS: &str = r#"
        [[processor]]
        name = "sizes"
        kind = "aggregate"
        from = "processor:totals"
        group = { n = "n" }
        fields = { customers = "count()", most = "max(spent)", least = "min(spent)" }
        "#;
    for seed in 1..=40_u64 {
        println!("seed {seed}");
        let mut random = Random::new(seed);
        let mut harness = Harness::new(SHOP, &format!("{TOTALS}{LEVELS}"), "sizes");
        assert!(!harness.is_direct());
        let mut rows: BTreeMap<i64, (i64, Option<i64>)> = BTreeMap::new();
        for turn in 0..80 {
            let customer = random.signed(6);
            let key = format!("[{customer}]");
            if random.below(4) == 0 {
                harness.of_processor("totals", &key, None);
                rows.remove(&customer);
            } else {
                let (n, spent) = (random.signed(3) + 1, (random.below(5) > 0).then(|| random.signed(9)));
                let mut row = vec![
                    Datum::Int(i32::try_from(customer).unwrap()),
                    Datum::Long(n),
                    Datum::Long(0),
                ];
                row.push(spent.map_or(Datum::Null, Datum::Long));
                row.extend([Datum::Null, Datum::Null, Datum::Null, Datum::Null]);
                row.extend([Datum::Str("x"), Datum::Null, Datum::Null, Datum::Str("x")]);
                harness.of_processor("totals", &key, Some(&row));
                rows.insert(customer, (n, spent));
            }
            harness.commit();
            let mut groups: BTreeMap<i64, Vec<Option<i64>>> = BTreeMap::new();
            rows.values()
                .for_each(|(n, spent)| groups.entry(*n).or_default().push(*spent));
            let shown = |value: Option<i64>| value.map_or("null".to_owned(), |value| value.to_string());
            let expected = groups.into_iter().map(|(n, all)| {
                let known = || all.iter().flatten().copied();
                (
                    id(n),
                    format!("{n} {} {} {}", all.len(), shown(known().max()), shown(known().min())),
                )
            });
            assert_eq!(
                harness.shown(),
                expected.collect::<Vec<_>>(),
                "seed {seed}, turn {turn}"
            );
        }
    }
}

#[test]
fn random_history_join_equals_its_rows() {
    for (kind, outer) in [("inner", false), ("left", true)] {
        for seed in 1..=30_u64 {
            println!("{kind}, seed {seed}");
            let mut random = Random::new(seed);
            let declaration = format!(
                "[[processor]]\nname = \"both\"\nkind = \"join\"\nleft = \"shop.orders\"\nright = \"shop.details\"\n\
                 on = {{ id = \"id\" }}\ntype = \"{kind}\"\nwhere = \"left.status != 'draft'\"\n\
                 fields = {{ status = \"left.status\", note = \"right.note\" }}\n"
            );
            let mut harness = harness(&declaration, "both", seed);
            let (mut rows, mut notes) = (BTreeMap::new(), BTreeMap::new());
            for turn in 0..120 {
                if random.below(2) == 0 {
                    step(&mut random, &mut harness, &mut rows, turn);
                } else {
                    let number = random.signed(8);
                    if random.below(3) == 0 {
                        harness.delete("details", number);
                        notes.remove(&number);
                    } else {
                        let note = ["a", "b"][usize::try_from(random.below(2)).unwrap()];
                        harness.put("details", number, &[Datum::Long(number), Datum::Str(note)]);
                        notes.insert(number, note);
                    }
                }
                if random.below(6) == 0 {
                    harness.commit();
                    if random.below(3) == 0 {
                        harness.restart();
                    }
                }
                if random.below(8) == 0 {
                    harness.settle();
                    let pair = |(number, order): (&i64, &Order)| {
                        let note = notes.get(number).copied();
                        (order.status != "draft" && (outer || note.is_some())).then(|| {
                            (
                                id(*number),
                                format!("{number} {} {}", order.status, note.unwrap_or("null")),
                            )
                        })
                    };
                    let expected: Vec<_> = rows.iter().filter_map(pair).collect();
                    assert_eq!(harness.shown(), expected, "{kind}, seed {seed}, turn {turn}");
                }
            }
        }
    }
}
