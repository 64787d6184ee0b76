//! Tests of the states of connectors.

use super::*;
use connectors::status::TableReport;
use service::Readiness;

fn report(state: State, target: Target) -> Report {
    let handle = Handle::new("shop", Readiness::new().register("connector shop"));
    Report {
        state,
        target,
        ..handle.report()
    }
}

#[test]
fn states_are_those_of_kafka_connect() {
    let running = Target::Running;
    for (state, target, expected) in [
        (State::Running, running, "RUNNING"),
        (State::Snapshotting, running, "RUNNING"),
        (State::Paused, Target::Paused, "PAUSED"),
        (State::Paused, Target::Stopped, "STOPPED"),
        (State::Retrying, running, "FAILED"),
        (State::Failed, running, "FAILED"),
        (State::NeedsResync, running, "FAILED"),
        (State::Starting, running, "UNASSIGNED"),
        (State::Stopped, running, "UNASSIGNED"),
    ] {
        assert_eq!(connect_state(&report(state, target)), expected, "{state:?}");
    }
}

#[test]
fn trace_has_exact_state_cause_and_fix_of_connector_and_tables() {
    assert_eq!(trace(&report(State::Running, Target::Running)), None);
    let table = TableReport {
        table: "orders".to_owned(),
        state: TableState::NeedsSnapshot,
        cause: Some("it was replaced".to_owned()),
        fix: Some("trunkline connect snapshot shop orders".to_owned()),
        progress: None,
    };
    let report = Report {
        cause: Some("slot s no longer exists".to_owned()),
        fix: Some("trunkline connect resync shop".to_owned()),
        tables: [table].into(),
        ..report(State::NeedsResync, Target::Running)
    };
    let expected = "NEEDS_RESYNC: slot s no longer exists; trunkline connect resync shop\n\
        table orders needs a snapshot: it was replaced; trunkline connect snapshot shop orders";
    assert_eq!(trace(&report).as_deref(), Some(expected));
}

#[test]
fn connector_that_does_not_run_here_is_named_with_those_that_do() {
    let connectors = RunningConnectors::default();
    assert_eq!(connectors.find("shop").unwrap_err().status, 503);
    let handle = Handle::new("shop", Readiness::new().register("connector shop"));
    connectors.set(vec![RunningConnector {
        name: "shop".to_owned(),
        handle,
        topic: "shop.change.shop".to_owned(),
        tables: vec!["orders".to_owned()],
        objects: None,
    }]);
    let problem = connectors.find("shopp").unwrap_err();
    assert_eq!(
        (problem.status.as_u16(), &problem.members["error_code"]),
        (404, &json!(404))
    );
    assert!(problem.detail.unwrap().contains("running here: shop"));
    let info = connectors.find("shop").unwrap().info();
    assert_eq!(info["config"]["connector.class"], "http");
    assert_eq!(info["tasks"][0]["task"], 0);
}
