//! A stream application on three brokers while its processes and the brokers are killed: what runs is the caller's, what
//! it must put out follows from the input alone.
//!
//! `orders` (key, and `id amount epoch`) are joined with the table `prices` (key, and a price or a deletion, with the
//! epoch in a header) into `joined` (`id amount price`), and counted by key into `counts` (`id count sum`, of amount × price). The
//! table changes between epochs only, when everything before is committed, so that the order of the two topics does not
//! matter. `tests/fixtures/interop/cluster.py` reads it all and judges.
//!
//! Guarantees: one broker is down at a time; every kill is a SIGKILL. Never: a judgement by what runs.

use crate::world::{self, BROKERS, Cluster, wait_for};
use log::{
    At, Cleanup, Error, Fate, Isolation, Offset, OutBatch, OutRecord, RecordBatch, SharedLog, StartFrom, TopicConfig,
    TopicPartition, TopicSpec,
};
use serde::{Deserialize, Serialize};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The application.
const APPLICATION: &str = "shop";
/// Partitions of each topic.
const PARTITIONS: i32 = 6;
/// Keys of orders and prices.
const KEYS: usize = 3000;
/// Processes, and the stream threads of each.
const THREADS: [usize; 2] = [2, 1];
const LIMIT: Duration = Duration::from_secs(180);
/// A process is killed this often, one after the other.
const KILL_EVERY: Duration = Duration::from_secs(5);
/// How much longer it may take until a process works and something new is committed; then it is killed all the same. On a
/// busy machine processes would else be killed before any of them has done anything.
const START: Duration = Duration::from_secs(30);
/// What the runtime says of a task that runs.
const RUNS: &str = "task runs";
/// How long a killed broker stays down: longer than it takes until its partitions have moved.
const DOWN: Duration = Duration::from_secs(5);
/// Records of one append.
const CHUNK: usize = 500;
/// Each transaction stays open for as long, so that kills find it so.
const OPEN: &str = "runtime.commit.sent=pause:150,log.commit.before=pause:150";

/// One process of the application.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seat {
    /// Bootstrap servers.
    pub kafka: String,
    /// Group, and prefix of what is the runtime's.
    pub application: String,
    /// The process among those of the application.
    pub instance: String,
    /// Its stream threads.
    pub threads: usize,
    /// Where its stores are.
    pub dir: PathBuf,
}

/// How hard, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Play {
    /// Kills go on for at least this long …
    pub time: Duration,
    /// … until each broker was killed this often …
    pub rounds: usize,
    /// … and so many orders were written.
    pub orders: usize,
    /// Orders a second.
    pub rate: usize,
    /// The table changes after so many orders.
    pub epoch: usize,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Played {
    /// Orders written.
    pub orders: usize,
    /// Processes killed.
    pub kills: usize,
    /// Brokers killed.
    pub broker_kills: usize,
    /// Aborted transactions that the brokers' indexes name, at least.
    pub aborted: usize,
    /// What the verifier printed: one JSON object.
    pub verdict: serde_json::Value,
    /// Transactions that Kafka's tool calls unfinished or hanging.
    pub unfinished: Vec<String>,
}

/// The stage: brokers, topics, and directories of the processes.
pub struct Stage {
    cluster: Cluster,
    log: SharedLog,
    seats: Vec<Seat>,
    dir: tempfile::TempDir,
}

