//! Latency of single changes, from COMMIT to a device that long-polls.

use super::bank::{Bank, DEVICES};
use super::roles::Roles;
use crate::figures::Times;
use reqwest::{Client, StatusCode};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Duration of a measurement.
const SECONDS: u32 = 20;

/// When a device received the change with a given number.
type Seen = Arc<Mutex<HashMap<i64, Instant>>>;

/// Commits `a_second` transactions of one row per second and measures the time from the response to COMMIT until the
/// device has parsed the page.
pub fn one_at_a_time(bank: &Bank, a_second: u32, target: &str) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (seen, stop) = (Seen::default(), Arc::new(AtomicBool::new(false)));
    let devices: Vec<_> = DEVICES
        .map(|branch| {
            let token = bank.fleet.token("device", &[("branch", Value::from(branch))]);
            let url = format!("{}/v1/sync?device=phone", bank.fleet.edge("edge-1"));
            runtime.spawn(wait(url, token, seen.clone(), stop.clone()))
        })
        .collect();
    let count = i64::from(a_second * SECONDS);
    // Rows of earlier measurements have smaller numbers.
    let first = i64::from(a_second) * 1_000_000;
    let (roles, begun) = (Roles::look(bank), Instant::now());
    let mut answered = HashMap::new();
    bank.database.on_one_connection(|run| {
        let mut due = Instant::now();
        for (n, branch) in (first..first + count).zip(DEVICES.cycle()) {
            due += Duration::from_secs(1) / a_second;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            run(&format!(
                "INSERT INTO pgbench_history (tid, bid, aid, delta) VALUES (1, {branch}, 1, {n})"
            ));
            answered.insert(n, Instant::now());
        }
    });
    let took = begun.elapsed();
    std::thread::sleep(Duration::from_secs(1));
    let late = {
        let seen = seen.lock().expect("unpoisoned");
        let late = |(n, at): (&i64, &Instant)| Some(seen.get(n)?.saturating_duration_since(*at));
        Times::new(answered.iter().filter_map(late).collect())
    };
    println!(
        "{a_second} commits/s of one row (achieved: {:.0}/s), response to COMMIT → parsed by one of {} devices that \
         long-poll: {} of {count} received, p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, max {:.1?} (target: {target})",
        f64::from(a_second * SECONDS) / took.as_secs_f64(),
        DEVICES.count(),
        late.count(),
        late.at(500),
        late.at(900),
        late.at(990),
        late.longest(),
    );
    roles.print_share(bank, took);
    stop.store(true, Ordering::Relaxed);
    for device in devices {
        runtime.block_on(device)??;
    }
    Ok(())
}

/// Polls until `stop` is set and records when each change arrives.
async fn wait(url: String, token: String, seen: Seen, stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let (http, mut cursor) = (Client::new(), String::new());
    while !stop.load(Ordering::Relaxed) {
        let request = http.get(format!("{url}&wait=2&cursor={cursor}")).bearer_auth(&token);
        let response = request.send().await?.error_for_status()?;
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
