//! Random appends, transactions with offsets, aborts, cleaning passes, storage failures, reopenings and crashes,
//! compared with a model. The seed determines the order of operations, which writes fail, which of the failed writes
//! are stored nevertheless, and what a crash loses.
//!
//! Checked: the newest committed record of each key is present; every record that is read was written; every missing
//! record was superseded below the end of a cleaning pass, or is an expired tombstone; a pass removes all records that
//! it must remove; offsets are assigned again only after a crash lost them, and under a new epoch; sizes match the
//! storage; a group has the offset of its last commit. A failure prints its seed and the command to repeat it.

use super::compaction::{keyed, seen};
use super::*;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

const KEYS: u64 = 6;
const LAG_MS: Millis = 40;
const RETENTION_MS: Millis = 70;

/// Xorshift random generator.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TransactionState {
    Open(usize),
    Committed,
    Aborted,
}

#[derive(Debug, Clone)]
struct Written {
    text: (String, String),
    timestamp: Millis,
    state: TransactionState,
    /// The first cleaning pass that may have visited the record, and the first one that certainly has.
    reached: (Option<Millis>, Option<Millis>),
    /// Number of stored batches after the record and the end of its transaction were written.
    since: (usize, usize),
}

/// One run: the log and its model.
struct Run {
    seed: u64,
    random: Random,
    hand: TestLog,
    at: TopicPartition,
    producers: [Option<Box<dyn TransactionalProducer>>; 2],
    open: [bool; 2],
    written: BTreeMap<Offset, Written>,
    end: Offset,
    /// End of what a cleaning pass may have visited, and of what one certainly has visited.
    cleaned: (Offset, Offset),
    lag_ms: Millis,
    value: u64,
    /// Number of writes per thousand that fail.
    wrong: u64,
    member: Option<(Box<dyn GroupConsumer>, GroupMetadata)>,
    /// Committed offsets with the number of stored batches at that time.
    offsets: Vec<(usize, Offset)>,
}

impl Run {
    fn new(seed: u64, wrong: u64) -> Run {
        let mut random = Random(seed | 1);
        let hand = TestLog::new();
        let lag_ms = [0, LAG_MS][usize::try_from(random.below(2)).expect("small")];
        let at = hand.topic_of(
            Cleanup::Compact,
            &[
                ("min.cleanable.dirty.ratio", "0"),
                ("min.compaction.lag.ms", &lag_ms.to_string()),
                ("delete.retention.ms", &RETENTION_MS.to_string()),
            ],
        );
        let mut run = Run {
            seed,
            random,
            hand,
            at,
            producers: [None, None],
            open: [false; 2],
            written: BTreeMap::new(),
            end: 0,
            cleaned: (0, 0),
            lag_ms,
            value: 0,
            wrong,
            member: None,
            offsets: Vec::new(),
        };
        run.reopen();
        run
    }

    fn reopen(&mut self) {
        self.producers = [None, None];
        self.member = None;
        self.hand.store.repair();
        let cache_bytes = [0, 700, 1 << 20][usize::try_from(self.random.below(3)).expect("small")];
        let keys = usize::try_from(1 + self.random.below(KEYS)).expect("small");
        self.hand.log = opened_with(&self.hand.store, &self.hand.time, |config| {
            (config.cache_bytes, config.cleaner_keys_max) = (cache_bytes, keys);
        })
        .expect("open again");
        for producer in 0..2 {
            self.decide(producer, TransactionState::Aborted);
            let config = TransactionalProducerConfig {
                transactional_id: format!("s{producer}"),
                transaction_timeout: Duration::from_secs(600),
            };
            self.producers[producer] = Some(self.hand.log.transactional_producer(config).expect("producer"));
        }
        self.member = Some(self.hand.group_metadata("g"));
        self.spoil();
    }

    fn spoil(&mut self) {
        let seed = self.random.below(u64::MAX);
        self.hand.store.inner.spoil(seed, self.wrong);
    }

    /// Simulates a crash of the host that loses some of the newest batches.
    fn crash(&mut self, slow: &mut Slow) {
        let written = self.hand.store.inner.written();
        let kept = written
            - usize::try_from(self.random.below(8))
                .expect("small")
                .min(written - self.offsets[0].0);
        let epoch = self.hand.log.log_epoch().expect("epoch");
        self.hand.store.inner.crash(kept);
        self.written.retain(|_, record| record.since.0 <= kept);
        for record in self.written.values_mut() {
            if record.since.1 > kept {
                record.state = TransactionState::Aborted;
            }
            record.reached.1 = None;
        }
        self.offsets.retain(|(since, _)| *since <= kept);
        (self.cleaned.1, self.end) = (0, 0);
        *slow = Slow::new();
        self.reopen();
        let changed = self.hand.log.log_epoch().expect("epoch") != epoch;
        assert_eq!(
            changed,
            kept < written,
            "seed {}: offsets may be assigned again",
            self.seed
        );
    }

