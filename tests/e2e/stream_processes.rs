//! The stream runtime on real Kafka, in processes that die: its output must be that of one sequential run.
//!
//! Guarantees: each death is a real one, at a named point of the code or by a signal; the truth is computed from the
//! input topic alone. Never: a judgement by the child.

mod bad_input;
mod child;
mod harness;
mod host_faults;
mod standby;

use crate::support::{self, Broker, wait_for};
use child::{Part, part};
use event_log::{
    Cleanup, ErrorAction, Isolation, Offset, OffsetSpec, OutBatch, OutRecord, RecordBatch, SharedEventLog, StartFrom,
    TopicConfig, TopicPartition, TopicSpec,
};
use service::{Readiness, Tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const PARTITIONS: i32 = 3;
/// Few, so that every key is counted in every transaction.
const KEYS: usize = 7;

/// The line that processes are killed on.
struct Line {
    log: SharedEventLog,
    part: Part,
    written: usize,
}

impl Line {
    fn new(part: Part) -> Line {
        let log = part.log();
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&[topic(&part.input), topic(&part.output)])
            .expect("create topics");
        Line { log, part, written: 0 }
    }

    /// Writes so many records, spread over the partitions.
    fn write(&mut self, count: usize) {
        let (topic, mut batch) = (Arc::from(self.part.input.as_str()), OutBatch::default());
        for _ in 0..count {
            let key = format!("[{}]", self.written * 31 % KEYS);
            let partition = Some(i32::try_from(self.written).expect("few records") % PARTITIONS);
            batch.push(
                OutRecord {
                    topic: &topic,
                    partition,
                    timestamp: None,
                    key: Some(key.as_bytes()),
                    value: None,
                },
                [],
            );
            self.written += 1;
        }
        self.log.append(&batch).expect("write input");
    }

    /// Committed records of a partition, as offset, key and value.
    fn read(&self, topic: &str, partition: i32) -> Vec<(Offset, String, String)> {
        let at = TopicPartition::new(topic, partition);
        // The broker may just have started again.
        let end = wait_for("the end of the partition", LIMIT, || {
            match self.log.offset(&at, OffsetSpec::LastStable) {
                Err(error) if error.action() == ErrorAction::Retry => None,
                end => Some(end.expect("look the end up")),
            }
        });
        let mut reader = self.log.reader(Isolation::ReadCommitted).expect("open a reader");
        reader.assign(&[(at.clone(), StartFrom::Earliest)]).expect("assign");
        let (mut batch, mut seen) = (RecordBatch::default(), Vec::new());
        wait_for("the reader to reach the end", LIMIT, || {
            reader
                .poll(&mut batch, 1 << 20, Duration::from_millis(20))
                .expect("poll");
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
            seen.extend(batch.iter().map(|r| (r.offset(), text(r.key()), text(r.value()))));
            (reader.position(&at) >= Some(end)).then_some(())
        });
        seen
    }

    fn outputs(&self) -> usize {
        (0..PARTITIONS)
            .map(|partition| self.read(&self.part.output, partition).len())
            .sum()
    }

    /// Waits until something was made of every record, and compares it with what should be at the least.
    fn check_at_least(&self) {
        wait_for("something of every record to come out", LIMIT, || {
            let whole = (0..PARTITIONS).all(|partition| {
                let made: BTreeSet<Offset> = self.counts(partition).iter().map(|(_, _, offset)| *offset).collect();
                let input = self.read(&self.part.input, partition);
                input.iter().all(|(offset, _, _)| made.contains(offset))
            });
            whole.then_some(())
        });
        for partition in 0..PARTITIONS {
            let (mut want, mut got) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
            for (_, key, _) in self.read(&self.part.input, partition) {
                *want.entry(key).or_default() += 1;
            }
            for (key, count, _) in self.counts(partition) {
                let most = got.entry(key).or_default();
                *most = count.max(*most);
            }
            for (key, want) in want {
                assert!(
                    got[&key] >= want,
                    "partition {partition}, {key}: {} of {want}",
                    got[&key]
                );
            }
        }
    }

    /// Key, count and input offset of each output.
    fn counts(&self, partition: i32) -> Vec<(String, u64, Offset)> {
        let parse = |(_, key, value): (Offset, String, String)| {
            let (count, offset) = value.split_once(' ').expect("a count and an offset");
            (key, count.parse().expect("a count"), offset.parse().expect("an offset"))
        };
        self.read(&self.part.output, partition).into_iter().map(parse).collect()
    }

    /// Checks what its guarantee promises.
    fn check(&self) {
        if self.part.alone {
            self.check_at_least();
        } else {
            self.check_once();
        }
    }

    /// Waits until everything written has come out, and compares it with one sequential run.
    fn check_once(&self) {
        let mut seen = 0;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("everything to come out", LIMIT, || {
                seen = self.outputs();
                (seen >= self.written).then_some(())
            });
        }));
        assert!(done.is_ok(), "{seen} of {} records came out", self.written);
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            let want: Vec<(String, String)> = self
                .read(&self.part.input, partition)
                .into_iter()
                .map(|(offset, key, _)| {
                    let count = counts.entry(key.clone()).or_default();
                    *count += 1;
                    (key, format!("{count} {offset}"))
                })
                .collect();
            let got = self.read(&self.part.output, partition);
            let got: Vec<(String, String)> = got.into_iter().map(|(_, key, value)| (key, value)).collect();
            let odd = got.iter().zip(&want).position(|(got, want)| got != want);
            let about = odd.map(|at| (at, got.get(at), want.get(at)));
            assert!(
                got == want,
                "partition {partition}: {} came out, {} should: {about:?}",
                got.len(),
                want.len()
            );
        }
    }
}

