//! Benchmark of a snapshot of a large table over Kafka to the edge, while the connector is killed again and again and
//! changes of other tables continue.
//!
//! It prints for each kill how many rows the restarted connector reads a second time, the latency of changes during the
//! snapshot, and the peak memory of each role. Afterwards the table is truncated, with the same figures. A device that holds one bucket of the
//! table is compared with the database at the end of both.

use crate::figures::memory_mb;
use crate::line::bank::{Bank, DEVICES, LIMIT};
use crate::line::devices::{Devices, Measured, Rate};
use crate::line::roles::OURS;
use crate::support::{Phone, Polled, postgres_bin, wait_for};
use anyhow::Context;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

const TABLE: &str = "pgbench_accounts";
/// Rows of each branch, as `pgbench -i` makes them.
const BRANCH_ROWS: usize = 100_000;
const KILLS: usize = 5;
/// Transactions of pgbench per second, which change rows that the snapshot reads.
const PGBENCH_RATE: &str = "50";
/// Changes per second whose latency is measured.
const CHANGES: u32 = 20;
const POLL: Duration = Duration::from_millis(20);
/// Number of the first change during TRUNCATE, above those during the snapshot.
const SECOND_NUMBERS: i64 = 1_000_000;

/// `snapshot [MILLION ROWS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let millions: usize = words.first().map_or(Ok(10), |text| text.parse())?;
    let rows = millions * 1_000_000;
    println!(
        "{rows} rows of {TABLE}, {KILLS} kills of the connector, pgbench -R {PGBENCH_RATE}; separate processes: Kafka, \
         PostgreSQL, connector, processor, edge"
    );
    let mut bank = Bank::new(rows / BRANCH_ROWS);
    for role in OURS {
        bank.fleet.start(role);
        bank.fleet.wait_ready(role, LIMIT);
    }
    let mut peaks = BTreeMap::new();
    let pgbench = Pgbench::start(&bank.database.url)?;
    kills(&mut bank, rows, &mut peaks)?;
    drop(pgbench);
    bank.mark_and_wait();
    compare(&bank, "after the snapshot")?;
    note_peaks(&bank, &mut peaks);

    truncate(&bank, &bank.database.url)?;
    bank.mark_and_wait();
    note_peaks(&bank, &mut peaks);
    for (role, mb) in peaks {
        let target = if role == "connector" { 150 } else { 300 };
        println!("  {role:<10} peak resident memory {mb:4.0} MB (target: ≤ {target})");
    }
    Ok(())
}

