//! Windows: random histories against a sequential recomputation, what comes late, and what comes from the future.
//!
//! Guarantees: the truth is kept by code that knows windows and a clock, and nothing of deltas, timers or commits.
//! Never: a fixed order.

use super::history::Random;
use super::stand::Stand;
use super::{SHOP, id, viewed};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use schemas::codec::Datum;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hears of one counter.
#[derive(Default)]
struct Ear(Arc<AtomicU64>);

impl Recorder for Ear {
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

/// A stand, and how many records were late.
fn counted(declared: &str, name: &str) -> (Stand, Arc<AtomicU64>) {
    let ear = Ear::default();
    let stand = metrics::with_local_recorder(&ear, || Stand::new(SHOP, declared, name));
    (stand, ear.0)
}

const SECOND: i64 = 1_000;

/// A kind of window, in ms.
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

    fn declared(&self, time: &str) -> String {
        let [size, every, grace] = [self.size, self.every, self.grace].map(|ms| ms / SECOND);
        let emit = if self.is_final { "final" } else { "updates" };
        format!(
            "window = {{ size = \"{size}s\", every = \"{every}s\", grace = \"{grace}s\"{time} }}\nemit = \"{emit}\"\n"
        )
    }

    /// Beginnings of the windows that hold a time.
    fn starts(&self, time: i64) -> Vec<i64> {
        let newest = time.div_euclid(self.every) * self.every;
        let hops = 0..self.size / self.every;
        hops.map(|hop| newest - hop * self.every).collect()
    }
}

/// Windows as a sequential reader keeps them: values of each group and beginning, by what gave them.
#[derive(Debug, Default)]
struct Truth {
    clock: i64,
    windows: BTreeMap<(i64, i64), BTreeMap<u64, i64>>,
    late: u64,
}

impl Truth {
    fn advance(&mut self, at: i64, now: i64) {
        self.clock = self.clock.max(at.min(now));
    }

    /// Puts a value into its windows, or takes what `by` gave out of them.
    fn change(&mut self, kind: &Kind, group: i64, time: i64, by: u64, value: Option<i64>) {
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

    /// What the topic holds: count, sum, least and greatest.
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

/// What a stand's topic holds: group, beginning of the window in ms, the rest.
fn held(stand: &Stand) -> Vec<(i64, i64, String)> {
    let mut all: Vec<_> = stand
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

/// No final window was said twice.
fn said_once(stand: &Stand, kind: &Kind) {
    let said = stand.said();
    let keys: BTreeSet<&str> = said.iter().filter_map(|said| said.split(' ').next()).collect();
    assert!(!kind.is_final || keys.len() == said.len(), "{said:?}");
}

#[test]
fn windows_of_events_are_those_of_a_sequential_reader() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        for seed in 1..=12_u64 {
            println!("{kind:?}, seed {seed}");
            let mut random = Random::new(seed + 100 * u64::try_from(number).unwrap());
            let declared = format!(
                "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"event:viewed\"\ngroup = {{ id = \"id\" }}\n{}{}",
                FIELDS.replace('V', "ms"),
                kind.declared("")
            );
            let (mut stand, late) = counted(&declared, "w");
            assert!(stand.is_direct());
            let (mut truth, mut now) = (Truth::default(), 1_000 * SECOND);
            for turn in 0..150 {
                now += random.signed(3 * 1000);
                stand.now(now);
                // Mostly a little old, sometimes very, sometimes from the future.
                let at = match random.below(12) {
                    0 => now + random.signed(60_000),
                    1..=3 => now - random.signed(40_000),
                    _ => now - random.signed(6_000),
                };
                let (group, value) = (random.signed(3), random.signed(20) - 10);
                viewed(&mut stand, group, None, value, at);
                truth.advance(at, now);
                truth.change(&kind, group, at, turn, Some(value));
                if random.below(5) == 0 {
                    stand.commit();
                    assert_eq!(held(&stand), truth.shown(&kind), "{kind:?}, seed {seed}, turn {turn}");
                    if random.below(3) == 0 {
                        stand.reopen();
                    }
                }
            }
            said_once(&stand, &kind);
            assert_eq!(late.load(Ordering::Relaxed), truth.late, "{kind:?}, seed {seed}");
            assert!(truth.late > 0);
        }
    }
}

/// What a row gives: group, time, cents.
type Given = (i64, i64, i64);

struct Table<'t> {
    stand: &'t mut Stand,
    truth: &'t mut Truth,
    kind: Kind,
    now: i64,
    rows: BTreeMap<i64, Given>,
}