/// Every point of the runtime's and the log's own steps where a process may die, and at which hits.
const POINTS: &[(&str, &[u32])] = &[
    ("runtime.session.init_transactions", &[1]),
    ("runtime.assigned", &[1]),
    ("runtime.recovery.open", &[1, 2]),
    ("runtime.recovery.offsets", &[1]),
    ("runtime.recovery.end", &[2]),
    ("runtime.restore.batch", &[1, 2]),
    ("runtime.recovery.reached", &[1, 3]),
    ("runtime.recovery.start", &[1, 2]),
    ("runtime.commit.begin", &[1, 2]),
    ("log.send.before", &[2]),
    ("log.send.after", &[1, 2, 3]),
    ("runtime.commit.sent", &[1, 3]),
    ("log.offsets.before", &[1, 2]),
    ("log.commit.before", &[1, 2]),
    ("log.commit.after", &[1, 2]),
    ("runtime.commit.committed", &[1, 2]),
    ("runtime.commit.applied", &[1, 2]),
];

/// The same for a processor that is at least once.
const POINTS_ALONE: &[(&str, &[u32])] = &[
    ("runtime.session.init_transactions", &[1]),
    ("runtime.recovery.offsets", &[1]),
    ("runtime.recovery.end", &[2]),
    ("runtime.restore.batch", &[1, 2]),
    ("runtime.recovery.start", &[1, 2]),
    ("runtime.commit.begin", &[1, 2]),
    ("log.append.before", &[2]),
    ("log.append.after", &[1, 2, 3]),
    ("runtime.alone.outputs", &[1, 3]),
    ("runtime.alone.rows", &[1, 2, 3]),
    ("runtime.commit.sent", &[1, 2, 3]),
    ("runtime.commit.applied", &[1, 2]),
    ("log.offsets.before", &[1, 2]),
    ("log.offsets.after", &[1, 2]),
    ("runtime.commit.committed", &[1, 2]),
];

/// Dies at each point in turn, on one group and one set of stores, which are lost or set back to an older copy now
/// and then.
fn die_everywhere(mut line: Line) {
    let stores = line.part.dir.clone();
    let copy = tempfile::tempdir().expect("make a directory");
    // State to restore, and offsets to come back to.
    line.write(40);
    let mut life = line.part.spawn("");
    line.check();
    life.kill();
    let mut deaths = 0;
    let points = if line.part.alone { POINTS_ALONE } else { POINTS };
    for (point, hits) in points {
        for hit in *hits {
            deaths += 1;
            match deaths % 5 {
                // A mid-restore death needs a restore; others happen on a lost disk too.
                0 => drop(std::fs::remove_dir_all(&stores)),
                2 => copy_dir(&stores, copy.path()),
                4 => copy_dir(copy.path(), &stores),
                _ => {}
            }
            if *point == "runtime.restore.batch" {
                drop(std::fs::remove_dir_all(&stores));
            }
            line.write(40);
            let mut life = line.part.spawn(&format!("{point}=kill@{hit}"));
            let why = format!("the child dies at {point}, hit {hit}");
            // More input, a little at a time, so that later hits are reached.
            let mut asked = 0;
            wait_for(&why, LIMIT, || {
                asked += 1;
                if asked % 20 == 0 {
                    line.write(3);
                }
                (!life.is_alive()).then_some(())
            });
            assert!(!life.ended(&why).success(), "{why}");
        }
    }
    line.write(40);
    let life = line.part.spawn("");
    line.check();
    // What was checked stays so: nothing comes later.
    line.write(10);
    line.check();
    life.signal("-TERM");
}

