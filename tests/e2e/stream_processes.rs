//! Delivery guarantees of the stream runtime on Kafka, in processes that are killed at failpoints or by signals. The
//! parent computes the expected output, which is that of one sequential run, from the input topic.

mod bad_input;
mod child;
mod harness;
mod host_faults;
mod standby;

use crate::support::{self, Broker, wait_for};
use child::{ProcessConfig, process_config};
use event_log::{Cleanup, Offset, OutBatch, OutRecord, SharedEventLog, TopicConfig, TopicPartition, TopicSpec};
use service::{Readiness, Tasks};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const PARTITIONS: i32 = 3;
/// So few that every key is counted in every transaction.
const KEYS: usize = 7;

/// Topics and log of a counting application whose processes are killed.
struct ProcessHarness {
    log: SharedEventLog,
    config: ProcessConfig,
    written: usize,
}

impl ProcessHarness {
    fn new(config: ProcessConfig) -> ProcessHarness {
        let log = config.log();
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        log.create_topics(&[topic(&config.input), topic(&config.output)])
            .expect("create topics");
        ProcessHarness {
            log,
            config,
            written: 0,
        }
    }

    /// Writes `count` records over all partitions.
    fn write(&mut self, count: usize) {
        let (topic, mut batch) = (Arc::from(self.config.input.as_str()), OutBatch::default());
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
        harness::committed(&self.log, &TopicPartition::new(topic, partition))
    }

    fn outputs(&self) -> usize {
        (0..PARTITIONS)
            .map(|partition| self.read(&self.config.output, partition).len())
            .sum()
    }

    /// Waits until every record has an output and checks that no count is too low.
    fn check_at_least(&self) {
        wait_for("an output of every record", LIMIT, || {
            let whole = (0..PARTITIONS).all(|partition| {
                let made: BTreeSet<Offset> = self.counts(partition).iter().map(|(_, _, offset)| *offset).collect();
                let input = self.read(&self.config.input, partition);
                input.iter().all(|(offset, _, _)| made.contains(offset))
            });
            whole.then_some(())
        });
        for partition in 0..PARTITIONS {
            let (mut want, mut got) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
            for (_, key, _) in self.read(&self.config.input, partition) {
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
        self.read(&self.config.output, partition)
            .into_iter()
            .map(parse)
            .collect()
    }

    /// Checks the processing guarantee of the application.
    fn check(&self) {
        if self.config.at_least_once {
            self.check_at_least();
        } else {
            self.check_once();
        }
    }

    /// Waits until all output is written and compares it with one sequential run.
    fn check_once(&self) {
        let mut seen = 0;
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("all output records", LIMIT, || {
                seen = self.outputs();
                (seen >= self.written).then_some(())
            });
        }));
        assert!(done.is_ok(), "{seen} of {} output records", self.written);
        for partition in 0..PARTITIONS {
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            let want: Vec<(String, String)> = self
                .read(&self.config.input, partition)
                .into_iter()
                .map(|(offset, key, _)| {
                    let count = counts.entry(key.clone()).or_default();
                    *count += 1;
                    (key, format!("{count} {offset}"))
                })
                .collect();
            let got = self.read(&self.config.output, partition);
            let got: Vec<(String, String)> = got.into_iter().map(|(_, key, value)| (key, value)).collect();
            let odd = got.iter().zip(&want).position(|(got, want)| got != want);
            let about = odd.map(|at| (at, got.get(at), want.get(at)));
            assert!(
                got == want,
                "partition {partition}: {} records, expected {}; first difference: {about:?}",
                got.len(),
                want.len()
            );
        }
    }
}

/// Failpoints of the runtime and the log, each with the passes at which the process aborts.
const FAILPOINTS: &[(&str, &[u32])] = &[
    ("streams.producer.init_transactions", &[1]),
    ("streams.assigned", &[1]),
    ("streams.recovery.open", &[1, 2]),
    ("streams.recovery.offsets", &[1]),
    ("streams.recovery.end", &[2]),
    ("streams.restore.batch", &[1, 2]),
    ("streams.recovery.reached", &[1, 3]),
    ("streams.recovery.start", &[1, 2]),
    ("streams.commit.begin", &[1, 2]),
    ("log.send.before", &[2]),
    ("log.send.after", &[1, 2, 3]),
    ("streams.commit.sent", &[1, 3]),
    ("log.offsets.before", &[1, 2]),
    ("log.commit.before", &[1, 2]),
    ("log.commit.after", &[1, 2]),
    ("streams.commit.committed", &[1, 2]),
    ("streams.commit.applied", &[1, 2]),
];

/// Failpoints of the at-least-once mode.
const AT_LEAST_ONCE_FAILPOINTS: &[(&str, &[u32])] = &[
    ("streams.producer.init_transactions", &[1]),
    ("streams.recovery.offsets", &[1]),
    ("streams.recovery.end", &[2]),
    ("streams.restore.batch", &[1, 2]),
    ("streams.recovery.start", &[1, 2]),
    ("streams.commit.begin", &[1, 2]),
    ("log.append.before", &[2]),
    ("log.append.after", &[1, 2, 3]),
    ("streams.at_least_once.outputs", &[1, 3]),
    ("streams.at_least_once.rows", &[1, 2, 3]),
    ("streams.commit.sent", &[1, 2, 3]),
    ("streams.commit.applied", &[1, 2]),
    ("log.offsets.before", &[1, 2]),
    ("log.offsets.after", &[1, 2]),
    ("streams.commit.committed", &[1, 2]),
];

