//! The whole line, a process a role: PostgreSQL, connector, Kafka, processor, Kafka, edge, and devices that long-poll.
//!
//! Guarantees: broker, database, roles and devices share this machine's cores, as the figures say; `pg_recvlogical`
//! throws the same changes away beside it. Never: settings that a node would not run with.

mod bank;
mod devices;
mod roles;

use crate::figures::rate;
use crate::postgres::CompetingConsumer;
use bank::Bank;
use roles::Roles;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(600);
/// What `pgbench -i -s` makes.
const SCALE: usize = 5;
/// Row changes a transaction of pgbench's.
const CHANGES: usize = 4;

/// All of it: `line [THOUSAND ROWS]`, the rows of the backlog; with `latency` no backlog and what comes after it.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let latency = words.first().is_some_and(|word| word == "latency");
    let thousands = words.first().filter(|_| !latency);
    let thousands: usize = thousands.map_or(Ok(1_000), |text| text.parse())?;
    println!("pgbench -i -s {SCALE}; a process each: Kafka, PostgreSQL, connector, processor, edge");
    let mut bank = Bank::new(SCALE);
    starts(&mut bank, "first start, on an empty Kafka");
    snapshot(&mut bank);
    println!("20 s that nobody counts, until Kafka's virtual machine has compiled what it needs:");
    devices::one_at_a_time(&bank, 100, "nothing")?;
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
    starts(&mut bank, "start after SIGTERM, on what is there");
    for role in roles::OURS {
        bank.fleet.kill(role);
    }
    starts(&mut bank, "start after kill -9");
    Ok(())
}

/// Starts the roles one after the other and says how long each takes until its `/readyz` is green.
fn starts(bank: &mut Bank, what: &str) {
    print!("{what}:");
    for role in roles::OURS {
        let begun = Instant::now();
        bank.fleet.start(role);
        bank.fleet.wait_ready(role, LIMIT);
        print!(" {role} {:.2} s", begun.elapsed().as_secs_f64());
    }
    println!(" until /readyz is green (asked for: < 1 s)");
}

fn snapshot(bank: &mut Bank) {
    let begun = Instant::now();
    bank.mark_and_wait();
    println!(
        "the snapshot's rest, {} rows: {:.1} s",
        SCALE * 100_000,
        begun.elapsed().as_secs_f64()
    );
}

/// What the roles use while nothing changes and nobody asks.
fn idle(bank: &Bank) {
    let roles = Roles::look(bank);
    std::thread::sleep(Duration::from_secs(10));
    println!("10 s with no change and no device:");
    roles.print_share(bank, Duration::from_secs(10));
}

/// A backlog of pgbench's transactions that the whole line catches up with.
fn backlog(bank: &mut Bank, thousands: usize) {
    bank.fleet.stop("connector", LIMIT);
    let rival = CompetingConsumer::new(&bank.database);
    bank.trade(thousands * 1000 / CHANGES);
    let end = rival.end();
    let past_the_end = "UPDATE pgbench_tellers SET tbalance = tbalance WHERE tid = 1";
    bank.database.sql(past_the_end);
    let alone = rival.receive("trunkline_bank", &end);
    bank.mark();
    let (roles, begun) = (Roles::look(bank), Instant::now());
    bank.fleet.start("connector");
    bank.wait_for_mark();
    let (took, rows) = (begun.elapsed(), thousands * 1000);
    println!(
        "backlog: {rows} row changes in transactions of {CHANGES}, database -> edge's store: {:.1} s = {:.0} rows/s (asked \
         for: 40,000); pg_recvlogical, thrown away: {:.0} rows/s",
        took.as_secs_f64(),
        rate(rows, took),
        rate(rows, alone),
    );
    roles.print_rows(bank, rows);
}

/// pgbench with four clients and no rate limit, devices at their long polls.
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
        "pgbench -c 4 -T 20, no rate limit: {tps}; the edge's store has the last of it {:.1} s after its end",
        behind.elapsed().as_secs_f64()
    );
    roles.print_share(bank, begun.elapsed());
}
