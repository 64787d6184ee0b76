//! Runs a whole application in a test: all sub-topologies, partitions, commits and recoveries, with requested faults.
//!
//! It performs iterations of production stream threads with the embedded log and stores in memory. It uses no OS
//! threads, sleeps or disks, so a run is reproducible. [`TopologyDriver::output`] returns what a `read_committed`
//! reader sees. The wall clock advances only with [`TopologyDriver::advance`].

mod disk;

use crate::faulty_log::{CommitFault, Crashed, Faults, FaultyLog};
use crate::log::{self, OutputRecord};
use crate::simulation::Rng;
use disk::Disk;
use event_log::{Header, Millis, OutBatch, OutRecord, SharedEventLog, TopicPartition, TopicSpec, partitioner};
use service::clock::Manual;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;
use streams::testing::{Environment, ThreadDriver, is_reserved_key};
use streams::{Application, CHANGELOG_VERSION, COMMIT_RECORD_KEY, Clock, Config, changelog_topic};

/// The initial wall-clock time of every driver: 14 November 2023, 22:13:20 UTC.
pub const START: Millis = 1_700_000_000_000;
/// Name of the first instance.
pub const FIRST: &str = "one";
/// Number of rounds after which an application that is still busy is reported.
const ROUNDS_MAX: usize = 2_000;
/// Time by which the monotonic clock advances per round, so that pauses elapse.
const ROUND: Duration = Duration::from_millis(20);
/// Number of consecutive idle rounds after which nothing is in flight between instances.
const QUIET_ROUNDS: usize = 3;

/// Where a process crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// All records were sent, and the transaction is open.
    BeforeCommit,
    /// The log has committed the transaction, but the store is not written yet.
    AfterCommit,
}

/// An error of a driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// A call of the log failed.
    #[error("the log failed to {attempted}")]
    EventLog {
        /// What was attempted.
        attempted: String,
        /// The error of the log.
        #[source]
        source: event_log::Error,
    },
    /// An instance failed to start, or ended.
    #[error("instance {instance} ended")]
    Ended {
        /// Its name.
        instance: String,
        /// Why.
        #[source]
        source: Box<streams::Error>,
    },
    /// The application is still busy after many rounds.
    #[error("the application did not become idle: {}", causes.join("; "))]
    Busy {
        /// Why the application is not ready, as `/readyz` reports it.
        causes: Vec<String>,
    },
    /// There is no such sub-topology or instance.
    #[error("{what} does not exist; known are {}", known.join(", "))]
    Unknown {
        /// The name that was requested.
        what: String,
        /// The names that exist.
        known: Vec<String>,
    },
}

/// The wall clock and the monotonic clock of all instances.
struct Clocks {
    date: Manual,
    steady: Manual,
}

impl Clock for Clocks {
    fn now(&self) -> Millis {
        service::Clock::now_ms(&self.date)
    }

    fn elapsed(&self) -> Duration {
        Clock::elapsed(&self.steady)
    }
}

/// A process of the application: its threads and its disk.
struct Instance {
    name: String,
    threads: Vec<ThreadDriver>,
    disk: Arc<Disk>,
}

/// Runs a whole application in a test.
///
/// A test creates topics, sends records, runs the application until it is idle, and checks what was committed. Between any
/// two steps it may crash the application, lose its disks, and add or remove instances: the output must be the same.
///
/// ```
/// use event_log::{OutRecord, RecordSlice};
/// use std::sync::Arc;
/// use streams::{Application, Context, Output, FirstStart, Processor, Result, State, SubTopology};
/// use trunkline_streams_test::{Moment, START, TopologyDriver};
///
/// /// Counts the records of each key.
/// struct Counter(Arc<str>);
///
/// impl Processor for Counter {
///     fn process(
///         &mut self, _: Context, records: RecordSlice<'_>, state: &mut State, output: &mut Output,
///     ) -> Result<()> {
///         for record in records.iter() {
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
    /// The log of the instances, with faults.
    faulty_log: SharedEventLog,
    clocks: Arc<Clocks>,
    faults: Faults,
    instances: Vec<Instance>,
}

impl TopologyDriver {
    /// Creates topics with these names and partition counts, starts the application with one instance of one thread, named
    /// [`FIRST`], and runs it until it is idle. The application itself creates changelogs and dead-letter topics.
    ///
    /// # Errors
    /// The application cannot start, for example because an input is not among the topics.
    pub fn start(application: &Application, topics: &[(&str, i32)]) -> Result<Self, DriverError> {
        let specs: Vec<TopicSpec> = topics
            .iter()
            .map(|(name, partitions)| log::topic(name, *partitions))
            .collect();
        Self::start_with(application, Config::new(FIRST, ""), &specs)
    }