    fn decide(&mut self, producer: usize, state: TransactionState) {
        self.open[producer] = false;
        let now = self.hand.store.inner.written();
        for written in self
            .written
            .values_mut()
            .filter(|w| w.state == TransactionState::Open(producer))
        {
            (written.state, written.since.1) = (state, now);
        }
    }

    /// Initializes a producer, retrying until it succeeds.
    fn init_transactions(&mut self, n: usize) {
        let producer = self.producers[n].as_mut().expect("it is open");
        if (0..20).any(|_| producer.init_transactions().is_ok()) {
            return self.decide(n, TransactionState::Aborted);
        }
        self.hand.store.repair();
        producer.init_transactions().expect("init_transactions");
        self.decide(n, TransactionState::Aborted);
        self.spoil();
    }

    fn write(&mut self, producer: Option<usize>) {
        let records: Vec<String> = (0..=self.random.below(5))
            .map(|_| {
                self.value += 1;
                let key = self.random.below(KEYS);
                match self.random.below(4) {
                    0 => format!("k{key}"),
                    _ => format!("k{key}={}", self.value),
                }
            })
            .collect();
        let texts: Vec<&str> = records.iter().map(String::as_str).collect();
        let batch = keyed(&self.at, &texts);
        let first = match producer {
            None => match self.hand.log.append(&batch) {
                Ok(produced) => produced[0].first_offset,
                Err(error) => return self.check_rejected(&error),
            },
            Some(n) => {
                let producer = self.producers[n].as_mut().expect("it is open");
                if !self.open[n] {
                    producer.begin().expect("begin");
                    self.open[n] = true;
                }
                if let Err(error) = producer.send(&batch) {
                    self.check_rejected(&error);
                    return self.init_transactions(n);
                }
                self.hand.range(&self.at)[2] - Offset::try_from(texts.len()).expect("small")
            }
        };
        assert!(first >= self.end, "seed {}: offset {first} was used before", self.seed);
        for (offset, text) in (first..).zip(&texts) {
            let (key, value) = text.split_once('=').unwrap_or((text, "-"));
            let written = Written {
                text: (key.to_owned(), value.to_owned()),
                timestamp: self.hand.log.broker.now(),
                state: producer.map_or(TransactionState::Committed, TransactionState::Open),
                reached: (None, None),
                since: (self.hand.store.inner.written(), 0),
            };
            self.written.insert(offset, written);
        }
    }

    fn check_rejected(&self, error: &Error) {
        let fine = self.wrong > 0 && matches!(error, Error::Storage { .. });
        assert!(fine, "seed {}: {error}", self.seed);
    }

    fn end_transaction(&mut self, n: usize) {
        if !self.open[n] {
            return;
        }
        let producer = self.producers[n].as_mut().expect("it is open");
        if self.random.below(3) == 0 {
            match producer.abort() {
                Ok(()) => self.decide(n, TransactionState::Aborted),
                Err(error) => {
                    self.check_rejected(&error);
                    self.init_transactions(n);
                }
            }
            return;
        }
        self.value += 1;
        let offset = Offset::try_from(self.value).expect("small");
        let (_, member) = self.member.as_ref().expect("it has joined");
        match producer.commit(Some((member, &[(self.at.clone(), offset)]))) {
            Outcome::Committed(_) => {
                self.decide(n, TransactionState::Committed);
                self.offsets.push((self.hand.store.inner.written(), offset));
            }
            outcome => {
                assert!(self.wrong > 0, "seed {}: {outcome:?}", self.seed);
                self.init_transactions(n);
            }
        }
    }

    /// Runs a cleaning pass. If storage fails during the pass, the log is reopened.
    fn clean(&mut self, fails: bool) {
        if fails {
            let commits = i64::try_from(self.random.below(4)).expect("small");
            self.hand.store.breaks_after.store(commits, Ordering::SeqCst);
        }
        let now = self.hand.log.broker.now();
        let [_, stable, _] = self.hand.range(&self.at);
        let young = self
            .written
            .range(self.cleaned.1..)
            .find(|(_, written)| self.lag_ms > 0 && written.timestamp > now - self.lag_ms);
        let upto = young
            .map_or(stable, |(offset, _)| *offset)
            .min(stable)
            .max(self.cleaned.1);
        let whole = self.hand.log.clean(now).is_ok();
        self.cleaned.0 = self.cleaned.0.max(upto);
        for (_, written) in self.written.range_mut(..upto) {
            written.reached.0.get_or_insert(now);
        }
        if whole {
            self.cleaned.1 = upto;
            for (_, written) in self.written.range_mut(..upto) {
                written.reached.1.get_or_insert(now);
            }
        }
        if fails {
            self.reopen();
        }
        if whole {
            self.check_removed(now);
        }
    }

