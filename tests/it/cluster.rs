//! The runtime on three brokers, while its processes and the brokers die in turn: nothing lost, doubled or made up.
//!
//! Guarantees: the verifier is a client in another language, and computes what must come out from the input alone.
//! Never: two brokers down at a time. `load cluster` plays the same for minutes.

mod child;
mod stage;

use stage::{Play, Seat, Stage};
use std::process::Command;
use std::time::Duration;

#[test]
fn processes_and_brokers_that_are_killed_in_turn_lose_double_and_make_up_nothing() {
    let play = Play {
        time: Duration::from_secs(45),
        rounds: 1,
        orders: 50_000,
        rate: 2_000,
        epoch: 30_000,
    };
    let again = |seat: &Seat| {
        let mut command = Command::new(std::env::current_exe().expect("know this binary"));
        command
            .args([
                "--exact",
                "cluster::child_runs_a_seat",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(child::SEAT, serde_json::to_string(seat).expect("plain values"));
        command
    };
    let played = Stage::new().play(play, &again);
    eprintln!("{played:?}");
    for what in ["lost", "doubled", "made_up", "out_of_order", "open"] {
        assert_eq!(played.verdict[what], 0, "{what}: {played:?}");
    }
    assert_eq!(played.verdict["orders"], played.verdict["joined"], "{played:?}");
    assert_eq!(played.verdict["orders"], played.verdict["counts"], "{played:?}");
    assert_eq!(played.verdict["lost_orders"], 0, "{played:?}");
    assert!(played.orders >= play.orders && played.kills >= 3, "{played:?}");
    assert!(played.broker_kills >= 3, "{played:?}");
    // Deaths are meant to be inside open transactions.
    assert!(played.aborted >= 3, "{played:?}");
    assert_eq!(played.unfinished, Vec::<String>::new(), "{played:?}");
}

/// Not a test of its own: the body of a process. Without the variable it has nothing to do.
#[test]
fn child_runs_a_seat() {
    child::run();
}
