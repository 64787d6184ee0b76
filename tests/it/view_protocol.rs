//! The view protocol under a random run of the real code: records, replica, cursor and delta, against two oracles.
//!
//! The world around them (sources, writers, Kafka's partition with its cleaner, devices) is modelled. One oracle
//! recomputes a partition's state from every record ever committed, never compacted; the other is the source database
//! at the transaction that the last closing names. Checked at every page, commit, 304 and replica: invariants I1–I6,
//! I9, I10, and that everything drains at the end.
//! `TRUNKLINE_SEED=n` runs one seed, `TRUNKLINE_SEEDS=n` so many.

mod device;
mod disk;
mod log;
mod source;
mod writer;

use ::log::Offset;
use device::Device;
use disk::Disk;
use log::{Ghost, Log, partition_of};
use source::Source;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use views::cursor::{Key, Keyring, Owner};
use views::replica::{Options, Times};
use views::{Answer, Bucket, BucketId, Replica, Request};
use writer::Writer;

pub const LAG: i64 = 60;
pub const DELETE_RETENTION: i64 = 240;
const MARGIN: i64 = 40;
pub const HORIZON: i64 = DELETE_RETENTION - MARGIN;
const TXN_TIMEOUT: i64 = 8;
const PARTITIONS: usize = 2;
const BUCKETS: [char; 4] = ['a', 'b', 'c', 'd'];

/// A small generator whose runs can be repeated (SplitMix64, Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn between(&mut self, from: i64, through: i64) -> i64 {
        from + (self.next() % (through - from + 1) as u64) as i64
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn id(bucket: char) -> BucketId {
    BucketId::of(&bucket.to_string())
}

fn options(now: i64) -> Options {
    let times = Times {
        compaction_lag_ms: LAG,
        delete_retention_ms: DELETE_RETENTION,
        margin_ms: MARGIN,
        refresh_ms: 20,
        proof_ms: i64::MAX / 4,
    };
    // Rows beyond some two are spilled, so that both ways through the store are walked.
    Options {
        partitions: vec![0, 1],
        times,
        log: 5,
        held_bytes_max: 200,
        flush_bytes: 150,
        now,
    }
}

