//! Outages of PostgreSQL, Kafka and the registry: every node that depends on them reports the cause and a command in
//! `/readyz` and recovers without a restart, and in the end the devices have the rows of the database.

use super::harness::Harness;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
/// Time within which `/readyz` must report a Kafka outage, regardless of what the node is doing.
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
    let pids = |harness: &Harness| ROLES.map(|node| harness.fleet.running(node));
    let first = pids(&harness);

    let load = harness.load(&LOAD);
    harness.more_pages(2, LIMIT);
    harness.postgres.kill();
    drop(load);
    let cause = "PostgreSQL at 127.0.0.1";
    harness.fleet.wait_red("connector", "connector bank", cause, LIMIT);
    // The edge still serves devices.
    harness.fleet.wait_ready("edge-1", LIMIT);
    harness.postgres.restart();
    harness.fleet.wait_all_ready(LIMIT);
    let load = harness.load(&LOAD);
    harness.more_pages(2, LIMIT);

    // A single broker that is stopped during a transaction may lose parts of it, and no client can correct that
    // (docs/adr/0005-restart-of-a-single-broker.md). So the load starts when the broker is already down.
    drop(load);
    harness.wait_quiet(LIMIT);
    harness.broker.stop();
    let load = harness.load(&LOAD);
    for node in ROLES {
        harness.fleet.wait_red(node, "log", "unreachable", SOON);
    }
    for (node, component) in [
        ("connector", "connector bank"),
        ("processor", "processor pgbench.sync-views.change.bank"),
        ("edge-1", "edge-replica"),
        ("edge-2", "edge-replica"),
    ] {
        harness.fleet.wait_red(node, component, "unreachable", LIMIT);
    }
    harness.broker.restart();
    harness.fleet.wait_all_ready(LIMIT);
    harness.more_pages(2, LIMIT);

    harness.fleet.kill("registry");
    // Nodes that have loaded their schemas work without the registry.
    harness.more_pages(2, LIMIT);
    assert_eq!(pids(&harness), first, "a node was restarted");
    for (node, component) in [("connector", "connector bank"), ("processor", "sync-views schemas")] {
        harness.fleet.kill(node);
        harness.fleet.start(node);
        harness
            .fleet
            .wait_red(node, component, "schema registry http://127.0.0.1", LIMIT);
    }
    let second = pids(&harness);
    harness.fleet.start("registry");
    harness.fleet.wait_all_ready(LIMIT);
    harness.more_pages(2, LIMIT);
    assert_eq!(pids(&harness), second, "a node was restarted");
    drop(load);
    harness.compare(LIMIT);
}
