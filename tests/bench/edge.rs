//! Benchmark of the edge: throughput of applying records, CPU per idle poll, latency of a change over long polls.
//!
//! The edge and its clients share one process, so CPU figures include both sides.

#[path = "../e2e/edge/harness.rs"]
mod harness;

use crate::figures::Times;
use event_log::SharedEventLog;
use harness::{Harness, Line, RowChange, Running, memory_log};
use reqwest::Client;
use serde_json::Value;
use service::telemetry::usage;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const USERS: usize = 100;
const BATCH: usize = 1_000;

/// `edge [embedded|kafka] [ROWS]`.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    // A dedicated broker, because the name of the topic is fixed and other tests use the shared one.
    let mut broker = None;
    let log = match words.first().map_or("embedded", String::as_str) {
        "kafka" => {
            let broker = broker.insert(crate::support::Broker::start());
            event_log::kafka::KafkaLog::connect(event_log::kafka::Config::new(broker.bootstrap()))?
        }
        "embedded" => memory_log(),
        other => anyhow::bail!("unknown log {other}; use kafka or embedded"),
    };
    let rows: usize = words.get(1).map_or(Ok(300_000), |w| w.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(log, rows))
}

async fn measure(log: SharedEventLog, rows: usize) -> anyhow::Result<()> {
    println!("log: {}", log.description());
    let harness = Harness::over(log);
    let mut line = harness.writer();
    fill(&mut line, rows);
    let (began, before) = (Instant::now(), usage());
    let edge = harness.edge().await;
    edge.ready().await;
    let (took, after) = (began.elapsed().as_secs_f64(), usage());
    let (count, cpu) = (float(rows), after.cpu_s - before.cpu_s);
    println!(
        "apply: {rows} rows in {took:.2} s = {:.0} rows/s wall, {:.0} rows per CPU s (target: 25,000/s)",
        count / took,
        count / cpu
    );
    println!(
        "resident: {:.0} MB, including the log and the clients in this process (target: < 200 MB per role)",
        after.resident_bytes / 1e6
    );
    idle_polls(&harness, &edge).await?;
    long_polls(&harness, &edge, line).await?;
    edge.stop().await;
    Ok(())
}

fn float(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

fn fill(line: &mut Line, rows: usize) {
    let json = format!("{{\"id\":1,\"status\":\"paid\",\"note\":\"{}\"}}", "x".repeat(160));
    let names: Vec<String> = (0..USERS).map(|n| format!("user:{n}")).collect();
    for batch in 0..rows.div_ceil(BATCH) {
        let numbers = (batch * BATCH..rows.min((batch + 1) * BATCH)).zip(names.iter().cycle());
        let changes: Vec<RowChange<'_>> = numbers
            .map(|(n, name)| (name.as_str(), u32::try_from(n).unwrap_or_default(), Some(json.as_str())))
            .collect();
        line.commit(&changes);
    }
}

/// Polls until a page is complete and returns its cursor.
async fn cursor(http: &Client, edge: &Running, token: &str) -> anyhow::Result<String> {
    let mut cursor = String::new();
    loop {
        let page: Value = poll(http, edge, token, &cursor, "&limit=5000")
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        cursor = page["cursor"].as_str().unwrap_or_default().to_owned();
        if page["complete"] == true {
            return Ok(cursor);
        }
    }
}

fn poll(http: &Client, edge: &Running, token: &str, cursor: &str, more: &str) -> reqwest::RequestBuilder {
    let url = edge.url(&format!("/v1/sync?device=phone&cursor={cursor}{more}"));
    http.get(url).bearer_auth(token)
}

async fn idle_polls(harness: &Harness, edge: &Running) -> anyhow::Result<()> {
    let http = Client::new();
    let token = harness.token("1", &["user:1", "user:2"]);
    let cursor: Arc<str> = cursor(&http, edge, &token).await?.into();
    let (done, until) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs(5));
    let (began, before) = (Instant::now(), usage());
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (url, token) = (
            edge.url(&format!("/v1/sync?device=phone&cursor={cursor}")),
            token.clone(),
        );
        let (http, done) = (http.clone(), done.clone());
        clients.spawn(async move {
            while Instant::now() < until {
                let response = http.get(&url).bearer_auth(&token).send().await.expect("send a poll");
                assert_eq!(response.status(), 304);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    clients.join_all().await;
    let polls = float(usize::try_from(done.load(Ordering::Relaxed))?);
    let (wall, cpu) = (began.elapsed().as_secs_f64(), usage().cpu_s - before.cpu_s);
    println!(
        "idle polls: {:.0}/s, {:.0} µs CPU per poll, client and server",
        polls / wall,
        cpu / polls * 1e6
    );
    Ok(())
}

async fn long_polls(harness: &Harness, edge: &Running, mut line: Line) -> anyhow::Result<()> {
    let late: Arc<std::sync::Mutex<Vec<Duration>>> = Arc::default();
    let zero = Instant::now();
    let mut devices = tokio::task::JoinSet::new();
    let (ready, mut readies) = tokio::sync::mpsc::channel(USERS);
    for user in 0..USERS {
        let token = harness.token(&user.to_string(), &[&format!("user:{user}")]);
        let edge = Running {
            address: edge.address,
            tasks: edge.tasks.clone(),
            readiness: edge.readiness.clone(),
        };
        let (late, ready) = (late.clone(), ready.clone());
        devices.spawn(async move {
            let http = Client::new();
            let mut current = cursor(&http, &edge, &token).await.expect("first sync");
            ready.send(()).await.expect("the receiver is open");
            loop {
                let answer = poll(&http, &edge, &token, &current, "&wait=3")
                    .send()
                    .await
                    .expect("send a poll");
                if answer.status() == 304 {
                    return;
                }
                let page: Value = answer.json().await.expect("read a page");
                let now = zero.elapsed();
                for change in page["changes"].as_array().into_iter().flatten() {
                    let sent = change["row"]["sent_us"].as_u64().map(Duration::from_micros);
                    late.lock()
                        .expect("no panic")
                        .extend(sent.map(|sent| now.saturating_sub(sent)));
                }
                current = page["cursor"].as_str().expect("a page has a cursor").to_owned();
            }
        });
    }
    for _ in 0..USERS {
        readies.recv().await;
    }
    let before = usage();
    let began = Instant::now();
    let writing = tokio::task::spawn_blocking(move || {
        for n in 0..2_000_u32 {
            let due = began + Duration::from_millis(5) * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let bucket = format!("user:{}", usize::try_from(n).unwrap_or_default() % USERS);
            let row = format!("{{\"sent_us\":{}}}", zero.elapsed().as_micros());
            line.commit(&[(&bucket, 1_000_000 + n, Some(&row))]);
        }
    });
    writing.await?;
    let cpu = usage().cpu_s - before.cpu_s;
    devices.join_all().await;
    let late = late.lock().expect("no panic").clone();
    report_long_polls(late, cpu);
    Ok(())
}

/// Prints the latency of the changes and their CPU cost.
fn report_long_polls(late: Vec<Duration>, cpu_s: f64) {
    let late = Times::new(late);
    let ms = |per_mille| late.at(per_mille).as_secs_f64() * 1e3;
    println!(
        "long polls: {} changes at 200/s to {USERS} devices, written → parsed by the device: p50 {:.1} ms, p99 {:.1} ms \
         (target of the whole pipeline: 30 and 100 ms); {:.0} µs CPU per change, client and server",
        late.count(),
        ms(500),
        ms(990),
        cpu_s / float(late.count()) * 1e6,
    );
}
