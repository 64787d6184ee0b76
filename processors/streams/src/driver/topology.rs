//! A whole application over values: every sub-topology, partition, commit and recovery, with the faults that a test
//! asks for.
//!
//! It is the real stream threads, one turn at a time, over the embedded log in memory and stores in memory that outlive
//! a crash. Guarantees: no thread, no sleep, no disk, and the same run every time; what [`TopologyDriver::output`] shows
//! is what a read_committed reader of the topic sees.
//! Never: a clock that moves by itself: the date stands until [`TopologyDriver::advance`].

mod disk;
mod home;
mod seen;

pub use seen::OutputRecord;

use super::ThreadDriver;
use crate::api::state::keys::RESERVED;
use crate::task::commit_record::{CHANGELOG_VERSION, COMMIT_RECORD_KEY};
use crate::{Application, Clock, Config, changelog_topic};
use disk::Disk;
use event_log::embedded::{self, EmbeddedLog};
use event_log::{
    Cleanup, Header, Millis, OutBatch, OutRecord, SharedEventLog, TopicConfig, TopicPartition, TopicSpec, partitioner,
};
use home::{Crashed, Fault, Faults, Home, locked};
use seen::read;
use service::clock::Manual;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

/// The date at which every driver begins: 14 November 2023, 22:13:20 UTC.
pub const START: Millis = 1_700_000_000_000;
/// Name of the instance that a driver begins with.
pub const FIRST: &str = "one";
/// Rounds after which an application that has something to do would have done it.
const ROUNDS_MAX: usize = 2_000;
/// What the steady clock moves on by each round, so that pauses end.
const ROUND: Duration = Duration::from_millis(20);
/// Quiet rounds in a row after which nothing is under way between instances any more.
const QUIET_ROUNDS: usize = 3;

/// Where a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Everything was sent and the transaction is open.
    BeforeCommit,
    /// The log has committed the transaction, and no store has it yet.
    AfterCommit,
}

/// Why a driver could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The log refused.
    #[error("the log refused to {attempted}")]
    EventLog {
        /// What was attempted.
        attempted: String,
        /// Its error.
        #[source]
        source: event_log::Error,
    },
    /// An instance cannot start, or ended.
    #[error("instance {instance} ended")]
    Ended {
        /// Its name.
        instance: String,
        /// Why.
        #[source]
        source: crate::Error,
    },
    /// There was still something to do after very many rounds.
    #[error("the application is not quiet: {}", causes.join("; "))]
    Busy {
        /// What stands between it and work, as `/readyz` would say.
        causes: Vec<String>,
    },
    /// No such sub-topology or instance.
    #[error("there is no {what}; there are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        what: String,
        /// Those that there are.
        known: Vec<String>,
    },
}

/// The date and the steady time of all instances.
struct Hands {
    date: Manual,
    steady: Manual,
}

impl Clock for Hands {
    fn now(&self) -> Millis {
        service::Clock::now_ms(&self.date)
    }

    fn elapsed(&self) -> Duration {
        Clock::elapsed(&self.steady)
    }
}

/// One process of the application: its threads and its disk.
struct Instance {
    name: String,
    threads: Vec<ThreadDriver>,
    disk: Arc<Disk>,
}