    /// Returns the newest committed record of each key below an offset.
    fn newest(&self, below: Offset) -> BTreeMap<&str, Offset> {
        let committed = self
            .written
            .range(..below)
            .filter(|(_, w)| w.state == TransactionState::Committed);
        committed.map(|(offset, w)| (w.text.0.as_str(), *offset)).collect()
    }

    /// Checks that only the expected records remain below the end of a complete pass.
    fn check_removed(&self, now: Millis) {
        let newest = self.newest(self.cleaned.1);
        let all = self.hand.seen(Isolation::ReadUncommitted, &self.at);
        for (offset, key, value) in all.iter().filter(|(offset, ..)| *offset < self.cleaned.1) {
            let place = format!("seed {}: {key}={value} at {offset}", self.seed);
            assert_eq!(newest.get(key.as_str()), Some(offset), "{place} should be gone");
            let reached = self.written[offset].reached.1;
            let over = reached.is_some_and(|reached| reached + RETENTION_MS <= now);
            assert!(value != "-" || !over, "{place}: its time is over");
        }
    }

    /// Checks that the state matches the stored blocks.
    fn check_sizes(&self) {
        let sizes: u64 = self.hand.sizes(&self.at).iter().sum();
        let state = self.hand.log.broker.state();
        let part = state.part(&self.at).expect("it exists");
        assert_eq!(part.bytes - part.gone_bytes(), sizes, "seed {}", self.seed);
    }

    /// Checks the invariants that hold at all times.
    fn check(&mut self) {
        let seed = self.seed;
        self.check_sizes();
        let [start, stable, end] = self.hand.range(&self.at);
        assert!(
            start == 0 && end >= self.end,
            "seed {seed}: {start}..{end} after {}",
            self.end
        );
        self.end = end;
        let now = self.hand.log.broker.now();
        let offset = self.hand.log.committed("g", std::slice::from_ref(&self.at));
        let offset = offset.expect("committed")[&self.at];
        let last = self.offsets.last().map(|(_, offset)| *offset);
        assert_eq!(
            offset.unwrap_or(0),
            last.unwrap_or(0),
            "seed {seed}: the group's offset"
        );
        let read = self.hand.seen(Isolation::ReadCommitted, &self.at);
        let there: BTreeMap<Offset, _> = read.iter().map(|(o, k, v)| (*o, (k.clone(), v.clone()))).collect();
        assert!(
            read.is_sorted_by_key(|(offset, ..)| *offset) && there.len() == read.len(),
            "seed {seed}"
        );
        let shadows = self.newest(self.cleaned.0);
        for (offset, written) in self.written.range(..stable) {
            let (key, value) = &written.text;
            let place = format!("seed {seed}: {key}={value} at {offset}, {written:?}");
            match there.get(offset) {
                Some(text) => {
                    assert_eq!(text, &written.text, "{place}");
                    assert_eq!(written.state, TransactionState::Committed, "{place}");
                }
                None if written.state == TransactionState::Committed => {
                    let shadowed = shadows.get(key.as_str()).is_some_and(|newest| newest > offset);
                    let reached = written.reached.0;
                    let over = value == "-" && reached.is_some_and(|reached| reached + RETENTION_MS <= now);
                    assert!(shadowed || over, "{place} is lost");
                }
                None => {}
            }
        }
        assert!(
            there.keys().all(|offset| self.written.contains_key(offset)),
            "seed {seed}"
        );
        let living = |map: BTreeMap<String, (Offset, String)>| {
            map.into_iter()
                .filter(|(_, (_, value))| value != "-")
                .collect::<Vec<_>>()
        };
        let got = read.iter().map(|(o, k, v)| (k.clone(), (*o, v.clone()))).collect();
        let want = self.newest(stable);
        let want = want
            .iter()
            .map(|(k, o)| ((*k).to_owned(), (*o, self.written[o].text.1.clone())));
        assert_eq!(living(got), living(want.collect()), "seed {seed}");
        self.check_lookup_by_time(now, &there);
    }

    /// Checks that a lookup by time finds the first committed record at or after that time.
    fn check_lookup_by_time(&mut self, now: Millis, there: &BTreeMap<Offset, (String, String)>) {
        let seed = self.seed;
        let time = now - Millis::try_from(self.random.below(100)).expect("small");
        let found = self
            .hand
            .log
            .offset(&self.at, OffsetSpec::Timestamp(time))
            .expect("time");
        let first = there.keys().find(|offset| self.written[offset].timestamp >= time);
        assert!(
            first.is_none_or(|first| found <= *first),
            "seed {seed}: {time} at {found}"
        );
        let before = there
            .range(..found)
            .all(|(offset, _)| self.written[offset].timestamp < time);
        assert!(before, "seed {seed}: {time} at {found}");
    }
}

