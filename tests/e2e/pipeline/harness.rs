//! Harness with dedicated PostgreSQL (pgbench tables) and Kafka, one process per node, and one device per branch.
//!
//! Each device polls both edges in turn on a separate thread and after every complete page, checks that the balance of
//! its branch is the sum of the history.

use super::sum;
use crate::support::{self, Broker, Fleet, Phone, Polled, Postgres, make_bank, sql};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// View, table and columns.
const TABLES: [(&str, &str, &str); 4] = [
    ("branches", "pgbench_branches", "bid, bbalance, filler"),
    ("tellers", "pgbench_tellers", "tid, bid, tbalance, filler"),
    ("accounts", "pgbench_accounts", "aid, bid, abalance, filler"),
    ("history", "pgbench_history", "id, tid, bid, aid, delta, filler"),
];

/// Accounts per branch: a device with fewer rows has not received the snapshot yet.
const ACCOUNTS: usize = 100_000;

pub struct Harness {
    pub fleet: Fleet,
    pub broker: Broker,
    pub postgres: Postgres,
    branches: usize,
    devices: Vec<Device>,
    stop: Arc<AtomicBool>,
}

struct Device {
    complete: Arc<AtomicUsize>,
    last: Arc<Mutex<String>>,
    thread: JoinHandle<Phone>,
}

/// Checks that the balance of the branch is the sum of its history.
pub fn branch_is_whole(phone: &Phone) {
    let balance = sum(phone.view("branches"), "bbalance");
    let history = sum(phone.view("history"), "delta");
    assert_eq!(
        balance, history,
        "partial transaction: the balance of the branch is not the sum of its history"
    );
}

impl Harness {
    /// Starts PostgreSQL and Kafka and creates the tables; no node is started.
    pub fn new(branches: usize) -> Harness {
        Harness::with_nodes(branches, "")
    }