/// A whole application over values.
///
/// A test makes the topics, sends records, lets the application run until it is quiet, and looks at what was committed.
/// Between any two steps it may crash, lose its disk, get a second instance or lose one. The answer must be the same.
///
/// ```
/// use event_log::{OutRecord, RecordBatch};
/// use std::{ops::Range, sync::Arc};
/// use trunkline_streams::driver::{Moment, START, TopologyDriver};
/// use trunkline_streams::{Application, Context, Output, FirstStart, Processor, Result, State, SubTopology};
///
/// /// Counts the records of each key.
/// struct Counter(Arc<str>);
///
/// impl Processor for Counter {
///     fn process(
///         &mut self, _: Context, records: &RecordBatch, range: Range<usize>, state: &mut State, output: &mut Output,
///     ) -> Result<()> {
///         for record in range.filter_map(|index| records.get(index)) {
///             let key = record.key().unwrap_or_default();
///             let seen = state.get(key)?.map_or(0, |value| value.first().copied().unwrap_or_default());
///             let count = seen + 1;
///             state.put(key, vec![count]);
///             let value = count.to_string();
///             let (key, value) = (Some(key), Some(value.as_bytes()));
///             output.send(OutRecord { topic: &self.0, partition: None, timestamp: None, key, value }, []);
///         }
///         Ok(())
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let application = Application {
///     name: "words".to_owned(),
///     subtopologies: vec![SubTopology {
///         name: "count".to_owned(),
///         inputs: vec!["word".to_owned()],
///         store: "counts".to_owned(),
///         factory: Arc::new(|_| Box::new(Counter("count".into()))),
///         first_start: FirstStart::Earliest,
///     }],
/// };
/// let mut words = TopologyDriver::start(&application, &[("word", 2), ("count", 1)])?;
/// words.send("word", "[\"a\"]", "", START)?;
/// words.crash_at(Moment::AfterCommit);
/// words.run()?;
/// words.send("word", "[\"a\"]", "", START)?;
/// words.run()?;
/// assert_eq!(words.texts("count")?, ["0 [\"a\"]=1", "0 [\"a\"]=2"]);
/// # Ok(())
/// # }
/// ```
pub struct TopologyDriver {
    application: Application,
    config: Config,
    log: SharedEventLog,
    home: SharedEventLog,
    hands: Arc<Hands>,
    faults: Faults,
    instances: Vec<Instance>,
}

impl TopologyDriver {
    /// Makes topics of these names and partition counts, and starts the application with one instance of one thread,
    /// named [`FIRST`]; it has done its first start when this returns. Topics of dead letters and changelogs are made by
    /// the application itself.
    ///
    /// # Errors
    /// An application that cannot start, such as one whose input is not among the topics.
    pub fn start(application: &Application, topics: &[(&str, i32)]) -> Result<Self, DriverError> {
        let spec = |(name, partitions): &(&str, i32)| TopicSpec {
            name: (*name).to_owned(),
            partitions: *partitions,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        let specs: Vec<TopicSpec> = topics.iter().map(spec).collect();
        Self::start_with(application, Config::new(FIRST, ""), &specs)
    }

    /// The same with settings of one's own: `config` is that of every instance, but for its name, directory and engine.
    ///
    /// # Errors
    /// As [`TopologyDriver::start`].
    pub fn start_with(application: &Application, config: Config, topics: &[TopicSpec]) -> Result<Self, DriverError> {
        let hands = Arc::new(Hands {
            date: Manual::at(START),
            steady: Manual::at(0),
        });
        let date = hands.date.clone();
        let mut settings = embedded::Config::new(None, Arc::new(move || service::Clock::now_ms(&date)));
        settings.clean_every = None;
        let log = EmbeddedLog::open(settings).map_err(refused("open"))?;
        log.create_topics(topics).map_err(refused("create the topics"))?;
        let faults = Faults::default();
        let home = Arc::new(Home {
            log: log.clone(),
            faults: faults.clone(),
        });
        let mut driver = TopologyDriver {
            application: application.clone(),
            config,
            log,
            home,
            hands,
            faults,
            instances: Vec::new(),
        };
        driver.add_instance(FIRST)?;
        driver.run()?;
        Ok(driver)
    }

    /// Writes a record, as a producer outside the application does, to the partition that Kafka's default partitioner
    /// gives the key.
    ///
    /// # Errors
    /// A topic that does not exist; a record that is too large for it.
    pub fn send(
        &self,
        topic: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        timestamp: Millis,
    ) -> Result<(), DriverError> {
        let (key, value) = (Some(key.as_ref()), Some(value.as_ref()));
        let record = OutRecord {
            topic: &Arc::from(topic),
            partition: None,
            timestamp: Some(timestamp),
            key,
            value,
        };
        self.send_record(record, [])
    }

    /// Writes a record with all that a record may have: a partition, no key, no value, headers.
    ///
    /// # Errors
    /// As [`TopologyDriver::send`].
    pub fn send_record<'h>(
        &self,
        record: OutRecord<'_>,
        headers: impl IntoIterator<Item = Header<'h>>,
    ) -> Result<(), DriverError> {
        let mut batch = OutBatch::default();
        batch.push(record, headers);
        let sent = self.log.append(&batch);
        sent.map(drop).map_err(refused(&format!("append to {}", record.topic)))
    }

    /// Lets every instance take turns until all input is processed and committed, timers that are due included. What
    /// died meanwhile starts again.
    ///
    /// # Errors
    /// [`DriverError::Busy`] with the causes when a task has stopped, waits or never comes to an end;
    /// [`DriverError::Ended`] when a process would have ended.
    pub fn run(&mut self) -> Result<(), DriverError> {
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            self.hands.steady.advance(millis(ROUND));
            let at_rest = self.round()?;
            quiet = if at_rest { quiet + 1 } else { 0 };
            if quiet == QUIET_ROUNDS {
                return Ok(());
            }
        }
        let threads = self.instances.iter().flat_map(|instance| &instance.threads);
        let mut causes: Vec<String> = threads.flat_map(ThreadDriver::causes).collect();
        causes.dedup();
        Err(DriverError::Busy { causes })
    }

    /// One turn of every thread; says whether all were quiet after it.
    fn round(&mut self) -> Result<bool, DriverError> {
        let mut at_rest = true;
        for index in 0..self.instances.len() {
            let Some(instance) = self.instances.get_mut(index) else {
                break;
            };
            let mut died = false;
            for thread in &mut instance.threads {
                match catch_unwind(AssertUnwindSafe(|| thread.turn())) {
                    Ok(Ok(())) => at_rest &= thread.thread.is_quiet(),
                    Ok(Err(source)) => {
                        let instance = instance.name.clone();
                        return Err(DriverError::Ended { instance, source });
                    }
                    Err(cause) if cause.is::<Crashed>() => {
                        died = true;
                        break;
                    }
                    Err(cause) => resume_unwind(cause),
                }
            }
            if died {
                self.restart(index)?;
                at_rest = false;
            }
        }
        Ok(at_rest)
    }

    /// Ends an instance's threads without a word, and starts them again over its disk.
    fn restart(&mut self, index: usize) -> Result<(), DriverError> {
        let Some(instance) = self.instances.get_mut(index) else {
            return Ok(());
        };
        instance.threads.clear();
        let (name, disk) = (instance.name.clone(), instance.disk.clone());
        let threads = self.threads(&name, &disk)?;
        if let Some(instance) = self.instances.get_mut(index) {
            instance.threads = threads;
        }
        Ok(())
    }

    fn threads(&self, name: &str, disk: &Arc<Disk>) -> Result<Vec<ThreadDriver>, DriverError> {
        let mut config = self.config.clone();
        name.clone_into(&mut config.instance);
        let thread = |index| {
            let (log, clock, stores) = (self.home.clone(), self.hands.clone(), disk.clone());
            ThreadDriver::new(&self.application, config.clone(), log, clock, stores, index)
        };
        let threads: crate::Result<_> = (0..config.threads.max(1)).map(thread).collect();
        threads.map_err(|source| DriverError::Ended {
            instance: name.to_owned(),
            source,
        })
    }

    /// Every instance dies now, as by kill -9, and starts again over its disk at the next run.
    ///
    /// # Errors
    /// An application that cannot start any more.
    pub fn crash(&mut self) -> Result<(), DriverError> {
        // All are dead before the first one starts again.
        for instance in &mut self.instances {
            instance.threads.clear();
        }
        (0..self.instances.len()).try_for_each(|index| self.restart(index))
    }

    /// Every instance dies, and its disk with it: what it starts again with is restored from the changelogs.
    ///
    /// # Errors
    /// As [`TopologyDriver::crash`].
    pub fn lose_store(&mut self) -> Result<(), DriverError> {
        for instance in &mut self.instances {
            instance.threads.clear();
            instance.disk.lose();
        }
        self.crash()
    }

    /// The instance that commits next dies at this moment, and starts again in the same run. Faults that are asked for
    /// together befall one commit each, in this order.
    pub fn crash_at(&mut self, moment: Moment) {
        self.arm(match moment {
            Moment::BeforeCommit => Fault::CrashBefore,
            Moment::AfterCommit => Fault::CrashAfter,
        });
    }

    /// The next commit is aborted by the log.
    pub fn abort_next_commit(&mut self) {
        self.arm(Fault::Abort);
    }

    /// The next commit happens, and the instance is not told so.
    pub fn lose_next_answer(&mut self) {
        self.arm(Fault::LostAnswer);
    }

    fn arm(&mut self, fault: Fault) {
        locked(&self.faults).push_back(fault);
    }

    /// How many of the faults that were asked for have not come yet: a test that means them all says `0` at its end.
    pub fn faults_left(&self) -> usize {
        locked(&self.faults).len()
    }

    /// Starts another instance, with a disk of its own: at the next run the group shares its partitions out anew.
    ///
    /// # Errors
    /// An application that cannot start.
    pub fn add_instance(&mut self, name: &str) -> Result<(), DriverError> {
        let disk = Arc::new(Disk::default());
        let threads = self.threads(name, &disk)?;
        let name = name.to_owned();
        self.instances.push(Instance { name, threads, disk });
        Ok(())
    }

    /// Stops an instance as a drained process stops: it commits what it has done. Its tasks go to the others at the next
    /// run.
    ///
    /// # Errors
    /// [`DriverError::Unknown`]; what its last commit meets.
    pub fn remove_instance(&mut self, name: &str) -> Result<(), DriverError> {
        let instance = self.take_out(name)?;
        for thread in instance.threads {
            let finished = catch_unwind(AssertUnwindSafe(|| thread.finish()));
            match finished {
                Ok(Ok(())) => {}
                Ok(Err(source)) => {
                    let instance = instance.name;
                    return Err(DriverError::Ended { instance, source });
                }
                // It dies in its last commit.
                Err(cause) if cause.is::<Crashed>() => break,
                Err(cause) => resume_unwind(cause),
            }
        }
        Ok(())
    }

    /// An instance dies and does not come back. A transaction that it leaves open holds back whoever reads what it wrote
    /// until the transaction timeout is over: [`TopologyDriver::advance`].
    ///
    /// # Errors
    /// [`DriverError::Unknown`].
    pub fn kill_instance(&mut self, name: &str) -> Result<(), DriverError> {
        self.take_out(name).map(drop)
    }

    fn take_out(&mut self, name: &str) -> Result<Instance, DriverError> {
        match self.instances.iter().position(|instance| instance.name == name) {
            Some(index) => Ok(self.instances.remove(index)),
            None => Err(DriverError::Unknown {
                what: format!("instance {name}"),
                known: self.instances.iter().map(|instance| instance.name.clone()).collect(),
            }),
        }
    }

    /// Takes one turn of every thread: for a crash in the middle of work.
    ///
    /// # Errors
    /// As [`TopologyDriver::run`].
    pub fn turn(&mut self) -> Result<(), DriverError> {
        self.hands.steady.advance(millis(ROUND));
        self.round().map(drop)
    }

    /// Moves the date on, for the application and for the log. Timers that are then due fire at the next run.
    pub fn advance(&mut self, by: Duration) {
        self.hands.date.advance(millis(by));
        self.hands.steady.advance(millis(by));
    }

    /// The date, in ms.
    pub fn now(&self) -> Millis {
        self.hands.now()
    }

    /// The log itself, for what the driver has no word for.
    pub fn log(&self) -> &SharedEventLog {
        &self.log
    }

    /// The committed records of a topic, partition by partition, each in the order of its offsets.
    ///
    /// # Errors
    /// A topic that does not exist.
    pub fn output(&self, topic: &str) -> Result<Vec<OutputRecord>, DriverError> {
        let attempted = format!("read {topic}");
        let info = self.log.describe(topic).map_err(refused(&attempted))?;
        let missing = || event_log::Error::UnknownTopic {
            topic: topic.to_owned(),
        };
        let info = info.ok_or_else(missing).map_err(refused(&attempted))?;
        let mut found = Vec::new();
        for partition in 0..info.partitions {
            let at = TopicPartition::new(topic, partition);
            read(&self.log, &at, &mut found).map_err(refused(&attempted))?;
        }
        Ok(found)
    }

    /// The same as texts: `PARTITION KEY=VALUE`.
    ///
    /// # Errors
    /// As [`TopologyDriver::output`].
    pub fn texts(&self, topic: &str) -> Result<Vec<String>, DriverError> {
        Ok(self.output(topic)?.iter().map(OutputRecord::to_string).collect())
    }

    /// The committed state of a task as its changelog has it, timers and the runtime's other own rows left out: what any
    /// instance would restore.
    ///
    /// # Errors
    /// [`DriverError::Unknown`] for a sub-topology that does not exist.
    pub fn state(&self, subtopology: &str, partition: i32) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, DriverError> {
        let subs = &self.application.subtopologies;
        let sub = subs.iter().find(|sub| sub.name == subtopology);
        let sub = sub.ok_or_else(|| DriverError::Unknown {
            what: format!("sub-topology {subtopology}"),
            known: subs.iter().map(|sub| sub.name.clone()).collect(),
        })?;
        let at = TopicPartition::new(changelog_topic(&self.application.name, &sub.store), partition);
        let (mut records, mut rows) = (Vec::new(), BTreeMap::new());
        read(&self.log, &at, &mut records).map_err(refused(&format!("read {at}")))?;
        for OutputRecord { key, value, .. } in records {
            let key = key.unwrap_or_default();
            if key == COMMIT_RECORD_KEY || key.starts_with(RESERVED) {
                continue;
            }
            match value.as_deref() {
                None => drop(rows.remove(&key)),
                Some([CHANGELOG_VERSION, body @ ..]) => drop(rows.insert(key, body.to_vec())),
                Some(other) => drop(rows.insert(key, other.to_vec())),
            }
        }
        Ok(rows)
    }

    /// The partition of a key in a topic of so many, as Kafka's default partitioner has it.
    pub fn partition_of(key: impl AsRef<[u8]>, partitions: i32) -> i32 {
        partitioner::partition(key.as_ref(), partitions)
    }
}

fn refused(attempted: &str) -> impl FnOnce(event_log::Error) -> DriverError {
    let attempted = attempted.to_owned();
    move |source| DriverError::EventLog { attempted, source }
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests;
