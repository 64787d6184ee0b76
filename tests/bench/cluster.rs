//! A declared join and aggregate on three brokers, for minutes, while processes and brokers are killed in turn; then every
//! output is compared with what the input alone says that it must be.
//!
//! Guarantees: the same harness as the test of the same name; the verifier is a client in another language. Never: a figure
//! of speed, since what is measured is what is lost.

#[path = "../e2e/cluster/harness.rs"]
mod harness;
#[path = "../e2e/cluster/orders.rs"]
mod orders;

use harness::{Harness, Play};
use std::time::Duration;

/// Orders written at least, however few minutes.
const ORDERS: usize = 1_000_000;

/// Plays for so many minutes, 10 if it is not said.
pub fn run(words: &[String]) -> anyhow::Result<()> {
    let minutes: u64 = words.first().map_or(Ok(10), |word| word.parse())?;
    let play = Play {
        time: Duration::from_secs(minutes * 60),
        rounds: 1,
        kills: 1,
        orders: ORDERS,
        rate: 3_500,
        epoch: 100_000,
    };
    let played = Harness::new().play(play);
    println!("three brokers, two processes with three stream threads of each processor, {minutes} min at least");
    println!(
        "  {} orders; processes killed {} times, brokers {}; {} transactions aborted at least",
        played.orders, played.kills, played.broker_kills, played.aborted
    );
    let unfinished = if played.unfinished.is_empty() {
        "none".to_owned()
    } else {
        played.unfinished.join("; ")
    };
    println!("  transactions unfinished or hanging at the end: {unfinished}");
    println!("  {}", played.verdict);
    Ok(())
}
