//! The real thread over the embedded log in memory and stores on disk: what a thread does in each situation that has
//! a rule of its own.
//!
//! Guarantees: the clock stands until a test moves it; nothing waits. Never: a fault by chance; that is `simulation`.

use super::{ThreadDriver, written};
use crate::{
    Application, Config, Context, Directory, Effects, Error, Factory, FirstStart, Processor, Result, Stage, State,
    SubTopology, TaskInfo, offsets,
};
use log::embedded::{self, EmbeddedLog};
use log::{
    At, Cleanup, Fate, Isolation, Millis, Offset, OutBatch, OutRecord, RecordBatch, SharedLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec,
};
use process::clock::Manual;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const DAY: Millis = 24 * 60 * 60 * 1000;
/// Turns after which a thread that has something to do would have done it.
const TURNS: usize = 500;

/// Counts records by key; what some values do is in `step`.
struct Counter {
    partition: i32,
    ready: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("the value is bad")]
struct Bad;

impl Processor for Counter {
    fn prepare(&mut self, records: &RecordBatch, range: Range<usize>) -> Result<()> {
        let waits = range
            .filter_map(|index| records.get(index))
            .any(|record| record.value() == Some(b"wait"));
        if waits && !self.ready.load(Ordering::SeqCst) {
            let (name, reason) = ("count".to_owned(), "schema 7 is not known yet".to_owned());
            return Err(Error::Processor {
                name,
                reason,
                fate: Fate::Retry,
            });
        }
        Ok(())
    }

    fn step(
        &mut self,
        _: Context,
        records: &RecordBatch,
        range: Range<usize>,
        state: &mut State,
        effects: &mut Effects,
    ) -> Result<()> {
        for record in range.filter_map(|index| records.get(index)) {
            let size = match record.value() {
                Some(b"bad") => {
                    effects.dead_letter(record, Stage::ValueConverter, &Bad);
                    continue;
                }
                Some(b"stop") => {
                    let (name, reason) = ("count".to_owned(), "cannot go on".to_owned());
                    return Err(Error::Processor {
                        name,
                        reason,
                        fate: Fate::Stop,
                    });
                }
                Some(b"big") => 4000,
                _ => 0,
            };
            let key = record.key().unwrap();
            let count = state
                .get(key)?
                .map_or(0, |v| std::str::from_utf8(&v).unwrap().parse().unwrap())
                + 1_u64;
            state.put(key, count.to_string().into_bytes());
            let value = format!("{count}{}", " ".repeat(size));
            let (topic, partition) = (Arc::from("out"), Some(self.partition));
            let out = OutRecord {
                topic: &topic,
                partition,
                timestamp: None,
                key: Some(key),
                value: Some(value.as_bytes()),
            };
            effects.emit(out, []);
        }
        Ok(())
    }
}

struct Bench {
    log: SharedLog,
    clock: Manual,
    dir: TempDir,
    ready: Arc<AtomicBool>,
}

impl Bench {
    /// A log with topics `in` (2 partitions) and `out`.
    fn new() -> Bench {
        let clock = Manual::at(1_700_000_000_000);
        let hands = clock.clone();
        let mut config = embedded::Config::new(None, Arc::new(move || process::Clock::now_ms(&hands)));
        config.clean_every = None;
        let log = EmbeddedLog::open(config).unwrap();
        let bench = Bench {
            log,
            clock,
            dir: tempfile::tempdir().unwrap(),
            ready: Arc::default(),
        };
        bench.topic("in", 2, |_| {});
        bench.topic("out", 2, |config| config.max_message_bytes = Some(2000));
        bench
    }

    fn topic(&self, name: &str, partitions: i32, change: impl FnOnce(&mut TopicConfig)) {
        let mut config = TopicConfig::new(Cleanup::Delete);
        change(&mut config);
        let spec = TopicSpec {
            name: name.to_owned(),
            partitions,
            replication: None,
            config,
        };
        assert_eq!(self.log.create_topics(&[spec]).unwrap(), [true]);
    }

