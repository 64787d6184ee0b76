//! PostgreSQL, Kafka and the registry stopped and started again under the line: every node that needs them says so,
//! goes on by itself, and the devices end as the database.
//!
//! Guarantees: no node is started again but the one that the registry's outage is about; a red `/readyz` names a cause
//! and a next step. Never: a password in either.

use super::stage::Stage;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
/// Whoever looks at a node knows after this time that Kafka is away, whatever the node is in the middle of.
const SOON: Duration = Duration::from_secs(15);
const LOAD: [&str; 6] = ["-c", "2", "-R", "100", "-T", "900"];
const ROLES: [&str; 4] = ["connector", "processor", "edge-1", "edge-2"];

#[test]
fn postgres_kafka_and_the_registry_may_stop_and_start_again() {
    let mut stage = Stage::with_nodes(1, "\n[[node]]\nname = \"registry\"\nruns = [\"registry\"]\n");
    stage.fleet.start_all();
    stage.fleet.wait_all_ready(LIMIT);
    stage.start_devices();
    stage.more_pages(1, LIMIT);
    let lives = |stage: &Stage| ROLES.map(|node| stage.fleet.running(node));
    let first = lives(&stage);

    let load = stage.load(&LOAD);
    stage.more_pages(2, LIMIT);
    stage.postgres.kill();
    drop(load);
    let cause = "PostgreSQL at 127.0.0.1";
    stage.fleet.wait_red("connector", "connector bank", cause, LIMIT);
    // Devices are served on.
    stage.fleet.wait_ready("edge-1", LIMIT);
    stage.postgres.restart();
    stage.fleet.wait_all_ready(LIMIT);
    let load = stage.load(&LOAD);
    stage.more_pages(2, LIMIT);

    // A lone broker that is stopped in the middle of a transaction may forget parts of it (docs/decisions/0005), which
    // nobody could mend; what is written while it is away is another matter.
    drop(load);
    stage.wait_quiet(LIMIT);
    stage.broker.stop();
    let load = stage.load(&LOAD);
    for node in ROLES {
        stage.fleet.wait_red(node, "log", "out of reach", SOON);
    }
    for (node, component) in [
        ("connector", "connector bank"),
        ("processor", "processor sync-views"),
        ("edge-1", "edge-replica"),
        ("edge-2", "edge-replica"),
    ] {
        stage.fleet.wait_red(node, component, "out of reach", LIMIT);
    }
    stage.broker.restart();
    stage.fleet.wait_all_ready(LIMIT);
    stage.more_pages(2, LIMIT);

    stage.fleet.kill("registry");
    // Who knows its schemas goes on without it.
    stage.more_pages(2, LIMIT);
    assert_eq!(lives(&stage), first, "a node was started again");
    for (node, component) in [("connector", "connector bank"), ("processor", "sync-views schemas")] {
        stage.fleet.kill(node);
        stage.fleet.start(node);
        stage
            .fleet
            .wait_red(node, component, "schema registry http://127.0.0.1", LIMIT);
    }
    let second = lives(&stage);
    stage.fleet.start("registry");
    stage.fleet.wait_all_ready(LIMIT);
    stage.more_pages(2, LIMIT);
    assert_eq!(lives(&stage), second, "a node was started again");
    drop(load);
    stage.compare(LIMIT);
}
