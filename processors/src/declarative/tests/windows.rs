//! Windows: random histories compared with a sequential model, late records, and records with a timestamp in the
//! future.
//!
//! The model has windows and stream time, but no deltas, timers or commits.

use super::harness::Harness;
use super::history::Random;
use super::{SHOP, id, viewed};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use schemas::codec::Datum;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A metrics recorder for the counter of late records.
#[derive(Default)]
struct LateCounter(Arc<AtomicU64>);

impl Recorder for LateCounter {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        assert_eq!(key.name(), "trunkline_processor_late_records_total");
        Counter::from_arc(self.0.clone())
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A harness, and its counter of late records.
fn counted(declaration: &str, name: &str) -> (Harness, Arc<AtomicU64>) {
    let counter = LateCounter::default();
    let harness = metrics::with_local_recorder(&counter, || Harness::new(SHOP, declaration, name));
    (harness, counter.0)
}

const SECOND: i64 = 1_000;

/// A kind of window; durations are in ms.
#[derive(Debug, Clone, Copy)]
struct Kind {
    size: i64,
    every: i64,
    grace: i64,
    is_final: bool,
}

impl Kind {
    fn all() -> Vec<Kind> {
        let mut all = Vec::new();
        for (size, every, grace) in [(10, 10, 0), (10, 10, 4), (12, 4, 0), (12, 4, 3)] {
            for is_final in [false, true] {
                let [size, every, grace] = [size, every, grace].map(|seconds| seconds * SECOND);
                all.push(Kind {
                    size,
                    every,
                    grace,
                    is_final,
                });
            }
        }
        all
    }

    fn declaration(&self, time: &str) -> String {
        let [size, every, grace] = [self.size, self.every, self.grace].map(|ms| ms / SECOND);
        let emit = if self.is_final { "final" } else { "updates" };
        format!(
            "window = {{ size = \"{size}s\", every = \"{every}s\", grace = \"{grace}s\"{time} }}\nemit = \"{emit}\"\n"
        )
    }

    /// Starts of the windows that contain a time.
    fn starts(&self, time: i64) -> Vec<i64> {
        let newest = time.div_euclid(self.every) * self.every;
        let hops = 0..self.size / self.every;
        hops.map(|hop| newest - hop * self.every).collect()
    }
}

/// A group and a time, which select windows.
#[derive(Clone, Copy)]
struct At {
    group: i64,
    time: i64,
}

/// Windows of a sequential model: the values of each group and window start, by row.
#[derive(Debug, Default)]
struct Model {
    clock: i64,
    windows: BTreeMap<(i64, i64), BTreeMap<u64, i64>>,
    late: u64,
}

impl Model {
    fn advance(&mut self, at: i64, now: i64) {
        self.clock = self.clock.max(at.min(now));
    }

    /// Writes the value of row `by` to its open windows, or removes it.
    fn change(&mut self, kind: &Kind, at: At, by: u64, value: Option<i64>) {
        let At { group, time } = at;
        let mut is_late = false;
        for start in kind.starts(time) {
            if start + kind.size + kind.grace <= self.clock {
                is_late = true;
                continue;
            }
            let window = self.windows.entry((group, start)).or_default();
            match value {
                Some(value) => drop(window.insert(by, value)),
                None => drop(window.remove(&by)),
            }
        }
        self.late += u64::from(is_late && value.is_some());
    }

