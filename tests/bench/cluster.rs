//! Long run of the `cluster` end-to-end test: a declarative join and aggregate on three brokers, while processes and
//! brokers are killed in turn. A Python client then computes the expected output from the input and counts lost,
//! duplicate and unexpected records. No throughput is measured.

#[path = "../e2e/cluster/harness.rs"]
mod harness;
#[path = "../e2e/cluster/orders.rs"]
mod orders;
#[path = "../e2e/cluster/progress.rs"]
mod progress;

use harness::Harness;
use progress::RunPlan;
use std::time::Duration;

/// Minimum number of orders, regardless of the duration.
const ORDERS: usize = 1_000_000;

/// Runs for the given number of minutes, by default 10.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let minutes: u64 = words.first().map_or(Ok(10), |word| word.parse())?;
    let plan = RunPlan {
        time: Duration::from_secs(minutes * 60),
        rounds: 1,
        kills: 1,
        orders: ORDERS,
        rate: 3_500,
        epoch: 100_000,
    };
    let report = Harness::new().run(plan);
    println!("three brokers, two processes with three stream threads per processor, at least {minutes} min");
    println!(
        "  {} orders; {} kills of processes, {} of brokers; at least {} transactions aborted",
        report.orders, report.kills, report.broker_kills, report.aborted
    );
    let unfinished = if report.unfinished.is_empty() {
        "none".to_owned()
    } else {
        report.unfinished.join("; ")
    };
    println!("  unfinished or hanging transactions at the end: {unfinished}");
    println!("  {}", report.verdict);
    Ok(())
}