    /// Like [`TopologyDriver::start`], with a configuration, whose instance name, directory and engine are replaced.
    ///
    /// # Errors
    /// As [`TopologyDriver::start`].
    pub fn start_with(application: &Application, config: Config, topics: &[TopicSpec]) -> Result<Self, DriverError> {
        let clocks = Arc::new(Clocks {
            date: Manual::at(START),
            steady: Manual::at(0),
        });
        let log = log::in_memory(&clocks.date).map_err(log_error("open"))?;
        log.create_topics(topics).map_err(log_error("create the topics"))?;
        let faults = Faults::new(Rng::of_seed(0));
        let faulty_log = Arc::new(FaultyLog::new(log.clone(), faults.clone()).with_dynamic_members());
        let mut driver = TopologyDriver {
            application: application.clone(),
            config,
            log,
            faulty_log,
            clocks,
            faults,
            instances: Vec::new(),
        };
        driver.add_instance(FIRST)?;
        driver.run()?;
        Ok(driver)
    }

    /// Writes a record to the partition that Kafka's default partitioner chooses for the key.
    ///
    /// # Errors
    /// The topic does not exist, or the record is too large for it.
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

    /// Writes a record with an optional partition, key and value, and with headers.
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
        sent.map(drop)
            .map_err(log_error(&format!("append to {}", record.topic)))
    }

    /// Runs all instances until all input is processed and committed, and due timers have fired. Instances that crash are
    /// restarted.
    ///
    /// # Errors
    /// [`DriverError::Busy`] with the causes if a task stopped, is paused or stays busy; [`DriverError::Ended`] if a
    /// process would have ended.
    pub fn run(&mut self) -> Result<(), DriverError> {
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            self.clocks.steady.advance(millis(ROUND));
            let is_idle = self.round()?;
            quiet = if is_idle { quiet + 1 } else { 0 };
            if quiet == QUIET_ROUNDS {
                return Ok(());
            }
        }
        let threads = self.instances.iter().flat_map(|instance| &instance.threads);
        let mut causes: Vec<String> = threads.flat_map(ThreadDriver::causes).collect();
        causes.dedup();
        Err(DriverError::Busy { causes })
    }

    /// Performs one iteration of every thread. Returns whether all threads are idle after it.
    fn round(&mut self) -> Result<bool, DriverError> {
        let mut is_idle = true;
        for index in 0..self.instances.len() {
            let Some(instance) = self.instances.get_mut(index) else {
                break;
            };
            let mut crashed = false;
            for thread in &mut instance.threads {
                match catch_unwind(AssertUnwindSafe(|| thread.turn())) {
                    Ok(Ok(())) => is_idle &= thread.is_quiet(),
                    Ok(Err(source)) => {
                        let instance = instance.name.clone();
                        return Err(DriverError::Ended {
                            instance,
                            source: Box::new(source),
                        });
                    }
                    Err(cause) if cause.is::<Crashed>() => {
                        crashed = true;
                        break;
                    }
                    Err(cause) => resume_unwind(cause),
                }
            }
            if crashed {
                self.restart(index)?;
                is_idle = false;
            }
        }
        Ok(is_idle)
    }

    /// Drops an instance's threads without a commit, and starts new threads with the data on its disk.
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
            let environment = Environment {
                log: self.faulty_log.clone(),
                clock: self.clocks.clone(),
                stores: disk.clone(),
            };
            ThreadDriver::new(&self.application, config.clone(), environment, index)
        };
        let threads: streams::Result<_> = (0..config.threads.max(1)).map(thread).collect();
        threads.map_err(|source| DriverError::Ended {
            instance: name.to_owned(),
            source: Box::new(source),
        })
    }

    /// Crashes all instances, as SIGKILL would. The next run restarts them with the data on their disks.
    ///
    /// # Errors
    /// The application cannot start again.
    pub fn crash(&mut self) -> Result<(), DriverError> {
        // All instances crash before the first one is restarted.
        for instance in &mut self.instances {
            instance.threads.clear();
        }
        (0..self.instances.len()).try_for_each(|index| self.restart(index))
    }

    /// Crashes all instances and deletes their disks. They restore their state from the changelogs.
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

    /// Crashes the instance that commits next; it restarts in the same run. If several faults are requested, each
    /// applies to one commit, in the order of the requests.
    pub fn crash_at(&mut self, moment: Moment) {
        self.faults.at_commit(match moment {
            Moment::BeforeCommit => CommitFault::CrashBefore,
            Moment::AfterCommit => CommitFault::CrashAfter,
        });
    }

    /// Aborts the next commit.
    pub fn abort_next_commit(&mut self) {
        self.faults.at_commit(CommitFault::Abort);
    }

    /// Loses the response of the next commit, so that its outcome is unknown to the instance.
    pub fn lose_next_answer(&mut self) {
        self.faults.at_commit(CommitFault::LostAnswer);
    }

    /// Number of requested faults that have not happened yet. A test should assert that it is 0 at the end.
    pub fn faults_left(&self) -> usize {
        self.faults.pending()
    }

    /// Starts another instance with an empty disk. The group rebalances in the next run.
    ///
    /// # Errors
    /// The application cannot start.
    pub fn add_instance(&mut self, name: &str) -> Result<(), DriverError> {
        let disk = Arc::new(Disk::default());
        let threads = self.threads(name, &disk)?;
        let name = name.to_owned();
        self.instances.push(Instance { name, threads, disk });
        Ok(())
    }

    /// Stops an instance as draining does: it commits its work. In the next run, its tasks are assigned to the other
    /// instances.
    ///
    /// # Errors
    /// [`DriverError::Unknown`], or its last commit failed.
    pub fn remove_instance(&mut self, name: &str) -> Result<(), DriverError> {
        let instance = self.remove(name)?;
        for thread in instance.threads {
            let finished = catch_unwind(AssertUnwindSafe(|| thread.finish()));
            match finished {
                Ok(Ok(())) => {}
                Ok(Err(source)) => {
                    let instance = instance.name;
                    return Err(DriverError::Ended {
                        instance,
                        source: Box::new(source),
                    });
                }
                // The instance crashed in its last commit.
                Err(cause) if cause.is::<Crashed>() => break,
                Err(cause) => resume_unwind(cause),
            }
        }
        Ok(())
    }

    /// Crashes an instance, which does not restart. A transaction that it leaves open blocks `read_committed` readers of its
    /// output until the transaction timeout has passed; see [`TopologyDriver::advance`].
    ///
    /// # Errors
    /// [`DriverError::Unknown`].
    pub fn kill_instance(&mut self, name: &str) -> Result<(), DriverError> {
        self.remove(name).map(drop)
    }

    fn remove(&mut self, name: &str) -> Result<Instance, DriverError> {
        match self.instances.iter().position(|instance| instance.name == name) {
            Some(index) => Ok(self.instances.remove(index)),
            None => Err(DriverError::Unknown {
                what: format!("instance {name}"),
                known: self.instances.iter().map(|instance| instance.name.clone()).collect(),
            }),
        }
    }

    /// Performs one iteration of every thread, for a crash within a transaction.
    ///
    /// # Errors
    /// As [`TopologyDriver::run`].
    pub fn turn(&mut self) -> Result<(), DriverError> {
        self.clocks.steady.advance(millis(ROUND));
        self.round().map(drop)
    }

    /// Advances the clocks of the application and the log. Timers that are then due fire in the next run.
    pub fn advance(&mut self, by: Duration) {
        self.clocks.date.advance(millis(by));
        self.clocks.steady.advance(millis(by));
    }

    /// The wall-clock time, in ms.
    pub fn now(&self) -> Millis {
        self.clocks.now()
    }

    /// The log, without faults.
    pub fn log(&self) -> &SharedEventLog {
        &self.log
    }

    /// The committed records of a topic, ordered by partition and offset.
    ///
    /// # Errors
    /// The topic does not exist.
    pub fn output(&self, topic: &str) -> Result<Vec<OutputRecord>, DriverError> {
        let attempted = format!("read {topic}");
        let info = self.log.describe(topic).map_err(log_error(&attempted))?;
        let missing = || event_log::Error::UnknownTopic {
            topic: topic.to_owned(),
        };
        let info = info.ok_or_else(missing).map_err(log_error(&attempted))?;
        let mut found = Vec::new();
        for partition in 0..info.partitions {
            let at = TopicPartition::new(topic, partition);
            found.extend(log::committed(&self.log, &at).map_err(log_error(&attempted))?);
        }
        Ok(found)
    }

    /// The committed records of a topic as strings of the form `PARTITION KEY=VALUE`.
    ///
    /// # Errors
    /// As [`TopologyDriver::output`].
    pub fn texts(&self, topic: &str) -> Result<Vec<String>, DriverError> {
        Ok(self.output(topic)?.iter().map(OutputRecord::to_string).collect())
    }

    /// The committed state of a task according to its changelog, without timers and other reserved rows.
    ///
    /// # Errors
    /// [`DriverError::Unknown`] if the sub-topology does not exist.
    pub fn state(&self, subtopology: &str, partition: i32) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, DriverError> {
        let subs = &self.application.subtopologies;
        let sub = subs.iter().find(|sub| sub.name == subtopology);
        let sub = sub.ok_or_else(|| DriverError::Unknown {
            what: format!("sub-topology {subtopology}"),
            known: subs.iter().map(|sub| sub.name.clone()).collect(),
        })?;
        let at = TopicPartition::new(changelog_topic(&self.application.name, &sub.store), partition);
        let records = log::committed(&self.log, &at).map_err(log_error(&format!("read {at}")))?;
        let mut rows = BTreeMap::new();
        for OutputRecord { key, value, .. } in records {
            let key = key.unwrap_or_default();
            if key == COMMIT_RECORD_KEY || is_reserved_key(&key) {
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

    /// The partition that Kafka's default partitioner chooses for a key.
    pub fn partition_of(key: impl AsRef<[u8]>, partitions: i32) -> i32 {
        partitioner::partition(key.as_ref(), partitions)
    }
}

fn log_error(attempted: &str) -> impl FnOnce(event_log::Error) -> DriverError {
    let attempted = attempted.to_owned();
    move |source| DriverError::EventLog { attempted, source }
}

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

#[cfg(test)]
mod tests;
