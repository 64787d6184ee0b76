//! Simulation of the stream threads with an application that counts records, deletes a count when it reaches its
//! maximum, sets timers and writes dead letters. The result is compared with a sequential run over the same input. It
//! tests docs/protocol/commit.md with production code.
//!
//! No `read_committed` output record, dead letter or fired timer may be missing, duplicated or unexpected, and each
//! task must start with exactly the committed state. `TRUNKLINE_SIMULATION=FROM,COUNT` runs other seeds.

use super::{
    Broker, Checked, Environment, FaultRates, Layout, LogRecord, Notes, ProcessLog, Rng, Row, Scenario, Tasks, run,
    seeds, simulate,
};
use event_log::{Millis, Offset, OutRecord, RecordSlice, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use streams::{
    Application, Config, Context, FirstStart, Output, Processor, Result, Stage, State, SubTopology, TaskInfo, Timer,
    TimerClock,
};

const APPLICATION: &str = "sim";
/// When a count reaches this value, it is deleted and starts again.
const FULL: u64 = 3;
/// How long after a record its two timers are due, in ms.
const LATER: Millis = 150;
/// Number of seeds of a run without `TRUNKLINE_SIMULATION`.
const SEEDS: u64 = 300;
/// From this number of seeds on, every kind of fault must have occurred at least once. `just simulate` and the nightly
/// workflow run that many.
const COVERAGE_SEEDS: u64 = 10_000;

/// A sub-topology: name, inputs, partitions.
type Sub = (&'static str, &'static [&'static str], i32);
const SUBS: [Sub; 4] = [
    ("a", &["change"], 1),
    ("b", &["event"], 2),
    ("c", &["left", "right"], 2),
    ("d", &["first", "second", "third"], 1),
];

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(topic, partition)
}

fn tasks(subs: &[Sub]) -> Tasks {
    let mut tasks = Tasks::new();
    for (name, inputs, partitions) in subs {
        for partition in 0..*partitions {
            let changelog = at(&format!("{APPLICATION}.changelog.{name}"), partition);
            tasks.insert(changelog, inputs.iter().map(|input| at(input, partition)).collect());
        }
    }
    tasks
}

/// Some of the sub-topologies.
struct Counting {
    subs: Vec<Sub>,
    inputs: Vec<TopicPartition>,
    /// Whether the log rejects the output of some records.
    rejects: bool,
}

impl Counting {
    fn new(rng: &mut Rng) -> Self {
        let few: [&[usize]; 6] = [&[0, 1], &[1, 2], &[2, 3], &[3], &[0, 2], &[0, 1, 2, 3]];
        let subs: Vec<Sub> = rng.pick(&few).iter().map(|index| SUBS[*index]).collect();
        let inputs = tasks(&subs).into_values().flatten().collect();
        let rejects = rng.chance(0.3);
        Counting { subs, inputs, rejects }
    }
}

impl Scenario for Counting {
    type Program = Vec<Sub>;

    fn layout(&self) -> Layout {
        Layout {
            tasks: tasks(&self.subs),
            ..Layout::default()
        }
    }

    fn program(&self) -> Self::Program {
        self.subs.clone()
    }

    fn application(subs: &Self::Program, log: &ProcessLog, _: &mut Config) -> Application {
        let sub = |(name, inputs, _): &Sub| {
            let log = log.clone();
            SubTopology {
                name: (*name).to_owned(),
                inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
                store: (*name).to_owned(),
                factory: Arc::new(move |info: &TaskInfo| {
                    let (sub, partition) = (&info.id.subtopology, info.id.partition);
                    let counter = Counter {
                        topic: format!("out.{sub}").into(),
                        fired: format!("fired.{sub}").into(),
                        partition,
                    };
                    let changelog = at(&format!("{APPLICATION}.changelog.{sub}"), partition);
                    Box::new(Checked::new(Box::new(counter), log.clone(), changelog))
                }),
                first_start: FirstStart::Earliest,
            }
        };
        Application {
            name: APPLICATION.to_owned(),
            subtopologies: subs.iter().map(sub).collect(),
        }
    }

    fn adjust(&mut self, faults: &mut FaultRates) {
        if self.rejects {
            // Each transaction during poison-record isolation would wait for the transaction timeout.
            faults.forget = 0.0;
        }
    }

    /// Writes records: a third of them change nothing, and a few become dead letters.
    fn step(&mut self, environment: &mut Environment<'_>) -> std::result::Result<(), String> {
        if environment.draining || !environment.rng.chance(0.12) {
            return Ok(());
        }
        let to = environment.rng.pick(&self.inputs);
        for _ in 0..environment.rng.pick(&[1, 1, 2, 3]) {
            let key = environment.rng.pick(&[b"a", b"b"]);
            let value = match environment.rng.below(150) {
                0..3 => b"!",
                // Each rejected record causes a poison-record isolation with many transactions, so most seeds have
                // none.
                3 if self.rejects => b"#",
                4..50 => b"-",
                _ => b"+",
            };
            environment.broker.append(&to, [Row::new(*key, Some(value.to_vec()))]);
        }
        Ok(())
    }

    fn verify(&mut self, broker: &mut Broker, _: &mut Rng) -> std::result::Result<(), String> {
        for (name, inputs, partitions) in self.subs.clone() {
            for partition in 0..partitions {
                let inputs: Vec<TopicPartition> = inputs.iter().map(|input| at(input, partition)).collect();
                check_counts(broker, name, partition, &inputs)?;
                check_timers(broker, name, partition, &inputs)?;
                inputs.iter().try_for_each(|input| check_dead_letters(broker, input))?;
            }
        }
        Ok(())
    }
}

/// Counts records by key. `-` changes nothing, `!` becomes a dead letter, and the log rejects the output of `#`. Every
/// other record sets two timers.
struct Counter {
    topic: Arc<str>,
    fired: Arc<str>,
    partition: i32,
}

#[derive(Debug, thiserror::Error)]
#[error("the value is bad")]
struct InvalidValue;

impl Counter {
    fn send(&self, output: &mut Output, topic: &Arc<str>, key: &[u8], value: &str) {
        let record = OutRecord {
            topic,
            partition: Some(self.partition),
            timestamp: None,
            key: Some(key),
            value: Some(value.as_bytes()),
        };
        output.send(record, []);
    }
}

impl Processor for Counter {
    fn process(
        &mut self,
        context: Context,
        records: RecordSlice<'_>,
        state: &mut State,
        output: &mut Output,
    ) -> Result<()> {
        for record in records.iter() {
            let padding = match record.value() {
                Some(b"-") => continue,
                Some(b"!") => {
                    output.dead_letter(record, Stage::ValueConverter, &InvalidValue);
                    continue;
                }
                Some(b"#") => super::protocol::VALUE_BYTES_MAX,
                _ => 0,
            };
            let name = record.key().unwrap();
            let key = [b"[\"", name, b"\"]"].concat();
            let count = state
                .get(&key)?
                .map_or(0, |v| std::str::from_utf8(&v).unwrap().parse().unwrap())
                + 1_u64;
            if count == FULL {
                state.delete(&key);
            } else {
                state.put(&key, count.to_string().into_bytes());
            }
            let place = format!("{} {}", record.partition(), record.offset());
            let wall = Timer::new(TimerClock::Wall, context.now + LATER, place.as_str());
            let stream = Timer::new(TimerClock::Stream, record.timestamp() + LATER, place.as_str());
            state.set_timer(wall);
            state.set_timer(stream);
            self.send(
                output,
                &self.topic,
                name,
                &format!("{count} {place} {}", "#".repeat(padding)),
            );
        }
        Ok(())
    }

    /// Sends the partition and offset of the record that set the timer.
    fn on_timer(&mut self, context: Context, timer: &Timer, _: &mut State, output: &mut Output) -> Result<()> {
        let (now, fired) = match timer.clock {
            TimerClock::Stream => (context.stream_time, "stream"),
            TimerClock::Wall => (context.now, "wall"),
        };
        assert!(timer.at <= now, "{timer:?} fired early, at {now}");
        self.send(output, &self.fired, fired.as_bytes(), &timer.key);
        Ok(())
    }
}

fn read(broker: &mut Broker, at: &TopicPartition) -> Vec<LogRecord> {
    broker.part(at).read(0, usize::MAX).0
}

fn value(record: &LogRecord) -> &str {
    std::str::from_utf8(record.row.value.as_deref().unwrap()).unwrap()
}

/// The `read_committed` output must be equal to that of a sequential run over the input.
fn check_counts(
    broker: &mut Broker,
    sub: &str,
    partition: i32,
    inputs: &[TopicPartition],
) -> std::result::Result<(), String> {
    let out = at(&format!("out.{sub}"), partition);
    let mut counts: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut seen: BTreeMap<String, Vec<Offset>> = BTreeMap::new();
    for record in read(broker, &out) {
        let words: Vec<&str> = value(&record).split(' ').collect();
        let count = counts.entry(record.row.key.clone().unwrap()).or_default();
        *count = *count % FULL + 1;
        if count.to_string() != words[0] {
            return Err(format!(
                "{out}@{}: got {words:?}, but a sequential run counts {count}",
                record.offset
            ));
        }
        let seen = seen.entry(words[1].to_owned()).or_default();
        seen.push(words[2].parse().unwrap());
    }
    for input in inputs {
        let records = read(broker, input);
        let counting = records.iter().filter(|r| value(r) == "+");
        let want: Vec<Offset> = counting.map(|r| r.offset).collect();
        let got = seen.remove(&input.to_string()).unwrap_or_default();
        if got != want {
            return Err(format!(
                "records lost or repeated in {out}: offsets of {input} are {got:?}, expected {want:?}"
            ));
        }
    }
    Ok(())
}

/// Every invalid or poison record must become a dead letter once, in order, and no other record may.
fn check_dead_letters(broker: &mut Broker, input: &TopicPartition) -> std::result::Result<(), String> {
    let dead_letters = at(&format!("{}.dlq", input.topic), input.partition);
    let offset = |r: &LogRecord| {
        let text = r.row.header("__connect.errors.offset");
        text.and_then(|text| text.parse::<Offset>().ok())
    };
    let got: Vec<_> = read(broker, &dead_letters).iter().map(offset).collect();
    let records = read(broker, input);
    let poison = records.iter().filter(|r| matches!(value(r), "!" | "#"));
    let want: Vec<_> = poison.map(|r| Some(r.offset)).collect();
    if got == want {
        Ok(())
    } else {
        Err(format!("dead letters of {input}: offsets {got:?}, expected {want:?}"))
    }
}

/// For every counted record, the wall-clock timer must have fired once, and so must the stream-time timer if stream
/// time has reached its due time.
fn check_timers(
    broker: &mut Broker,
    sub: &str,
    partition: i32,
    inputs: &[TopicPartition],
) -> std::result::Result<(), String> {
    let (mut want, mut newest) = (Vec::new(), 0);
    for input in inputs {
        for record in read(broker, input) {
            newest = record.at.max(newest);
            if value(&record) == "+" {
                want.push((record.at, format!("{input} {}", record.offset)));
            }
        }
    }
    let late = want.iter().filter(|(at, _)| at + LATER <= newest);
    let stream = late.map(|(_, place)| format!("stream {place}"));
    let wall = want.iter().map(|(_, place)| format!("wall {place}"));
    let mut want: Vec<String> = wall.chain(stream).collect();
    let fired = read(broker, &at(&format!("fired.{sub}"), partition));
    let key = |r: &LogRecord| String::from_utf8(r.row.key.clone().unwrap()).unwrap();
    let mut got: Vec<String> = fired.iter().map(|r| format!("{} {}", key(r), value(r))).collect();
    want.sort();
    got.sort();
    if got == want {
        Ok(())
    } else {
        Err(format!("fired timers of {sub}/{partition}: {got:?}, expected {want:?}"))
    }
}

/// Prefixes of failpoints that this scenario does not pass: those of standbys and of at-least-once processing.
const ELSEWHERE: [&str; 2] = ["streams.standby.", "streams.at_least_once."];

/// Names of all failpoints in the source of the streams crate.
fn failpoints() -> BTreeSet<String> {
    let (mut names, mut dirs) = (
        BTreeSet::new(),
        vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../streams/src"
        ))],
    );
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(path).unwrap();
                let calls = text.split("hit(\"streams.").skip(1);
                names.extend(calls.filter_map(|rest| Some(format!("streams.{}", rest.split_once('"')?.0))));
            }
        }
    }
    names
}

