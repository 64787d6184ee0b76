//! Latency of single changes, from COMMIT to a device that long-polls.

use super::bank::{Bank, DEVICES};
use super::roles::Roles;
use crate::figures::Times;
use crate::postgres::harness::Database;
use crate::support::Fleet;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Duration of a measurement.
const SECONDS: u32 = 20;
/// How long changes may arrive after the last commit.
const LATE: Duration = Duration::from_secs(30);

/// Pause of a device after 503.
const RETRY: Duration = Duration::from_millis(50);

/// When a device received the change with a given number.
type Seen = Arc<Mutex<HashMap<i64, Instant>>>;

/// Commits `a_second` transactions of one row per second for a while and prints the latency.
pub fn one_at_a_time(bank: &Bank, a_second: u32, target: &str) -> anyhow::Result<()> {
    let count = i64::from(a_second * SECONDS);
    // Rows of earlier measurements have smaller numbers.
    let rate = Rate {
        a_second,
        first: i64::from(a_second) * 1_000_000,
    };
    let (roles, begun) = (Roles::look(bank), Instant::now());
    let devices = Devices::new(&bank.fleet, DEVICES);
    let Measured { times, sent, took } = devices.measure(&bank.database, rate, |sent| sent < count)?;
    println!(
        "{a_second} commits/s of one row (achieved: {:.0}/s), response to COMMIT → parsed by one of {} devices that \
         long-poll: {} of {sent} received, p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, max {:.1?} (target: {target})",
        f64::from(a_second * SECONDS) / took.as_secs_f64(),
        DEVICES.count(),
        times.count(),
        times.at(500),
        times.at(900),
        times.at(990),
        times.longest(),
    );
    roles.print_share(bank, begun.elapsed());
    Ok(())
}

/// Changes to commit: how many a second, and the number of the first.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub a_second: u32,
    pub first: i64,
}

/// Result of a measurement.
pub struct Measured {
    /// From the response to COMMIT until a device has parsed the page, of the changes that were received.
    pub times: Times,
    /// Number of committed changes.
    pub sent: i64,
    pub took: Duration,
}

/// Devices that long-poll, one for each branch.
pub struct Devices {
    edge: String,
    branches: RangeInclusive<i64>,
    tokens: Vec<String>,
}

impl Devices {
    pub fn new(fleet: &Fleet, branches: RangeInclusive<i64>) -> Devices {
        let token = |branch| fleet.token("device", &[("branch", Value::from(branch))]);
        Devices {
            edge: fleet.edge("edge-1"),
            tokens: branches.clone().map(token).collect(),
            branches,
        }
    }

    /// Commits transactions of one row while `more` returns true for the number of transactions so far.
    pub fn measure(&self, database: &Database, rate: Rate, more: impl Fn(i64) -> bool) -> anyhow::Result<Measured> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
        let url = format!("{}/v1/sync?device=phone", self.edge);
        let polls = self.tokens.iter().map(|token| {
            let poll = wait(url.clone(), token.clone(), seen.clone(), stop.clone());
            runtime.spawn(poll)
        });
        let polls: Vec<_> = polls.collect();
        let (begun, mut answered) = (Instant::now(), HashMap::new());
        let mut sent = 0;
        database.on_one_connection(|run| {
            let (mut due, mut branches) = (Instant::now(), self.branches.clone().cycle());
            while let Some(branch) = branches.next().filter(|_| more(sent)) {
                due += Duration::from_secs(1) / rate.a_second;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let number = rate.first + sent;
                run(&format!(
                    "INSERT INTO pgbench_history (tid, bid, aid, delta) VALUES (1, {branch}, 1, {number})"
                ));
                answered.insert(number, Instant::now());
                sent += 1;
            }
        });
        let took = begun.elapsed();
        let end = Instant::now() + LATE;
        while !answered
            .keys()
            .all(|number| seen.lock().expect("unpoisoned").contains_key(number))
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(100));
        }
        let times = {
            let seen = seen.lock().expect("unpoisoned");
            let late = |(number, at): (&i64, &Instant)| Some(seen.get(number)?.saturating_duration_since(*at));
            Times::new(answered.iter().filter_map(late).collect())
        };
        stop.store(true, Ordering::Relaxed);
        for poll in polls {
            runtime.block_on(poll)??;
        }
        Ok(Measured { times, sent, took })
    }
}

/// Polls until `stop` is set and records when each change arrives.
async fn wait(url: String, token: String, seen: Seen, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let (http, mut cursor) = (Client::new(), String::new());
    while !stop.load(Ordering::Relaxed) {
        let request = http.get(format!("{url}&wait=2&cursor={cursor}")).bearer_auth(&token);
        let response = request.send().await?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            // The partition applies a large transaction.
            tokio::time::sleep(RETRY).await;
            continue;
        }
        let response = response.error_for_status()?;
        if response.status() == StatusCode::NOT_MODIFIED {
            continue;
        }
        let page: Value = response.json().await?;
        let now = Instant::now();
        let changes = page["changes"].as_array().into_iter().flatten();
        let numbers = changes.filter_map(|change| change["row"]["delta"].as_i64());
        seen.lock().expect("unpoisoned").extend(numbers.map(|n| (n, now)));
        page["cursor"].as_str().unwrap_or_default().clone_into(&mut cursor);
    }
    Ok(())
}