    /// What the output topic must contain: count, sum, minimum and maximum.
    fn shown(&self, kind: &Kind) -> Vec<(i64, i64, String)> {
        let filled = self.windows.iter().filter(|(_, values)| !values.is_empty());
        let closed = |start: i64| start + kind.size + kind.grace <= self.clock;
        let shown = filled.filter(|((_, start), _)| !kind.is_final || closed(*start));
        let text = |values: &BTreeMap<u64, i64>| {
            let all = || values.values().copied();
            let (least, most) = (all().min().unwrap(), all().max().unwrap());
            format!("{} {} {least} {most}", values.len(), all().sum::<i64>())
        };
        shown
            .map(|((group, start), values)| (*group, *start, text(values)))
            .collect()
    }
}

const FIELDS: &str = "fields = { n = \"count()\", total = \"sum(V)\", least = \"min(V)\", most = \"max(V)\" }\n";

/// The output topic's records: group, start of the window in ms, other columns.
fn output(harness: &Harness) -> Vec<(i64, i64, String)> {
    let mut all: Vec<_> = harness
        .shown()
        .into_iter()
        .map(|(_, row)| {
            let words: Vec<&str> = row.split(' ').collect();
            let number = |at: usize| words[at].parse::<i64>().unwrap();
            (number(0), number(1) / 1000, words[3..].join(" "))
        })
        .collect();
    all.sort_unstable();
    all
}

/// Asserts that no final window was sent twice.
fn assert_final_windows_sent_once(harness: &Harness, kind: &Kind) {
    let sent = harness.sent();
    let keys: BTreeSet<&str> = sent.iter().filter_map(|sent| sent.split(' ').next()).collect();
    assert!(!kind.is_final || keys.len() == sent.len(), "{sent:?}");
}

#[test]
fn event_windows_match_a_sequential_model() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        for seed in 1..=12_u64 {
            println!("{kind:?}, seed {seed}");
            let mut random = Random::new(seed + 100 * u64::try_from(number).unwrap());
            let declaration = format!(
                "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = {{ id = \"id\" }}\n{}{}",
                FIELDS.replace('V', "ms"),
                kind.declaration("")
            );
            let (mut harness, late) = counted(&declaration, "w");
            assert!(harness.is_direct());
            let (mut expected, mut now) = (Model::default(), 1_000 * SECOND);
            for turn in 0..150 {
                now += random.signed(3 * 1000);
                harness.now(now);
                // Most timestamps are a little in the past, some far in the past or in the future.
                let at = match random.below(12) {
                    0 => now + random.signed(60_000),
                    1..=3 => now - random.signed(40_000),
                    _ => now - random.signed(6_000),
                };
                let (group, value) = (random.signed(3), random.signed(20) - 10);
                viewed(&mut harness, group, None, value, at);
                expected.advance(at, now);
                expected.change(&kind, At { group, time: at }, turn, Some(value));
                if random.below(5) == 0 {
                    harness.commit();
                    assert_eq!(
                        output(&harness),
                        expected.shown(&kind),
                        "{kind:?}, seed {seed}, turn {turn}"
                    );
                    if random.below(3) == 0 {
                        harness.restart();
                    }
                }
            }
            assert_final_windows_sent_once(&harness, &kind);
            assert_eq!(late.load(Ordering::Relaxed), expected.late, "{kind:?}, seed {seed}");
            assert!(expected.late > 0);
        }
    }
}

/// Contribution of a row: group, time, amount in cents.
type Contribution = (i64, i64, i64);

struct Table<'t> {
    harness: &'t mut Harness,
    model: &'t mut Model,
    kind: Kind,
    now: i64,
    rows: BTreeMap<i64, Contribution>,
}

impl Table<'_> {
    /// Puts or deletes a row, in the table and in the model.
    fn change(&mut self, number: i64, new: Option<Contribution>) {
        match new {
            Some((customer, at, cents)) => {
                let row = [
                    Datum::Long(number),
                    Datum::Int(i32::try_from(customer).unwrap()),
                    Datum::Str("paid"),
                    Datum::Long(cents),
                    Datum::Null,
                    Datum::Long(at * 1000),
                ];
                self.harness.put("orders", number, &row);
            }
            None => self.harness.delete("orders", number),
        }
        let old = self.rows.remove(&number);
        self.rows.extend(new.map(|new| (number, new)));
        if old == new {
            return;
        }
        let by = u64::try_from(number).unwrap();
        let one_group = matches!((old, new), (Some(old), Some(new)) if old.0 == new.0);
        if let (Some((group, at, _)), false) = (old, one_group) {
            self.model.advance(at, self.now);
            self.model.change(&self.kind, At { group, time: at }, by, None);
        }
        if let Some((group, at, cents)) = new {
            self.model.advance(at, self.now);
            if let (Some((_, at, _)), true) = (old, one_group) {
                self.model.change(&self.kind, At { group, time: at }, by, None);
            }
            self.model.change(&self.kind, At { group, time: at }, by, Some(cents));
        }
    }
}