/// A slow reader that reads during the whole run and is created again when the log is reopened.
struct Slow {
    next: Offset,
    latest: BTreeMap<String, (Offset, String)>,
}

impl Slow {
    fn new() -> Slow {
        Slow {
            next: 0,
            latest: BTreeMap::new(),
        }
    }

    fn read(&mut self, run: &mut Run, polls: u64) {
        let mut reader = run.hand.log.reader(Isolation::ReadCommitted).expect("reader");
        let from = StartFrom::Offset(self.next);
        reader.assign(&[(run.at.clone(), from)]).expect("assign");
        let mut batch = RecordBatch::default();
        for _ in 0..polls {
            // The log is cleaned between polls, so that blocks change while the reader's position is within them.
            reader.poll(&mut batch, 1, Duration::ZERO).expect("poll");
            if run.random.below(2) == 0 {
                run.clean(false);
            }
            for record in batch.iter() {
                let (offset, key, value) = seen(&record);
                let written = &run.written[&offset];
                assert!(offset >= self.next, "seed {}: {offset} was read twice", run.seed);
                assert_eq!(
                    written.state,
                    TransactionState::Committed,
                    "seed {}: {offset}",
                    run.seed
                );
                assert_eq!(written.text, (key.clone(), value.clone()), "seed {}", run.seed);
                self.latest.insert(key, (offset, value));
            }
            self.next = reader.position(&run.at).expect("it is assigned");
        }
    }
}

fn run(seed: u64, wrong: u64) {
    let mut run = Run::new(seed, wrong);
    let mut slow = Slow::new();
    // A crash does not lose the initial batches.
    run.offsets.push((run.hand.store.inner.written(), 0));
    for _ in 0..120 {
        match run.random.below(20) {
            0..7 => run.write(None),
            7..9 => run.write(Some(0)),
            9..11 => run.write(Some(1)),
            11 => run.end_transaction(0),
            12 => run.end_transaction(1),
            13..16 => {
                let fails = run.random.below(4) == 0;
                run.clean(fails);
            }
            16 if wrong > 0 && run.random.below(2) == 0 => run.crash(&mut slow),
            16 => run.reopen(),
            17 => {
                let polls = run.random.below(6);
                slow.read(&mut run, polls);
            }
            _ => {
                // Sometimes long enough for everything to expire.
                let ms = match run.random.below(4) {
                    0 => RETENTION_MS + LAG_MS,
                    _ => Millis::try_from(run.random.below(30)).expect("small"),
                };
                run.hand.advance(ms);
            }
        }
        run.check();
    }
    let [_, stable, _] = run.hand.range(&run.at);
    while slow.next < stable {
        slow.read(&mut run, 3);
    }
    for (key, offset) in run.newest(stable) {
        let text = &run.written[&offset].text.1;
        let heard = slow.latest.get(key);
        let same = heard.is_some_and(|(last, value)| (last, value) == (&offset, text));
        assert!(
            same || text == "-",
            "seed {seed}: {key} is {text}, the reader got {heard:?}"
        );
    }
}

#[test]
fn random_runs_match_model() {
    let fresh = RandomState::new().hash_one(1_u64);
    for seed in (1..=400).chain((0..100).map(|n| fresh.wrapping_add(n))) {
        run(seed, 0);
    }
}

/// Environment variable with the seeds of the runs with failing storage: `FIRST` or `FIRST..END`.
const SEEDS: &str = "TRUNKLINE_TEST_LOG_SEEDS";

#[test]
fn random_runs_over_failing_store_match_model() {
    #[expect(clippy::disallowed_methods, reason = "the seeds are configurable")]
    let seeds = std::env::var(SEEDS).ok();
    let seeds = seeds.map(|seeds| {
        let (first, end) = seeds.split_once("..").unwrap_or((&seeds, ""));
        let first: u64 = first.parse().expect("a seed");
        first..end.parse().unwrap_or(first + 1)
    });
    for seed in seeds.unwrap_or(1..2_001) {
        // Some runs fail rarely, some often.
        let done = std::panic::catch_unwind(|| run(seed, [5, 30, 150][usize::try_from(seed % 3).expect("small")]));
        if let Err(failed) = done {
            eprintln!("repeat it with: {SEEDS}={seed} cargo test --release -p trunkline-event-log over_failing_store");
            std::panic::resume_unwind(failed);
        }
    }
}
