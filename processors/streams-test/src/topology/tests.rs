//! Tests of the driver: requested faults must happen, must not lose or repeat records, and errors must contain their
//! cause.

use super::*;
use crate::log::text;
use event_log::{Cleanup, ErrorAction, RecordSlice, TopicConfig};
use streams::{
    Context, Error, FirstStart, Output, Processor, Result as StepResult, State, SubTopology, Timer, TimerClock,
};

/// Sends each record with a count of its key, and the key again one minute later.
struct Counter {
    to: Arc<str>,
}

impl Processor for Counter {
    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> StepResult<()> {
        for record in records.iter() {
            if record.value() == Some(b"stop") {
                return Err(Error::Processor {
                    name: "count".to_owned(),
                    reason: "cannot continue".to_owned(),
                    action: ErrorAction::Stop,
                });
            }
            let key = record.key().unwrap();
            let count = state.get(key)?.map_or(0, |v| v[0]) + 1;
            state.put(key, vec![count]);
            let key_text = std::str::from_utf8(key).unwrap();
            state.set_timer(Timer::new(TimerClock::Wall, context.now + 60_000, key_text));
            self.send(key, &count.to_string(), output);
        }
        Ok(())
    }

    fn on_timer(&mut self, _: Context, timer: &Timer, _: &mut State, output: &mut Output) -> StepResult<()> {
        self.send(timer.key.as_bytes(), "late", output);
        Ok(())
    }
}

impl Counter {
    fn send(&self, key: &[u8], value: &str, output: &mut Output) {
        let record = OutRecord {
            topic: &self.to,
            partition: None,
            timestamp: None,
            key: Some(key),
            value: Some(value.as_bytes()),
        };
        output.send(record, []);
    }
}

fn sub(name: &str, from: &str, to: &str) -> SubTopology {
    let to: Arc<str> = to.into();
    SubTopology {
        name: name.to_owned(),
        inputs: vec![from.to_owned()],
        store: name.to_owned(),
        factory: Arc::new(move |_| Box::new(Counter { to: to.clone() })),
        first_start: FirstStart::Earliest,
    }
}

/// Two sub-topologies in sequence (hops): `in` with three partitions is counted to `middle` with two partitions, and
/// `middle` to `out`.
fn start(threads: usize) -> TopologyDriver {
    let application = Application {
        name: "app".to_owned(),
        subtopologies: vec![sub("first", "in", "middle"), sub("second", "middle", "out")],
    };
    let mut config = Config::new(FIRST, "");
    config.threads = threads;
    let topic = |(name, partitions): (&str, i32)| TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: None,
        config: TopicConfig::new(Cleanup::Delete),
    };
    let topics = [("in", 3), ("middle", 2), ("out", 1)].map(topic);
    TopologyDriver::start_with(&application, config, &topics).unwrap()
}

const KEYS: [&str; 5] = ["[\"a\"]", "[\"b\"]", "[\"c\"]", "[\"d\"]", "[\"e\"]"];

fn send_all(driver: &TopologyDriver) {
    for key in KEYS {
        driver.send("in", key, "", driver.now()).unwrap();
    }
}

/// The output of a key, in order.
fn outputs_of(driver: &TopologyDriver, key: &str) -> Vec<String> {
    let all = driver.output("out").unwrap();
    let of_key = all
        .iter()
        .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
    of_key.map(|record| text(record.value.as_deref())).collect()
}

/// Asserts, after `rounds` calls of [`send_all`], that both hops counted every record once.
fn assert_counted(driver: &TopologyDriver, rounds: u8) {
    for key in KEYS {
        let want: Vec<String> = (1..=rounds).map(|n| n.to_string()).collect();
        assert_eq!(outputs_of(driver, key), want, "{key}");
        let (first, second) = (
            TopologyDriver::partition_of(key, 3),
            TopologyDriver::partition_of(key, 2),
        );
        assert_eq!(driver.state("first", first).unwrap()[key.as_bytes()], [rounds]);
        assert_eq!(driver.state("second", second).unwrap()[key.as_bytes()], [rounds]);
    }
}

#[test]
fn records_pass_all_hops_and_timers_wait() {
    let mut driver = start(1);
    send_all(&driver);
    driver.run().unwrap();
    assert_counted(&driver, 1);
    driver.advance(Duration::from_secs(59));
    driver.run().unwrap();
    assert_counted(&driver, 1);
    driver.advance(Duration::from_secs(1));
    driver.run().unwrap();
    // The output of the first hop's timer is a record of the second hop, whose own timer fires in the same minute.
    for key in KEYS {
        let mut values = outputs_of(&driver, key);
        values.sort();
        assert_eq!(values, ["1", "2", "late"], "{key}");
    }
}

#[test]
fn every_fault_happens_and_output_is_the_same() {
    type Prepare = fn(&mut TopologyDriver);
    let faults: [(&str, Prepare); 6] = [
        ("before the commit", |driver| driver.crash_at(Moment::BeforeCommit)),
        ("after the commit", |driver| driver.crash_at(Moment::AfterCommit)),
        ("abort", TopologyDriver::abort_next_commit),
        ("lost answer", TopologyDriver::lose_next_answer),
        ("in the middle", |driver| {
            driver.turn().unwrap();
            driver.crash().unwrap();
        }),
        ("lost store", |driver| driver.lose_store().unwrap()),
    ];
    for threads in [1, 2] {
        for (name, prepare) in faults {
            let mut driver = start(threads);
            send_all(&driver);
            driver.run().unwrap();
            send_all(&driver);
            prepare(&mut driver);
            driver.run().unwrap();
            assert_eq!(driver.faults_left(), 0, "{name}");
            assert_counted(&driver, 2);
        }
    }
}