    fn application(&self, inputs: &[&str], first_start: FirstStart) -> Application {
        let ready = self.ready.clone();
        let factory: Factory = Arc::new(move |info: &TaskInfo| {
            Box::new(Counter {
                partition: info.id.partition,
                ready: ready.clone(),
            })
        });
        let sub = SubTopology {
            name: "count".to_owned(),
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            store: "counts".to_owned(),
            factory,
            first_start,
        };
        Application {
            name: "app".to_owned(),
            subtopologies: vec![sub],
        }
    }

    fn try_start(&self, application: &Application, instance: &str) -> Result<ThreadDriver> {
        let config = Config::new(instance, self.dir.path());
        let stores = Directory {
            dir: self.dir.path().to_owned(),
            engine: config.engine,
            memory_bytes: 1 << 20,
        };
        let clock = Arc::new(self.clock.clone());
        ThreadDriver::new(application, config, self.log.clone(), clock, Arc::new(stores), 0)
    }

    fn start(&self) -> ThreadDriver {
        self.try_start(&self.application(&["in"], FirstStart::Earliest), "one")
            .unwrap()
    }

    fn append(&self, partition: i32, records: &[(&str, &str)]) {
        self.append_to("in", partition, records);
    }

    fn append_to(&self, topic: &str, partition: i32, records: &[(&str, &str)]) {
        let (topic, mut batch) = (Arc::from(topic), OutBatch::default());
        for (key, value) in records {
            let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
            let record = OutRecord {
                topic: &topic,
                partition: Some(partition),
                timestamp: None,
                key,
                value,
            };
            batch.push(record, [("origin", Some(&b"test"[..]))]);
        }
        self.log.append(&batch).unwrap();
    }

    /// Committed records of a partition, as `key=value`, values trimmed.
    fn read(&self, topic: &str, partition: i32) -> Vec<String> {
        self.records(topic, partition)
            .iter()
            .map(|(key, value, _)| format!("{key}={}", value.trim()))
            .collect()
    }

    fn records(&self, topic: &str, partition: i32) -> Vec<(String, String, BTreeMap<String, String>)> {
        let at = TopicPartition::new(topic, partition);
        let end = self.log.offset(&at, At::Stable).unwrap();
        let mut reader = self.log.reader(Isolation::ReadCommitted).unwrap();
        reader.assign(&[(at.clone(), StartFrom::Start)]).unwrap();
        let (mut batch, mut found) = (RecordBatch::default(), Vec::new());
        while reader.position(&at).unwrap() < end {
            reader.poll(&mut batch, 1 << 20, Duration::ZERO).unwrap();
            let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or(b"null")).into_owned();
            found.extend(batch.iter().map(|r| {
                let headers = r.headers().iter().map(|(name, value)| (name.to_owned(), text(value)));
                (text(r.key()), text(r.value()), headers.collect())
            }));
        }
        found
    }

    fn committed(&self, partition: i32) -> Option<Offset> {
        let at = TopicPartition::new("in", partition);
        self.log.committed("app", std::slice::from_ref(&at)).unwrap()[&at]
    }

    fn store(&self, partition: i32) -> PathBuf {
        self.dir.path().join("app/counts").join(partition.to_string())
    }

    fn asides(&self) -> usize {
        let entries = std::fs::read_dir(self.dir.path().join("app/counts")).unwrap();
        entries
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .contains(".aside-")
            })
            .count()
    }
}

/// Takes turns, and moves the clock between them, until the thread is quiet.
fn settle(thread: &mut ThreadDriver, clock: &Manual) {
    for _ in 0..TURNS {
        clock.advance(10);
        if thread.settle(1).unwrap() {
            return;
        }
    }
    panic!("not quiet: {:?}", thread.causes());
}

/// Takes turns until a cause with this text is shown.
fn until_cause(thread: &mut ThreadDriver, clock: &Manual, text: &str) -> String {
    for _ in 0..TURNS {
        clock.advance(10);
        thread.turn().unwrap();
        if let Some(cause) = thread.causes().into_iter().find(|cause| cause.contains(text)) {
            return cause;
        }
    }
    panic!("no cause with {text:?} but {:?}", thread.causes());
}