fn assert_covered(notes: &Notes, what: impl IntoIterator<Item = String>) {
    let missing: Vec<String> = what
        .into_iter()
        .filter(|what| !notes.contains_key(what.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "these events never happened, so the simulation does not cover them: {missing:?}"
    );
}

#[test]
fn output_under_random_faults_equals_one_sequential_run() {
    let seeds = seeds("TRUNKLINE_SIMULATION", SEEDS);
    let (from, count) = (seeds.start, seeds.end - seeds.start);
    let began = std::time::Instant::now();
    let notes = simulate(seeds, Counting::new).unwrap_or_else(|failure| {
        panic!(
            "{failure}\nreproduce: TRUNKLINE_SIMULATION={},1 cargo test --release -p trunkline-streams-test \
             output_under_random_faults",
            failure.seed
        )
    });
    println!("{count} seeds from {from} in {:?}: {notes:?}", began.elapsed());
    if count < COVERAGE_SEEDS {
        return;
    }
    let faults = [
        "started",
        "zombie started",
        "kill",
        "pause",
        "wake",
        "respawn",
        "jump",
        "rebalance",
        "wipe",
        "batches lost",
        "unreadable",
        "input unreadable",
        "changelog unreadable",
        "committed",
        "aborted",
        "fenced",
        "fenced by generation",
        "exit",
        "outcome unknown",
        "partitions lost",
        "request lost",
        "answer lost",
        "request late",
        "transaction timed out",
        "end forgotten",
        "offsets expired",
        "cleaned",
        "tombstones cleaned",
    ];
    let points = failpoints();
    assert!(
        points.len() >= 15,
        "too few failpoints were found in the source: {points:?}"
    );
    let points = points
        .into_iter()
        .filter(|point| !ELSEWHERE.iter().any(|elsewhere| point.starts_with(elsewhere)));
    assert_covered(&notes, faults.map(str::to_owned).into_iter().chain(points));
}

#[test]
fn seed_reproduces_its_run() {
    for seed in 1..40 {
        assert_eq!(run(seed, &Counting::new), run(seed, &Counting::new), "seed {seed}");
    }
}

#[test]
fn simulated_broker_fences_old_epochs() {
    use super::broker::FaultPlan;
    use super::protocol::BrokerError;
    let mut broker = Broker::new(Rng::of_seed(1), Layout::default(), FaultPlan::default());
    let first = broker.init("x").unwrap();
    assert_eq!(broker.init("x"), Ok(first + 1));
    assert_eq!(
        broker.produce("x", first, &at("out.a", 0), &[]),
        Err(BrokerError::Fenced("epoch"))
    );
}
