//! Nodes of the pipeline abort at every failpoint and restart. In the end, the devices must have the rows of the
//! database.
//!
//! The test waits for each abort and checks the signal, so the test fails if a failpoint is never reached.

use super::harness::Harness;
use crate::postgres::fault_injection::SNAPSHOT_DEATHS;
use crate::support::sql;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const ABORTED: i32 = 6;

/// Crashes under load: the node, the failpoint, and whether the node starts without data.
const CRASHES: [(&str, &str, bool); 27] = [
    ("connector", "connector.before_send=kill@5", false),
    ("connector", "connector.after_send=kill@5", false),
    ("connector", "connector.before_commit=kill@5", false),
    ("connector", "log.commit.before=kill@5", false),
    ("connector", "log.commit.after=kill@5", false),
    ("connector", "connector.after_commit=kill@5", false),
    ("connector", "connector.after_acknowledge=kill@5", false),
    ("processor", "streams.assigned=kill", false),
    ("processor", "streams.recovery.start=kill", false),
    ("processor", "streams.recovery.open=kill", false),
    ("processor", "streams.recovery.offsets=kill", false),
    ("processor", "streams.recovery.end=kill", false),
    ("processor", "streams.recovery.reached=kill", false),
    ("processor", "streams.restore.batch=kill@2", true),
    ("processor", "streams.commit.begin=kill@5", false),
    ("processor", "log.send.after=kill@5", false),
    ("processor", "streams.commit.sent=kill@5", false),
    ("processor", "log.offsets.before=kill@5", false),
    ("processor", "log.commit.before=kill@5", false),
    ("processor", "log.commit.after=kill@5", false),
    ("processor", "streams.commit.committed=kill@5", false),
    ("processor", "streams.commit.applied=kill@5", false),
    ("edge-1", "edge.before_apply=kill@5", false),
    ("edge-1", "edge.after_apply=kill@5", false),
    ("edge-1", "replica.before_commit=kill@5", false),
    ("edge-1", "replica.after_commit=kill@5", false),
    ("edge-1", "replica.after_commit=kill@3", true),
];

#[test]
fn devices_stay_consistent_after_failpoint_crashes() {
    let mut harness = Harness::new(2);
    harness.fleet.start("processor");
    harness.fleet.start("edge-1");
    harness.fleet.start("edge-2");
    harness.start_devices();
    // None of these connector processes completes the snapshot.
    for step in SNAPSHOT_DEATHS {
        harness.fleet.start_with("connector", step);
        expect_crash(&mut harness, "connector", step);
    }
    harness.fleet.start("connector");
    harness.fleet.wait_all_ready(LIMIT);
    harness.more_pages(1, LIMIT);
    let load = harness.load(&["-c", "2", "-R", "100", "-T", "900"]);
    for (node, step, from_nothing) in CRASHES {
        harness.fleet.kill(node);
        if from_nothing {
            harness.fleet.wipe(node);
        }
        harness.fleet.start_with(node, step);
        expect_crash(&mut harness, node, step);
        harness.fleet.start(node);
        harness.more_pages(1, LIMIT);
    }
    harness.fleet.kill("edge-1");
    // When the failpoint is reached for the second time, a part of the source transaction has already been made visible
    // and committed to the store.
    harness.fleet.start_with("edge-1", "replica.mid_apply=kill@2");
    sql(
        &harness.postgres.url(),
        "UPDATE pgbench_accounts SET filler = md5(aid::text)",
    );
    expect_crash(&mut harness, "edge-1", "replica.mid_apply=kill@2");
    harness.fleet.start("edge-1");
    harness.more_pages(1, LIMIT);
    drop(load);
    harness.compare(Duration::from_secs(120));
}

fn expect_crash(harness: &mut Harness, node: &str, step: &str) {
    let status = harness.fleet.died(node, LIMIT);
    assert_eq!(
        status.signal(),
        Some(ABORTED),
        "{node} did not end by the failpoint {step}: {status}"
    );
}