#[test]
fn state_output_and_offsets_survive_a_restart_and_a_crash() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", ""), ("b", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1"]);
    assert_eq!(bench.committed(0), Some(3));
    thread.finish().unwrap();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1", "a=3"]);
    // A crash with uncommitted work: nothing of it is seen, and it is done again.
    bench.append(0, &[("b", "")]);
    thread.turn().unwrap();
    drop(thread);
    assert_eq!(bench.read("out", 0).len(), 4);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "b=1", "a=3", "b=2"]);
    assert_eq!(bench.asides(), 0, "nothing is wiped");
}

#[test]
fn a_lost_store_is_restored_from_its_changelog() {
    let bench = Bench::new();
    bench.append(1, &[("a", ""), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    drop(thread);
    std::fs::remove_dir_all(bench.store(1)).unwrap();
    bench.append(1, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3"]);
}

#[test]
fn a_record_that_cannot_be_decoded_is_a_dead_letter_beside_the_line() {
    let bench = Bench::new();
    bench.append(1, &[("a", ""), ("x", "bad"), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2"]);
    let letters = bench.records("in.dlq", 1);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("x", "bad"));
    assert_eq!(headers["origin"], "test");
    assert_eq!(headers["__connect.errors.offset"], "1");
    assert_eq!(headers["__connect.errors.stage"], "VALUE_CONVERTER");
    assert_eq!(headers["__connect.errors.exception.message"], "the value is bad");
}

#[test]
fn a_record_whose_output_is_refused_is_found_and_becomes_a_dead_letter() {
    let bench = Bench::new();
    let mut records = vec![("a", ""); 100];
    records[37] = ("c", "big");
    bench.append(0, &records);
    bench.append(1, &[("b", ""), ("b", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    let want: Vec<String> = (1..100).map(|n| format!("a={n}")).collect();
    assert_eq!(bench.read("out", 0), want);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    let letters = bench.records("in.dlq", 0);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("c", "big"));
    assert_eq!(headers["__connect.errors.stage"], "KAFKA_PRODUCE");
    assert_eq!(bench.committed(0), Some(100));
}

#[test]
fn a_dead_letter_that_is_refused_itself_does_not_loop() {
    let bench = Bench::new();
    // Room for the errors' headers, not for the record's own.
    bench.topic("in.dlq", 2, |config| config.max_message_bytes = Some(1200));
    let long = "k".repeat(3000);
    bench.append(0, &[("a", ""), (&long, "bad"), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
    let letters = bench.records("in.dlq", 0);
    let [(key, value, headers)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    assert_eq!((key.as_str(), value.as_str()), ("null", "null"));
    assert_eq!(headers["__connect.errors.offset"], "1");
}

#[test]
fn where_not_even_that_fits_only_the_task_stops() {
    let bench = Bench::new();
    bench.topic("in.dlq", 2, |config| config.max_message_bytes = Some(100));
    bench.append(0, &[("a", ""), ("c", "bad"), ("a", "")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "task count/0: stopped");
    assert!(cause.contains("refuses even a dead letter"), "{cause}");
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(
        (bench.read("out", 0), bench.read("out", 1)),
        (vec!["a=1".to_owned()], vec!["b=1".to_owned()])
    );
}

#[test]
fn a_processor_that_is_not_ready_pauses_its_task_and_no_other() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "wait")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "paused");
    assert!(
        cause.contains("count/0") && cause.contains("schema 7 is not known yet"),
        "{cause}"
    );
    bench.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    bench.ready.store(true, Ordering::SeqCst);
    bench.clock.advance(5000);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn a_step_that_fails_stops_its_task_and_leaves_no_trace() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "stop")]);
    bench.append(1, &[("b", "")]);
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "stopped");
    assert!(cause.contains("cannot go on"), "{cause}");
    for _ in 0..TURNS {
        bench.clock.advance(10);
        thread.turn().unwrap();
    }
    assert_eq!(bench.read("out", 1), ["b=1"]);
    assert_eq!(bench.read("out", 0), Vec::<String>::new());
}

#[test]
fn the_first_start_is_where_it_is_declared_and_is_written_down_at_once() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "")]);
    let latest = bench.application(&["in"], FirstStart::Latest);
    let mut thread = bench.try_start(&latest, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!((bench.committed(0), bench.committed(1)), (Some(2), Some(0)));
    drop(thread);
    // What comes while nobody runs is not skipped: the first start was the first one.
    bench.append(0, &[("a", "")]);
    let mut thread = bench.try_start(&latest, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1"]);
}

#[test]
fn offsets_that_differ_from_the_state_stop_the_task_until_they_are_mended() {
    let bench = Bench::new();
    bench.append(0, &[("a", ""), ("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    thread.finish().unwrap();
    bench.clock.advance(120_000);
    let at = TopicPartition::new("in", 0);
    bench.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = bench.start();
    let cause = until_cause(&mut thread, &bench.clock, "stopped");
    assert!(
        cause.contains("state contains in/0 up to 2, and the committed offset is 1"),
        "{cause}"
    );
    assert!(cause.contains("trunkline offsets accept app count/0"), "{cause}");
    assert!(cause.contains("trunkline offsets restore app count/0"), "{cause}");
    // Going back to what the state contains: the same answer as if nothing had happened.
    drop(thread);
    bench.clock.advance(120_000);
    let changelog = TopicPartition::new("app.changelog.counts", 0);
    let marker = offsets::restore(&*bench.log, "app", &changelog).unwrap();
    assert_eq!(marker.next_offset(&at), Some(2));
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3"]);
    thread.finish().unwrap();
    // Or going on from the offsets: an operator wants two records counted again. A stopped task sees it by itself.
    bench.clock.advance(120_000);
    bench.log.set_committed("app", &[(at.clone(), 1)]).unwrap();
    let mut thread = bench.start();
    until_cause(&mut thread, &bench.clock, "stopped");
    offsets::accept(&*bench.log, "app", &changelog, std::slice::from_ref(&at)).unwrap();
    bench.clock.advance(20_000);
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3", "a=4", "a=5"]);
}

#[test]
fn a_store_older_than_its_tombstones_is_set_aside_and_restored_in_full() {
    let bench = Bench::new();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    thread.finish().unwrap();
    bench.clock.advance(5 * DAY);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 0, "five of seven days are no reason");
    thread.finish().unwrap();
    bench.clock.advance(6 * DAY + 1000);
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 2);
    assert_eq!(bench.read("out", 0), ["a=1", "a=2"]);
}

#[test]
fn an_idle_task_commits_marker_and_offsets_alone_before_its_store_grows_old() {
    let bench = Bench::new();
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    for _ in 0..20 {
        let changelog = TopicPartition::new("app.changelog.counts", 1);
        let before = bench.log.offset(&changelog, At::End).unwrap();
        bench.clock.advance(2 * DAY);
        settle(&mut thread, &bench.clock);
        assert!(bench.log.offset(&changelog, At::End).unwrap() > before);
    }
    drop(thread);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.asides(), 0);
}

#[test]
fn a_store_of_another_log_is_set_aside() {
    let (bench, other) = (Bench::new(), Bench::new());
    other.append(0, &[("a", ""), ("a", ""), ("a", "")]);
    let mut thread = other.start();
    settle(&mut thread, &other.clock);
    drop(thread);
    std::fs::rename(other.dir.path().join("app"), bench.dir.path().join("app")).unwrap();
    bench.append(0, &[("a", "")]);
    let mut thread = bench.start();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 0), ["a=1"]);
    assert_eq!(bench.asides(), 2);
}