/// Says to the other threads that it is over, also when this one fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Stage {
    /// Starts the brokers and makes the topics.
    pub fn new() -> Stage {
        let mut cluster = Cluster::start();
        cluster.is_whole(LIMIT);
        let kafka = cluster.bootstrap();
        let log = log::kafka::KafkaLog::connect(log::kafka::Config::new(kafka.clone())).expect("connect");
        let topic = |name: &str| TopicSpec {
            name: name.to_owned(),
            partitions: PARTITIONS,
            replication: None,
            config: TopicConfig::new(Cleanup::Delete),
        };
        let topics = ["orders", "prices", "joined", "counts"].map(topic);
        patiently("make the topics", || log.create_topics(&topics));
        let dir = tempfile::tempdir().expect("make a directory");
        let seat = |(at, threads): (usize, &usize)| Seat {
            kafka: kafka.clone(),
            application: APPLICATION.to_owned(),
            instance: format!("seat-{at}"),
            threads: *threads,
            dir: dir.path().join(format!("seat-{at}")),
        };
        let seats = THREADS.iter().enumerate().map(seat).collect();
        Stage {
            cluster,
            log,
            seats,
            dir,
        }
    }

    /// Runs `what` in a process a seat, kills, and verifies.
    pub fn play(mut self, play: Play, what: &(dyn Fn(&Seat) -> Command + Sync)) -> Played {
        let over = AtomicBool::new(false);
        let (broker_kills, log) = (AtomicUsize::new(0), &self.log);
        let (cluster, seats, dir) = (&mut self.cluster, &self.seats, self.dir.path());
        let mut orders = Orders::new(log.clone());
        orders.set_prices();
        let (kills, lives) = std::thread::scope(|threads| {
            let brokers = threads.spawn(|| {
                let _over = Over(&over);
                kill_brokers(cluster, &over, &broker_kills);
            });
            let processes = threads.spawn(|| {
                let _over = Over(&over);
                kill_processes(log, seats, dir, what, &over)
            });
            let writer = Over(&over);
            orders.write(play, &over, &broker_kills);
            drop(writer);
            brokers.join().expect("the brokers were killed as planned");
            processes.join().expect("the processes were killed as planned")
        });
        // All brokers are there again, and every process had its last kill: what was written comes out.
        self.cluster.is_whole(LIMIT);
        orders.barrier();
        lives.into_iter().for_each(Life::finish);
        let transactions = self.cluster.transactions();
        Played {
            orders: orders.written,
            kills,
            broker_kills: broker_kills.load(Ordering::SeqCst),
            aborted: self.aborted(),
            unfinished: [transactions.unfinished, transactions.hanging].concat(),
            verdict: verify(&self.cluster.bootstrap(), orders.written),
        }
    }

    fn aborted(&self) -> usize {
        let topics = ["joined", "counts"];
        let all = topics
            .iter()
            .flat_map(|topic| (0..PARTITIONS).map(move |p| (*topic, p)));
        self.cluster.aborted(all)
    }
}

/// Asks again for as long as the log says that it is out of reach: a broker may be down.
fn patiently<T>(what: &str, mut ask: impl FnMut() -> log::Result<T>) -> T {
    wait_for(what, LIMIT, || match ask() {
        Err(error) if error.fate() == Fate::Retry => None,
        // Offsets of a killed broker's last words.
        Err(Error::UnknownTopic { .. }) => None,
        found => Some(found.expect(what)),
    })
}

/// Kills one broker after the other, and waits each time until all is whole.
fn kill_brokers(cluster: &mut Cluster, over: &AtomicBool, kills: &AtomicUsize) {
    while !over.load(Ordering::SeqCst) {
        let broker = kills.load(Ordering::SeqCst) % BROKERS;
        cluster.kill(broker);
        pass(DOWN, &AtomicBool::new(false));
        cluster.restart(broker);
        cluster.is_whole(LIMIT);
        kills.fetch_add(1, Ordering::SeqCst);
        pass(DOWN, over);
    }
}

/// Lets time pass, but not beyond the end.
fn pass(time: Duration, over: &AtomicBool) {
    let end = Instant::now() + time;
    wait_for("time to pass", time + LIMIT, || {
        (Instant::now() >= end || over.load(Ordering::SeqCst)).then_some(())
    });
}

/// A process that does not outlive its stage.
struct Life {
    child: Child,
    log: PathBuf,
    /// Length of the log when it began.
    said: u64,
}