/// A partition's visible rows by (bucket, source, key): offset, version, value.
type Visible = BTreeMap<(char, usize, &'static str), (Offset, [u8; 17], i64)>;

struct Rep {
    disk: Arc<Disk>,
    replica: Replica,
    saved: Option<Disk>,
    down_until: i64,
}

impl Rep {
    fn over(disk: Disk, now: i64) -> Rep {
        let disk = Arc::new(disk);
        let replica = Replica::open(disk.clone(), options(now)).expect("a replica opens over what it wrote");
        Rep {
            disk,
            replica,
            saved: None,
            down_until: 0,
        }
    }
}

struct Run {
    random: Random,
    now: i64,
    steps: usize,
    txn: u64,
    logs: Vec<Log>,
    sources: Vec<Source>,
    writers: Vec<Writer>,
    replicas: Vec<Rep>,
    devices: Vec<Device>,
    keys: Keyring,
    memo: BTreeMap<(usize, Offset), Visible>,
    polls: BTreeMap<&'static str, usize>,
}

impl Run {
    fn new(seed: u64, steps: usize) -> Self {
        let now = 1000;
        let sources = vec![
            Source::new(&["r1", "r2", "r3", "r4", "r5", "r6"], true),
            Source::new(&["r1", "r2", "r3"], true),
            Source::new(&["r1", "r2"], false),
        ];
        Run {
            random: Random(seed),
            now,
            steps,
            txn: 0,
            logs: (0..PARTITIONS).map(|_| Log::default()).collect(),
            sources,
            writers: (0..3).map(Writer::new).collect(),
            replicas: (0..3).map(|_| Rep::over(Disk::default(), now)).collect(),
            devices: (0..3).map(Device::new).collect(),
            keys: Keyring::new(&[Key { id: 1, secret: [7; 32] }]).unwrap(),
            memo: BTreeMap::new(),
            polls: BTreeMap::new(),
        }
    }

    /// A partition's state at T from all records ever committed, held against the sources.
    fn oracle(&mut self, p: usize, at: Offset) -> Visible {
        if let Some(known) = self.memo.get(&(p, at)) {
            return known.clone();
        }
        let mut all = BTreeMap::new();
        let mut pending: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        let mut closed = BTreeMap::new();
        for r in self.logs[p].history.iter().take_while(|r| r.offset <= at) {
            match r.ghost {
                Ghost::Row {
                    bucket,
                    key,
                    value,
                    version,
                } => pending
                    .entry(r.writer)
                    .or_default()
                    .push(((bucket, r.writer, key), (r.offset, version.to_bytes(), value))),
                Ghost::Mark => {}
                Ghost::Close { transactions, stale } => {
                    closed.insert(r.writer, (transactions, stale));
                    all.extend(pending.remove(&r.writer).into_iter().flatten());
                }
            }
        }
        let visible: Visible = all
            .into_iter()
            .filter_map(|(k, (o, v, j))| Some((k, (o, v, j?))))
            .collect();
        for (writer, (transactions, stale)) in closed {
            if !stale {
                self.truth(p, writer, transactions, &visible, at);
            }
        }
        self.memo.insert((p, at), visible.clone());
        visible
    }

    fn truth(&self, p: usize, writer: usize, transactions: usize, visible: &Visible, at: Offset) {
        let db = &self.sources[writer].db[transactions];
        let want: BTreeMap<_, _> = db
            .iter()
            .filter_map(|(k, (bucket, v))| bucket.filter(|b| partition_of(*b) == p).map(|b| ((b, writer, *k), *v)))
            .collect();
        let got: BTreeMap<_, _> = visible
            .iter()
            .filter(|(k, _)| k.1 == writer)
            .map(|(k, v)| (*k, v.2))
            .collect();
        assert_eq!(
            got, want,
            "I3: source {writer}, partition {p}, T {at}: view (left) and database (right)"
        );
    }

    /// I1, I2, I3, I5, I9, I10: what a device holds against the oracle.
    fn check_device(&mut self, d: usize, at: &BTreeMap<i32, Offset>, why: &str) {
        let may: BTreeSet<BucketId> = self.devices[d].claims.chars().map(id).collect();
        assert_eq!(self.devices[d].buckets(), may, "I5, {why}: buckets of device {d}");
        for bucket in self.devices[d].claims.chars() {
            let p = partition_of(bucket);
            let at = at[&(p as i32)];
            let visible = self.oracle(p, at);
            let want: device::Rows = visible
                .iter()
                .filter(|((b, ..), _)| *b == bucket)
                .map(|((_, s, k), (_, version, v))| {
                    (
                        ("v".to_owned(), format!("\"{s}\",\"{k}\"")),
                        (*version, v.to_string().into_bytes()),
                    )
                })
                .collect();
            let got = &self.devices[d].rows[&id(bucket)];
            assert_eq!(
                *got, want,
                "I2, {why}: device {d}, bucket {bucket}, T {at}: device (left), oracle (right)"
            );
        }
    }

    /// I6: what a complete replica shows against the oracle.
    fn check_replica(&mut self, i: usize) {
        for health in self.replicas[i].replica.health(self.now) {
            if health.not_ready.is_some() {
                continue;
            }
            let p = health.partition as usize;
            let visible = self.oracle(p, health.closed);
            for bucket in BUCKETS.into_iter().filter(|b| partition_of(*b) == p) {
                let rows = self.replicas[i].replica.rows(health.partition, id(bucket)).unwrap();
                let live = |c: &views::Change| {
                    let parts = c.parts();
                    Some((parts.key.to_owned(), (c.offset, parts.version, parts.json?.to_vec())))
                };
                let got: BTreeMap<_, _> = rows.iter().filter_map(live).collect();
                let want: BTreeMap<_, _> = visible
                    .iter()
                    .filter(|((b, ..), _)| *b == bucket)
                    .map(|((_, s, k), (o, ver, v))| {
                        (format!("\"{s}\",\"{k}\""), (*o, *ver, v.to_string().into_bytes()))
                    })
                    .collect();
                assert_eq!(got, want, "I6: replica {i}, bucket {bucket}, T {}", health.closed);
            }
        }
    }

    /// One poll; whether it brought the device to a complete state.
    fn poll(&mut self, d: usize, i: usize, rows_max: usize) -> bool {
        if self.replicas[i].down_until > self.now {
            return false;
        }
        let device = &self.devices[d];
        let readable: Vec<Bucket> = device.claims.chars().map(bucket).collect();
        let owner = Owner::new(&device.who.to_string(), &device.id.to_string());
        let cursor = device.cursor.as_deref().and_then(|c| self.keys.open(c));
        let foreign = cursor.as_ref().is_none_or(|c| c.owner != owner);
        let request = Request {
            owner,
            readable: &readable,
            cursor,
            rules: 1,
            rows_max,
            bytes_max: 1 << 20,
            now: self.now,
            patient: false,
        };
        let reads = self.replicas[i].disk.reads();
        let answer = views::delta(&self.replicas[i].replica, &request).unwrap();
        let at: BTreeMap<i32, Offset> = self.replicas[i]
            .replica
            .health(self.now)
            .iter()
            .map(|h| (h.partition, h.closed))
            .collect();
        match answer {
            Answer::NotReady(_) | Answer::Behind => {
                *self.polls.entry("503").or_default() += 1;
                false
            }
            Answer::NotModified => {
                *self.polls.entry("304").or_default() += 1;
                assert_eq!(self.replicas[i].disk.reads(), reads, "an idle poll has read the store");
                self.check_device(d, &at, "304");
                true
            }
            Answer::Page(page) => {
                *self
                    .polls
                    .entry(if page.complete { "complete" } else { "page" })
                    .or_default() += 1;
                self.take(d, &page, foreign)
            }
        }
    }

    fn take(&mut self, d: usize, page: &views::Page, foreign: bool) -> bool {
        let may: BTreeSet<BucketId> = self.devices[d].claims.chars().map(id).collect();
        let named = page
            .resets
            .iter()
            .map(|r| r.0)
            .chain(page.changes.iter().map(|c| c.bucket));
        assert!(
            named.into_iter().all(|b| may.contains(&b)),
            "I5: a page holds an unreadable bucket"
        );
        if self.random.chance(10) && self.steps > 0 {
            return false; // Lost on the way: the device asks again with its last cursor.
        }
        let text = self.keys.seal(&page.cursor);
        let device = &mut self.devices[d];
        if foreign {
            device.committed = None;
        }
        device.apply(page, &text);
        if self.random.chance(10) {
            device.apply(page, &text);
        }
        if !page.complete {
            if self.random.chance(4) && self.steps > 0 {
                self.devices[d].asleep_until = self.now + self.random.pick(&[30, 100, 170]);
            }
            return false;
        }
        for (bucket, hash) in &page.hashes {
            assert_eq!(self.devices[d].hash(*bucket), *hash, "I10: hash of {bucket}");
        }
        let at: BTreeMap<i32, Offset> = page.cursor.points.iter().map(|(p, point)| (*p, point.closed)).collect();
        if let Some(before) = self.devices[d].committed.replace(at.clone()) {
            for (p, t) in before {
                assert!(
                    at.get(&p).is_none_or(|now| *now >= t),
                    "I4: T of device {d} went back in partition {p}"
                );
            }
        }
        self.check_device(d, &at, "commit");
        true
    }

    fn rebuild(&mut self, i: usize) {
        let down_until = self.replicas[i].down_until;
        self.replicas[i] = Rep {
            down_until,
            ..Rep::over(Disk::default(), self.now)
        };
    }

    fn read(&mut self, i: usize, max: usize) {
        if self.replicas[i].replica.expired(self.now) {
            self.rebuild(i);
        }
        for p in 0..PARTITIONS {
            let rep = &self.replicas[i].replica;
            let position = rep.positions()[p].1;
            let (batch, after) = self.logs[p].read(position, max);
            let applied = rep.apply(p as i32, batch.iter(), self.now).unwrap();
            assert_eq!(applied.refused, 0);
            let end = self.logs[p].end;
            if applied.need_end {
                rep.set_end(p as i32, end).unwrap();
            }
            if after >= self.logs[p].stable() {
                rep.at_end(p as i32, after, end, self.now).unwrap();
            }
        }
        self.check_replica(i);
    }

    fn write(&mut self, j: usize) {
        self.txn += 1;
        self.writers[j].step(&self.sources[j], &mut self.logs, self.now, self.txn);
    }

    fn finish(&mut self, j: usize, percent: u64) {
        let commit = self.random.chance(percent);
        self.writers[j].finish(&mut self.logs, self.now, commit);
    }

    fn change(&mut self, j: usize) {
        let mut keys = self.sources[j].keys.clone();
        let count = if j == 2 { 1 } else { self.random.between(1, 3) };
        let mut changes = vec![];
        for _ in 0..count {
            let key = keys.remove(self.random.below(keys.len()));
            let bucket = self.random.pick(&[
                Some('a'),
                Some('a'),
                Some('b'),
                Some('b'),
                Some('c'),
                Some('c'),
                Some('d'),
                None,
            ]);
            let value = (bucket, self.random.between(0, 5));
            changes.push((key, (!self.random.chance(25)).then_some(value)));
        }
        self.sources[j].commit(changes);
    }

    fn step(&mut self) {
        for j in 0..3 {
            if self.writers[j].txn.is_some() && self.now - self.writers[j].began > TXN_TIMEOUT {
                self.finish(j, 50);
            }
        }
        let (j, i, d) = (self.random.below(3), self.random.below(3), self.random.below(3));
        match self.random.below(1000) {
            0..100 => self.change(j),
            100..200 => {
                for _ in 0..self.random.between(1, 3) {
                    self.sources[j].emit(self.now, Some(&mut self.random));
                }
                self.sources[j].snapshot_step();
            }
            200..360 if self.writers[j].pause <= self.now => {
                for _ in 0..self.random.between(1, 4) {
                    self.write(j);
                }
            }
            360..440 => self.finish(j, 80),
            440..480 => {
                let p = self.random.below(PARTITIONS);
                self.logs[p].compact(self.now, &mut self.random);
            }
            480..640 if self.replicas[i].down_until <= self.now => {
                let max = self.random.pick(&[1, 3, 99, 99]);
                self.read(i, max);
            }
            640..870 if self.devices[d].asleep_until <= self.now => {
                let rows = self.devices[d].rows_max;
                self.poll(d, i, rows);
            }
            n => self.mischief(n, (j, i, d)),
        }
        self.now += self.random.pick(&[0, 0, 1, 1, 2]);
    }

    fn mischief(&mut self, n: usize, (j, i, d): (usize, usize, usize)) {
        let now = self.now;
        match n {
            870..880 => self.replicas[i].down_until = now + self.random.pick(&[5, 40, 80, 150, 300]),
            880..890 => self.rebuild(i),
            890..895 => self.replicas[i].saved = Some(self.replicas[i].disk.copy()),
            895..900 => {
                if let Some(saved) = self.replicas[i].saved.take() {
                    let again = saved.copy();
                    self.replicas[i] = Rep {
                        saved: Some(again),
                        ..Rep::over(saved, now)
                    };
                }
            }
            900..910 => drop(self.replicas[i].replica.prune(now, 100).unwrap()),
            910..930 => self.devices[d].claims = self.random.pick(&["", "a", "c", "ac", "b"]),
            930..940 => self.devices[d].rows_max = self.random.pick(&[1, 1, 2, 3, 5]),
            940..945 => self.devices[d].asleep_until = now + self.random.pick(&[10, 50, 150, 250]),
            945..948 => self.devices[d].who = if self.devices[d].who == 'P' { 'Q' } else { 'P' },
            948..960 => self.sources[j].replay(&mut self.random),
            960..965 => self.sources[j].redrive(now),
            965..972 if self.sources[j].snapshots => {
                if self.random.chance(60) {
                    self.sources[j].lose_slot();
                } else {
                    self.sources[j].snapshot();
                }
            }
            972..983 => {
                self.finish(j, 80);
                self.writers[j].pause = now + self.random.pick(&[20, 60, 120, 150, 500]);
            }
            983..990 => {
                for j in 0..3 {
                    self.finish(j, 80);
                }
                self.now += self.random.pick(&[15, 35, 70, 130]);
            }
            _ => {}
        }
    }

    /// Faults end: everything drains, then everyone must agree.
    fn heal(&mut self) {
        for j in 0..3 {
            for _ in 0..3 {
                if !self.sources[j].dead.is_empty() || self.writers[j].needs_snapshot() {
                    self.sources[j].snapshot();
                }
                for _ in 0..999 {
                    self.sources[j].snapshot_step();
                    if !self.sources[j].emit(self.now, None) && !self.sources[j].snapshotting() {
                        break;
                    }
                }
                self.txn += 1;
                while self.writers[j].step(&self.sources[j], &mut self.logs, self.now, self.txn) {}
                self.writers[j].finish(&mut self.logs, self.now, true);
            }
        }
        self.now += self.random.pick(&[0, 40, 100]);
        for p in 0..PARTITIONS {
            self.logs[p].compact(self.now, &mut self.random);
        }
        for i in 0..3 {
            self.replicas[i].down_until = 0;
            if self.random.chance(30) {
                self.rebuild(i);
            }
            self.read(i, usize::MAX);
            for health in self.replicas[i].replica.health(self.now) {
                assert_eq!(
                    health.not_ready, None,
                    "liveness: replica {i} at the end of a quiet log"
                );
                assert!(!health.holds_back, "liveness: replica {i} holds rows back for ever");
            }
        }
        for p in 0..PARTITIONS {
            let at = self.replicas[0].replica.health(self.now)[p].closed;
            let visible = self.oracle(p, at);
            for j in 0..3 {
                self.truth(p, j, self.sources[j].db.len() - 1, &visible, at);
            }
        }
        self.steps = 0;
        for d in 0..3 {
            let done = (0..300).any(|_| {
                let i = self.random.below(3);
                self.poll(d, i, 5)
            });
            assert!(done, "liveness: device {d} never completes");
        }
    }
}

fn bucket(name: char) -> Bucket {
    Bucket {
        name: name.to_string(),
        id: id(name),
        partition: partition_of(name) as i32,
    }
}

fn run(seed: u64, steps: usize) -> BTreeMap<&'static str, usize> {
    let mut run = Run::new(seed, steps);
    for _ in 0..steps {
        run.step();
    }
    run.heal();
    run.polls
}

#[expect(
    clippy::disallowed_methods,
    reason = "a failing seed is named in the environment to run it again"
)]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn a_random_run_keeps_every_invariant_of_the_view_protocol() {
    let seeds: Vec<u64> = match number("TRUNKLINE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("TRUNKLINE_SEEDS").unwrap_or(4000)).collect(),
    };
    let mut polls: BTreeMap<&'static str, usize> = BTreeMap::new();
    for seed in seeds {
        let done = std::panic::catch_unwind(|| run(seed, 400));
        let Ok(counts) = done else {
            panic!("TRUNKLINE_SEED={seed} fails; the reason stands above")
        };
        for (kind, count) in counts {
            *polls.entry(kind).or_default() += count;
        }
    }
    println!("polls: {polls:?}");
}