/// Truncates the table, and measures the latency of changes until the device has no row of it.
fn truncate(bank: &Bank, url: &str) -> anyhow::Result<()> {
    let devices = Devices::new(&bank.fleet, DEVICES);
    let (begun, done) = (Instant::now(), AtomicBool::new(false));
    let measured = std::thread::scope(|threads| -> anyhow::Result<_> {
        let probe = threads.spawn(|| measure(&devices, url, SECOND_NUMBERS, &done));
        bank.database.sql(&format!("TRUNCATE {TABLE}"));
        let compared = compare(bank, "after TRUNCATE");
        println!(
            "TRUNCATE: the device has removed its rows after {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        done.store(true, Ordering::Relaxed);
        let measured = join(probe)?;
        compared.map(|()| measured)
    })?;
    print_latency(&measured, "no target");
    Ok(())
}

fn measure(devices: &Devices, url: &str, first: i64, done: &AtomicBool) -> anyhow::Result<Measured> {
    let database = crate::postgres::harness::Database::named("", url);
    let rate = Rate {
        a_second: CHANGES,
        first,
    };
    devices.measure(&database, rate, |_| !done.load(Ordering::Relaxed))
}

fn join(probe: ScopedJoinHandle<'_, anyhow::Result<Measured>>) -> anyhow::Result<Measured> {
    probe
        .join()
        .map_err(|_| anyhow::anyhow!("the measurement of latency panicked"))?
}

fn print_latency(measured: &Measured, target: &str) {
    let Measured { times, sent, .. } = measured;
    println!(
        "streaming meanwhile, response to COMMIT → parsed by a device: {} of {sent} received, p50 {:.1?}, p99 {:.1?}, max \
         {:.1?} (target: {target})",
        times.count(),
        times.at(500),
        times.at(990),
        times.longest(),
    );
}

/// Runs the snapshot to its end with kills at equal distances, and measures the latency of changes meanwhile.
fn kills(bank: &mut Bank, rows: usize, peaks: &mut BTreeMap<&'static str, f64>) -> anyhow::Result<()> {
    let devices = Devices::new(&bank.fleet, DEVICES);
    let (begun, done) = (Instant::now(), AtomicBool::new(false));
    let Bank { fleet, database, .. } = &mut *bank;
    let url = database.url.clone();
    let measured = std::thread::scope(|threads| -> anyhow::Result<_> {
        let probe = threads.spawn(|| measure(&devices, &url, 1, &done));
        let watched = (|| -> anyhow::Result<()> {
            let mut progress = Progress::new(&fleet.admin("connector"));
            for kill in 1..=KILLS {
                let before = progress.wait_for(rows / (KILLS + 1) * kill)?;
                let pid = fleet.running("connector").context("the connector runs")?;
                let peak = memory_mb(pid, "VmHWM:");
                let noted = peaks.entry("connector").or_insert(0.0);
                *noted = noted.max(peak);
                fleet.kill("connector");
                let restarted = Instant::now();
                fleet.start("connector");
                let after = progress.wait_for(1)?;
                println!(
                    "kill {kill} at {before} rows: continued at {after}, {} rows read again (target: one chunk of at most \
                     10,000), {:.1} s until it reads",
                    before.saturating_sub(after),
                    restarted.elapsed().as_secs_f64()
                );
            }
            progress.wait_until_running()
        })();
        done.store(true, Ordering::Relaxed);
        let measured = join(probe);
        watched.and(measured)
    })?;
    let took = begun.elapsed().as_secs_f64();
    println!(
        "snapshot: {rows} rows in {took:.0} s with the restarts, {:.0} rows/s",
        f64::from(u32::try_from(rows)?) / took
    );
    print_latency(&measured, "p99 2 s");
    Ok(())
}

/// The progress that the connector shows in its metrics.
struct Progress {
    client: reqwest::blocking::Client,
    url: String,
}

impl Progress {
    fn new(admin: &str) -> Progress {
        Progress {
            client: reqwest::blocking::Client::new(),
            url: format!("{admin}/metrics"),
        }
    }

    /// Value of a metric of the table.
    fn read(&self, metric: &str, more: &str) -> Option<f64> {
        let text = self.client.get(&self.url).send().ok()?.text().ok()?;
        let table = format!("table=\"{TABLE}\"");
        let mut lines = text.lines().filter(|line| line.starts_with(metric));
        let line = lines.find(|line| line.contains(&table) && line.contains(more))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Waits until the snapshot has read at least `rows` rows, and returns how many it has read.
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number of rows"
    )]
    fn wait_for(&mut self, rows: usize) -> anyhow::Result<usize> {
        let end = Instant::now() + LIMIT;
        loop {
            let read = self.read("trunkline_connector_snapshot_rows{", "");
            match read.map(|read| read as usize) {
                Some(read) if read >= rows => return Ok(read),
                _ => anyhow::ensure!(
                    Instant::now() < end,
                    "the snapshot did not reach {rows} rows in {LIMIT:?}"
                ),
            }
            std::thread::sleep(POLL);
        }
    }

    fn wait_until_running(&self) -> anyhow::Result<()> {
        wait_for("the snapshot to end", LIMIT, || {
            let state = self.read("trunkline_connector_table_state{", "state=\"RUNNING\"")?;
            (state > 0.0).then_some(())
        });
        Ok(())
    }
}

/// Compares the rows of one branch on a device with the database.
fn compare(bank: &Bank, when: &str) -> anyhow::Result<()> {
    let edge = bank.fleet.edge("edge-1");
    let mut device = Phone::new("compare", &bank.fleet.token("compare", &[("branch", Value::from(1))]));
    let sql = format!("SELECT count(*), coalesce(sum(abalance), 0) FROM {TABLE} WHERE bid = 1");
    let (mut found, end) = ((String::new(), String::new()), Instant::now() + LIMIT);
    while Instant::now() < end {
        if device.poll(&edge, 1) == Polled::Later {
            std::thread::sleep(POLL);
            continue;
        }
        let balances = device.view("accounts").filter_map(|row| row["abalance"].as_i64());
        let (count, sum) = balances.fold((0, 0), |(count, sum), balance| (count + 1, sum + balance));
        found = (count.to_string(), i64::to_string(&sum));
        let row = bank.database.sql(&sql).into_iter().next().context("a row")?;
        if row == [Some(found.0.clone()), Some(found.1.clone())] && device.complete > 0 {
            println!("{when}: the device equals the database, {} rows of one branch", found.0);
            return Ok(());
        }
    }
    anyhow::bail!(
        "{when}: the device has {} rows with the sum {}: {}",
        found.0,
        found.1,
        device.last
    )
}

fn note_peaks(bank: &Bank, peaks: &mut BTreeMap<&'static str, f64>) {
    for role in OURS {
        let peak = bank.fleet.running(role).map_or(0.0, |pid| memory_mb(pid, "VmHWM:"));
        let noted = peaks.entry(role).or_insert(0.0);
        *noted = noted.max(peak);
    }
}

/// pgbench at a fixed rate, until it is dropped.
struct Pgbench(Child);

impl Pgbench {
    fn start(url: &str) -> anyhow::Result<Pgbench> {
        let seconds = (2 * LIMIT).as_secs().to_string();
        let child = Command::new(postgres_bin().join("pgbench"))
            .args(["-n", "-c", "2", "-R", PGBENCH_RATE, "-T", &seconds, url])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Pgbench(child))
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