    /// Like [`Harness::new`], with further nodes.
    pub fn with_nodes(branches: usize, nodes: &str) -> Harness {
        let (postgres, broker) = (Postgres::start(), Broker::start());
        let url = postgres.url();
        make_bank(&url, branches);
        let fleet = Fleet::new(
            &format!("{}{nodes}", topology::samples::PGBENCH.text),
            &broker.bootstrap(),
            &format!("[connectors.bank]\nurl = \"{url}\"\nheartbeat_seconds = 2\n"),
        );
        Harness {
            fleet,
            broker,
            postgres,
            branches,
            devices: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Starts pgbench with the given arguments.
    pub fn load(&self, arguments: &[&str]) -> Load {
        let child = Command::new(support::postgres_bin().join("pgbench"))
            .args(["-n"])
            .args(arguments)
            .arg(self.postgres.url())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Load(child.expect("pgbench starts"))
    }

    /// Starts a device for each branch.
    pub fn start_devices(&mut self) {
        let edges = [self.fleet.edge("edge-1"), self.fleet.edge("edge-2")];
        self.devices = (1..=self.branches)
            .map(|branch| {
                let phone = Phone::new("phone", &self.token(branch));
                let (stop, complete) = (self.stop.clone(), Arc::new(AtomicUsize::new(0)));
                let last = Arc::new(Mutex::new(String::new()));
                let (edges, seen, heard) = (edges.clone(), complete.clone(), last.clone());
                let name = format!("device-{branch}");
                let run = move || poll(phone, &edges, &stop, &seen, &heard);
                let thread = std::thread::Builder::new().name(name).spawn(run).unwrap();
                Device { complete, last, thread }
            })
            .collect();
    }

    fn token(&self, branch: usize) -> String {
        self.fleet.token("x", &[("branch", Value::from(branch))])
    }

    /// Waits until each device has received `count` more complete pages; pages before the snapshot do not count.
    pub fn more_pages(&self, count: usize, limit: Duration) {
        self.more_pages_or(count, limit, &mut || false);
    }

    /// Like [`Harness::more_pages`], but stops when `enough` is true.
    pub fn more_pages_or(&self, count: usize, limit: Duration, enough: &mut dyn FnMut() -> bool) {
        let (before, until): (Vec<usize>, _) = (self.pages().collect(), Instant::now() + limit);
        while self.pages().zip(&before).any(|(now, before)| now < before + count) && !enough() {
            let broken = self.devices.iter().any(|d| d.thread.is_finished());
            assert!(!broken, "a device failed; see its panic above");
            if Instant::now() > until {
                let last = self.devices.iter().map(|d| d.last.lock().unwrap().clone());
                let last: Vec<String> = last.collect();
                panic!(
                    "not {count} more pages for each device within {limit:?}: {before:?} before, {:?} now; last \
                     responses:\n{}",
                    self.pages().collect::<Vec<_>>(),
                    last.join("\n")
                );
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until the last poll of every device, which waited one second, returned 304.
    pub fn wait_quiet(&self, limit: Duration) {
        let quiet = |device: &Device| device.last.lock().unwrap().contains(": 304");
        support::wait_for("idle devices", limit, || self.devices.iter().all(quiet).then_some(()));
    }

    fn pages(&self) -> impl Iterator<Item = usize> {
        self.devices.iter().map(|d| d.complete.load(Ordering::SeqCst))
    }

    /// Stops the threads of the devices and lets each device catch up on both edges. Then compares its rows, and those
    /// of new devices on each edge, with the database.
    pub fn compare(&mut self, limit: Duration) {
        self.stop.store(true, Ordering::SeqCst);
        let phones: Vec<Phone> = self.devices.drain(..).map(|d| d.thread.join().unwrap()).collect();
        assert_eq!(phones.len(), self.branches);
        let edges = [self.fleet.edge("edge-1"), self.fleet.edge("edge-2")];
        for (index, mut phone) in phones.into_iter().enumerate() {
            let expected = self.expected(index + 1);
            catch_up(&mut phone, &edges[0], &expected, limit);
            catch_up(&mut phone, &edges[1], &expected, limit);
            for edge in &edges {
                let mut fresh = Phone::new("fresh", &self.token(index + 1));
                catch_up(&mut fresh, edge, &expected, limit);
                assert_eq!(
                    fresh.rows,
                    phone.rows,
                    "branch {}: a new device has other rows",
                    index + 1
                );
            }
        }
    }

    /// The rows of a branch in the database.
    fn expected(&self, branch: usize) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for (view, table, columns) in TABLES {
            let select = format!("SELECT row_to_json(t) FROM (SELECT {columns} FROM {table} WHERE bid = {branch}) t");
            let rows = sql(&self.postgres.url(), &select);
            all.extend(
                rows.lines()
                    .map(|row| row_text(view, &serde_json::from_str(row).unwrap())),
            );
        }
        all
    }
}

/// Text form of a row that is equal for the database and a device; on a device, int8 is a string.
fn row_text(view: &str, row: &Value) -> String {
    let (_, _, columns) = TABLES
        .iter()
        .find(|(name, ..)| *name == view)
        .expect("a view of the bank");
    let mut row_text = view.to_owned();
    for column in columns.split(", ") {
        match &row[column] {
            Value::String(text) => row_text = format!("{row_text} {column}={}", text.trim_end()),
            other => row_text = format!("{row_text} {column}={other}"),
        }
    }
    row_text
}

fn catch_up(phone: &mut Phone, edge: &str, expected: &BTreeSet<String>, limit: Duration) {
    let rows_of = |phone: &Phone| -> BTreeSet<String> {
        let rows = phone.rows.iter().map(|((_, view, _), row)| row_text(view, row));
        rows.collect()
    };
    let rows = expected.len();
    let mut same = false;
    super::follow(phone, edge, limit, &branch_is_whole, &mut |phone| {
        if phone.rows.len() == rows && phone.complete > 0 {
            same = rows_of(phone) == *expected;
        }
        same
    });
}

/// Polls the edges in turn and checks every complete page, until `stop` is set.
fn poll(
    mut phone: Phone,
    edges: &[String; 2],
    stop: &AtomicBool,
    complete: &AtomicUsize,
    last: &Mutex<String>,
) -> Phone {
    for edge in edges.iter().cycle() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let polled = phone.poll(edge, 1);
        phone.last.clone_into(&mut last.lock().unwrap());
        match polled {
            Polled::Complete => {
                branch_is_whole(&phone);
                if phone.rows.len() >= ACCOUNTS {
                    complete.fetch_add(1, Ordering::SeqCst);
                }
            }
            Polled::Later => std::thread::park_timeout(Duration::from_millis(100)),
            Polled::Part | Polled::Same => {}
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    phone
}

/// A running pgbench; killed on drop.
pub struct Load(Child);

impl Load {
    /// Waits until pgbench ends. Panics if it fails.
    pub fn wait(mut self) {
        assert!(self.0.wait().unwrap().success(), "pgbench failed");
    }

    /// Whether pgbench is still running.
    pub fn runs(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}