impl Life {
    fn start(seat: &Seat, dir: &Path, what: &dyn Fn(&Seat) -> Command) -> Life {
        let log = dir.join(format!("{}.log", seat.instance));
        let said = std::fs::metadata(&log).map_or(0, |found| found.len());
        let file = std::fs::File::options().create(true).append(true).open(&log);
        let file = file.expect("open a log file");
        let child = what(seat)
            .env(process::failpoint::VARIABLE, OPEN)
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log file"))
            .stderr(file)
            .spawn()
            .expect("start a process");
        Life { child, log, said }
    }

    /// Whether one of its tasks has begun to run.
    fn works(&self) -> bool {
        let mut new = Vec::new();
        let mut log = std::fs::File::open(&self.log).expect("open a log file");
        log.seek(SeekFrom::Start(self.said)).expect("seek");
        log.read_to_end(&mut new).expect("read a log file");
        String::from_utf8_lossy(&new).contains(RUNS)
    }

    fn kill(&mut self) {
        if let Some(ended) = self.child.try_wait().expect("ask for the process") {
            // A join whose answer died with a broker fences its own name; the process ends, and is started again as by a
            // supervisor. Nothing else is a reason to end.
            let last = world::last_lines(&self.log, 30);
            assert!(last.contains("Fenced"), "a process ended by itself, {ended}: {last}");
            return;
        }
        self.child.kill().expect("kill a process");
        self.child.wait().expect("wait for a process");
    }

