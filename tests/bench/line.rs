//! Benchmark of the pipeline from PostgreSQL over Kafka to devices that long-poll, with one process per role and the
//! default settings of a node.
//!
//! Broker, database, roles and devices share the cores of this machine. As a baseline, `pg_recvlogical` receives the same
//! changes and discards them.

pub mod bank;
pub mod devices;
pub mod roles;

use crate::figures::rate;
use crate::postgres::CompetingConsumer;
use bank::{Bank, LIMIT};
use roles::Roles;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Scale factor of `pgbench -i -s`.
const SCALE: usize = 5;
/// Row changes per pgbench transaction.
const CHANGES: usize = 4;

/// `line [THOUSAND ROWS|latency]`: the number of row changes in the backlog; `latency` measures only starts, snapshot
/// and latency.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let latency = words.first().is_some_and(|word| word == "latency");
    let thousands = words.first().filter(|_| !latency);
    let thousands: usize = thousands.map_or(Ok(1_000), |text| text.parse())?;
    println!("pgbench -i -s {SCALE}; separate processes: Kafka, PostgreSQL, connector, processor, edge");
    let mut bank = Bank::new(SCALE);
    starts(&mut bank, "first start, on an empty Kafka");
    snapshot(&mut bank);
    println!("20 s of warm-up for Kafka's JIT compiler:");
    devices::one_at_a_time(&bank, 100, "none, warm-up")?;
    devices::one_at_a_time(&bank, 200, "p50 15 ms, p99 50 ms")?;
    devices::one_at_a_time(&bank, 1_000, "p99 100 ms")?;
    if latency {
        return Ok(());
    }
    idle(&bank);
    backlog(&mut bank, thousands);
    full_speed(&mut bank);
    for role in roles::OURS {
        bank.fleet.stop(role, LIMIT);
    }
    starts(&mut bank, "start after SIGTERM, with existing state");
    for role in roles::OURS {
        bank.fleet.kill(role);
    }
    starts(&mut bank, "start after SIGKILL");
    Ok(())
}

/// Starts the roles in turn and prints the time until the `/readyz` of each returns 200.
fn starts(bank: &mut Bank, what: &str) {
    print!("{what}:");
    for role in roles::OURS {
        let begun = Instant::now();
        bank.fleet.start(role);
        bank.fleet.wait_ready(role, LIMIT);
        print!(" {role} {:.2} s", begun.elapsed().as_secs_f64());
    }
    println!(" until ready (target: < 1 s)");
}

fn snapshot(bank: &mut Bank) {
    let begun = Instant::now();
    bank.mark_and_wait();
    println!(
        "rest of the snapshot of {} rows: {:.1} s",
        SCALE * 100_000,
        begun.elapsed().as_secs_f64()
    );
}

/// CPU and memory of the roles without changes and polls.
fn idle(bank: &Bank) {
    let roles = Roles::look(bank);
    std::thread::sleep(Duration::from_secs(10));
    println!("10 s without changes and devices:");
    roles.print_share(bank, Duration::from_secs(10));
}

/// Time until the edge has applied a backlog of pgbench transactions.
fn backlog(bank: &mut Bank, thousands: usize) {
    bank.fleet.stop("connector", LIMIT);
    let baseline = CompetingConsumer::new(&bank.database);
    bank.trade(thousands * 1000 / CHANGES);
    let end = baseline.end();
    let past_the_end = "UPDATE pgbench_tellers SET tbalance = tbalance WHERE tid = 1";
    bank.database.sql(past_the_end);
    let alone = baseline.receive("trunkline_bank", &end);
    bank.mark();
    let (roles, begun) = (Roles::look(bank), Instant::now());
    bank.fleet.start("connector");
    bank.wait_for_mark();
    let (took, rows) = (begun.elapsed(), thousands * 1000);
    println!(
        "backlog: {rows} row changes in transactions of {CHANGES}, database → replica: {:.1} s = {:.0} rows/s (target: \
         40,000); pg_recvlogical, discarded: {:.0} rows/s",
        took.as_secs_f64(),
        rate(rows, took),
        rate(rows, alone),
    );
    roles.print_rows(bank, rows);
}

/// pgbench with four clients and no rate limit.
fn full_speed(bank: &mut Bank) {
    let (roles, begun) = (Roles::look(bank), Instant::now());
    let out = Command::new(crate::support::postgres_bin().join("pgbench"))
        .args(["-n", "-c", "4", "-T", "20", &bank.database.url])
        .stderr(Stdio::null())
        .output()
        .expect("pgbench runs");
    let text = String::from_utf8_lossy(&out.stdout);
    let tps = text.lines().find(|line| line.starts_with("tps")).unwrap_or_default();
    let behind = Instant::now();
    bank.mark_and_wait();
    println!(
        "pgbench -c 4 -T 20, no rate limit: {tps}; the replica has the last transaction {:.1} s after the end",
        behind.elapsed().as_secs_f64()
    );
    roles.print_share(bank, begun.elapsed());
}