#[test]
fn tasks_move_between_threads_with_nothing_lost_or_doubled() {
    let bench = Bench::new();
    let application = bench.application(&["in"], FirstStart::Earliest);
    let mut one = bench.try_start(&application, "one").unwrap();
    bench.append(0, &[("a", ""), ("a", "")]);
    bench.append(1, &[("b", "")]);
    settle(&mut one, &bench.clock);
    let mut two = bench.try_start(&application, "two").unwrap();
    bench.append(0, &[("a", "")]);
    bench.append(1, &[("b", "")]);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        one.turn().unwrap();
        two.turn().unwrap();
    }
    assert_eq!((one.causes(), two.causes()), (vec![], vec![]));
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3"]);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2"]);
    // The second one crashes; its partitions come back after its session.
    bench.append(0, &[("a", "")]);
    bench.append(1, &[("b", "")]);
    two.turn().unwrap();
    drop(two);
    bench.clock.advance(60_000);
    for _ in 0..TURNS {
        bench.clock.advance(10);
        one.turn().unwrap();
    }
    assert_eq!(one.causes(), Vec::<String>::new());
    assert_eq!(bench.read("out", 0), ["a=1", "a=2", "a=3", "a=4"]);
    assert_eq!(bench.read("out", 1), ["b=1", "b=2", "b=3"]);
}

