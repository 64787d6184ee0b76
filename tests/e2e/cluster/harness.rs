//! Harness for declarative processors on three brokers while processes and brokers are killed with SIGKILL.
//!
//! The application `joined` joins `event.ordered` with the table of prices into `processor.joined`; the application
//! `counts` counts and sums that by item into `processor.counts`. Nodes run them with `trunkline run`.
//! `tests/fixtures/interop/cluster.py` reads all topics and verifies the output.
//!
//! At most one broker is down at a time. The run fails if a process ends without being killed.

use super::orders::Orders;
use super::progress::{Kills, PARTITIONS, Progress, RunPlan, pass};
use crate::support::{self, BROKERS, Cluster, Fleet, wait_for};
use event_log::SharedEventLog;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const TOPOLOGY: &str = r#"
name = "cluster"

[[connector]]
name = "shop"
kind = "http"

[[table]]
source  = "shop"
name    = "prices"
key     = ["item"]
columns = { item = "int8", price = "int8?" }

[[event]]
name       = "ordered"
fields     = { item = "int8", number = "int8", amount = "int8", epoch = "int8" }
key        = ["item"]
partitions = 6

[[processor]]
name       = "joined"
kind       = "join"
left       = "event:ordered"
right      = "shop.prices"
on         = { item = "item" }
type       = "left"
fields     = { number = "left.number", amount = "left.amount", price = "right.price" }
partitions = 6

[[processor]]
name       = "counts"
kind       = "aggregate"
from       = "processor:joined"
group      = { item = "item" }
fields     = { orders = "count()", spent = "sum(price != null ? amount * price : 0)" }
partitions = 6

[[node]]
name = "ingest"
runs = ["connector:shop", "ingest", "registry"]

[[node]]
name = "worker-0"
runs = ["processor:joined", "processor:counts"]

[[node]]
name = "worker-1"
runs = ["processor:joined", "processor:counts"]
"#;
/// Output topics of the processors.
const OUTPUTS: [&str; 2] = ["cluster.processor.joined", "cluster.processor.counts"];
/// Number of stream threads per processor, for each node.
const NODES: [(&str, usize); 2] = [("worker-0", 2), ("worker-1", 1)];
const LIMIT: Duration = Duration::from_secs(180);
/// Interval between kills of processes.
const KILL_EVERY: Duration = Duration::from_secs(5);
/// How long a kill is delayed until the process runs a task and a new transaction has been committed. Without the
/// delay, processes on a busy machine would be killed before they do any work. After this time, the process is killed
/// in any case.
const START: Duration = Duration::from_secs(30);
/// Log message of the runtime when a task starts to run.
const RUNS: &str = "task runs";
/// How long a killed broker stays down: longer than its partitions need to get new leaders.
const DOWN: Duration = Duration::from_secs(5);
/// Failpoints that keep each transaction open for a while, so that kills occur during open transactions.
const OPEN: &str = "streams.commit.sent=pause:150,log.commit.before=pause:150";

/// Result of a run.
#[derive(Debug, Default)]
pub struct RunReport {
    /// Orders written.
    pub orders: usize,
    /// Processes killed.
    pub kills: usize,
    /// Brokers killed.
    pub broker_kills: usize,
    /// Lower bound of the number of aborted transactions, counted in the brokers' transaction indexes.
    pub aborted: usize,
    /// JSON object that the verifier printed.
    pub verdict: serde_json::Value,
    /// Transactions that Kafka's tool reports as unfinished or hanging.
    pub unfinished: Vec<String>,
}

/// Brokers and nodes.
pub struct Harness {
    cluster: Cluster,
    log: SharedEventLog,
    fleet: Fleet,
    /// URL of the ingest listener.
    orders: String,
}

