//! PostgreSQL, Kafka and the registry stopped and started again under the line: every node that needs them says so,
//! goes on by itself, and the devices end as the database.
//!
//! Guarantees: no node is started again but the one that the registry's outage is about; a red `/readyz` names a cause
//! and a next step. Never: a password in either.

use super::harness::Harness;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
/// Whoever looks at a node knows after this time that Kafka is away, whatever the node is in the middle of.
const SOON: Duration = Duration::from_secs(15);
const LOAD: [&str; 6] = ["-c", "2", "-R", "100", "-T", "900"];
const ROLES: [&str; 4] = ["connector", "processor", "edge-1", "edge-2"];

#[test]
fn postgres_kafka_and_registry_outages_recover() {
    let mut harness = Harness::with_nodes(1, "\n[[node]]\nname = \"registry\"\nruns = [\"registry\"]\n");
    harness.fleet.start_all();
    harness.fleet.wait_all_ready(LIMIT);
    harness.start_devices();
    harness.more_pages(1, LIMIT);
    let lives = |harness: &Harness| ROLES.map(|node| harness.fleet.running(node));
    let first = lives(&harness);

    let load = harness.load(&LOAD);
    harness.more_pages(2, LIMIT);
    harness.postgres.kill();
    drop(load);
    let cause = "PostgreSQL at 127.0.0.1";
    harness.fleet.wait_red("connector", "connector bank", cause, LIMIT);
    // Devices are served on.
    harness.fleet.wait_ready("edge-1", LIMIT);
    harness.postgres.restart();
    harness.fleet.wait_all_ready(LIMIT);
    let load = harness.load(&LOAD);
    harness.more_pages(2, LIMIT);

    // A lone broker that is stopped in the middle of a transaction may forget parts of it (docs/adr/0005-restart-of-a-single-broker.md), which
    // nobody could mend; what is written while it is away is another matter.
    drop(load);
    harness.wait_quiet(LIMIT);
    harness.broker.stop();
    let load = harness.load(&LOAD);
    for node in ROLES {
        harness.fleet.wait_red(node, "log", "out of reach", SOON);
    }
    for (node, component) in [
        ("connector", "connector bank"),
        ("processor", "processor sync-views"),
        ("edge-1", "edge-replica"),
        ("edge-2", "edge-replica"),
    ] {
        harness.fleet.wait_red(node, component, "out of reach", LIMIT);
    }
    harness.broker.restart();
    harness.fleet.wait_all_ready(LIMIT);
    harness.more_pages(2, LIMIT);

    harness.fleet.kill("registry");
    // Who knows its schemas goes on without it.
    harness.more_pages(2, LIMIT);
    assert_eq!(lives(&harness), first, "a node was started again");
    for (node, component) in [("connector", "connector bank"), ("processor", "sync-views schemas")] {
        harness.fleet.kill(node);
        harness.fleet.start(node);
        harness
            .fleet
            .wait_red(node, component, "schema registry http://127.0.0.1", LIMIT);
    }
    let second = lives(&harness);
    harness.fleet.start("registry");
    harness.fleet.wait_all_ready(LIMIT);
    harness.more_pages(2, LIMIT);
    assert_eq!(lives(&harness), second, "a node was started again");
    drop(load);
    harness.compare(LIMIT);
}
