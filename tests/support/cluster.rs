//! Three Kafka brokers of a test's own, each a controller too: what is written is on two of them before it counts.
//!
//! Guarantees: any one of them can be killed without a loss; a broker is killed only once the one before it is whole
//! again. Never: two brokers down at a time.

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

/// What Kafka says of transactions when nobody writes any more.
#[derive(Debug)]
pub struct Transactions {
    /// Transactional ids that are neither empty nor complete, as Kafka's tool lists them.
    pub unfinished: Vec<String>,
    /// What Kafka's tool finds hanging on any broker.
    pub hanging: Vec<String>,
}

/// Three brokers.
#[derive(Debug)]
pub struct Cluster {
    brokers: Vec<Broker>,
}

impl Cluster {
    /// Starts three brokers and waits until every one serves.
    pub fn start() -> Cluster {
        let seat = |_| (directory(), free_port(), free_port());
        let seats: Vec<(TempDir, u16, u16)> = (0..BROKERS).map(seat).collect();
        let voters: Vec<String> = seats
            .iter()
            .enumerate()
            .map(|(at, (_, _, controller))| format!("{}@127.0.0.1:{controller}", at + 1))
            .collect();
        let (voters, id) = (voters.join(","), cluster_id());
        let lay_out = |(at, (dir, port, controller)): (usize, (TempDir, u16, u16))| {
            let text = properties(dir.path(), at + 1, port, controller, &voters);
            Broker::lay_out(dir, port, &id, &text, &[])
        };
        let mut brokers: Vec<Broker> = seats.into_iter().enumerate().map(lay_out).collect();
        // A broker serves only once two controllers have met, so all are started before the first is waited for.
        brokers.iter_mut().for_each(Broker::launch);
        brokers.iter_mut().for_each(Broker::serves);
        Cluster { brokers }
    }

    /// Bootstrap servers: all of them.
    pub fn bootstrap(&self) -> String {
        let servers: Vec<String> = self.brokers.iter().map(Broker::bootstrap).collect();
        servers.join(",")
    }

    /// Kills a broker, by its number from 0, as by kill -9.
    pub fn kill(&mut self, broker: usize) {
        self.brokers[broker].kill();
    }

    /// Starts a killed broker and does not wait for it.
    pub fn restart(&mut self, broker: usize) {
        self.brokers[broker].launch();
    }

    /// Waits until a restarted broker serves and every partition is on all brokers again.
    pub fn is_whole(&mut self, limit: Duration) {
        self.brokers.iter_mut().for_each(Broker::serves);
        wait_for("every partition to be on every broker", limit, || {
            self.short_partitions().is_empty().then_some(())
        });
    }

    /// Whether every broker serves every partition, now.
    fn short_partitions(&self) -> String {
        let script = "import sys\n\
             from confluent_kafka.admin import AdminClient\n\
             found = AdminClient({'bootstrap.servers': sys.argv[1]}).list_topics(timeout=10)\n\
             n = int(sys.argv[2])\n\
             print(len(found.brokers) < n or [f'{t.topic}/{p.id}' for t in found.topics.values() \
             for p in t.partitions.values() if len(p.isrs) < n] or '')";
        let brokers = BROKERS.to_string();
        let asked = Command::new(python())
            .args(["-c", script, &self.bootstrap(), &brokers])
            .output()
            .expect("run Python");
        if asked.status.success() {
            String::from_utf8_lossy(&asked.stdout).trim().to_owned()
        } else {
            "the cluster does not answer".to_owned()
        }
    }

    /// How many transactions were aborted at least, by the brokers' own indexes of these partitions: of each producer as
    /// many as in the partition where it has the most, since a transaction is in several.
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

    /// The same for one partition, by producer, from the broker that has the longest index.
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

    /// What Kafka's own tool says of the transactions that are there.
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

/// Times are short, so that a killed broker's partitions move in seconds; a production cluster waits longer.
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
