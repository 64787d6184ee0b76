//! Exactly-once processing on three brokers while processes and brokers are killed in turn, one broker at a time.
//!
//! A Python client computes the expected output from the input and compares. `bench cluster` runs the same for minutes.

mod harness;
mod orders;
mod progress;

use harness::Harness;
use progress::Play;
use std::time::Duration;

#[test]
fn exactly_once_while_processes_and_brokers_die() {
    let play = Play {
        time: Duration::from_secs(30),
        rounds: 1,
        kills: 4,
        orders: 40_000,
        rate: 2_000,
        epoch: 20_000,
    };
    let played = Harness::new().play(play);
    eprintln!("{played:?}");
    for what in ["lost", "doubled", "made_up", "out_of_order", "open"] {
        assert_eq!(played.verdict[what], 0, "{what}: {played:?}");
    }
    assert_eq!(played.verdict["orders"], played.verdict["joined"], "{played:?}");
    assert_eq!(played.verdict["orders"], played.verdict["counted"], "{played:?}");
    assert_eq!(played.verdict["lost_orders"], 0, "{played:?}");
    assert!(played.orders >= play.orders && played.kills >= 4, "{played:?}");
    assert!(played.broker_kills >= 3, "{played:?}");
    // Some kills must hit open transactions.
    assert!(played.aborted >= 2, "{played:?}");
    assert_eq!(played.unfinished, Vec::<String>::new(), "{played:?}");
}