    /// Ends it in good order.
    fn finish(mut self) {
        world::signal(self.child.id(), "-TERM");
        let ended = wait_for("a process to end", LIMIT, || {
            self.child.try_wait().expect("ask for the process")
        });
        assert!(ended.success(), "{ended}: {}", world::last_lines(&self.log, 30));
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where the state's changelogs end by now; `None` while they are out of reach.
fn progress(log: &SharedLog) -> Option<Offset> {
    let topics = ["join", "count"].map(|store| runtime::changelog_topic(APPLICATION, store));
    let at = topics
        .iter()
        .flat_map(|topic| (0..PARTITIONS).map(move |p| TopicPartition::new(topic.as_str(), p)));
    let ends = log.offsets(&at.collect::<Vec<_>>(), At::Stable).ok()?;
    Some(ends.into_iter().sum())
}

fn kill_processes(
    log: &SharedLog,
    seats: &[Seat],
    dir: &Path,
    what: &dyn Fn(&Seat) -> Command,
    over: &AtomicBool,
) -> (usize, Vec<Life>) {
    let mut lives: Vec<Life> = seats.iter().map(|seat| Life::start(seat, dir, what)).collect();
    let mut kills = 0;
    loop {
        let before = progress(log);
        pass(KILL_EVERY, over);
        if over.load(Ordering::SeqCst) {
            return (kills, lives);
        }
        let at = kills % seats.len();
        let end = Instant::now() + START;
        wait_for("a task to run", START + LIMIT, || {
            let is_late = Instant::now() >= end || over.load(Ordering::SeqCst);
            (is_late || lives[at].works() && progress(log) > before).then_some(())
        });
        lives[at].kill();
        kills += 1;
        lives[at] = Life::start(&seats[at], dir, what);
    }
}

/// The writer of both inputs.
struct Orders {
    log: SharedLog,
    orders: Arc<str>,
    prices: Arc<str>,
    written: usize,
    epoch: usize,
}

impl Orders {
    fn new(log: SharedLog) -> Orders {
        Orders {
            log,
            orders: "orders".into(),
            prices: "prices".into(),
            written: 0,
            epoch: 0,
        }
    }

    /// Writes orders at their rate, and a new table now and then, until the play is over.
    fn write(&mut self, play: Play, over: &AtomicBool, broker_kills: &AtomicUsize) {
        self.barrier();
        let start = Instant::now();
        let mut next_epoch = play.epoch;
        let enough = |written: usize| {
            let rounds = broker_kills.load(Ordering::SeqCst) / BROKERS;
            start.elapsed() >= play.time && rounds >= play.rounds && written >= play.orders
        };
        while !over.load(Ordering::SeqCst) && !enough(self.written) {
            let due = Duration::from_millis(u64::try_from(self.written * 1000 / play.rate).expect("a time"));
            pass(due.saturating_sub(start.elapsed()), over);
            self.append_orders();
            if self.written >= next_epoch {
                next_epoch += play.epoch;
                self.barrier();
                self.epoch += 1;
                self.set_prices();
                self.barrier();
            }
        }
    }

    fn append_orders(&mut self) {
        let ids = self.written..self.written + CHUNK;
        let epoch = self.epoch;
        let order = |id: usize| (id * 7919 % KEYS, Some(format!("{id} {} {epoch}", id % 97 + 1)));
        append(&self.log, &self.orders, epoch, ids.map(order));
        self.written += CHUNK;
    }

    /// A new price for a third of the keys, at first for all, and none any more for some.
    fn set_prices(&self) {
        let epoch = self.epoch;
        let keys = (0..KEYS).filter(|key| epoch == 0 || (key + epoch).is_multiple_of(3));
        let price = |key: usize| (key, (!(key + epoch).is_multiple_of(7)).then(|| (epoch + 1).to_string()));
        append(&self.log, &self.prices, epoch, keys.map(price));
    }

    /// Waits until everything that was written is committed, joined and counted.
    fn barrier(&self) {
        let at = |topic: &str| {
            (0..PARTITIONS)
                .map(|p| TopicPartition::new(topic, p))
                .collect::<Vec<_>>()
        };
        for topic in ["orders", "prices", "joined"] {
            wait_for(&format!("{topic} to be processed"), LIMIT, || {
                let partitions = at(topic);
                let committed = patiently("read the offsets", || self.log.committed(APPLICATION, &partitions));
                let done = |(at, next): (&TopicPartition, &Option<Offset>)| self.is_read(at, next.unwrap_or(0));
                committed.iter().all(done).then_some(())
            });
        }
    }

    /// Whether no committed record is at or after an offset: what is there may be the ends of transactions.
    fn is_read(&self, at: &TopicPartition, next: Offset) -> bool {
        let end = patiently("read the end", || self.log.offset(at, At::End));
        if next >= end {
            return true;
        }
        patiently("read what is left", || {
            let mut reader = self.log.reader(Isolation::ReadCommitted)?;
            reader.assign(&[(at.clone(), StartFrom::Offset(next))])?;
            let (mut batch, began) = (RecordBatch::default(), Instant::now());
            while reader.position(at).is_none_or(|position| position < end) {
                let open = began.elapsed() > Duration::from_secs(1);
                if open || reader.poll(&mut batch, 1 << 20, Duration::from_millis(50))? > 0 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }
}

/// Appends records of these keys, and repeats what is not known to have been written: the verifier takes the input as
/// it is.
fn append(log: &SharedLog, topic: &Arc<str>, epoch: usize, records: impl Iterator<Item = (usize, Option<String>)>) {
    let mut batch = OutBatch::default();
    let epoch = epoch.to_string();
    for (key, value) in records {
        let partition = i32::try_from(key).expect("few keys") % PARTITIONS;
        let key = format!("[{key}]");
        let record = OutRecord {
            topic,
            partition: Some(partition),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: value.as_deref().map(str::as_bytes),
        };
        batch.push(record, [("epoch", Some(epoch.as_bytes()))]);
    }
    patiently("write", || log.append(&batch));
}

/// Lets a client of another language judge.
fn verify(kafka: &str, orders: usize) -> serde_json::Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/interop/cluster.py");
    let out = Command::new(world::python())
        .arg(script)
        .args([kafka, "orders", "prices", "joined", "counts", &orders.to_string()])
        .output()
        .expect("run Python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("the verifier prints JSON")
}
