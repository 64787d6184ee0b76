//! Declares an application: its sub-topologies, each with inputs, one store and a processor, and how a process runs it.
//!
//! A task is partition *n* of one sub-topology. Inputs that are joined must be in one sub-topology and have equal
//! partition counts; each other input should have a separate sub-topology. Names of topics, stores and ids are derived
//! only from declared names, so that a change of the code never makes existing state unreachable.

use crate::api::context::TaskInfo;
use crate::api::processor::Processor;
use std::sync::Arc;
use std::time::Duration;

/// A stream application: one consumer group and its sub-topologies.
///
/// Input and output topics must exist before it starts. The runtime creates changelogs (`<name>.changelog.<store>`) and
/// dead-letter topics (`<input>.dlq`). Names are permanent: a renamed application, store or sub-topology starts without
/// state, and the old state is kept. If the partition count of an input changes, the application does not start.
#[derive(Clone)]
pub struct Application {
    /// Group id, and prefix of transactional ids, member names and changelog topics.
    pub name: String,
    /// Sub-topologies.
    pub subtopologies: Vec<SubTopology>,
}

/// Inputs that are processed together, their store and their processor.
#[derive(Clone)]
pub struct SubTopology {
    /// Name, unique in the application; part of the task ids.
    pub name: String,
    /// Topics that are read together. They must have equal partition counts and, for a join, equal keys. A topic can be
    /// an input of only one sub-topology. An input that is added later starts at `first_start`.
    pub inputs: Vec<String>,
    /// Name of the store, unique in the application.
    pub store: String,
    /// Creates the processor of a task.
    pub factory: Factory,
    /// Where to start reading a partition that this application has never read.
    pub first_start: FirstStart,
}

/// Creates the processor of a task.
pub type Factory = Arc<dyn Fn(&TaskInfo) -> Box<dyn Processor> + Send + Sync>;

/// Where to start reading a partition that the application has never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstStart {
    /// At the first record in the topic.
    Earliest,
    /// At the end of the topic when the task first starts.
    Latest,
}

/// Processing guarantee of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessingGuarantee {
    /// Output, state and offsets are committed in one transaction. Every record takes effect once.
    #[default]
    ExactlyOnce,
    /// No transactions. A commit writes the following, each durable before the next: output and dead letters, changed
    /// rows, the commit record, the offsets. No record is skipped. After a crash, a failed write or a rebalance, the
    /// records since the last commit record are processed again: their output is duplicated, and state is changed twice
    /// if its rows were written and the commit record was not. Readers see output as soon as it is written. After a
    /// pause longer than half the session timeout, a process checks its membership before it writes state; if it loses
    /// the membership after that check, it can overwrite rows of the new owner.
    AtLeastOnce,
}

/// How one process runs an application. [`Config::new`] sets defaults for most applications; only `instance` and
/// `stores.dir` must differ between processes. Memory use is about `stores.memory_bytes` per task plus
/// `commit.bytes_max` and a few MB of read buffers per thread.
#[derive(Debug, Clone)]
pub struct Config {
    /// Identifies this process among those of the application. `<application>-<instance>-<thread>` is the transactional id
    /// of a thread, and its static member name contains it, so two live processes must not share it.
    pub instance: String,
    /// Number of stream threads; about one per core. At most one per task is started.
    pub threads: usize,
    /// State stores.
    pub stores: StoreConfig,
    /// Transactions.
    pub commit: CommitConfig,
    /// Consumer group.
    pub group: MembershipConfig,
    /// Topics that the runtime creates.
    pub topics: TopicDefaults,
    /// Bytes of input read by one poll.
    pub poll_bytes_max: usize,
    /// Number of processes that can fail at the same time without a task having to restore its whole store: each
    /// process keeps standbys of the tasks that it would then be assigned. 0 disables standbys; the maximum is 3.
    pub standby_replicas: usize,
    /// URL of this process's admin listener, returned by state queries that reach another process.
    pub advertised: Option<String>,
    /// Topic of the processes' admin addresses. Without it, addresses are neither published nor looked up.
    pub members_topic: Option<String>,
}

/// State stores of a process.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of the stores: `<dir>/<application>/<store>/<partition>`.
    pub dir: std::path::PathBuf,
    /// Store engine.
    pub engine: state_store::Engine,
    /// Limit for caches and write buffers of one task's store, in bytes.
    pub memory_bytes: u64,
}

/// Transactions of a process.
#[derive(Debug, Clone)]
pub struct CommitConfig {
    /// Maximum time between the first uncommitted record and its commit. A limit, not a delay.
    pub interval: Duration,
    /// Bytes of output and changed state that force a commit. Changed state counts twice: as rows, and as changelog records.
    pub bytes_max: usize,
    /// Time after which the broker aborts the open transaction of a thread that ended without closing it.
    pub transaction_timeout: Duration,
    /// Exactly once, or at least once without transactions. May be changed in either direction if all processes are
    /// restarted together. Must be exactly once if `touches_view_log` is set.
    pub guarantee: ProcessingGuarantee,
    /// Whether transactions write `view.log`. They are then open for at most 50 ms, because an open transaction holds back
    /// the readers of `view.log`.
    pub touches_view_log: bool,
}