#[test]
fn each_fault_applies_to_one_commit() {
    let mut driver = start(1);
    send_all(&driver);
    driver.abort_next_commit();
    driver.crash_at(Moment::BeforeCommit);
    driver.lose_next_answer();
    driver.crash_at(Moment::AfterCommit);
    assert_eq!(driver.faults_left(), 4);
    driver.run().unwrap();
    send_all(&driver);
    driver.run().unwrap();
    assert_eq!(driver.faults_left(), 0);
    assert_counted(&driver, 2);
}

#[test]
fn crash_after_commit_leaves_the_store_behind() {
    let mut driver = start(1);
    driver.send("in", KEYS[0], "", START).unwrap();
    driver.crash_at(Moment::AfterCommit);
    while driver.faults_left() > 0 {
        driver.turn().unwrap();
    }
    // The commit of the first hop is visible, although the process crashed in it.
    assert_eq!(driver.output("middle").unwrap().len(), 1);
    driver.run().unwrap();
    assert_eq!(outputs_of(&driver, KEYS[0]), ["1"]);
}

#[test]
fn tasks_move_to_another_instance_and_back() {
    let mut driver = start(1);
    send_all(&driver);
    driver.run().unwrap();
    driver.add_instance("two").unwrap();
    send_all(&driver);
    driver.run().unwrap();
    let groups = driver.log().groups().unwrap();
    let shares: Vec<usize> = groups[0].members.iter().map(|m| m.partitions.len()).collect();
    assert_eq!(shares, [3, 2], "each instance has some of the five partitions");
    send_all(&driver);
    driver.crash_at(Moment::BeforeCommit);
    driver.run().unwrap();
    driver.remove_instance(FIRST).unwrap();
    send_all(&driver);
    driver.run().unwrap();
    assert_counted(&driver, 4);
    let unknown = driver.remove_instance(FIRST).unwrap_err().to_string();
    assert_eq!(unknown, "instance one does not exist; known are two");
}

#[test]
fn open_transaction_blocks_readers_until_timeout() {
    let mut driver = start(1);
    driver.add_instance("two").unwrap();
    driver.run().unwrap();
    send_all(&driver);
    // Records have been read and sent, but not committed.
    driver.turn().unwrap();
    driver.kill_instance(FIRST).unwrap();
    driver.run().unwrap();
    assert!(
        driver.output("out").unwrap().len() < KEYS.len(),
        "an open transaction blocks read_committed readers"
    );
    driver.advance(Duration::from_secs(11));
    driver.run().unwrap();
    assert_counted(&driver, 1);
}

#[test]
fn instance_without_partitions_is_idle() {
    let mut driver = start(3);
    driver.add_instance("two").unwrap();
    send_all(&driver);
    driver.run().unwrap();
    assert_counted(&driver, 1);
}

#[test]
fn stopped_task_is_reported_with_its_cause() {
    let mut driver = start(1);
    driver.send("in", KEYS[0], "stop", START).unwrap();
    let text = driver.run().unwrap_err().to_string();
    let task = format!("task first/{}: stopped", TopologyDriver::partition_of(KEYS[0], 3));
    assert!(text.contains(&task) && text.contains("cannot continue"), "{text}");
}

#[test]
fn unknown_name_error_lists_known_names() {
    let driver = start(1);
    let text = driver.state("third", 0).unwrap_err().to_string();
    assert_eq!(text, "sub-topology third does not exist; known are first, second");
    let text = service::chain(&driver.output("nowhere").unwrap_err());
    assert!(text.contains("topic nowhere does not exist"), "{text}");
}

#[test]
fn record_may_have_partition_and_no_value() {
    let driver = start(1);
    let record = OutRecord {
        topic: &Arc::from("out"),
        partition: Some(0),
        timestamp: Some(7),
        key: None,
        value: None,
    };
    driver.send_record(record, [("h", Some(&b"x"[..]))]).unwrap();
    let out = driver.output("out").unwrap();
    assert_eq!((out[0].to_string(), out[0].timestamp), ("0 null=null".to_owned(), 7));
    assert_eq!(out[0].header("h").as_deref(), Some("x"));
}

#[test]
fn timers_fire_after_unknown_commit_of_dead_letter() {
    let application = Application {
        name: "app".to_owned(),
        subtopologies: vec![sub("first", "in", "out")],
    };
    let topic = |name: &str, max_message_bytes| TopicSpec {
        name: name.to_owned(),
        partitions: 1,
        replication: None,
        config: TopicConfig {
            max_message_bytes,
            ..TopicConfig::new(Cleanup::Delete)
        },
    };
    let topics = [topic("in", None), topic("out", Some(2000))];
    let mut driver = TopologyDriver::start_with(&application, Config::new(FIRST, ""), &topics).unwrap();
    driver.send("in", "small", "", START).unwrap();
    driver.run().unwrap();
    // The commit of the dead letter is the last commit, and its response is lost.
    driver.send("in", "large".repeat(1000), "", START).unwrap();
    driver.lose_next_answer();
    driver.run().unwrap();
    assert_eq!(driver.output("in.dlq").unwrap().len(), 1);
    driver.advance(Duration::from_secs(60));
    driver.run().unwrap();
    assert_eq!(driver.texts("out").unwrap(), ["0 small=1", "0 small=late"]);
}