impl Table<'_> {
    /// A row is put or deleted; both the processor and the truth hear of it.
    fn change(&mut self, number: i64, new: Option<Given>) {
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
                self.stand.put("orders", number, &row);
            }
            None => self.stand.delete("orders", number),
        }
        let old = self.rows.remove(&number);
        self.rows.extend(new.map(|new| (number, new)));
        if old == new {
            return;
        }
        let by = u64::try_from(number).unwrap();
        let one_group = matches!((old, new), (Some(old), Some(new)) if old.0 == new.0);
        if let (Some((group, at, _)), false) = (old, one_group) {
            self.truth.advance(at, self.now);
            self.truth.change(&self.kind, group, at, by, None);
        }
        if let Some((group, at, cents)) = new {
            self.truth.advance(at, self.now);
            if let (Some((_, at, _)), true) = (old, one_group) {
                self.truth.change(&self.kind, group, at, by, None);
            }
            self.truth.change(&self.kind, group, at, by, Some(cents));
        }
    }
}

#[test]
fn windows_of_a_table_follow_its_rows_as_a_sequential_reader_does() {
    for (number, kind) in Kind::all().into_iter().enumerate() {
        for seed in 1..=12_u64 {
            println!("{kind:?}, seed {seed}");
            let mut random = Random::new(seed + 100 * u64::try_from(number).unwrap());
            let declared = format!(
                "[[processor]]\nname = \"w\"\nkind = \"aggregate\"\nfrom = \"shop.orders\"\nwhere = \"customer != null\"\n\
                 group = {{ customer = \"customer\" }}\n{}{}",
                FIELDS.replace('V', "cents"),
                kind.declared(", time = \"at\"")
            );
            let (mut stand, late) = counted(&declared, "w");
            assert!(!stand.is_direct());
            let mut truth = Truth::default();
            let mut now = 1_000 * SECOND;
            stand.now(now);
            let mut rows = BTreeMap::new();
            for turn in 0..150 {
                let mut table = Table {
                    stand: &mut stand,
                    truth: &mut truth,
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
                    stand.commit();
                    assert_eq!(held(&stand), truth.shown(&kind), "{kind:?}, seed {seed}, turn {turn}");
                    if random.below(3) == 0 {
                        stand.reopen();
                    }
                    // What was keyed anew is read with the clock of then.
                    now += random.signed(15_000);
                    stand.now(now);
                }
            }
            said_once(&stand, &kind);
            stand.commit();
            assert_eq!(late.load(Ordering::Relaxed), truth.late, "{kind:?}, seed {seed}");
            assert_eq!(stand.letters(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_record_from_the_future_closes_no_window_before_the_clock_has_come_there() {
    for emit in ["updates", "final"] {
        let declared = format!(
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
        let (mut stand, late) = counted(&declared, "views");
        stand.now(5_000);
        viewed(&mut stand, 1, None, 1, 4_000);
        viewed(&mut stand, 1, None, 1, 95_000);
        stand.commit();
        // An honest one counts, after a restart too.
        stand.reopen();
        stand.now(9_000);
        viewed(&mut stand, 1, None, 1, 8_000);
        stand.commit();
        let window = |start: &str, n: i64| format!("[\"1\",\"1970-01-01T00:{start}Z\"] {n}");
        match emit {
            "final" => assert_eq!(stand.said(), Vec::<String>::new()),
            _ => assert_eq!(stand.said().last(), Some(&window("00:00", 2))),
        }
        stand.now(12_000);
        viewed(&mut stand, 2, None, 1, 11_000);
        stand.commit();
        viewed(&mut stand, 1, None, 1, 9_000);
        stand.commit();
        assert_eq!(late.load(Ordering::Relaxed), 1);
        // The one from the future is in the window that it says.
        stand.now(105_000);
        viewed(&mut stand, 2, None, 1, 104_000);
        stand.commit();
        let mut said = stand.said();
        said.sort_unstable();
        said.dedup();
        let key = id(2);
        let second = |start: &str, n: i64| format!("[{},\"1970-01-01T00:{start}Z\"] {n}", &key[1..key.len() - 1]);
        let mut want = vec![window("00:00", 2), second("00:10", 1), window("01:30", 1)];
        if emit == "updates" {
            want.extend([window("00:00", 1), second("01:40", 1)]);
        }
        want.sort_unstable();
        assert_eq!(said, want);
    }
}