/// Stops the other threads when it is dropped, including after a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Harness {
    /// Starts the brokers and the node with ingest and registry.
    pub fn new() -> Harness {
        let mut cluster = Cluster::start();
        cluster.wait_in_sync(LIMIT);
        let kafka = cluster.bootstrap();
        let log = event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(kafka.clone())).expect("connect");
        let mut fleet = Fleet::new(TOPOLOGY, &kafka, "[processors]\nstore_memory_mib = 8\n");
        let listen = format!("127.0.0.1:{}", support::free_port());
        let ingest = format!(
            "[ingest]\nlisten = \"{listen}\"\n\
             credentials = [{{ name = \"backend\", token = \"a token\", topics = [\"*\"] }}]\n"
        );
        fleet.configure("ingest", &ingest);
        for (node, threads) in NODES {
            fleet.configure(node, &format!("threads = {threads}\n"));
        }
        fleet.start("ingest");
        fleet.wait_ready("ingest", LIMIT);
        let orders = format!("http://{listen}");
        Harness {
            cluster,
            log,
            fleet,
            orders,
        }
    }

    /// Starts the processors, kills processes and brokers until the minimums are reached, and verifies the output.
    pub fn run(mut self, plan: RunPlan) -> RunReport {
        let (over, kills) = (AtomicBool::new(false), Kills::default());
        let (cluster, fleet, log) = (&mut self.cluster, &mut self.fleet, &self.log);
        NODES.iter().for_each(|(node, _)| fleet.start_with(node, OPEN));
        let mut orders = Orders::new(self.orders.clone(), Progress::new(log.clone()));
        std::thread::scope(|threads| {
            let brokers = threads.spawn(|| {
                let _over = Over(&over);
                kill_brokers(cluster, &over, &kills.brokers);
            });
            let processes = threads.spawn(|| {
                let _over = Over(&over);
                kill_processes(fleet, log, &over, &kills.processes);
            });
            let writer = Over(&over);
            orders.write(plan, &over, &kills);
            drop(writer);
            brokers.join().expect("the brokers were killed as planned");
            processes.join().expect("the processes were killed as planned");
        });
        // All brokers run and no process is killed from here on, so the rest of the input is processed.
        self.cluster.wait_in_sync(LIMIT);
        orders.barrier();
        NODES.iter().for_each(|(node, _)| self.fleet.stop(node, LIMIT));
        let verdict = verify(&self.cluster.bootstrap(), self.fleet.registry(), &orders);
        self.fleet.stop("ingest", LIMIT);
        let transactions = self.cluster.transactions();
        let partitions = |topic: &'static str| (0..PARTITIONS).map(move |p| (topic, p));
        RunReport {
            orders: orders.written,
            kills: kills.processes.into_inner(),
            broker_kills: kills.brokers.into_inner(),
            aborted: self.cluster.aborted(OUTPUTS.into_iter().flat_map(partitions)),
            unfinished: [transactions.unfinished, transactions.hanging].concat(),
            verdict,
        }
    }
}

/// Kills the brokers in turn, each only after all partitions are in sync again.
fn kill_brokers(cluster: &mut Cluster, over: &AtomicBool, kills: &AtomicUsize) {
    while !over.load(Ordering::SeqCst) {
        let broker = kills.load(Ordering::SeqCst) % BROKERS;
        cluster.kill(broker);
        pass(DOWN, &AtomicBool::new(false));
        cluster.restart(broker);
        cluster.wait_in_sync(LIMIT);
        kills.fetch_add(1, Ordering::SeqCst);
        pass(DOWN, over);
    }
}

fn kill_processes(fleet: &mut Fleet, log: &SharedEventLog, over: &AtomicBool, kills: &AtomicUsize) {
    let mut logged = NODES.map(|_| 0);
    let progress = Progress::new(log.clone());
    for at in (0..NODES.len()).cycle() {
        let before = progress.stable();
        pass(KILL_EVERY, over);
        if over.load(Ordering::SeqCst) {
            return;
        }
        let (node, _) = NODES[at];
        let end = Instant::now() + START;
        wait_for("a task to run", START + LIMIT, || {
            let is_late = Instant::now() >= end || over.load(Ordering::SeqCst);
            let works = || fleet.log(node)[logged[at]..].contains(RUNS);
            (is_late || works() && progress.stable() > before).then_some(())
        });
        if let Some(ended) = fleet.ended(node) {
            let log = fleet.log(node);
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            panic!("{node} ended by itself with {ended}; end of its log in reverse order: {last:#?}");
        }
        fleet.kill(node);
        kills.fetch_add(1, Ordering::SeqCst);
        logged[at] = fleet.log(node).len();
        fleet.start_with(node, OPEN);
    }
}

/// Runs the Python verifier.
fn verify(kafka: &str, registry: &str, orders: &Orders) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/interop/cluster.py");
    let out = Command::new(support::python())
        .arg(script)
        .args([kafka, registry, &orders.written.to_string()])
        .output()
        .expect("run Python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("the verifier prints JSON")
}
