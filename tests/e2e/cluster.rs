//! Exactly-once processing on three brokers while processes and brokers are killed in turn, one broker at a time.
//!
//! A Python client computes the expected output from the input and compares. `bench cluster` runs the same test for
//! minutes.

mod harness;
mod orders;
mod progress;

use harness::Harness;
use progress::RunPlan;
use std::time::Duration;

#[test]
fn exactly_once_while_processes_and_brokers_die() {
    let plan = RunPlan {
        time: Duration::from_secs(30),
        rounds: 1,
        kills: 4,
        orders: 40_000,
        rate: 2_000,
        epoch: 20_000,
    };
    let report = Harness::new().run(plan);
    eprintln!("{report:?}");
    for what in ["lost", "doubled", "made_up", "out_of_order", "open"] {
        assert_eq!(report.verdict[what], 0, "{what}: {report:?}");
    }
    assert_eq!(report.verdict["orders"], report.verdict["joined"], "{report:?}");
    assert_eq!(report.verdict["orders"], report.verdict["counted"], "{report:?}");
    assert_eq!(report.verdict["lost_orders"], 0, "{report:?}");
    assert!(report.orders >= plan.orders && report.kills >= 4, "{report:?}");
    assert!(report.broker_kills >= 3, "{report:?}");
    // Some kills must occur during open transactions.
    assert!(report.aborted >= 2, "{report:?}");
    assert_eq!(report.unfinished, Vec::<String>::new(), "{report:?}");
}
