//! A dedicated cluster of three Kafka brokers in combined mode, with replication factor 3 and `min.insync.replicas` 2, so
//! that any one broker can be killed without losing acknowledged records.

use super::broker::{Broker, cluster_id, tool};
use super::{free_port, python, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Brokers of a cluster.
pub const BROKERS: usize = 3;
/// Size of an entry in a partition's index of aborted transactions: version (2 bytes), producer, first and last offset,
/// last stable offset (8 each).
const ABORTED_ENTRY_BYTES: usize = 34;

/// Output of Kafka's transaction tool.
#[derive(Debug)]
pub struct Transactions {
    /// Transactional ids that are neither empty nor complete.
    pub unfinished: Vec<String>,
    /// Hanging transactions of any broker.
    pub hanging: Vec<String>,
}

/// Three brokers.
#[derive(Debug)]
pub struct Cluster {
    brokers: Vec<Broker>,
}

impl Cluster {
    /// Starts three brokers and waits until all of them serve requests.
    pub fn start() -> Cluster {
        let location = |_| (directory(), free_port(), free_port());
        let locations: Vec<(TempDir, u16, u16)> = (0..BROKERS).map(location).collect();
        let voters: Vec<String> = locations
            .iter()
            .enumerate()
            .map(|(at, (_, _, controller))| format!("{}@127.0.0.1:{controller}", at + 1))
            .collect();
        let (voters, id) = (voters.join(","), cluster_id());
        let lay_out = |(at, (dir, port, controller)): (usize, (TempDir, u16, u16))| {
            let text = properties(dir.path(), at + 1, port, controller, &voters);
            Broker::lay_out(dir, port, &id, &text, &[])
        };
        let mut brokers: Vec<Broker> = locations.into_iter().enumerate().map(lay_out).collect();
        // A broker serves requests only after a quorum of controllers has formed, so all brokers are started before the
        // first wait.
        brokers.iter_mut().for_each(Broker::launch);
        brokers.iter_mut().for_each(Broker::wait_ready);
        Cluster { brokers }
    }

    /// Bootstrap servers: all brokers.
    pub fn bootstrap(&self) -> String {
        let servers: Vec<String> = self.brokers.iter().map(Broker::bootstrap).collect();
        servers.join(",")
    }

    /// Kills a broker, by its index, with SIGKILL.
    pub fn kill(&mut self, broker: usize) {
        self.brokers[broker].kill();
    }

    /// Starts a killed broker and does not wait for it.
    pub fn restart(&mut self, broker: usize) {
        self.brokers[broker].launch();
    }

    /// Waits until all brokers serve and every partition is in sync on all of them.
    pub fn wait_in_sync(&mut self, limit: Duration) {
        self.brokers.iter_mut().for_each(Broker::wait_ready);
        wait_for("all replicas to be in sync", limit, || {
            self.short_partitions().is_empty().then_some(())
        });
    }

    /// Partitions with missing replicas; empty if all brokers are up and in sync.
    fn short_partitions(&self) -> String {
        let script = "import sys\n\
             from confluent_kafka.admin import AdminClient\n\
             found = AdminClient({'bootstrap.servers': sys.argv[1]}).list_topics(timeout=10)\n\
             n = int(sys.argv[2])\n\
             print(len(found.brokers) < n or [f'{t.topic}/{p.id}' for t in found.topics.values() \
             for p in t.partitions.values() if len(p.isrs) < n] or '')";
        let brokers = BROKERS.to_string();
        let requested = Command::new(python())
            .args(["-c", script, &self.bootstrap(), &brokers])
            .output()
            .expect("run Python");
        if requested.status.success() {
            String::from_utf8_lossy(&requested.stdout).trim().to_owned()
        } else {
            "the cluster does not respond".to_owned()
        }
    }

    /// Lower bound of the number of aborted transactions, counted in the transaction indexes (`.txnindex`) of these
    /// partitions. For each producer, only the partition with the most entries is counted, because a transaction may
    /// write to several partitions.
    pub fn aborted<'t>(&self, partitions: impl Iterator<Item = (&'t str, i32)>) -> usize {
        let mut most: BTreeMap<[u8; 8], usize> = BTreeMap::new();
        for (topic, partition) in partitions {
            for (producer, count) in self.aborted_in(&format!("{topic}-{partition}")) {
                let known = most.entry(producer).or_default();
                *known = count.max(*known);
            }
        }
        most.values().sum()
    }

    /// Aborted transactions of one partition by producer, from the broker with the longest index.
    fn aborted_in(&self, partition: &str) -> BTreeMap<[u8; 8], usize> {
        let index = |broker: &Broker| {
            let files = fs::read_dir(broker.data().join(partition))
                .into_iter()
                .flatten()
                .flatten();
            let indexes = files.filter(|file| file.path().extension().is_some_and(|ext| ext == "txnindex"));
            indexes
                .filter_map(|file| fs::read(file.path()).ok())
                .collect::<Vec<_>>()
                .concat()
        };
        let longest = self.brokers.iter().map(index).max_by_key(Vec::len).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for entry in longest.chunks_exact(ABORTED_ENTRY_BYTES) {
            let producer = entry[2..10].try_into().expect("8 bytes");
            *counts.entry(producer).or_default() += 1;
        }
        counts
    }

    /// Unfinished and hanging transactions, from Kafka's own tool.
    pub fn transactions(&self) -> Transactions {
        let class = "org.apache.kafka.tools.TransactionsCommand";
        let listed = tool(class, &self.bootstrap(), &["list"]);
        let done = ["Empty", "CompleteCommit", "CompleteAbort", "Dead"];
        let is_done = |line: &&str| line.split_whitespace().any(|word| done.contains(&word));
        let rows = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<BTreeSet<_>>();
        let unfinished = rows(&listed).into_iter().filter(|line| !is_done(&line.as_str()));
        let hanging = (1..=BROKERS).flat_map(|id| {
            let id = id.to_string();
            let what = ["find-hanging", "--broker-id", &id, "--max-transaction-timeout", "0"];
            rows(&tool(class, &self.bootstrap(), &what))
        });
        Transactions {
            unfinished: unfinished.collect(),
            hanging: hanging.collect(),
        }
    }
}

fn directory() -> TempDir {
    let mut named = tempfile::Builder::new();
    named.prefix("trunkline-cluster-").tempdir().expect("make a directory")
}

/// Timeouts are short, so that the partitions of a killed broker get new leaders within seconds.
fn properties(dir: &Path, node: usize, port: u16, controller: u16, voters: &str) -> String {
    format!(
        "process.roles=broker,controller\n\
         node.id={node}\n\
         controller.quorum.voters={voters}\n\
         listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=CLIENT://127.0.0.1:{port}\n\
         inter.broker.listener.name=CLIENT\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,CLIENT:PLAINTEXT\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         default.replication.factor=3\n\
         min.insync.replicas=2\n\
         offsets.topic.replication.factor=3\n\
         offsets.topic.num.partitions=8\n\
         transaction.state.log.replication.factor=3\n\
         transaction.state.log.min.isr=2\n\
         transaction.state.log.num.partitions=8\n\
         broker.session.timeout.ms=3000\n\
         broker.heartbeat.interval.ms=500\n\
         replica.lag.time.max.ms=4000\n\
         group.initial.rebalance.delay.ms=0\n\
         group.min.session.timeout.ms=1000\n\
         transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n",
        dir.join("data").display()
    )
}