#[test]
fn table_windows_match_a_sequential_model() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        for seed in 1..=12_u64 {
            println!("{kind:?}, seed {seed}");
            let mut random = Random::new(seed + 100 * u64::try_from(number).unwrap());
            let declaration = format!(
                "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"shop.orders\"\nwhere = \"customer != null\"\n\
                 group = {{ customer = \"customer\" }}\n{}{}",
                FIELDS.replace('V', "cents"),
                kind.declaration(", time = \"at\"")
            );
            let (mut harness, late) = counted(&declaration, "w");
            assert!(!harness.is_direct());
            let mut expected = Model::default();
            let mut now = 1_000 * SECOND;
            harness.now(now);
            let mut rows = BTreeMap::new();
            for turn in 0..150 {
                let mut table = Table {
                    harness: &mut harness,
                    model: &mut expected,
                    kind,
                    now,
                    rows: std::mem::take(&mut rows),
                };
                let row = random.signed(8);
                let new = (random.below(5) > 0).then(|| {
                    let at = match random.below(12) {
                        0 => now + random.signed(60_000),
                        1..=2 => now - random.signed(40_000),
                        _ => now - random.signed(6_000),
                    };
                    (random.signed(3), at, random.signed(20) - 10)
                });
                table.change(row, new);
                rows = table.rows;
                if random.below(5) == 0 {
                    harness.commit();
                    assert_eq!(
                        output(&harness),
                        expected.shown(&kind),
                        "{kind:?}, seed {seed}, turn {turn}"
                    );
                    if random.below(3) == 0 {
                        harness.restart();
                    }
                    // Deltas are read from the repartition topic only after the commit, when the wall-clock time may be
                    // different.
                    now += random.signed(15_000);
                    harness.now(now);
                }
            }
            assert_final_windows_sent_once(&harness, &kind);
            harness.commit();
            assert_eq!(late.load(Ordering::Relaxed), expected.late, "{kind:?}, seed {seed}");
            assert_eq!(harness.dead_letters(), Vec::<String>::new());
        }
    }
}

#[test]
fn future_record_closes_no_window_early() {
    for emit in ["updates", "final"] {
        let declaration = format!(
            r#"
            [[processor]]
            name = "views"
            kind = "aggregate"
            from = "event:viewed"
            group = {{ id = "id" }}
            fields = {{ n = "count()" }}
            window = {{ size = "10s" }}
            emit = "{emit}"
            "#
        );
        let (mut harness, late) = counted(&declaration, "views");
        harness.now(5_000);
        viewed(&mut harness, 1, None, 1, 4_000);
        viewed(&mut harness, 1, None, 1, 95_000);
        harness.commit();
        // The window is still open for a record with a correct timestamp, including after a restart.
        harness.restart();
        harness.now(9_000);
        viewed(&mut harness, 1, None, 1, 8_000);
        harness.commit();
        let window = |start: &str, n: i64| format!("[\"1\",\"1970-01-01T00:{start}Z\"] {n}");
        match emit {
            "final" => assert_eq!(harness.sent(), Vec::<String>::new()),
            _ => assert_eq!(harness.sent().last(), Some(&window("00:00", 2))),
        }
        harness.now(12_000);
        viewed(&mut harness, 2, None, 1, 11_000);
        harness.commit();
        viewed(&mut harness, 1, None, 1, 9_000);
        harness.commit();
        assert_eq!(late.load(Ordering::Relaxed), 1);
        // The record with a timestamp in the future is in the window of that timestamp.
        harness.now(105_000);
        viewed(&mut harness, 2, None, 1, 104_000);
        harness.commit();
        let mut sent = harness.sent();
        sent.sort_unstable();
        sent.dedup();
        let key = id(2);
        let second = |start: &str, n: i64| format!("[{},\"1970-01-01T00:{start}Z\"] {n}", &key[1..key.len() - 1]);
        let mut want = vec![window("00:00", 2), second("00:10", 1), window("01:30", 1)];
        if emit == "updates" {
            want.extend([window("00:00", 1), second("01:40", 1)]);
        }
        want.sort_unstable();
        assert_eq!(sent, want);
    }
}