fn copy_dir(from: &Path, to: &Path) {
    drop(std::fs::remove_dir_all(to));
    std::fs::create_dir_all(to).expect("make a directory");
    let Ok(entries) = std::fs::read_dir(from) else { return };
    for entry in entries {
        let entry = entry.expect("read a directory");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("know a file's type").is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copy a file");
        }
    }
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_when_killed_at_every_failpoint() {
    let dir = tempfile::tempdir().expect("make a directory");
    die_everywhere(Line::new(part(support::kafka(), dir.path().join("stores"))));
}

#[cfg(feature = "external")]
#[test]
fn at_least_once_when_killed_at_every_failpoint() {
    let dir = tempfile::tempdir().expect("make a directory");
    let part = Part {
        alone: true,
        ..part(support::kafka(), dir.path().join("stores"))
    };
    die_everywhere(Line::new(part));
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_when_killed_on_sled() {
    let dir = tempfile::tempdir().expect("make a directory");
    let part = Part {
        sled: true,
        ..part(support::kafka(), dir.path().join("stores"))
    };
    die_everywhere(Line::new(part));
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_while_partitions_move() {
    come_die_and_sleep(false);
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_while_kip848_partitions_move() {
    come_die_and_sleep(true);
}

fn come_die_and_sleep(newer: bool) {
    let (first, second) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let mut line = Line::new(Part {
        newer,
        ..part(support::kafka(), first.path().join("stores"))
    });
    let other = Part {
        instance: "two".to_owned(),
        dir: second.path().join("stores"),
        ..line.part.clone()
    };
    line.write(60);
    let mut one = line.part.spawn("runtime.revoked=kill");
    wait_for("the first process to work", LIMIT, || {
        // Its second thread may join so late that the first gives partitions up to it: not the death that is meant.
        if !one.is_alive() {
            one = line.part.spawn("runtime.revoked=kill");
        }
        (line.outputs() >= 60).then_some(())
    });
    // The second one's coming takes partitions from the first, which dies while it gives them up.
    let mut two = other.spawn("");
    line.write(60);
    one.ended("the first process dies at runtime.revoked");
    line.check();
    // It comes back, takes its share, and the second one is killed with work in hand.
    let one = line.part.spawn("");
    line.write(60);
    line.check();
    line.write(200);
    two.kill();
    line.write(60);
    line.check();
    // A sleeper: it holds its partitions until its session is over, and wakes to find them gone.
    let two = other.spawn("");
    line.write(60);
    line.check();
    line.write(200);
    one.signal("-STOP");
    line.write(60);
    line.check();
    one.signal("-CONT");
    line.write(200);
    line.check();
    drop((one, two));
}

#[cfg(feature = "external")]
#[test]
fn broker_restart_loses_nothing_without_restart() {
    let mut broker = Broker::start();
    let dir = tempfile::tempdir().expect("make a directory");
    let mut line = Line::new(part(broker.bootstrap(), dir.path().join("stores")));
    line.write(50);
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an executor");
    let (tasks, readiness) = executor.block_on(async { (Tasks::new(), Readiness::new()) });
    line.part.run(line.log.clone(), &tasks, &readiness, |_| {});
    wait_for("readiness", LIMIT, || readiness.report().ready.then_some(()));
    line.check();
    for stop in [Broker::kill, Broker::stop] {
        stop(&mut broker);
        let red = wait_for("a red readiness", LIMIT, || {
            readiness
                .report()
                .components
                .into_iter()
                .find(|component| !component.ready)
        });
        assert!(red.cause.is_some_and(|cause| !cause.is_empty()));
        assert!(
            red.next_command
                .is_some_and(|command| command.contains("trunkline doctor"))
        );
        broker.restart();
        line.write(50);
        line.check();
        wait_for("readiness again", LIMIT, || readiness.report().ready.then_some(()));
    }
    assert!(!tasks.running().is_empty(), "nothing was restarted");
    executor
        .block_on(tasks.join(Duration::from_secs(60)))
        .expect("a clean end");
}