/// Aborts at each failpoint in turn, with one group and one set of stores. Before each start, some of the stores are
/// deleted or replaced with an older copy.
fn crash_at_every_failpoint(mut harness: ProcessHarness) {
    let stores = harness.config.dir.clone();
    let copy = tempfile::tempdir().expect("make a directory");
    // Records, so that there is state to restore and there are committed offsets.
    harness.write(40);
    let mut child = harness.config.spawn("");
    harness.check();
    child.kill();
    let mut crashes = 0;
    let points = if harness.config.at_least_once {
        AT_LEAST_ONCE_FAILPOINTS
    } else {
        FAILPOINTS
    };
    for (point, hits) in points {
        for hit in *hits {
            crashes += 1;
            match crashes % 5 {
                // A crash after the loss of all stores.
                0 => drop(std::fs::remove_dir_all(&stores)),
                2 => copy_dir(&stores, copy.path()),
                4 => copy_dir(copy.path(), &stores),
                _ => {}
            }
            if *point == "streams.restore.batch" {
                drop(std::fs::remove_dir_all(&stores));
            }
            harness.write(40);
            let mut child = harness.config.spawn(&format!("{point}=kill@{hit}"));
            let why = format!("the child to abort at {point}, hit {hit}");
            // More input in small steps, so that later passes are reached.
            let mut polls = 0;
            wait_for(&why, LIMIT, || {
                polls += 1;
                if polls % 20 == 0 {
                    harness.write(3);
                }
                (!child.is_alive()).then_some(())
            });
            assert!(!child.ended(&why).success(), "{why}");
        }
    }
    harness.write(40);
    let child = harness.config.spawn("");
    harness.check();
    // No late duplicates.
    harness.write(10);
    harness.check();
    child.signal("-TERM");
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
    crash_at_every_failpoint(ProcessHarness::new(process_config(
        support::kafka(),
        dir.path().join("stores"),
    )));
}

#[cfg(feature = "external")]
#[test]
fn at_least_once_when_killed_at_every_failpoint() {
    let dir = tempfile::tempdir().expect("make a directory");
    let config = ProcessConfig {
        at_least_once: true,
        ..process_config(support::kafka(), dir.path().join("stores"))
    };
    crash_at_every_failpoint(ProcessHarness::new(config));
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_when_killed_on_sled() {
    let dir = tempfile::tempdir().expect("make a directory");
    let config = ProcessConfig {
        sled: true,
        ..process_config(support::kafka(), dir.path().join("stores"))
    };
    crash_at_every_failpoint(ProcessHarness::new(config));
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_while_partitions_move() {
    move_partitions(false);
}

#[cfg(feature = "external")]
#[test]
fn exactly_once_while_kip848_partitions_move() {
    move_partitions(true);
}

fn move_partitions(kip848: bool) {
    let (first, second) = (
        tempfile::tempdir().expect("a directory"),
        tempfile::tempdir().expect("a directory"),
    );
    let mut harness = ProcessHarness::new(ProcessConfig {
        kip848,
        ..process_config(support::kafka(), first.path().join("stores"))
    });
    let other = ProcessConfig {
        instance: "two".to_owned(),
        dir: second.path().join("stores"),
        ..harness.config.clone()
    };
    harness.write(60);
    let mut one = harness.config.spawn("streams.revoked=kill");
    wait_for("the first process to work", LIMIT, || {
        // If the second thread of this process joins late, partitions of the first thread are revoked, and the process
        // aborts before the second process has joined.
        if !one.is_alive() {
            one = harness.config.spawn("streams.revoked=kill");
        }
        (harness.outputs() >= 60).then_some(())
    });
    // The second process joins; the first process aborts during the revocation.
    let mut two = other.spawn("");
    harness.write(60);
    one.ended("the first process to abort at streams.revoked");
    harness.check();
    // The first process rejoins, and the second is killed in the middle of its work.
    let one = harness.config.spawn("");
    harness.write(60);
    harness.check();
    harness.write(200);
    two.kill();
    harness.write(60);
    harness.check();
    // A zombie: the first process is stopped until its session has expired, and resumes after its partitions were
    // assigned to another process.
    let two = other.spawn("");
    harness.write(60);
    harness.check();
    harness.write(200);
    one.signal("-STOP");
    harness.write(60);
    harness.check();
    one.signal("-CONT");
    harness.write(200);
    harness.check();
    drop((one, two));
}

#[cfg(feature = "external")]
#[test]
fn broker_restart_loses_nothing_without_restart() {
    let mut broker = Broker::start();
    let dir = tempfile::tempdir().expect("make a directory");
    let mut harness = ProcessHarness::new(process_config(broker.bootstrap(), dir.path().join("stores")));
    harness.write(50);
    let executor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("an executor");
    let (tasks, readiness) = executor.block_on(async { (Tasks::new(), Readiness::new()) });
    harness.config.run(harness.log.clone(), &tasks, &readiness, |_| {});
    wait_for("readiness", LIMIT, || readiness.report().ready.then_some(()));
    harness.check();
    for stop in [Broker::kill, Broker::stop] {
        stop(&mut broker);
        let red = wait_for("a component that is not ready", LIMIT, || {
            readiness
                .report()
                .components
                .into_iter()
                .find(|component| !component.ready)
        });
        assert!(red.cause.is_some_and(|cause| !cause.is_empty()));
        assert!(red.fix.is_some_and(|command| command.contains("trunkline doctor")));
        broker.restart();
        harness.write(50);
        harness.check();
        wait_for("readiness again", LIMIT, || readiness.report().ready.then_some(()));
    }
    assert!(!tasks.running().is_empty(), "the stream threads ended");
    executor
        .block_on(tasks.join(Duration::from_secs(60)))
        .expect("shut down");
}