/// Membership of a process's threads in the consumer group.
#[derive(Debug, Clone)]
pub struct MembershipConfig {
    /// Time without a heartbeat after which a member loses its partitions. With the KIP-848 group protocol, it is a
    /// setting of the brokers.
    pub session_timeout: Duration,
    /// Group protocol. With [`event_log::GroupProtocol::Consumer`], tasks that stay with their thread keep running
    /// during a rebalance.
    pub protocol: event_log::GroupProtocol,
}

/// Settings of topics that the runtime creates.
#[derive(Debug, Clone)]
pub struct TopicDefaults {
    /// Replication factor; `None` uses the broker's default.
    pub replication: Option<i32>,
    /// `delete.retention.ms` of changelogs; at least 7 days in production.
    pub changelog_delete_retention: Duration,
    /// Retention of dead-letter topics.
    pub dead_letter_retention: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Config {
    /// Default configuration of this instance, with stores below `dir`.
    pub fn new(instance: impl Into<String>, dir: impl Into<std::path::PathBuf>) -> Self {
        Config {
            instance: instance.into(),
            threads: 1,
            stores: StoreConfig {
                dir: dir.into(),
                engine: state_store::Engine::default(),
                memory_bytes: 32 << 20,
            },
            commit: CommitConfig {
                interval: Duration::from_millis(100),
                bytes_max: 8 << 20,
                transaction_timeout: Duration::from_secs(10),
                guarantee: ProcessingGuarantee::ExactlyOnce,
                touches_view_log: false,
            },
            group: MembershipConfig {
                session_timeout: Duration::from_secs(30),
                protocol: event_log::GroupProtocol::Classic,
            },
            topics: TopicDefaults {
                replication: None,
                changelog_delete_retention: 7 * DAY,
                dead_letter_retention: event_log::DeadLetterTopics::RETENTION,
            },
            poll_bytes_max: 1 << 20,
            standby_replicas: 0,
            advertised: None,
            members_topic: None,
        }
    }

    /// Name of a thread: its transactional id, and part of its static member name.
    pub fn thread_name(&self, application: &str, thread: usize) -> String {
        format!("{application}-{}-{thread}", self.instance)
    }
}

/// Static member name of a thread. The range assignor assigns partitions in the order of these names, so partition 0 of
/// every topic goes to the first. The first threads of all processes precede the second ones, so that all processes read a
/// topic that has fewer partitions than the group has threads. The order of the processes is that of a hash and differs
/// between applications: otherwise one process would run all applications whose input has a single partition.
pub(crate) fn member_name(thread: &str) -> String {
    let (process, index) = thread.rsplit_once('-').unwrap_or((thread, "0"));
    let hash = process.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("{index:0>4}.{hash:08x}.{thread}")
}

/// Instance of a static member name; the inverse of [`Config::thread_name`] and [`member_name`].
pub(crate) fn instance_of_member<'n>(application: &str, member: &'n str) -> Option<&'n str> {
    let thread = member.splitn(3, '.').nth(2)?;
    let rest = thread.strip_prefix(application)?.strip_prefix('-')?;
    let (instance, number) = rest.rsplit_once('-')?;
    number.parse::<u32>().ok().map(|_| instance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn member_name_contains_the_instance() {
        let thread = Config::new("node-1", "").thread_name("shop.sync-views.change.db", 3);
        let member = member_name(&thread);
        assert!(member.ends_with(".shop.sync-views.change.db-node-1-3"), "{member}");
        assert_eq!(instance_of_member("shop.sync-views.change.db", &member), Some("node-1"));
        assert_eq!(instance_of_member("shop.sync-views.change.d", &member), None);
    }

    #[test]
    fn first_threads_of_all_processes_come_first() {
        let threads = ["a", "b"]
            .into_iter()
            .flat_map(|instance| (0..12).map(move |index| (instance, index)));
        let mut members: Vec<_> = threads
            .map(|(instance, index)| (member_name(&Config::new(instance, "").thread_name("app", index)), index))
            .collect();
        members.sort();
        let order: Vec<usize> = members.iter().map(|(_, index)| *index).collect();
        assert!(order.is_sorted(), "{order:?}");
    }

    #[test]
    fn first_member_differs_between_applications() {
        let first = |application: String| {
            let instances = ["a", "b", "c", "d"].into_iter();
            let member = |instance| {
                (
                    member_name(&Config::new(instance, "").thread_name(&application, 0)),
                    instance,
                )
            };
            instances.map(member).min().unwrap().1
        };
        let first: BTreeSet<_> = (0..20).map(|n| first(format!("shop.sync-views.change.s{n}"))).collect();
        assert_eq!(first.len(), 4, "20 inputs are read by 4 processes");
    }
}
