//! What an application is: sub-topologies, each with inputs, one store and a processor.
//!
//! A task is partition n of one sub-topology. Inputs that are joined share a sub-topology and must have the same
//! number of partitions; inputs that are not joined are sub-topologies of their own, whatever their counts.
//!
//! Guarantees: names of topics, stores and ids follow from names that the application declares, so that an edit of
//! the code never orphans state.
//! Never: IO.

use crate::Processor;
use event_log::TopicId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A stream application: one consumer group, some sub-topologies.
///
/// Its topics of input and output must exist when it starts; its changelogs (`<name>.changelog.<store>`) and the topics of
/// dead letters (`<input>.dlq`) are made by the runtime. Names are for good: a renamed application, store or
/// sub-topology begins anew, and the old state stays where it is. A changed partition count of an input is refused.
#[derive(Clone)]
pub struct Application {
    /// Group id, and the prefix of transactional ids, member names and changelog topics.
    pub name: String,
    /// What it runs.
    pub subtopologies: Vec<SubTopology>,
}

/// One sub-topology: its tasks share inputs, the store's name and the processor's code.
#[derive(Clone)]
pub struct SubTopology {
    /// Name, unique in the application; it stands in task ids.
    pub name: String,
    /// Topics read together; with more than one, all must have the same number of partitions, and for a join their
    /// records the same keys. A topic is an input of one sub-topology only. An input that is added later begins at
    /// `first_start`.
    pub inputs: Vec<String>,
    /// The store's name, unique in the application.
    pub store: String,
    /// Makes the processor of a task.
    pub factory: Factory,
    /// Where a partition starts that has never been read by this application.
    pub first_start: FirstStart,
}

/// Makes the processor of a task.
pub type Factory = Arc<dyn Fn(&TaskInfo) -> Box<dyn Processor> + Send + Sync>;

/// Where a partition starts at the very first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstStart {
    /// At the first record that is kept.
    Earliest,
    /// At the end, as it is when the task first starts.
    Latest,
}

/// A task's id: partition n of a sub-topology.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The sub-topology's name.
    pub subtopology: Arc<str>,
    /// The partition, of each input and of the changelog.
    pub partition: i32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.subtopology, self.partition)
    }
}

/// An input topic as it was found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputTopic {
    /// Name.
    pub name: Arc<str>,
    /// Id: unlike the name it is never used again after the topic was deleted.
    pub id: TopicId,
}

/// What a processor may know of its task.
#[derive(Debug, Clone)]
pub struct TaskInfo {
    /// The application's name.
    pub application: Arc<str>,
    /// Task id.
    pub id: TaskId,
    /// The inputs, in the declared order.
    pub inputs: Vec<InputTopic>,
}

/// The changelog topic of a store: `<application>.changelog.<store>`.
pub fn changelog_topic(application: &str, store: &str) -> String {
    format!("{application}.changelog.{store}")
}

/// The dead-letter topic of a topic: `<topic>.dlq`.
pub fn dead_letter_topic(topic: &str) -> String {
    format!("{topic}.dlq")
}

/// What a processor's outputs and state are worth after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessingGuarantee {
    /// Outputs, state and offsets are one transaction: every record has its effect once.
    #[default]
    ExactlyOnce,
    /// No transactions. At a commit outputs and dead letters are made durable first, then changed state, then the commit_record,
    /// then the offsets. Every record has its effect at least once: its outputs are written, and its step is in the
    /// state, before the place behind it is. After a crash, a failed write or a rebalance the records since the last
    /// commit_record are processed again, so that outputs come twice, and state is changed twice where its rows were written and
    /// the commit_record was not. Readers see outputs as they are written. A process that stood still for longer than its
    /// session is over asks whether it still is a member before it writes state; one that loses its membership between
    /// that question and the write may put older rows over those of the new owner.
    AtLeastOnce,
}

/// How one process runs an application. [`Config::new`] gives defaults that are right for most; what a process needs of
/// its own are `instance` and `dir`. Memory is about `store_memory_bytes` a task, and `commit_bytes_max` and a few MB of
/// reading a thread.
#[derive(Debug, Clone)]
pub struct Config {
    /// This process among those of the application: `<application>-<instance>-<thread>` is each thread's transactional
    /// id and static member name, so no two live processes may share it.
    pub instance: String,
    /// Stream threads; about one a core.
    pub threads: usize,
    /// Directory of the stores: `<dir>/<application>/<store>/<partition>`.
    pub dir: std::path::PathBuf,
    /// Store engine.
    pub engine: state_store::Engine,
    /// Upper limit for the caches and write buffers of one task's store, in bytes.
    pub store_memory_bytes: u64,
    /// Longest time between the first uncommitted record and its commit. A cap, not a wait.
    pub commit_interval: Duration,
    /// Bytes of output and changed state that force a commit. Changed state counts twice: its rows, and the changelog's
    /// records of them.
    pub commit_bytes_max: usize,
    /// After this long a dead thread's open transaction is aborted by the broker.
    pub transaction_timeout: Duration,
    /// How long a silent member keeps its partitions; with the newer group protocol Kafka's brokers say that.
    pub session_timeout: Duration,
    /// Exactly once, or at least once without transactions. It may be changed at any restart, both ways, of all processes
    /// together; not where [`Config::touches_view_log`].
    pub guarantee: ProcessingGuarantee,
    /// How the threads of all processes agree on who runs which task. With [`event_log::GroupProtocol::Consumer`] a task that
    /// stays where it is goes on while others move.
    pub group_protocol: event_log::GroupProtocol,
    /// Whether a transaction may hold back readers of `view.log`: it is then open for at most 50 ms.
    pub touches_view_log: bool,
    /// Bytes of input read at once.
    pub poll_bytes_max: usize,
    /// After how many processes that are lost at once no task starts cold: each process keeps the stores warm of the
    /// tasks that it would get then. 0 keeps none; at most 3.
    pub standby_replicas: usize,
    /// URL of this process's operators' listener, for state queries that reach another process first.
    pub advertised: Option<String>,
    /// Replicas of the topics that the runtime creates; `None` leaves the broker's default.
    pub replication: Option<i32>,
    /// `delete.retention.ms` of a changelog that the runtime creates; at least 7 days in production.
    pub changelog_delete_retention: Duration,
    /// How long dead letters are kept in a topic that the runtime creates.
    pub dead_letter_retention: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// The defaults, for this instance, with stores below `dir`.
    pub fn new(instance: impl Into<String>, dir: impl Into<std::path::PathBuf>) -> Self {
        Config {
            instance: instance.into(),
            threads: 1,
            dir: dir.into(),
            engine: state_store::Engine::default(),
            store_memory_bytes: 32 << 20,
            commit_interval: Duration::from_millis(100),
            commit_bytes_max: 8 << 20,
            transaction_timeout: Duration::from_secs(10),
            session_timeout: Duration::from_secs(30),
            guarantee: ProcessingGuarantee::ExactlyOnce,
            group_protocol: event_log::GroupProtocol::Classic,
            touches_view_log: false,
            poll_bytes_max: 1 << 20,
            standby_replicas: 0,
            advertised: None,
            replication: None,
            changelog_delete_retention: 7 * DAY,
            dead_letter_retention: 30 * DAY,
        }
    }

    /// Name of a thread: its transactional id and static member name.
    pub fn thread_name(&self, application: &str, thread: usize) -> String {
        format!("{application}-{}-{thread}", self.instance)
    }
}