#[test]
fn a_second_process_of_the_same_name_makes_the_first_one_end() {
    let bench = Bench::new();
    let mut first = bench.start();
    bench.append(0, &[("a", "")]);
    settle(&mut first, &bench.clock);
    let mut second = bench.start();
    let mut ended = None;
    for _ in 0..TURNS {
        bench.clock.advance(100);
        second.turn().unwrap();
        bench.append(0, &[("a", "")]);
        if let Err(error) = first.turn() {
            ended = Some(error);
            break;
        }
    }
    assert!(matches!(ended, Some(Error::Fenced { .. })), "{ended:?}");
    drop(first);
    settle(&mut second, &bench.clock);
    let out = bench.read("out", 0);
    let want: Vec<String> = (1..=out.len()).map(|n| format!("a={n}")).collect();
    assert_eq!(out, want);
}

#[test]
fn what_does_not_fit_the_log_is_refused_with_the_fix() {
    let bench = Bench::new();
    bench.topic("other", 3, |_| {});
    let refused = |inputs: &[&str]| {
        let application = bench.application(inputs, FirstStart::Earliest);
        bench
            .try_start(&application, "one")
            .err()
            .map(|error| error.to_string())
            .unwrap()
    };
    let text = refused(&["in", "other"]);
    assert!(
        text.contains("in has 2, other has 3") && text.contains("repartition"),
        "{text}"
    );
    let text = refused(&["missing"]);
    assert!(text.contains("input topic missing does not exist"), "{text}");
    let text = refused(&["in", "in"]);
    assert!(text.contains("an input twice"), "{text}");
    bench.topic("app.changelog.counts", 2, |_| {});
    let text = refused(&["in"]);
    assert!(text.contains("cleanup.policy must be compact"), "{text}");
}

#[test]
fn inputs_read_together_are_one_task() {
    let bench = Bench::new();
    bench.topic("more", 2, |_| {});
    let application = bench.application(&["in", "more"], FirstStart::Earliest);
    bench.append_to("in", 1, &[("a", "")]);
    bench.append_to("more", 1, &[("a", ""), ("a", "")]);
    let mut thread = bench.try_start(&application, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3"]);
    drop(thread);
    bench.append_to("more", 1, &[("a", "")]);
    let mut thread = bench.try_start(&application, "one").unwrap();
    settle(&mut thread, &bench.clock);
    assert_eq!(bench.read("out", 1), ["a=1", "a=2", "a=3", "a=4"]);
}

#[test]
fn a_processor_runs_over_values_alone() {
    let counter = Counter {
        partition: 0,
        ready: Arc::default(),
    };
    let mut driver = super::StepDriver::new("count", Box::new(counter)).unwrap();
    let mut records = RecordBatch::default();
    let at = records.intern(&TopicPartition::new("in", 0));
    records.push(at, 0, 5, log::TimestampType::Create, Some(b"a"), Some(b""), []);
    driver.feed(&records).unwrap();
    driver.abort().unwrap();
    driver.feed(&records).unwrap();
    driver.feed(&records).unwrap();
    let out = driver.commit().unwrap();
    let values: Vec<_> = out.iter().map(|w| w.value.clone().unwrap()).collect();
    assert_eq!(values, [b"1", b"2"]);
    assert_eq!(driver.state().get(b"a").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(written(&OutBatch::default()), []);
}
